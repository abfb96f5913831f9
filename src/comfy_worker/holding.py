"""
What a job holds while it runs: files in ComfyUI's input folder, plain names that no other job may use meanwhile, and
models in the cache.
"""

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobFailed
from comfy_worker.job import InputFile


class PlainNames:
    """
    Plain file names in use: a second job with the same one waits until the first is over.
    """

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._freed = threading.Condition()

    def hold(self, name: str, deadline: Deadline) -> None:
        """
        Wait for the name, and take it.
        """
        while True:
            with self._freed:
                if name not in self._held:
                    self._held.add(name)
                    return
                self._freed.wait(min(0.25, deadline.left_s))
            deadline.check("staging")

    def release(self, name: str) -> None:
        """
        Let the next one have it.
        """
        with self._freed:
            self._held.discard(name)
            self._freed.notify_all()


class Held:
    """
    What one job holds: `names` in ComfyUI's input folder, and whatever else is to be let go of.
    """

    def __init__(self, files: ComfyFiles, plain: PlainNames) -> None:
        self._files = files
        self._plain = plain
        self._plain_names: list[str] = []
        self._kept: list[Callable[[], None]] = []
        self.names: list[str] = []

    def place(self, name: str, source: Path) -> str:
        """
        Put a file into the input folder; return the name to use.
        """
        with saving():
            placed = self._files.place(name, source)
        self.names.append(placed)
        return placed

    def keep(self, release: Callable[[], None]) -> None:
        """
        Call `release` at the end of the job.
        """
        self._kept.append(release)

    def hold(self, names: Iterable[str], deadline: Deadline) -> None:
        """
        Wait for plain names, and take them.
        """
        # In one order, or two jobs could each wait for what the other has.
        for name in sorted(names):
            self._plain.hold(name, deadline)
            self._plain_names.append(name)

    def release(self) -> None:
        """
        Let go of everything.
        """
        for release in self._kept:
            release()
        for name in self.names:
            self._files.release(name)
        for name in self._plain_names:
            self._plain.release(name)


@contextmanager
def saving() -> Iterator[None]:
    """
    Tell that an input could not be written to this machine's disk.
    """
    try:
        yield
    except OSError as exc:
        raise JobFailed(
            "An input could not be saved: the worker's disk is full or cannot be written to."
        ) from exc


def taken(file: InputFile, to: Path, max_bytes: int) -> None:
    """
    Copy a file of this disk, which its owner may change meanwhile.

    Raises:
        InputUnavailable: it is no file any more, or larger than `max_bytes`.
        JobFailed: the disk did not take the copy.
    """
    source = file.path or Path()
    if not source.is_file():
        raise InputUnavailable(f"Error uploading {file.name}: '{file.field}' is the path of no file")
    if source.stat().st_size > max_bytes:
        raise InputUnavailable(
            f"Error uploading {file.name}: '{file.field}' is larger than {max_bytes:,} bytes (INPUT_MAX_MB)"
        )
    with saving():
        shutil.copyfile(source, to)


def copied(source: Path) -> Path:
    """
    Return a copy of a file, beside it.
    """
    with saving():
        return Path(shutil.copyfile(source, source.with_name(f"{source.name}-copy")))
