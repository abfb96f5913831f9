"""
One holder per target, also where the kernel's locks do not reach: on a volume of several hosts.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from comfy_worker.models import lock
from comfy_worker.models.lock import LockLost, held

STALE_S = 0.4


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """
    A target that is not there yet.
    """
    return tmp_path / "m.bin"


def part_of(target: Path) -> Path:
    """
    Name the partial file of a target.
    """
    return target.with_name(".m.bin.part")


def lock_of(target: Path) -> Path:
    """
    Name the lock file of a target.
    """
    return target.with_name(".m.bin.lock")


def left_by_another_host(target: Path, validator: str = "") -> None:
    """
    Leave a lock file as a worker on another machine does, whose kernel lock is not seen here.
    """
    note = {"owner": "somebody", "host": "another-machine", "validator": validator}
    lock_of(target).write_text(json.dumps(note))


def ticks(limit_s: float = 20.0) -> Callable[[float], None]:
    """
    Make a sleep that gives up after a generous time.
    """
    end = time.monotonic() + limit_s

    def tick(seconds: float) -> None:
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(min(seconds, 0.02))

    return tick


def test_lock_file_is_gone_when_nothing_is_left_to_do(target: Path) -> None:
    """
    Without a partial file there is nothing to remember, so no lock file stays.
    """
    with held(target, part_of(target), ticks()):
        assert lock_of(target).exists()

    assert list(target.parent.iterdir()) == []


def test_validator_of_the_partial_file_is_handed_on(target: Path) -> None:
    """
    Who goes on with a partial file knows what the server called its content.
    """
    with held(target, part_of(target), ticks()) as hold:
        part_of(target).write_bytes(b"half")
        hold.remember('"v1"')

    with held(target, part_of(target), ticks()) as hold:
        assert hold.validator == '"v1"'


def test_many_threads_hold_one_after_the_other(target: Path) -> None:
    """
    However many want a target, one at a time has it, although the lock file comes and goes.
    """
    inside, most, wrong = [], [], []

    def work() -> None:
        for _ in range(5):
            with held(target, part_of(target), ticks()):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    def guarded() -> None:
        try:
            work()
        except (TimeoutError, LockLost, OSError) as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=guarded) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)

    assert wrong == []
    assert len(most) == 30
    assert max(most) == 1


def test_lock_of_a_silent_host_is_taken_over(target: Path) -> None:
    """
    A holder on another machine that is silent for the time it may be counts as gone.
    """
    left_by_another_host(target, '"v7"')
    begin = time.monotonic()

    with held(target, part_of(target), ticks(), STALE_S) as hold:
        waited_s = time.monotonic() - begin

        assert hold.validator == '"v7"'
        assert waited_s >= STALE_S


@pytest.mark.slow
def test_lock_of_a_living_host_is_waited_for(target: Path) -> None:
    """
    A holder on another machine that shows signs of life keeps its target however long it takes.
    """
    left_by_another_host(target)
    over = threading.Event()

    def live() -> None:
        for _ in range(15):
            time.sleep(STALE_S / 5)
            lock_of(target).touch()
        over.set()
        lock_of(target).unlink()

    other = threading.Thread(target=live)
    other.start()
    with held(target, part_of(target), ticks(), STALE_S):
        assert over.is_set()
    other.join(20)


def test_lock_of_an_ended_process_of_this_machine_is_no_hindrance(target: Path) -> None:
    """
    The kernel has let go of the lock of a killed process, so nobody waits for its signs of life.
    """
    note = {"owner": "killed", "host": lock.socket.gethostname(), "validator": '"v3"'}
    lock_of(target).write_text(json.dumps(note))

    with held(target, part_of(target), ticks(1.0)) as hold:
        assert hold.validator == '"v3"'


def test_holder_learns_that_it_was_counted_as_dead(target: Path) -> None:
    """
    A holder whose lock another host took over stops at its next sign of life, and leaves the file to it.
    """
    with held(target, part_of(target), ticks(), stale_s=0.0) as hold:
        left_by_another_host(target)
        with pytest.raises(LockLost):
            hold.beat()

    assert json.loads(lock_of(target).read_text())["owner"] == "somebody"


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"owner": 5}', "\x00\xff"])
def test_damaged_lock_file_stops_nobody_for_ever(target: Path, text: str) -> None:
    """
    Whatever a lock file holds, it is taken over at last.
    """
    lock_of(target).write_text(text)

    with held(target, part_of(target), ticks(), STALE_S) as hold:
        assert hold.validator == ""
