"""
The jobs of RunPod's HTTP API on this machine: their states, times, results and how long these are kept.

All of it runs on the event loop. Bounded in number and in bytes: results make room for new jobs, oldest first.
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from comfy_worker.errors import WorkerBusy
from comfy_worker.faces.http_events import EventHub
from comfy_worker.faces.runpod_progress import to_progress
from comfy_worker.job import Event, Observer

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})

KEPT_S = 1800.0
KEPT_SYNC_S = 60.0
TTL_S = 86_400.0
EXECUTION_S = 600.0
MOST_JOBS = 10_000
MOST_BYTES = 1_000_000_000

Handle = Callable[[Mapping[str, Any], Observer], Awaitable[dict[str, Any]]]
"""`RunpodFace.handle`: a raw job and an observer in, the value of `output` out."""


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What a request asks for besides its input: seconds it may run, seconds until it is dropped wherever it is, a webhook.
    """

    execution_s: float = EXECUTION_S
    ttl_s: float = TTL_S
    webhook: str | None = None


@dataclass(slots=True)
class Record:
    """
    One job. `output` is encoded JSON; `size_bytes` is what it holds: its request, and once it has ended its result.
    """

    id: str
    terms: Terms
    size_bytes: int
    created: float = field(default_factory=time.monotonic)
    status: Status = "IN_QUEUE"
    began: float | None = None
    ended: float | None = None
    latest: Event | None = None
    output: bytes | None = None
    error: str | None = None
    streamed: bool = False
    task: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    clock: asyncio.TimerHandle | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_sync(self) -> bool:
        """
        Whether it came by `/runsync`.
        """
        return self.id.startswith("sync-")

    def parts(self, worker_id: str) -> tuple[bytes, ...]:
        """
        Return what `/status` says of it as JSON, in parts to send one after the other: a large output is not copied.
        """
        shown = orjson.dumps(self.view(worker_id))
        if self.output is None:
            return (shown,)
        return shown[:-1] + b',"output":', self.output, b"}"

    def view(self, worker_id: str) -> dict[str, Any]:
        """
        Return what `/status` says of it beside its output, as RunPod words it; times are whole milliseconds.
        """
        shown: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.began is not None:
            shown["delayTime"] = round((self.began - self.created) * 1000)
            shown["workerId"] = worker_id
            if self.ended is not None:
                shown["executionTime"] = round((self.ended - self.began) * 1000)
        if self.status == "IN_PROGRESS" and self.latest is not None:
            shown["output"] = to_progress(self.latest)
        if self.error is not None:
            shown["error"] = self.error
        return shown


class Desk:
    """
    Takes jobs, runs each in a task of its own, keeps what came of it. `ended` is called with every job that has.
    """

    def __init__(
        self,
        handle: Handle,
        events: EventHub,
        ended: Callable[[Record], None] = lambda _: None,
        *,
        most_waiting: int = MOST_JOBS,
        most_jobs: int = MOST_JOBS,
        most_bytes: int = MOST_BYTES,
        kept_s: tuple[float, float] = (KEPT_S, KEPT_SYNC_S),
    ) -> None:
        self._handle = handle
        self._events = events
        self._ended = ended
        self._most_waiting = most_waiting
        self._most_jobs, self._most_bytes, self._kept_s = most_jobs, most_bytes, kept_s
        self._jobs: OrderedDict[str, Record] = OrderedDict()
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def held_bytes(self) -> int:
        """
        What all jobs and results together hold.
        """
        return self._bytes

    def get(self, job_id: str) -> Record | None:
        """
        Return a job that is not dropped yet.
        """
        return self._jobs.get(job_id)

    def number(self, status: Status) -> int:
        """
        Return how many jobs are in a state now.
        """
        return sum(record.status == status for record in self._jobs.values())

    def submit(self, raw: Mapping[str, Any], size_bytes: int, terms: Terms, *, sync: bool) -> Record:
        """
        Take a job on and start it.

        Raises:
            WorkerBusy: too many jobs, or too large ones, have not ended yet.
        """
        self._make_room(size_bytes)
        record = Record(f"{'sync-' if sync else ''}{uuid.uuid4()}-u1", terms, size_bytes)
        self._jobs[record.id] = record
        self._bytes += size_bytes
        loop = asyncio.get_running_loop()
        record.timer = loop.call_later(terms.ttl_s, self._drop, record)
        record.task = asyncio.create_task(self._run(record, {**raw, "id": record.id}))
        self._tasks.add(record.task)
        record.task.add_done_callback(self._tasks.discard)
        return record

    def stop(self, record: Record, status: Literal["CANCELLED", "TIMED_OUT"]) -> None:
        """
        End a job that has not ended. Returns at once; its run is cancelled meanwhile.
        """
        if record.status in FINAL:
            return
        if status == "TIMED_OUT":
            record.error = (
                f"The job ran longer than {record.terms.execution_s:g} s (policy.executionTimeout)."
            )
        self._end(record, status, 0)
        if record.task is not None:
            record.task.cancel()

    def purge(self) -> int:
        """
        Cancel every job that waits, and return how many.
        """
        waiting = [record for record in self._jobs.values() if record.status == "IN_QUEUE"]
        for record in waiting:
            self.stop(record, "CANCELLED")
        return len(waiting)

    async def close(self, timeout_s: float) -> None:
        """
        End what has not ended, wait for its runs within the bound, and forget everything.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for record in list(self._jobs.values()):
            self.stop(record, "CANCELLED")
            self._drop(record)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _make_room(self, size_bytes: int) -> None:
        if len(self._tasks) >= self._most_waiting:
            raise WorkerBusy(f"{len(self._tasks)} jobs have not ended yet; send the job again later.")
        ended = deque(record for record in self._jobs.values() if record.status in FINAL)
        spare = sum(record.size_bytes for record in ended)
        if len(self._jobs) - len(ended) >= self._most_jobs or (
            self._bytes - spare + size_bytes > self._most_bytes
        ):
            raise WorkerBusy(
                "The jobs that have not ended yet fill the memory set aside; send the job again later."
            )
        while len(self._jobs) >= self._most_jobs or self._bytes + size_bytes > self._most_bytes:
            self._drop(ended.popleft())

    async def _run(self, record: Record, raw: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        with self._events.of(record.id) as tell:

            def observe(event: Event) -> None:
                tell(event)
                is_first, record.latest = record.latest is None, event
                if is_first:
                    loop.call_soon_threadsafe(self._begin, record)

            reply = await self._handle(raw, observe)
            if "error" in reply:
                tell.end = {
                    "status": "failed",
                    "error": str(reply["error"]),
                    "error_code": reply.get("error_code"),
                }
            self._finish(record, reply)

    def _begin(self, record: Record) -> None:
        if record.status == "IN_QUEUE":
            record.status, record.began = "IN_PROGRESS", time.monotonic()
            loop = asyncio.get_running_loop()
            record.clock = loop.call_later(record.terms.execution_s, self.stop, record, "TIMED_OUT")

    def _finish(self, record: Record, reply: dict[str, Any]) -> None:
        if record.status in FINAL:
            return
        record.began = record.began or time.monotonic()
        reply.pop("refresh_worker", None)  # there is no platform to hear it
        error = reply.pop("error", None)
        if error is not None:
            record.error = str(error)
        record.output = orjson.dumps(reply) if reply else None
        self._end(record, "FAILED" if error is not None else "COMPLETED", len(record.output or b""))

    def _end(self, record: Record, status: Status, size_bytes: int) -> None:
        record.status, record.ended, record.latest = status, time.monotonic(), None
        self.counts[status] += 1
        self._bytes += size_bytes - record.size_bytes
        record.size_bytes = size_bytes
        for handle in (record.timer, record.clock):
            if handle is not None:
                handle.cancel()
        left_s = record.created + record.terms.ttl_s - record.ended
        kept_s = min(self._kept_s[record.is_sync], max(0.0, left_s))
        with contextlib.suppress(RuntimeError):  # no loop any more: the process ends
            record.timer = asyncio.get_running_loop().call_later(kept_s, self._drop, record)
        record.done.set()
        self._ended(record)

    def _drop(self, record: Record) -> None:
        if self._jobs.pop(record.id, None) is None:
            return
        self._bytes -= record.size_bytes
        for handle in (record.timer, record.clock):
            if handle is not None:
                handle.cancel()
        if record.status not in FINAL:  # its time to live is over: as RunPod does, it is gone wherever it was
            record.status, record.ended = "CANCELLED", time.monotonic()
            record.done.set()
            if record.task is not None:
                record.task.cancel()
