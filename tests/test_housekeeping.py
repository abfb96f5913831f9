"""
Room on the disk before a job, memory after it, and what a crashed worker left: freed first, then refused, never too much.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_worker.comfy.client import Client
from comfy_worker.comfy.files import RemoteFiles, SharedFiles
from comfy_worker.deadline import Deadline
from comfy_worker.errors import DiskFull, NothingProduced
from comfy_worker.housekeeping import FREE_S, PAUSE_S, Keeper, prune_orphans
from comfy_worker.job import Delivery, Job, Result, ignore
from comfy_worker.standin.thread import EngineThread

MB = 1_000_000
NOW = 1_000_000_000.0
DAY_S = 86_400.0
JOB = Job("job-1", {}, (), Delivery(), 60.0)


class Room:
    """
    A keeper of a disk and a memory with any numbers: each look at the memory takes the next of `memory`, then the last.
    """

    def __init__(
        self, engine: EngineThread, tmp_path: Path, disk_mb: list[float], memory_mb: list[float | None]
    ) -> None:
        self.input = tmp_path / "input"
        for name in ("input", "output"):
            (tmp_path / name).mkdir()
        self.disk_mb, self.memory_mb = disk_mb, memory_mb
        self.slept: list[float] = []
        self.now = 0.0
        self.client = Client(engine.url)
        self.keeper = Keeper(
            SharedFiles(self.input, tmp_path / "output", None),
            self.client,
            [self.input],
            least_disk_mb=500.0,
            least_memory_mb=500.0,
            memory=self._memory,
            disk=lambda _: (1, int(self._next(self.disk_mb) * MB)),
            clock=lambda: self.now,
            sleep=self.slept.append,
        )

    def _memory(self) -> int | None:
        left = self._next(self.memory_mb)
        return None if left is None else int(left * MB)

    def _next(self, numbers: list[Any]) -> Any:
        return numbers.pop(0) if len(numbers) > 1 else numbers[0]

    def run(self) -> str:
        """
        Run a job that does nothing; return what came of it.
        """
        try:
            self.keeper.around(lambda job, deadline, observe: Result(job.id, None))(
                JOB, Deadline(60.0), ignore
            )
        except DiskFull as exc:
            return str(exc)
        return "ran"


Rooms = Callable[..., Room]


@pytest.fixture
def rooms(engine: EngineThread, tmp_path: Path) -> Iterator[Rooms]:
    """
    Make the room of a test.
    """
    made: list[Room] = []

    def make(disk_mb: tuple[float, ...] = (9e6,), memory_mb: tuple[float | None, ...] = (9e6,)) -> Room:
        made.append(Room(engine, tmp_path, list(disk_mb), list(memory_mb)))
        return made[-1]

    yield make
    for room in made:
        room.client.close()


def test_job_runs_where_there_is_room(rooms: Rooms) -> None:
    """With room on the disk and memory left nothing must be removed, slept for, or asked for."""
    room = rooms()
    kept = room.input / f"cw-{'0' * 32}.png"
    kept.write_bytes(b"x")

    assert room.run() == "ran"
    assert kept.exists()
    assert not room.keeper.is_worn
    assert room.slept == []


def test_full_disk_is_freed_before_a_job_is_refused(rooms: Rooms) -> None:
    """When removing unused inputs makes room the job must run, and other files must stay."""
    room = rooms(disk_mb=(100.0, 600.0))
    unused, foreign = room.input / f"cw-{'0' * 32}.png", room.input / "example.png"
    for path in (unused, foreign):
        path.write_bytes(b"x")
        os.utime(path, (1.0, 1.0))

    assert room.run() == "ran"
    assert not unused.exists()
    assert foreign.exists()
    assert not room.keeper.is_worn


def test_full_disk_refuses_the_job_and_asks_for_another_worker(rooms: Rooms) -> None:
    """When nothing helps the job must be refused before it runs, with the numbers and the setting."""
    room = rooms(disk_mb=(100.0,))

    text = room.run()

    assert "100 MB are free" in text
    assert "500 MB must be (MIN_FREE_DISK_MB)" in text
    assert room.keeper.is_worn


def test_refusal_has_a_code_that_says_another_worker_may_manage(rooms: Rooms) -> None:
    """The refusal must be retryable, with the bytes for a program."""
    room = rooms(disk_mb=(100.0,))

    with pytest.raises(DiskFull) as caught:
        room.keeper.make_room()

    assert (caught.value.code, caught.value.http_status, caught.value.retryable) == ("disk_full", 507, True)
    assert caught.value.details == {"free_bytes": 100 * MB, "needed_bytes": 500 * MB}


@pytest.mark.parametrize("memory_mb", [(9e6,), (None,)], ids=["enough", "unknown"])
def test_memory_that_is_left_or_unknown_costs_nothing(rooms: Rooms, memory_mb: tuple[float | None]) -> None:
    """With enough memory, or on a machine that does not say, nothing must happen."""
    room = rooms(memory_mb=memory_mb)

    assert room.run() == "ran"
    assert room.slept == []
    assert not room.keeper.is_worn


def test_memory_is_freed_before_the_worker_is_replaced(rooms: Rooms) -> None:
    """When ComfyUI gives memory back within its time the worker must go on."""
    room = rooms(memory_mb=(100.0, 100.0, 100.0, 800.0))

    assert room.run() == "ran"
    assert room.slept == [PAUSE_S] * 2
    assert not room.keeper.is_worn


def test_memory_is_looked_at_once_a_second(rooms: Rooms) -> None:
    """Jobs in quick succession must not each pay for a look, and the first one after a second must."""
    room = rooms(memory_mb=(9e6, 100.0))

    assert [room.run() for _ in range(3)] == ["ran"] * 3
    assert not room.keeper.is_worn
    room.now += 1.0
    room.run()

    assert room.keeper.is_worn


def test_memory_that_stays_used_makes_the_worker_worn(rooms: Rooms) -> None:
    """When freeing does not help the job must keep its result, and the worker ask to be replaced."""
    room = rooms(memory_mb=(100.0,))

    assert room.run() == "ran"
    assert sum(room.slept) == pytest.approx(FREE_S)
    assert room.keeper.is_worn


def test_memory_is_looked_at_after_a_job_that_failed(rooms: Rooms) -> None:
    """A job that fails may have taken the memory; its own error must come through."""
    room = rooms(memory_mb=(100.0,))

    def fails(*_: Any) -> Result:
        raise NothingProduced("nothing")

    with pytest.raises(NothingProduced):
        room.keeper.around(fails)(JOB, Deadline(60.0), ignore)
    assert room.keeper.is_worn


def test_guards_can_be_turned_off(tmp_path: Path, engine: EngineThread) -> None:
    """With 0 for a limit nothing must be looked at."""

    def never(*_: Any) -> None:
        raise AssertionError("looked at")

    files = RemoteFiles(Client(engine.url))
    keeper = Keeper(
        files, Client(engine.url), [tmp_path], least_disk_mb=0, least_memory_mb=0, memory=never, disk=never
    )

    keeper.make_room()
    keeper.give_back()

    assert not keeper.is_worn


def left(
    folder: Path, name: str, age_s: float, *, file: str = "out_00001_.png", file_age_s: float | None = None
) -> Path:
    """
    Make a folder with a file in it, of some age.
    """
    path = folder / name
    path.mkdir(parents=True)
    (path / file).write_bytes(b"x")
    os.utime(path / file, (NOW - (file_age_s if file_age_s is not None else age_s),) * 2)
    os.utime(path, (NOW - age_s,) * 2)
    return path


def test_old_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    """Run folders, halves of inputs and scratch folders of a dead worker must go; anything of a person must stay."""
    output, input_, scratch = tmp_path / "output", tmp_path / "input", tmp_path / "tmp"
    gone = [left(output, f"cw-{'ab' * 10}", 2 * DAY_S), left(scratch, "comfy-worker-x1", 2 * DAY_S)]
    kept = [
        left(output, "cw-holiday", 2 * DAY_S),
        left(output, f"cw-{'cd' * 10}", 60.0),
        left(output, f"cw-{'ef' * 10}", 2 * DAY_S, file_age_s=60.0),
        left(scratch, "comfy-worker-engine-x2", 2 * DAY_S),
        left(scratch, "other", 2 * DAY_S),
    ]
    input_.mkdir()
    half, cached = input_ / f".{'0' * 32}.part", input_ / f"cw-{'0' * 32}.png"
    for path in (half, cached):
        path.write_bytes(b"x")
        os.utime(path, (NOW - 2 * DAY_S,) * 2)

    removed = prune_orphans([output, input_, tmp_path / "missing"], DAY_S, scratch=scratch, now=NOW)

    assert removed == 3
    assert not any(path.exists() for path in (*gone, half))
    assert all(path.exists() for path in (*kept, cached))


def test_pruning_can_be_turned_off(tmp_path: Path) -> None:
    """With an age of 0 nothing may be removed."""
    kept = left(tmp_path, f"cw-{'ab' * 10}", 9 * DAY_S)

    assert prune_orphans([tmp_path], 0.0, scratch=tmp_path, now=NOW) == 0
    assert kept.exists()
