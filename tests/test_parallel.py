"""
Tests of parallel: order, bound, failures, and that nobody waits longer than the job may.
"""

import threading
import time
from functools import partial

import pytest

from comfy_worker.deadline import Deadline
from comfy_worker.errors import DeliveryFailed, JobCancelled, JobTimedOut
from comfy_worker.parallel import each


def test_each_keeps_the_order_and_the_failures_in_it() -> None:
    """Results stand where their tasks stood, an error in the place of its task, and the rest still runs."""
    barrier = threading.Barrier(3)

    def task(number: int) -> int:
        barrier.wait(10)
        if number == 1:
            raise DeliveryFailed("no")
        return number

    results = each([partial(task, n) for n in range(3)], threads=3, deadline=Deadline(30), stage="testing")

    assert (results[0], results[2]) == (0, 2) and isinstance(results[1], DeliveryFailed)


def test_each_never_runs_more_tasks_at_once_than_it_may() -> None:
    """With two threads at most two tasks run at any time, and all of them run."""
    lock, running, most = threading.Lock(), 0, 0

    def task() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    results = each([task] * 12, threads=2, deadline=Deadline(30), stage="testing")

    assert len(results) == 12 and most <= 2


def test_each_with_nothing_to_do_starts_no_thread() -> None:
    """No task, no thread, no result."""
    assert each([], threads=4, deadline=Deadline(30), stage="testing") == []


def test_each_ends_at_a_cancel_and_wakes_the_tasks() -> None:
    """A cancel interrupts the running task, and those that wait for their turn never run."""
    deadline, started, wake, ran = Deadline(30), threading.Event(), threading.Event(), []

    def task(number: int) -> None:
        ran.append(number)
        started.set()
        wake.wait(30)

    canceller = threading.Thread(target=lambda: (started.wait(30), deadline.cancel()))
    canceller.start()
    with pytest.raises(JobCancelled) as caught:
        each(
            [partial(task, n) for n in range(5)],
            threads=1,
            deadline=deadline,
            stage="testing",
            interrupt=wake.set,
        )

    canceller.join(30)
    assert caught.value.details["stage"] == "testing" and ran == [0]


@pytest.mark.slow
def test_each_leaves_a_task_that_cannot_be_woken() -> None:
    """The deadline ends the wait even when a task is blocked, and its thread ends by itself later."""
    release, ended = threading.Event(), threading.Event()

    def task() -> None:
        release.wait(30)
        ended.set()

    with pytest.raises(JobTimedOut):
        each([task], threads=1, deadline=Deadline(0.05), stage="testing")

    release.set()
    assert ended.wait(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_each_raises_what_is_no_error_of_ours() -> None:
    """A bug in a task is not a result: it is raised as it is."""

    def task() -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        each([task, task], threads=1, deadline=Deadline(30), stage="testing")
