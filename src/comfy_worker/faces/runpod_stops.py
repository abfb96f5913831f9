"""
Cancels that reach the runpod SDK before it has started the job: it forgets those, and the job would run to its end.

The SDK (1.12) stops a job by its task, and there is none while a taken job waits for the loop to look at it.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEPT_S = 10.0
"""How long a stop waits for its job; after that it was for one that is over."""

Fetcher = Callable[[Any], Awaitable[list[str]]]


@dataclass(slots=True)
class Stops:
    """
    What was stopped too early: a stop may even overtake the job it is for. Used on the event loop only.
    """

    _running: set[str] = field(default_factory=set)
    _early: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def running(self, job_id: str) -> Iterator[None]:
        """
        Let a job run in this task, which is cancelled at once where the job was stopped already.
        """
        import asyncio  # loaded by then, and not before ComfyUI is started

        task = asyncio.current_task()
        if job_id in self._early and task is not None:
            task.cancel()
        self._early.pop(job_id, None)
        self._running.add(job_id)
        try:
            yield
        finally:
            self._running.discard(job_id)

    def fetcher(self) -> Fetcher | None:
        """
        Return what the SDK is to ask for the jobs to stop, None for an SDK that does not ask.
        """
        from runpod.serverless.modules import rp_job  # loaded by then

        ask: Fetcher | None = getattr(rp_job, "get_stop_signals", None)
        if ask is None:
            return None

        async def fetch(session: Any) -> list[str]:
            job_ids = await ask(session)
            now = time.monotonic()
            heard = {**self._early, **{job_id: now for job_id in job_ids if job_id not in self._running}}
            self._early = {job_id: at for job_id, at in heard.items() if now - at < KEPT_S}
            return job_ids

        return fetch
