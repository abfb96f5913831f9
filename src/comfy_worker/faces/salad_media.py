"""
What a text in a graph stands for: a URL, base64, a path, or the name of a file that ComfyUI has. Pure but for looking
whether a path lies where it may.

The rules are those of SaladTechnologies/comfyui-api 1.18.0, with data URIs and names of files added.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from comfy_worker import graph, inline, kinds

PATH_LIMIT = 4096
TEXT_BYTES = 32
TEXT_SHARE = 0.7
NO_TYPE = "Failed to parse base64 encoded file: Could not determine file type from base64 data"

Sort = Literal["url", "base64", "path", "name", "unknown"]


def sort_of(value: str) -> Sort:
    """
    Say what a media value is. `unknown` is a text that can be neither decoded nor be the name of a file.
    """
    if value[:8].lower().startswith(graph.URL_SCHEMES):
        return "url"
    if value[:5].lower() == "data:":
        return "base64"
    # JPEG as base64 starts with a slash too.
    if value.startswith(("./", "../")) or (
        value.startswith("/")
        and len(value) < PATH_LIMIT
        and not value.endswith("==")
        and not _is_encoded(value)
    ):
        return "path"
    if len(value) < PATH_LIMIT and ("." in value or graph.split_annotation(value)[1]):
        return "name"
    return "base64" if _is_encoded(value) else "unknown"


def _is_encoded(value: str) -> bool:
    head = inline.head_of(value)
    return head is not None and extension_of(head) is not None


def extension_of(head: bytes) -> str | None:
    """
    Return the extension of a file by its first bytes: known formats, or text; None for anything else.
    """
    found = kinds.extension_by_bytes(head)
    if found is not None:
        return found
    start = head[:TEXT_BYTES]
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "txt" if start and printable / len(start) > TEXT_SHARE else None


def reachable(value: str, folders: Mapping[str, Path]) -> str | None:
    """
    Return the name that ComfyUI knows a path by (`a.png`, `b.png [output]`), None when it may not be read.

    `folders` are ComfyUI's own, by name; links are followed before the path is judged.
    """
    base = folders.get("input", Path())
    try:
        path = (base / value).resolve()
        for name, folder in folders.items():
            root = folder.resolve()
            if path != root and path.is_relative_to(root):
                suffix = "" if name == "input" else f" [{name}]"
                return f"{path.relative_to(root).as_posix()}{suffix}"
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        return None
    return None


def inside_roots(value: str, roots: Sequence[Path]) -> Path | None:
    """
    Return the file that an absolute path leads to, None when it is none of the files below `roots`, links followed.
    """
    try:
        path = Path(value)
        if not path.is_absolute():
            return None
        path = path.resolve()
        is_there = any(path.is_relative_to(root.resolve()) for root in roots) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        return None
    return path if is_there else None
