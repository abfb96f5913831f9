"""
Files of URLs, kept on disk by the hash of the URL, the least recently used removed first.

Names, sidecars and rules are those of SaladTechnologies/comfyui-api 1.18.0, so that its cache volumes stay valid:
`base64url(sha256(url))[:32]` and an extension, beside it `<name>.meta` with `{"authRequired", "url", "cachedAt"}`.
"""

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from comfy_worker import parallel
from comfy_worker.cache_names import META, extension_of, key_of, meta_of, write_meta
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobFailed, WorkerError
from comfy_worker.fetch import Fetcher, Item
from comfy_worker.fetch_file import STAGE, ReadS3, shared

logger = logging.getLogger(__name__)

PARTIAL = ".download-"

Told = Callable[[Literal["file_downloaded", "file_deleted"], str | None, Path, int, float | None], None]
"""(what, URL, path, bytes, seconds). Returns at once."""


def _untold(*_: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Cached:
    """
    A file in the cache. `is_private` says that who asks for it must show credentials.
    """

    path: Path
    is_private: bool = False


class UrlCache:
    """
    One folder of cached files. Thread-safe: a URL that is being fetched is waited for, not fetched twice.

    `limit_bytes` 0 keeps everything. `evicted` hears of each path that was removed, before the file is gone.
    """

    def __init__(
        self,
        folder: Path,
        fetcher: Fetcher,
        *,
        limit_bytes: int = 0,
        told: Told = _untold,
        evicted: Callable[[Path], None] = lambda _: None,
        threads: int = 8,
    ) -> None:
        self._folder = folder
        self._fetcher = fetcher
        self._limit_bytes = limit_bytes
        self._told = told
        self._evicted = evicted
        self._threads = threads
        self._lock = threading.Condition()
        self._busy: set[str] = set()
        self._in_use: Counter[Path] = Counter()

    def fetch_all(
        self, items: Sequence[Item], deadline: Deadline, *, max_bytes: int, s3: ReadS3 | None = None
    ) -> dict[str, str]:
        """
        Have each item at its `to`, from the cache or from afar; return why not, by field, for those that failed.

        Raises:
            JobFailed: the worker's disk did not take a file.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        tasks = [partial(self._place, item, deadline, max_bytes, s3) for item in items]
        results = parallel.each(tasks, threads=self._threads, deadline=deadline, stage=STAGE)
        failures: dict[str, str] = {}
        for item, result in zip(items, results, strict=True):
            if isinstance(result, InputUnavailable):
                failures[item.field] = str(result)
            elif isinstance(result, WorkerError):
                raise result
        return failures

    def _place(self, item: Item, deadline: Deadline, max_bytes: int, s3: ReadS3 | None) -> None:
        path = self.obtain(item, deadline, max_bytes=max_bytes, s3=s3)
        try:
            shared(path, item.to)
        finally:
            self.release(path)

    def obtain(self, item: Item, deadline: Deadline, *, max_bytes: int, s3: ReadS3 | None = None) -> Path:
        """
        Return the cached file of a URL, fetched if need be; it stays at least until `release`. `item.to` is not used.

        Raises:
            InputUnavailable: it cannot be had, or these credentials do not open it.
            JobFailed: the disk did not take it.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        with self._turn(key_of(item.url), deadline):
            found = self._find(item.url)
            if found is None:
                path = self._download(item, deadline, max_bytes, s3)
            else:
                self._admit(found, item, deadline)
                path = found.path
                os.utime(path)
            with self._lock:
                self._in_use[path] += 1
        self._evict()
        return path

    def release(self, path: Path) -> None:
        """
        Say that a file which `obtain` returned is no longer needed by who asked.
        """
        with self._lock:
            self._in_use[path] -= 1
            if self._in_use[path] <= 0:
                del self._in_use[path]

    def start(self) -> None:
        """
        Make the folder, and bring what is in it under the limit.

        Raises:
            JobFailed: the folder cannot be made.
        """
        with _on_disk():
            self._folder.mkdir(parents=True, exist_ok=True)
        self._evict()

    @contextmanager
    def _turn(self, key: str, deadline: Deadline) -> Iterator[None]:
        while True:
            with self._lock:
                if key not in self._busy:
                    self._busy.add(key)
                    break
                self._lock.wait(min(0.25, deadline.left_s))
            deadline.check(STAGE)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(key)
                self._lock.notify_all()

    def _find(self, url: str) -> Cached | None:
        for path in self._folder.glob(f"{key_of(url)}*"):
            if path.suffix != META and path.is_file():
                return Cached(path, meta_of(path).get("authRequired") is True)
        return None

    def _admit(self, found: Cached, item: Item, deadline: Deadline) -> None:
        if not found.is_private:
            return
        if item.auth is None:
            raise InputUnavailable(f"Authentication required to access cached file for URL: {item.url}")
        try:
            if item.probe is not None:
                item.probe(item.url, partial(deadline.check, STAGE))
            else:
                self._fetcher.probe(item, deadline)
        except InputUnavailable as exc:
            raise InputUnavailable(f"Auth validation failed: {exc}") from exc

    def _download(self, item: Item, deadline: Deadline, max_bytes: int, s3: ReadS3 | None) -> Path:
        began = time.monotonic()
        with _on_disk():
            self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{PARTIAL}{uuid.uuid4().hex}.partial"
        try:
            fetched = self._fetcher.fetch_item(replace(item, to=part), deadline, max_bytes=max_bytes, s3=s3)
            target = self._folder / f"{key_of(item.url)}{extension_of(item.url, fetched)}"
            with _on_disk():
                part.replace(target)
                write_meta(target, item)
        finally:
            part.unlink(missing_ok=True)
        self._told(
            "file_downloaded", item.url, target, fetched.size_bytes, round(time.monotonic() - began, 3)
        )
        return target

    def _evict(self) -> None:
        """
        Remove files that nobody uses, the longest unused first, until the rest is under the limit.
        """
        if not self._limit_bytes:
            return
        with self._lock:
            found = sorted(self._files())
            total = sum(size for _, size, _ in found)
            for _, size, path in found:
                if total <= self._limit_bytes:
                    return
                if self._in_use[path] > 0:
                    continue
                total -= size
                self._remove(path, size)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("*"):
            try:
                stat = path.lstat()
            except OSError:
                continue
            if (
                path.is_file()
                and not path.is_symlink()
                and path.suffix != META
                and not path.name.startswith(".")
            ):
                yield max(stat.st_atime, stat.st_mtime), stat.st_size, path

    def _remove(self, path: Path, size: int) -> None:
        url = meta_of(path).get("url")
        self._evicted(path)
        try:
            path.unlink(missing_ok=True)
            path.with_name(path.name + META).unlink(missing_ok=True)
        except OSError as exc:
            logger.warning("A cached file could not be removed: %s", type(exc).__name__)
            return
        self._told("file_deleted", url if isinstance(url, str) else None, path, size, None)


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise JobFailed(
            "A file could not be put into the cache (CACHE_DIR): its disk is full or read-only."
        ) from exc
