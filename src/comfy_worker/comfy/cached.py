"""
Names of input files that are made of their content, so that what has such a name never changes.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from comfy_worker import graph, kinds
from comfy_worker.job import InputFile

CACHED = "cw-"
CACHED_NAME = re.compile(r"cw-[0-9a-f]{32}(\.[a-z0-9]{1,12})?")
SAFE_SUFFIX = re.compile(r"\.[a-z0-9]{1,12}")


def is_cached(name: str) -> bool:
    """
    Return whether this is such a name.
    """
    return CACHED_NAME.fullmatch(name) is not None


def cached_name(file: InputFile, source: Path) -> str:
    """
    Return the content-addressed name of a file: `cw-<hash><suffix>`, the suffix by its name, URL or first bytes.
    """
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return f"{CACHED}{digest.hexdigest()[:32]}{_suffix(file, source)}"


def _suffix(file: InputFile, source: Path) -> str:
    names = [unquote(urlsplit(file.url).path) if file.url else ""]
    if not graph.is_remote(file.name):
        names.insert(0, file.name)
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if SAFE_SUFFIX.fullmatch(suffix):
            return suffix
    with source.open("rb") as stream:
        mime, _ = kinds.by_bytes(stream.read(64))
    found = kinds.extension_of(mime)
    return f".{found}" if found else ""
