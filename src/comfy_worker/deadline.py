"""
The one bound of a job: the time it has left, and whether it was told to stop. Every wait takes its limit from here.
"""

import threading
import time
from collections.abc import Callable

from comfy_worker.errors import JobCancelled, JobTimedOut


class Deadline:
    """
    Time left of one job, and its cancel switch. Thread-safe; `cancel()` may come from any thread.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._end = clock() + timeout_s
        self._stop = threading.Event()
        self._hooks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """
        Tell the job to stop; whoever waits on this deadline wakes up. Idempotent.
        """
        self._stop.set()
        for hook in list(self._hooks):
            hook()

    def on_cancel(self, hook: Callable[[], None]) -> None:
        """
        Call `hook` when the job is told to stop (at once if it already was); it must return at once.
        """
        self._hooks.append(hook)
        if self.cancelled:
            hook()

    @property
    def cancelled(self) -> bool:
        """
        Whether the job was told to stop.
        """
        return self._stop.is_set()

    @property
    def left_s(self) -> float:
        """
        Seconds left, never below 0.
        """
        return max(0.0, self._end - self._clock())

    def check(self, stage: str) -> None:
        """
        Return while there is time.

        Raises:
            JobCancelled: the job was told to stop.
            JobTimedOut: the time is over.
        """
        if self.cancelled:
            raise JobCancelled(f"The job was cancelled while {stage}.", stage=stage)
        if self.left_s <= 0:
            raise JobTimedOut(
                f"The job was stopped after {self.timeout_s:g} s, its time limit, while {stage}. "
                "Raise `timeout_s` in the job, or JOB_TIMEOUT_MAX_S on the worker.",
                stage=stage,
                timeout_s=self.timeout_s,
            )

    def wait(self, stage: str, seconds: float) -> None:
        """
        Sleep for `seconds` at most, ended early by the deadline or a cancel, then `check`.
        """
        self._stop.wait(min(seconds, self.left_s))
        self.check(stage)
