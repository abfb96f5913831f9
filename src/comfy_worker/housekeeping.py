"""
A worker that stays for days: room on its disks before a job, memory after it, and what a crash left, removed at the start.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from comfy_worker import machine
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, DiskFull
from comfy_worker.graph import RUN_FOLDER
from comfy_worker.job import Job, Observer, Result
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

MEGABYTE = 1_000_000
FREE_S = 5.0
"""How long ComfyUI may take to give memory back; it does so between two prompts."""
PAUSE_S = 0.1
LOOK_EVERY_S = 1.0
TRIM_EVERY_S = 60.0
SCRATCH = "comfy-worker-"
OF_THE_WORKER = "comfy-worker-engine-"

Run = Callable[[Job, Deadline, Observer], Result]


class Keeper:
    """
    Stands around each job. `is_worn` says that this worker cannot make room any more and should be replaced.

    `folders` are where jobs write; `old_outputs` removes files of earlier jobs when nothing else makes room. `memory` gives the available bytes, `disk` the free ones of a folder's disk.
    """

    def __init__(
        self,
        files: ComfyFiles,
        client: Client,
        folders: Iterable[Path],
        *,
        least_disk_mb: float,
        least_memory_mb: float,
        old_outputs: Callable[[], int] | None = None,
        memory: Callable[[], int | None] = machine.available_memory,
        disk: Callable[[Path], tuple[int, int] | None] = machine.free_disk,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._files = files
        self._client = client
        self._folders = tuple(folders)
        self._least_disk = least_disk_mb * MEGABYTE
        self._least_memory = least_memory_mb * MEGABYTE
        self._old_outputs = old_outputs
        self._memory = memory
        self._disk = disk
        self._clock = clock
        self._sleep = sleep
        self._looked = -LOOK_EVERY_S
        self._trimmed = -TRIM_EVERY_S
        self.is_worn = False

    def around(self, run: Run) -> Run:
        """
        Return `run` with a look at the disks before it and at the memory after it.
        """

        def kept(job: Job, deadline: Deadline, observe: Observer) -> Result:
            self.make_room()
            try:
                return run(job, deadline, observe)
            finally:
                self.give_back()

        return kept

    def make_room(self) -> None:
        """
        See that the disks have room for a job: remove what can be spared, else refuse.

        Raises:
            DiskFull: there is too little all the same.
        """
        if self._free_disk() >= self._least_disk:
            return
        removed = self._files.spare()
        free = self._free_disk()
        logger.warning("The disk is almost full; %d unused input files were removed.", removed)
        if free < self._least_disk and self._old_outputs is not None:
            removed = self._old_outputs()
            free = self._free_disk()
            logger.warning("%d old output files were removed too.", removed)
        if free < self._least_disk:
            self.is_worn = True
            raise DiskFull(
                f"The worker's disk is almost full: {free / MEGABYTE:.0f} MB are free, and "
                f"{self._least_disk / MEGABYTE:g} MB must be (MIN_FREE_DISK_MB). Give the worker a larger disk, or "
                "remove files from its volume.",
                free_bytes=int(free),
                needed_bytes=int(self._least_disk),
            )

    def give_back(self) -> None:
        """
        See that memory is left for the next job: let ComfyUI free its own, else ask for another worker. Never raises.

        Small jobs in quick succession are looked after once a second: the look itself takes a part of a millisecond.
        """
        now = self._clock()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        if now - self._trimmed >= TRIM_EVERY_S:
            self._trimmed = now
            machine.trim()
        if self._has_memory():
            return
        logger.warning("Memory (RAM) is almost used up; ComfyUI is told to free its own.")
        try:
            self._client.free()
        except ComfyUnavailable as exc:
            logger.debug("ComfyUI could not be told to free memory: %s", exc)
        for _ in range(round(FREE_S / PAUSE_S)):
            if self._has_memory():
                return
            self._sleep(PAUSE_S)
        self.is_worn = True
        logger.error(
            "Less than %g MB of memory (RAM) are left (MIN_FREE_MEMORY_MB), so this worker asks to be replaced.",
            self._least_memory / MEGABYTE,
        )

    def _has_memory(self) -> bool:
        if not self._least_memory:
            return True
        left = self._memory()
        return left is None or left >= self._least_memory

    def _free_disk(self) -> float:
        if not self._least_disk:
            return float("inf")
        disks = dict(found for folder in self._folders if (found := self._disk(folder)) is not None)
        return min(disks.values(), default=float("inf"))


def prune_orphans(
    output_folders: Iterable[Path], age_s: float, *, scratch: Path | None = None, now: float | None = None
) -> int:
    """
    Remove what the jobs of a crashed worker left: run folders, half-moved inputs and scratch folders older than `age_s`.

    Younger ones may be a living worker's, on a shared volume. Returns how many; 0 seconds remove nothing.
    """
    if age_s <= 0:
        return 0
    oldest = (time.time() if now is None else now) - age_s
    found = [
        path
        for folder in output_folders
        for path in _listed(folder)
        if RUN_FOLDER.fullmatch(path.name) or (path.name.startswith(".") and path.name.endswith(".part"))
    ]
    found += [
        path
        for path in _listed(scratch or Path(tempfile.gettempdir()))
        if path.name.startswith(SCRATCH) and not path.name.startswith(OF_THE_WORKER)
    ]
    removed = [path for path in found if _is_older(path, oldest) and _remove(path)]
    if removed:
        logger.info("Removed %d leftovers of an earlier worker.", len(removed))
    return len(removed)


def old_outputs_of(config: Settings, outputs: Path | None) -> Callable[[], int] | None:
    """
    Return what removes the old files of an output folder, None where they are to stay.
    """
    if outputs is None or not config.old_outputs_age_s or config.keep_outputs or config.keep_local_outputs:
        return None
    return partial(spare_outputs, outputs, config.old_outputs_age_s)


def spare_outputs(folder: Path, age_s: float, *, now: float | None = None) -> int:
    """
    Remove the files below `folder` that are older than `age_s` seconds, and folders that are empty then; return how many
    files. No link is followed, and what holds no bytes stays.
    """
    oldest = (time.time() if now is None else now) - age_s
    removed = 0
    for place, _, names in os.walk(folder, topdown=False):
        gone = sum(_spare(Path(place, name), oldest) for name in names)
        removed += gone
        if gone and Path(place) != folder:
            with contextlib.suppress(OSError):  # something younger is in it
                os.rmdir(place)
    return removed


def _spare(path: Path, oldest: float) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()
        if found.st_size and found.st_mtime < oldest:
            path.unlink()
            return True
    return False


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_older(path: Path, oldest: float) -> bool:
    # The newest thing in it counts: a run that saves rarely changes its folder rarely.
    try:
        return max(item.lstat().st_mtime for item in (path, *path.rglob("*"))) < oldest
    except OSError:
        return False  # somebody is at work in it


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as exc:
        logger.warning("A leftover of an earlier worker could not be removed: %s", type(exc).__name__)
        return False
    return True
