"""
What the files of the cache are called, and what their sidecars say.
"""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import orjson

from comfy_worker import kinds
from comfy_worker.fetch import Item
from comfy_worker.fetch_file import Fetched

META = ".meta"
KEY_CHARS = 32
LONGEST_EXTENSION = 15


def key_of(url: str) -> str:
    """
    Return the part of a cache file's name that is made of its URL.
    """
    digest = hashlib.sha256(url.encode(errors="replace")).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")[:KEY_CHARS]


def extension_of(url: str, fetched: Fetched) -> str:
    """
    Return the extension of a cached file, with its dot: by the URL's path, the reply's file name, its type, its first bytes.
    """
    own = PurePosixPath(urlsplit(url).path).suffix
    if own:
        return own
    named = PurePosixPath(fetched.name).suffix
    if 1 < len(named) <= LONGEST_EXTENSION:
        return named
    found = kinds.extension_of(fetched.mime or "") or _by_head(fetched.path)
    return f".{found}" if found else ""


def _by_head(path: Path) -> str | None:
    with path.open("rb") as stream:
        head = stream.read(kinds.HEAD_BYTES)
    # The format's own start: the length of a JSON header, then the header.
    if len(head) > 8 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    return kinds.extension_by_bytes(head)


def meta_of(path: Path) -> dict[str, Any]:
    """
    Return what the sidecar of a file says, empty when it has none.
    """
    try:
        found = orjson.loads(path.with_name(path.name + META).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_meta(path: Path, item: Item) -> None:
    """
    Write the sidecar of a file.
    """
    facts = {
        "authRequired": item.auth is not None,
        "url": item.url,
        "cachedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    path.with_name(path.name + META).write_bytes(orjson.dumps(facts))
