"""
The one bound of a job: time that runs out, a cancel that wakes who waits, and what each of them says.
"""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobCancelled, JobTimedOut


class Clock:
    """
    A clock that is moved by hand.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_left_runs_down_to_zero() -> None:
    """What is left must fall with the clock, and never below nothing."""
    clock = Clock()
    deadline = Deadline(10.0, clock)

    assert deadline.left_s == 10.0
    clock.now += 4
    assert deadline.left_s == 6.0
    clock.now += 400
    assert deadline.left_s == 0.0


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 1e6), st.lists(st.floats(0, 1e5), max_size=8))
def test_time_left_never_grows(timeout_s: float, steps: list[float]) -> None:
    """On a steady clock what is left must stay within the limit, never grow, and be used up exactly when `check` says so."""
    clock = Clock()
    deadline = Deadline(timeout_s, clock)
    before = deadline.left_s
    for step in steps:
        clock.now += step
        assert 0 <= deadline.left_s <= before <= timeout_s + 1e-6
        before = deadline.left_s
        try:
            deadline.check("testing")
        except JobTimedOut:
            assert deadline.left_s == 0
        else:
            assert deadline.left_s > 0


def test_time_out_says_stage_seconds_and_way_out() -> None:
    """A job that ran too long must hear where, after how long, and what to raise."""
    clock = Clock()
    deadline = Deadline(90.5, clock)
    deadline.check("staging")
    clock.now += 90.5

    with pytest.raises(
        JobTimedOut, match=r"after 90\.5 s, its time limit, while running\. Raise `timeout_s`"
    ) as caught:
        deadline.check("running")

    assert caught.value.details == {"stage": "running", "timeout_s": 90.5}


def test_cancel_wins_over_time_out_and_names_the_stage() -> None:
    """A job that was taken back must say so, even when its time is over too."""
    deadline = Deadline(0.0, Clock())
    deadline.cancel()
    deadline.cancel()

    with pytest.raises(JobCancelled, match="cancelled while queueing") as caught:
        deadline.check("queueing")
    assert caught.value.details == {"stage": "queueing"}
    assert deadline.cancelled


def test_wait_is_ended_by_the_deadline() -> None:
    """A wait must never outlast the job."""
    with pytest.raises(JobTimedOut):
        Deadline(0.02).wait("testing", 3600.0)


def test_wait_returns_when_there_is_time() -> None:
    """A wait within the time must end without a word."""
    Deadline(60.0).wait("testing", 0.01)


def test_wait_is_ended_by_a_cancel_from_another_thread() -> None:
    """Whoever waits must wake up when the job is taken back."""
    deadline, caught = Deadline(3600.0), []

    def wait() -> None:
        try:
            deadline.wait("testing", 3600.0)
        except JobCancelled as exc:
            caught.append(exc)

    waiting = threading.Thread(target=wait, name="waiting")
    waiting.start()
    deadline.cancel()
    waiting.join(10)

    assert not waiting.is_alive()
    assert len(caught) == 1


def test_hooks_are_called_by_a_cancel_and_at_once_after_it() -> None:
    """A hook must be called when the job is taken back, also one that comes too late."""
    deadline, called = Deadline(60.0), []
    deadline.on_cancel(lambda: called.append("early"))
    assert called == []

    deadline.cancel()
    deadline.on_cancel(lambda: called.append("late"))

    assert called == ["early", "late"]
