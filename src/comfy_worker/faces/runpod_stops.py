"""
Cancels that reach the runpod SDK before it has started the job: it forgets those, and the job would run to its end.

The SDK (1.12) stops a job by its task, and there is none while a taken job waits for the loop to look at it.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Fetcher = Callable[[Any], Awaitable[list[str]]]


@dataclass(slots=True)
class Stops:
    """
    What was stopped too early. `taken` returns the ids of all jobs that the SDK has. Used on the event loop only.
    """

    taken: Callable[[], Collection[str]]
    _running: set[str] = field(default_factory=set)
    _early: set[str] = field(default_factory=set)

    @contextmanager
    def running(self, job_id: str) -> Iterator[None]:
        """
        Let a job run in this task, which is cancelled at once where the job was stopped already.
        """
        import asyncio  # loaded by then, and not before ComfyUI is started

        task = asyncio.current_task()
        if job_id in self._early and task is not None:
            task.cancel()
        self._early.discard(job_id)
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
            waiting = set(self.taken()) - self._running
            self._early = (self._early | set(job_ids)) & waiting
            return job_ids

        return fetch
