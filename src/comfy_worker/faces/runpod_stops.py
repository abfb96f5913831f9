"""
Cancels that reach the runpod SDK before it has started the job: it forgets those, and the job would run to its end.

The SDK (1.12.0 as observed) stops a job by its task. There is none while a taken job waits for the loop to look at it,
and a task that is cancelled before its first step leaves its job among those in progress for ever.
"""

import time
import types
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

KEPT_S = 10.0
"""How long a stop waits for its job; after that it was for one that is over."""

NAME = "get_stop_signals"

Fetcher = Callable[[Any], Awaitable[list[str]]]


@dataclass(slots=True)
class Stops:
    """
    What was stopped too early: a stop may even overtake the job it is for. Used on the event loop only.
    """

    _tasks: dict[Any, str] = field(default_factory=dict)
    _early: dict[str, float] = field(default_factory=dict)

    def begins(self, job_id: str) -> None:
        """
        Take note of the job that the running task begins, and cancel it where it was stopped already.
        """
        import asyncio  # loaded by then, and not before ComfyUI is started

        task = asyncio.current_task()
        if task is None:
            return
        self._tasks[task] = job_id
        task.add_done_callback(self._tasks.pop)
        stopped_at = self._early.pop(job_id, None)
        if stopped_at is not None and time.monotonic() - stopped_at < KEPT_S:
            task.cancel()

    def install(self, module: types.ModuleType) -> bool:
        """
        Have the SDK's module of the job loop ask here for the jobs to stop. False: it asks for none.
        """
        ask: Fetcher | None = getattr(module, NAME, None)
        if ask is None:
            return False

        async def fetch(session: Any) -> list[str]:
            return self._heard(await ask(session))

        setattr(module, NAME, fetch)
        return True

    def _heard(self, job_ids: list[str]) -> list[str]:
        """
        Return those of some stopped jobs that have begun, and keep the others.
        """
        now, begun = time.monotonic(), set(self._tasks.values())
        heard = {**self._early, **{job_id: now for job_id in job_ids if job_id not in begun}}
        self._early = {job_id: at for job_id, at in heard.items() if now - at < KEPT_S}
        return [job_id for job_id in job_ids if job_id in begun]
