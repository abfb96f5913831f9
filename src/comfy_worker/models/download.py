"""
Files of a plan become files on the disk: several at once, each by one worker only, checked before it has its name.

What went wrong is one `ModelUnavailable` that names every file it was about.
"""

import logging
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from comfy_worker import parallel
from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobTimedOut, ModelUnavailable, WorkerError
from comfy_worker.fetch_guard import Guard
from comfy_worker.models import plan, transfer
from comfy_worker.models.lines import Lines
from comfy_worker.models.lock import STALE_S, Hold, LockLost, held
from comfy_worker.models.plan import Item
from comfy_worker.models.tokens import Tokens

logger = logging.getLogger(__name__)

STAGE = "fetching models"
TRIES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
PAUSE_PIECE_S = 5.0
MARGIN = 1.05
PERCENT_STEP = 10

Outcome = Literal["fetched", "there", "linked", "by another"]
Cached = Callable[[Item], Path | None]


@dataclass(frozen=True, slots=True)
class Habits:
    """
    How a downloader goes about it. `verify` reads what is there already and compares checksums, not only sizes.
    """

    threads: int = 4
    timeouts_s: tuple[float, float] = (10.0, 60.0)
    first_pause_s: float = FIRST_PAUSE_S
    stale_s: float = STALE_S
    verify: bool = False


def free_bytes(folder: Path) -> int:
    """
    Return the free bytes of the disk that `folder` is on, or will be on.
    """
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def not_cached(item: Item) -> Path | None:
    """
    Know of no cached file.
    """


class Downloader:
    """
    Fetches items. `cached` names a file that is on this machine already and is linked instead.
    """

    def __init__(
        self,
        tokens: Tokens,
        guard: Guard,
        habits: Habits | None = None,
        *,
        free: Callable[[Path], int] = free_bytes,
        cached: Cached = not_cached,
    ) -> None:
        self._tokens = tokens
        self._guard = guard
        self._habits = habits or Habits()
        self._free = free
        self._cached = cached

    def fetch(self, items: Sequence[Item], deadline: Deadline) -> list[Outcome]:
        """
        Have every item on the disk, in order of the items.

        Raises:
            ModelUnavailable: some could not be had; one sentence each. What was complete stays.
            JobCancelled: the deadline was cancelled.
        """
        self.check_tokens(items)
        self._check_space(items)
        lines = Lines(self._guard)
        try:
            results = parallel.each(
                [partial(self._have, lines, item, deadline) for item in items],
                threads=self._habits.threads,
                deadline=deadline,
                stage=STAGE,
                interrupt=lines.cut,
            )
        except JobTimedOut as exc:
            raise ModelUnavailable(
                f"The models were not complete after {deadline.timeout_s:g} s. What came is kept: start again, or raise MODELS_TIMEOUT_S."
            ) from exc
        return _outcomes(results)

    def check_tokens(self, items: Sequence[Item]) -> None:
        """
        Return when every gated file is there or has a token for its host.

        Raises:
            ModelUnavailable: one has not; the text says how to get a token.
        """
        for item in items:
            if item.gated and not self._tokens.has(item.url) and self._is_missing(item):
                raise transfer.no_token(item)

    def _is_missing(self, item: Item) -> bool:
        return not plan.is_there(item) and self._cached(item) is None

    def _check_space(self, items: Sequence[Item]) -> None:
        missing = [item for item in items if self._is_missing(item)]
        if not missing:
            return
        needed = int(sum(max(0, item.bytes - _size_of(_part_of(item))) for item in missing) * MARGIN)
        free = self._free(missing[0].to.parent)
        if needed > free:
            raise ModelUnavailable(
                f"{needed / 1e9:,.1f} GB are needed for {len(missing)} files and {free / 1e9:,.1f} GB are free."
            )

    def _have(self, lines: Lines, item: Item, deadline: Deadline) -> Outcome:
        if self._is_good(item, deadline):
            return "there"
        found = self._cached(item)
        with transfer.translated(item):
            item.to.parent.mkdir(parents=True, exist_ok=True)
            if found is not None:
                _link(found, item.to)
                return "linked"
        part = _part_of(item)
        with (
            transfer.translated(item),
            held(item.to, part, partial(deadline.wait, STAGE), self._habits.stale_s) as hold,
        ):
            if plan.is_there(item):
                return "by another"
            wire = transfer.Wire(lines, self._tokens, self._habits.timeouts_s)
            try:
                return self._complete(wire, item, part, hold, deadline)
            except LockLost:
                logger.warning("Another worker took over %s.", item.title)
            except ModelUnavailable as exc:
                if exc.details.get("disk_full"):
                    transfer.forget(part)  # it would keep the disk full
                raise
        return self._have(lines, item, deadline)  # wait for who has it now

    def _is_good(self, item: Item, deadline: Deadline) -> bool:
        if not plan.is_there(item):
            return False
        if self._habits.verify and item.sha256 is not None:
            found = transfer.sha256_of(item, lambda _: deadline.check(STAGE))
            if found != item.sha256:
                logger.warning("%s is there with another content; it is fetched again.", item.title)
                item.to.unlink()
                return False
        return True

    def _complete(
        self, wire: transfer.Wire, item: Item, part: Path, hold: Hold, deadline: Deadline
    ) -> Outcome:
        logger.info("Fetching %s (%s).", item.title, _shown(item.bytes))
        meter = _Meter(item, hold, deadline)
        failures, furthest = 0, _size_of(part)
        fresh = not part.exists()
        while True:
            try:
                sha256 = transfer.pull(wire, item, part, hold, meter)
                if item.sha256 in (None, sha256):
                    break
                transfer.forget(part)
                if fresh:
                    raise ModelUnavailable(_wrong(item, sha256))
                fresh = True  # what an earlier run left may have been the fault
            except transfer.Again as again:
                # Only new ground counts as progress, or a host could go in circles with us for ever.
                failures = 1 if _size_of(part) > furthest else failures + 1
                furthest = max(furthest, _size_of(part))
                if failures >= TRIES:
                    raise ModelUnavailable(
                        f"{transfer.named(item)}: {again} ({failures} attempts)."
                    ) from again
                self._pause(again, item, failures, hold, deadline)
        _finish(item, part, sha256)
        return "fetched"

    def _pause(
        self, again: transfer.Again, item: Item, failures: int, hold: Hold, deadline: Deadline
    ) -> None:
        usual = self._habits.first_pause_s * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
        seconds = min(LONGEST_PAUSE_S, max(usual, again.after_s))
        logger.warning("%s: %s; trying again in %.1f s.", item.title, again, seconds)
        while seconds > 0:
            deadline.wait(STAGE, min(seconds, PAUSE_PIECE_S))
            seconds -= PAUSE_PIECE_S
            hold.beat()


class _Meter:
    """
    Called for every piece: keeps the lock alive, obeys the deadline, writes a line per tenth.
    """

    def __init__(self, item: Item, hold: Hold, deadline: Deadline) -> None:
        self._item = item
        self._hold = hold
        self._deadline = deadline
        self._next = PERCENT_STEP

    def __call__(self, size: int) -> None:
        self._deadline.check(STAGE)
        self._hold.beat()
        total = self._item.bytes
        while total and size * 100 >= self._next * total and self._next < 100:
            logger.info("%s: %d%%", self._item.title, self._next)
            self._next += PERCENT_STEP


def _finish(item: Item, part: Path, sha256: str) -> None:
    with transfer.translated(item):
        size = part.stat().st_size
        if item.size is not None and size != item.size:
            transfer.forget(part)
            raise ModelUnavailable(
                f"{item.title}: {size:,} bytes came, not {item.size:,} as its manifest says."
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, item.to)
    if item.sha256 is None:
        logger.warning("%s was fetched without a checksum; what came has sha256 %s.", item.title, sha256)
    else:
        logger.info("%s is complete (%s).", item.title, _shown(size))


def _wrong(item: Item, sha256: str) -> str:
    return f"{item.title}: what came has sha256 {sha256}, not {item.sha256} as its manifest says; it was removed."


def _outcomes(results: Sequence[Outcome | WorkerError]) -> list[Outcome]:
    failures = [str(result) for result in results if isinstance(result, WorkerError)]
    if failures:
        raise ModelUnavailable("\n".join(failures))
    return [result for result in results if not isinstance(result, WorkerError)]


def _link(source: Path, to: Path) -> None:
    if to.is_symlink():
        to.unlink()
    if not to.exists():
        to.symlink_to(source)


def _part_of(item: Item) -> Path:
    return item.to.with_name(f".{item.to.name}.part")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
