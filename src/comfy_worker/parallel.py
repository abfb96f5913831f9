"""
Run a few blocking tasks at once, within the deadline of the job. The threads of stages come from here.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobCancelled, JobTimedOut, WorkerError

T = TypeVar("T")
GRACE_S = 1.0


def nothing() -> None:
    """
    Do nothing: the default of hooks.
    """


def each(
    tasks: Sequence[Callable[[], T]],
    *,
    threads: int,
    deadline: Deadline,
    stage: str,
    interrupt: Callable[[], None] = nothing,
) -> list[T | WorkerError]:
    """
    Run every task; return the results in the order of the tasks, a `WorkerError` in the place of a task that raised it.

    At the deadline or a cancel no further task starts, `interrupt` is called to wake the running ones, and they get
    `GRACE_S` seconds to end; one that is still blocked then ends by its own time limits, on a daemon thread.

    Raises:
        JobCancelled, JobTimedOut: the deadline said so before all was done.
    """
    if not tasks:
        return []
    crew = _Crew(tasks, deadline, stage)
    deadline.on_cancel(crew.wake.set)
    crew.start(min(threads, len(tasks)))
    crew.wake.wait(deadline.left_s)
    if not crew.is_done:
        crew.stopped = True
        interrupt()
        crew.join(GRACE_S)
        deadline.check(stage)
    crew.join(GRACE_S)
    return crew.results()


class _Crew(Generic[T]):
    """
    The threads of one call and what they have brought back so far.
    """

    def __init__(self, tasks: Sequence[Callable[[], T]], deadline: Deadline, stage: str) -> None:
        self.wake = threading.Event()
        self.stopped = False
        self._tasks = tasks
        self._deadline = deadline
        self._stage = stage
        self._lock = threading.Lock()
        self._next = 0
        self._done: dict[int, T | WorkerError] = {}
        self._bug: BaseException | None = None
        self._threads: list[threading.Thread] = []

    @property
    def is_done(self) -> bool:
        return self._bug is not None or len(self._done) == len(self._tasks)

    def start(self, threads: int) -> None:
        for number in range(threads):
            thread = threading.Thread(target=self._work, name=f"{self._stage}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds)

    def results(self) -> list[T | WorkerError]:
        if self._bug is not None:
            raise self._bug
        for result in self._done.values():
            if isinstance(result, JobCancelled | JobTimedOut):
                raise result
        return [self._done[number] for number in range(len(self._tasks))]

    def _work(self) -> None:
        try:
            while (number := self._take()) is not None:
                self._run(number)
        finally:
            self._bug = self._bug or sys.exc_info()[1]
            if self.is_done:
                self.wake.set()

    def _take(self) -> int | None:
        with self._lock:
            if self.stopped or self._bug is not None or self._next == len(self._tasks):
                return None
            self._next += 1
            return self._next - 1

    def _run(self, number: int) -> None:
        try:
            self._deadline.check(self._stage)
            self._done[number] = self._tasks[number]()
        except WorkerError as error:
            self._done[number] = error
