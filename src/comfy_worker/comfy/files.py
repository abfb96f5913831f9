"""
ComfyUI's folders, as the worker reaches them: on a shared disk, or over HTTP.

One small interface for both; stage and collect do not know which they were given.
"""

import logging
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from comfy_worker.collect import inside
from comfy_worker.comfy.cached import CACHED, SAFE_SUFFIX, is_cached
from comfy_worker.comfy.client import Client
from comfy_worker.errors import ComfyUnavailable, InputUnavailable, JobFailed

logger = logging.getLogger(__name__)

PRUNE_EVERY_S = 60.0
PRUNE_EVERY = 100
MOST_UNUSED = 500
"""Unused inputs that are kept at most, however small: a folder of a million files slows every look into it."""


class ComfyFiles(Protocol):
    """
    Where inputs go and outputs come from.
    """

    def place(self, name: str, source: Path) -> str:
        """
        Make `source` readable for nodes under `name`; return the name to use. `source` may be moved away.
        """

    def release(self, name: str) -> None:
        """
        Say that one job no longer uses the name `place` returned.
        """

    def locate(self, type_: str, subfolder: str, filename: str, scratch: Path) -> Path | None:
        """
        Return a path to read an output from, None when ComfyUI no longer has it. `scratch` is a folder of the job.
        """

    def clear(self, folder: str) -> None:
        """
        Remove the output folder of one run.
        """

    def spare(self) -> int:
        """
        Remove what is kept for speed only; return how many files.
        """


class SharedFiles:
    """
    ComfyUI's folders on this disk. Writes are atomic, every path is checked to lie inside its folder.

    Unused inputs stay, so that ComfyUI's cache stays warm, until they are older than `max_age_s` or all together
    larger than `max_bytes`. When the disk is full, `spare` removes those that nobody touched for `spare_age_s`.
    `clock` gives epoch seconds.
    """

    def __init__(
        self,
        input_: Path,
        output: Path,
        temp: Path | None,
        *,
        max_bytes: float = 4e9,
        max_age_s: float = 86_400.0,
        spare_age_s: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folders = {"input": input_, "output": output, **({"temp": temp} if temp else {})}
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._spare_age_s = spare_age_s
        self._lock = threading.Lock()
        self._in_use: Counter[str] = Counter()
        self._clock = clock
        self._pruned = clock()
        self._released = 0
        self._set_aside: dict[str, Path] = {}

    def place(self, name: str, source: Path) -> str:
        """
        Move `source` into the input folder unless a cached file of that name is there.

        A file that has a plain name already is put aside until `release`.

        Raises:
            InputUnavailable: the name leads out of the folder, or something else is in its way.
        """
        with self._lock:
            self._in_use[name] += 1
            is_first = self._in_use[name] == 1
        try:
            self._put(name, source, is_first)
        except BaseException:
            self._count_down(name)
            raise
        return name

    def _put(self, name: str, source: Path, is_first: bool) -> None:
        target = inside(self._folders["input"], "", name)
        if target is None or target.is_dir():
            raise InputUnavailable(f"Error uploading {name}: ComfyUI's input folder cannot hold this name")
        if is_cached(name) and target.exists():
            os.utime(target)
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as exc:
            raise InputUnavailable(f"Error uploading {name}: a file has the name of its folder") from exc
        partial = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            # A copy, not a link: ComfyUI 0.27 refuses links that lead out of its folder.
            shutil.move(source, partial)
            if is_first and target.exists() and not is_cached(name):
                self._set_aside[name] = target.rename(target.with_name(f".{uuid.uuid4().hex}.aside"))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def release(self, name: str) -> None:
        """
        Count one user of an input less; a plain name that nobody uses is removed at once, a cached one by `prune`.
        """
        if self._count_down(name) and not is_cached(name):
            self._remove(name)
        now = self._clock()
        with self._lock:
            self._released += 1
            due = now - self._pruned >= PRUNE_EVERY_S or self._released >= PRUNE_EVERY
            if due:
                self._pruned, self._released = now, 0
        if due:
            self.prune(now)

    def _count_down(self, name: str) -> bool:
        with self._lock:
            self._in_use[name] -= 1
            unused = self._in_use[name] <= 0
            if unused:
                del self._in_use[name]
        return unused

    def _remove(self, name: str) -> None:
        path = self._folders["input"] / name
        before = self._set_aside.pop(name, None)
        try:
            if before is not None:
                before.replace(path)
                return
            path.unlink(missing_ok=True)
        except OSError as exc:
            logger.warning("An input file could not be removed: %s", type(exc).__name__)
            return
        self._drop_empty_parents(name)

    def _drop_empty_parents(self, name: str) -> None:
        for parent in list(Path(name).parents)[:-1]:
            try:
                (self._folders["input"] / parent).rmdir()
            except OSError:
                return

    def locate(self, type_: str, subfolder: str, filename: str, scratch: Path) -> Path | None:  # noqa: ARG002
        """
        Return the path of an output, None when it is gone or would lie outside its folder.
        """
        folder = self._folders.get(type_)
        path = inside(folder, subfolder, filename) if folder else None
        try:
            return path if path is not None and path.is_file() else None
        except OSError:  # a name that is too long
            return None

    def clear(self, folder: str) -> None:
        """
        Remove the output folder of one run, in every place where nodes may have saved.
        """
        for name in ("output", "temp"):
            root = self._folders.get(name)
            if root is not None:
                shutil.rmtree(root / folder, ignore_errors=True)

    def spare(self) -> int:
        """
        Remove every unused cached input of some age, to make room on the disk; return how many.
        """
        return self._prune(self._clock(), self._spare_age_s, float("inf"))

    def prune(self, now: float) -> int:
        """
        Remove unused cached inputs that are too old or too many, oldest first; return how many. `now` in epoch seconds.
        """
        return self._prune(now, self._max_age_s, self._max_bytes)

    def _prune(self, now: float, max_age_s: float, max_bytes: float) -> int:
        found: list[tuple[float, int, Path]] = []
        for path in self._folders["input"].glob(f"{CACHED}*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        left, removed = sum(size for _, size, _ in found), 0
        for modified, size, path in sorted(found):
            is_crowded = len(found) - removed > MOST_UNUSED
            if now - modified <= max_age_s and left <= max_bytes and not is_crowded:
                break
            with self._lock:
                if self._in_use[path.name] > 0:
                    continue
                try:
                    path.unlink(missing_ok=True)
                except OSError as exc:
                    logger.warning("An input file could not be removed: %s", type(exc).__name__)
                    continue
            left, removed = left - size, removed + 1
        return removed


class RemoteFiles:
    """
    ComfyUI's folders over HTTP: /upload/image and /view. ComfyUI has no route to remove a file.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def place(self, name: str, source: Path) -> str:
        """
        Upload `source`; equal bytes under an equal name are stored once by ComfyUI itself, a plain name is overwritten.
        """
        return self._client.upload(name, source, overwrite=not is_cached(name))

    def release(self, name: str) -> None:
        """
        Leave the file: ComfyUI cannot remove it.
        """

    def locate(self, type_: str, subfolder: str, filename: str, scratch: Path) -> Path | None:
        """
        Download an output into `scratch`.
        """
        suffix = Path(filename).suffix.lower()
        target = scratch / f"{uuid.uuid4().hex}{suffix if SAFE_SUFFIX.fullmatch(suffix) else ''}"
        try:
            return target if self._client.view(filename, subfolder, type_, target) else None
        except OSError as exc:
            raise JobFailed("An output could not be saved: the worker's disk is full.") from exc

    def clear(self, folder: str) -> None:
        """
        Leave the folder: ComfyUI cannot remove it.
        """

    def spare(self) -> int:
        """
        Return 0: ComfyUI cannot remove a file.
        """
        return 0


def probe_shared(input_: Path, client: Client) -> bool:
    """
    Return whether ComfyUI sees this input folder, by a file that is put there and asked for over HTTP.
    """
    name = f"{CACHED}probe-{uuid.uuid4().hex}.txt"
    marker, echo = input_ / name, input_ / f".{name}.echo"
    try:
        marker.write_text("comfy-worker")
        return client.view(name, "", "input", echo)
    except ComfyUnavailable:
        return True  # not up yet: the operator's word counts
    except OSError as exc:
        logger.warning("COMFY_INPUT_DIR cannot be written: %s", type(exc).__name__)
        return False
    finally:
        marker.unlink(missing_ok=True)
        echo.unlink(missing_ok=True)
