"""
History -> Artifacts: every file and text that the nodes of one prompt produced, of any kind and under any key.

Keys of `outputs` are irregular, so a key decides nothing but where text stands. What a node put there that is neither
a file nor a text stays in ComfyUI's record and is never an error.
Source: ComfyUI 0.27.0, the `outputs` object of /history/{prompt_id}.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from comfy_worker import kinds
from comfy_worker.job import Artifact, Kind

Locate = Callable[[str, str, str], Path | None]
"""(type, subfolder, filename) -> the checked path of that file, or None when it is gone."""

ONLY_TEMP = (
    "The workflow made temporary previews only. PreviewImage outputs are not kept: use SaveImage, "
    "or send `include_temp: true`."
)
_SUFFIXES = {" [output]": "output", " [input]": "input", " [temp]": "temp"}


@dataclass(frozen=True, slots=True)
class Collected:
    """
    What one prompt left: `missing` names files that history lists and the disk no longer has.

    `only_temp` says that there were previews and nothing else.
    """

    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    only_temp: bool = False
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    """
    A file that some entry of the outputs names, as ComfyUI names it.
    """

    node_id: str
    key: str
    filename: str
    subfolder: str
    type: str
    mime: str
    animated: bool


@dataclass(slots=True)
class _Basket:
    """
    What was found so far, and where to look files up.
    """

    locate: Locate
    job_folder: str
    include_temp: bool
    artifacts: list[Artifact] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    temp_left_out: bool = False


def collect(
    outputs: Mapping[str, Any],
    workflow: Mapping[str, Any],
    pictures: Sequence[tuple[str, str, bytes]],
    *,
    locate: Locate,
    job_folder: str,
    include_temp: bool,
) -> Collected:
    """
    Turn the outputs of a prompt into artifacts, in the order of the nodes in `workflow`.

    `outputs`: `{node_id: {key: [item, ...]}}`. `pictures`: (node_id, MIME type, bytes) of frames that came over the
    websocket only. `job_folder` is the folder that was put in front of every file name prefix; it is not shown.
    """
    basket = _Basket(locate, job_folder, include_temp)
    frames = _by_node(pictures)
    for node_id in _in_order({**outputs, **frames}, workflow):
        _add_node(basket, node_id, outputs.get(node_id))
        basket.artifacts.extend(_picture(node_id, *frame) for frame in frames.get(node_id, ()))
    only_temp = basket.temp_left_out and not basket.artifacts and not basket.missing
    warnings = [*basket.warnings, *([ONLY_TEMP] if only_temp else [])]
    return Collected(tuple(basket.artifacts), tuple(warnings), only_temp, tuple(basket.missing))


def inside(folder: Path, subfolder: str, filename: str) -> Path | None:
    """
    Return the resolved path of a file that lies inside `folder`, symbolic links followed, or None when it does not.

    The names come from ComfyUI's nodes and are not trusted. The file need not exist.
    """
    try:
        root = folder.resolve()
        path = (root / subfolder / filename).resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        return None
    return path if filename and path != root and path.is_relative_to(root) else None


def repaired(name: str) -> str:
    """
    Return `name` as text that UTF-8 can hold: what was no text in a file name becomes U+FFFD.
    """
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _by_node(pictures: Iterable[tuple[str, str, bytes]]) -> dict[str, list[tuple[int, str, bytes]]]:
    frames: dict[str, list[tuple[int, str, bytes]]] = {}
    for node_id, mime, data in pictures:
        own = frames.setdefault(node_id, [])
        own.append((len(own) + 1, mime, data))
    return frames


def _in_order(node_ids: Iterable[str], workflow: Mapping[str, Any]) -> list[str]:
    """
    Sort by the posted workflow. A node made at run time (`12.0.0.3`) stands where its parent (`12`) does.
    """
    place = {str(node_id): number for number, node_id in enumerate(workflow)}
    last = len(place)
    return sorted(node_ids, key=lambda name: place.get(name, place.get(name.partition(".")[0], last)))


def _add_node(basket: _Basket, node_id: str, output: Any) -> None:
    if not isinstance(output, Mapping):
        return
    animated = any(item is True for item in _items(output.get("animated")))
    for key, value in output.items():
        for item in _items(value):
            if isinstance(item, Mapping):
                _add_entry(basket, node_id, key, item, animated)
            elif isinstance(item, str):
                _add_string(basket, node_id, key, item)


def _items(value: Any) -> Iterator[Any]:
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, list | tuple):
            yield from item
        else:
            yield item


def _add_entry(basket: _Basket, node_id: str, key: str, item: Mapping[str, Any], animated: bool) -> None:
    filename = item.get("filename")
    if not isinstance(filename, str) or not filename:
        if "filename" in item or key == "images":
            basket.warnings.append(f"Skipping image in node {node_id} due to missing filename")
        return
    subfolder, type_, mime = item.get("subfolder"), item.get("type"), item.get("format")
    file = _File(
        node_id,
        key,
        filename,
        subfolder if isinstance(subfolder, str) else "",
        type_ if isinstance(type_, str) and type_ else "output",
        mime if isinstance(mime, str) else "",
        animated,
    )
    if _is_wanted(basket, file):
        path = basket.locate(file.type, file.subfolder, file.filename)
        if path is None or not _add_file(basket, file, path):
            basket.missing.append(_shown(basket, file))


def _add_string(basket: _Basket, node_id: str, key: str, text: str) -> None:
    if key == "text":
        basket.artifacts.append(_text(node_id, text))
        return
    path, type_ = text, ""
    for suffix, name in _SUFFIXES.items():
        if text.endswith(suffix):
            path, type_ = text.removesuffix(suffix), name
    if not type_ and kinds.extension(path) not in kinds.PATH_EXTENSIONS:
        return
    # Preview3D names a file in output and Preview3DAdvanced one in temp; neither says which.
    found = any(
        _add_path(basket, node_id, key, path, name) for name in ([type_] if type_ else ["output", "temp"])
    )
    if not found:
        basket.warnings.append(f"Node {node_id} names a file under '{key}' that was not found")


def _add_path(basket: _Basket, node_id: str, key: str, text: str, type_: str) -> bool:
    path = PurePosixPath(text)
    folder = "" if str(path.parent) == "." else str(path.parent)
    found = basket.locate(type_, folder, path.name) if path.name else None
    if found is None:
        return False
    file = _File(node_id, key, path.name, folder, type_, "", False)
    return not _is_wanted(basket, file) or _add_file(basket, file, found)


def _is_wanted(basket: _Basket, file: _File) -> bool:
    if file.type == "temp" and not basket.include_temp:
        basket.temp_left_out = True
        return False
    known = (file.type, file.subfolder, file.filename)
    is_new = known not in basket.seen
    basket.seen.add(known)
    return is_new


def _add_file(basket: _Basket, file: _File, path: Path) -> bool:
    try:
        size = path.stat().st_size
        mime, kind = _what(file, path)
    except OSError:
        return False
    basket.artifacts.append(
        Artifact(
            node_id=file.node_id,
            key=file.key,
            kind=kind,
            filename=repaired(file.filename),
            subfolder=repaired(_shown_folder(basket, file)),
            type=file.type,
            mime=mime,
            content=path,
            size_bytes=size,
            animated=file.animated and kind == "image",
        )
    )
    return True


def _what(file: _File, path: Path) -> tuple[str, Kind]:
    known = kinds.by_name(file.filename)
    # VideoHelperSuite's `format` is `video/h264-mp4`: right about the kind, no MIME type a browser knows.
    claimed = kinds.by_mime(file.mime)
    if known is None and claimed is None:
        with path.open("rb") as stream:
            return kinds.by_bytes(stream.read(kinds.HEAD_BYTES))
    mime, kind = known or (file.mime, claimed or "file")
    return mime, claimed or kind


def _shown(basket: _Basket, file: _File) -> str:
    folder = _shown_folder(basket, file)
    return repaired(f"{folder}/{file.filename}" if folder else file.filename)


def _shown_folder(basket: _Basket, file: _File) -> str:
    if not basket.job_folder:
        return file.subfolder
    # ComfyUI on Windows joins with a backslash.
    folder = file.subfolder.replace("\\", "/")
    if folder == basket.job_folder:
        return ""
    return folder.removeprefix(basket.job_folder + "/")


def _picture(node_id: str, number: int, mime: str, data: bytes) -> Artifact:
    # Ids of nodes inside a subgraph hold a colon.
    stem = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in repaired(node_id))
    return Artifact(
        node_id=node_id,
        key="images",
        kind=kinds.by_mime(mime) or "image",
        filename=f"{stem}_{number:05d}_.{kinds.extension_of(mime) or 'png'}",
        subfolder="",
        type="websocket",
        mime=mime,
        content=data,
        size_bytes=len(data),
    )


def _text(node_id: str, text: str) -> Artifact:
    content = repaired(text)
    return Artifact(
        node_id=node_id,
        key="text",
        kind="text",
        filename="",
        subfolder="",
        type="output",
        mime="text/plain",
        content=content,
        size_bytes=len(content.encode()),
    )
