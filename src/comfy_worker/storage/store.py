"""
What every object store can do. One file per store stands beside this one; nothing else knows which one it talks to.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol


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
