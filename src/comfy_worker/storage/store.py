"""
What every object store can do. One file per store stands beside this one; nothing else knows which one it talks to.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Told = Callable[[str, str, int, float], None]
"""(URL, local path or "", bytes, seconds) of a file that was handed over. Returns at once."""


class Store(Protocol):
    """
    A place for finished files that hands out URLs.
    """

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> str:
        """
        Store `content` under `key` and return a URL to fetch it by.

        `check` is called again and again while the content is sent; what it raises ends the upload.

        Raises:
            DeliveryFailed: the store refused the file, or did not answer, after retries; the text is the reason only.
        """
        ...


class Telling:
    """
    A store that tells of every file it took.
    """

    def __init__(self, store: Store, told: Told) -> None:
        self._store = store
        self._told = told

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> str:
        """
        Store `content` as the store behind does.
        """
        began = time.monotonic()
        url = self._store.put(key, content, mime, check)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        path = "" if isinstance(content, bytes) else str(content)
        self._told(url, path, size, round(time.monotonic() - began, 3))
        return url
