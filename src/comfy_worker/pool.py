"""
The pipeline threads and the bounded queue in front of them: run, join, cancel, drain.

Concurrency is the number of threads and nothing else; ComfyUI's own queue is the GPU lane.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from comfy_worker import log
from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobCancelled, WorkerBusy, WorkerError
from comfy_worker.job import Event, Job, Observer, Result

logger = logging.getLogger(__name__)

Run = Callable[[Job, Deadline, Observer], Result]

IDLE_S = 60.0
CANCEL_S = 10.0
"""How long a run that was told to stop may take at the end of the pool."""


@dataclass(slots=True)
class _Entry:
    """
    One run of a job, and everybody who waits for it.
    """

    job: Job
    deadline: Deadline
    observers: list[Observer]
    waiting: list[Future[Result]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ticket:
    """
    One caller's claim on a run. `future` ends with the result or a `WorkerError`, always within the job's deadline.
    """

    future: Future[Result]
    _cancel: Callable[[Future[Result]], None]

    def cancel(self) -> None:
        """
        Give the claim back; the run is stopped when nobody else waits for it. Returns at once, `future` ends later.
        """
        self._cancel(self.future)


class Pool:
    """
    Runs jobs on `threads` threads; at most `limit` more wait.
    """

    def __init__(self, run: Run, *, threads: int, limit: int) -> None:
        self._run = run
        self._limit = limit
        self._lock = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._running: dict[str, _Entry] = {}
        self._newest: dict[str, _Entry] = {}
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"pipeline-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, observe: Observer) -> Ticket:
        """
        Take the job on. A job that is running already under the same id, workflow and inputs is joined, not run again.

        Raises:
            WorkerBusy: the queue is full, or the worker shuts down.
        """
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # from here on only the run ends it
        with self._lock:
            if self._closing:
                raise WorkerBusy("The worker is shutting down and takes no more jobs.")
            entry = self._newest.get(job.id)
            if entry is not None and entry.job == job and not entry.deadline.cancelled:
                entry.observers.append(observe)
            else:
                if len(self._queue) >= self._limit:
                    raise WorkerBusy(f"{self._limit} jobs wait already; send the job again later.")
                entry = _Entry(job, Deadline(job.timeout_s), [observe])
                self._newest[job.id] = entry
                self._queue.append(entry)
                self._lock.notify_all()
            entry.waiting.append(future)
        return Ticket(future, lambda claim: self._give_back(entry, claim))

    @property
    def busy(self) -> int:
        """
        How many jobs run or wait.
        """
        with self._lock:
            return len(self._queue) + len(self._running)

    @property
    def waiting(self) -> int:
        """
        How many jobs wait for a thread.
        """
        with self._lock:
            return len(self._queue)

    def position(self, job_id: str) -> int | None:
        """
        Return how many jobs are before this one in the queue, None when it does not wait.
        """
        with self._lock:
            return next((place for place, entry in enumerate(self._queue) if entry.job.id == job_id), None)

    def close(self, timeout_s: float) -> None:
        """
        Take no more jobs, cancel those that wait, give the running ones `timeout_s`, then cancel those too.
        """
        with self._lock:
            self._closing = True
            waiting = list(self._queue)
            self._lock.notify_all()
        for entry in waiting:
            entry.deadline.cancel()
        self._join(timeout_s)
        with self._lock:
            running = list(self._running.values())
        for entry in running:
            entry.deadline.cancel()
        self._join(CANCEL_S)

    def _join(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _give_back(self, entry: _Entry, claim: Future[Result]) -> None:
        with self._lock:
            if claim not in entry.waiting:
                return  # it has ended
            others = [future for future in entry.waiting if future is not claim]
            waits = entry.job.id not in self._running or self._running[entry.job.id] is not entry
            if others or waits:
                entry.waiting = others
            if waits and not others:
                self._queue.remove(entry)
                if self._newest.get(entry.job.id) is entry:
                    del self._newest[entry.job.id]
        if others:
            text = "The job was cancelled; the same job goes on for another caller."
            claim.set_exception(JobCancelled(text))
        elif waits:
            claim.set_exception(JobCancelled("The job was cancelled while waiting.", stage="waiting"))
        else:
            entry.deadline.cancel()

    def _work(self) -> None:
        while self._work_on_one():
            continue

    def _work_on_one(self) -> bool:
        """
        Run the next job; return whether there was one. In a function of its own: an idle thread must hold no job.
        """
        entry = self._next()
        if entry is None:
            return False
        token = log.current_job.set(entry.job.id)
        try:
            self._finish(entry)
        finally:
            log.current_job.reset(token)
        return True

    def _next(self) -> _Entry | None:
        """
        Wait for an entry, and take it; None once the pool is closed and empty.

        Of one id only one runs at a time: what takes back a cancelled prompt would take back that of the next one too.
        """
        with self._lock:
            while True:
                entry = next((entry for entry in self._queue if entry.job.id not in self._running), None)
                if entry is not None:
                    self._queue.remove(entry)
                    self._running[entry.job.id] = entry
                    return entry
                if self._closing and not self._queue:
                    return None
                self._lock.wait(IDLE_S)

    def _finish(self, entry: _Entry) -> None:
        result: Result | None = None
        error: Exception | None = None
        try:
            result = self._run(entry.job, entry.deadline, lambda event: self._tell(entry, event))
        except BaseException as exc:
            # What would end a process or a task must not travel into the one that waits.
            error = exc if isinstance(exc, Exception) else RuntimeError(type(exc).__name__)
            if not isinstance(exc, WorkerError):
                logger.exception("The job ended by a fault of the worker.")
        with self._lock:
            del self._running[entry.job.id]
            if self._newest.get(entry.job.id) is entry:
                del self._newest[entry.job.id]
            waiting, entry.waiting = entry.waiting, []
            self._lock.notify_all()
        for future in waiting:
            if error is not None:
                future.set_exception(error)
            elif result is not None:
                future.set_result(result)

    def _tell(self, entry: _Entry, event: Event) -> None:
        for observe in tuple(entry.observers):
            observe(event)
