"""
One request of the Vast face on its way: what happened to it so far. Written by the job's thread, read by the event loop.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from comfy_worker.errors import WorkerError
from comfy_worker.faces.vast_request import Order
from comfy_worker.job import Event, Result, Workflow

Status = Literal["pending", "processing", "generating", "generated", "completed", "failed", "cancelled"]
Stage = Literal["preprocess", "generation", "postprocess", "done"]

OVER = frozenset({"completed", "failed", "cancelled"})
ACCEPTED = "Request accepted"
UPDATES_MOST = 200
TELL_S = 2.0
MS = 1000


@dataclass(slots=True)
class Times:
    """
    When the stages began, in monotonic seconds; `queued_at_ms` and `completed_at_ms` are of the clock on the wall.
    """

    queued_at_ms: int = field(default_factory=lambda: round(time.time() * MS))
    queued: float = field(default_factory=time.monotonic)
    staging: float | None = None
    staged: float | None = None
    running: float | None = None
    delivering: float | None = None
    ended: float | None = None
    completed_at_ms: int | None = None

    def shown(self, status: Status) -> dict[str, int]:
        """
        Return the timings of a result, in whole milliseconds; a stage that was not reached is absent.
        """
        found = {"queued_at_ms": self.queued_at_ms}
        if self.staging is not None and self.staged is not None:
            found["preprocess_ms"] = _ms(self.staged - self.staging)
        began = self.running or self.staged
        if began is not None and self.delivering is not None:
            found["generation_ms"] = _ms(self.delivering - began)
        if self.delivering is not None and self.ended is not None and status == "completed":
            found["postprocess_ms"] = _ms(self.ended - self.delivering)
        if self.ended is not None and self.completed_at_ms is not None:
            found["completed_at_ms"] = self.completed_at_ms
            found["total_ms"] = _ms(self.ended - self.queued)
        return found


def _ms(seconds: float) -> int:
    return max(0, round(seconds * MS))


@dataclass(eq=False, slots=True)
class Entry:
    """
    A request. `waiters` are those whose going away may end it; `stop` is set to end it; `changed` is set at each change.

    Once its status is one of `OVER` it never changes again.
    """

    order: Order
    loop: asyncio.AbstractEventLoop
    waiters: int = 0
    status: Status = "pending"
    message: str = ACCEPTED
    stage: Stage = "preprocess"
    result: Result | None = None
    error: WorkerError | None = None
    prompt_id: str | None = None
    workflow: Workflow | None = None
    percent: float = 0.0
    node: str | None = None
    times: Times = field(default_factory=Times)
    nodes: list[str] = field(default_factory=list)
    updates: "deque[dict[str, Any]]" = field(default_factory=lambda: deque(maxlen=UPDATES_MOST))
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_told: bool = False
    _told_at: float = 0.0

    @property
    def is_over(self) -> bool:
        """
        Whether its status is final.
        """
        return self.status in OVER

    def elapsed_s(self) -> float:
        """
        Return the seconds since it came.
        """
        return (self.times.ended or time.monotonic()) - self.times.queued

    def queueing(self, prompt_id: str, workflow: Workflow) -> None:
        """
        Note a run that is about to begin; runs on the job's thread.
        """
        self.prompt_id, self.workflow = prompt_id, workflow
        self.nodes.clear()
        self.times.staged = self.times.staged or time.monotonic()

    def observe(self, event: Event) -> None:
        """
        Note one event; runs on the job's thread.
        """
        if self.is_over:
            return
        steps: dict[str, Callable[[Event, float], None]] = {
            "staging": self._staging,
            "queued": self._queued,
            "running": self._running,
            "delivering": self._delivering,
        }
        step = steps.get(event.kind)
        if step is not None:
            step(event, time.monotonic())
        self.percent = event.percent
        self._tell()

    def _staging(self, _event: Event, now: float) -> None:
        self.times.staging = self.times.staging or now

    def _queued(self, _event: Event, now: float) -> None:
        self.times.staged = self.times.staged or now
        self.stage = "generation"
        self._say("processing", "Preprocessing complete. Queued for generation.")

    def _running(self, event: Event, now: float) -> None:
        if self.times.running is None:
            self.times.running, self.stage = now, "generation"
            self._say("generating", f"Generation started (ComfyUI job: {self.prompt_id})")
        if event.node_id is None:
            return
        if event.node_id != self.node:
            self.node = event.node_id
            self.nodes.append(event.node_id)
            self._say("generating", f"Processing node: {event.node_id}")
        if event.value is not None and event.max:
            self._step(event.value, event.max, now)

    def _step(self, value: float, most: float, now: float) -> None:
        percent = 100.0 * value / most
        self.updates.append(
            {"time": round(time.time(), 3), "value": value, "max": most, "percentage": round(percent, 1)}
        )
        if now - self._told_at >= TELL_S or value >= most:
            self._told_at = now
            self._say("generating", f"Progress: {percent:.1f}% ({value:g}/{most:g})")

    def _delivering(self, _event: Event, now: float) -> None:
        self.times.delivering, self.stage = now, "postprocess"
        self._say("generated", "Generation complete. Queued for post-processing.")

    def _say(self, status: Status, message: str) -> None:
        if not self.is_over:
            self.status, self.message = status, message

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True  # many steps, one ring
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever watched
                self.loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._is_told = False
        self.changed.set()
        self.changed = asyncio.Event()

    def finish(self, status: Status, message: str) -> bool:
        """
        Note the end, on the event loop; False when it had ended already.
        """
        if self.is_over:
            return False
        self.times.ended = time.monotonic()
        self.times.completed_at_ms = round(time.time() * MS)
        self.status, self.message, self.stage = status, message, "done"
        self.percent = 100.0 if status == "completed" else self.percent
        self.ended.set()
        self._ring()
        return True
