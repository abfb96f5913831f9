"""
The Vast face at work: requests that run, those that are stopped, and the webhooks at their end.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from comfy_worker import log
from comfy_worker.errors import JobCancelled, NothingProduced, WorkerError
from comfy_worker.faces import vast_reply
from comfy_worker.faces.http import Service, left, run_detached
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.faces.vast_faults import Faults
from comfy_worker.faces.vast_request import Hook, Order
from comfy_worker.faces.vast_store import Desk
from comfy_worker.job import Result

logger = logging.getLogger(__name__)

DONE = "Processing complete."
BY_CLIENT = "Request cancelled by client"
BY_LEAVING = "Request cancelled due to client disconnection"
FAULT = "The worker failed on this request; its log has the reason."
DRAIN_S = 30.0

Post = Callable[[Hook, str, bytes], None]
"""(receiver, id, body): post a webhook some time soon; returns at once."""


@dataclass(slots=True)
class VastFace:
    """
    Runs the requests of one worker. `post` sends webhooks, `faults` hears how each run ended.
    """

    service: Service
    desk: Desk
    post: Post
    faults: Faults
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def start(self, order: Order) -> Entry:
        """
        Take a request on, or join the same one that is under way; the caller waits for it, or lets it go with `leave`.

        Raises:
            WorkerError: another one has its id, or there are too many.
        """
        fresh = Entry(order, asyncio.get_running_loop())
        entry = self.desk.open(fresh)
        entry.waiters += 1
        if entry is fresh:
            task = asyncio.create_task(self._run(entry))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return entry

    def leave(self, entry: Entry, message: str = BY_LEAVING) -> None:
        """
        Wait for a request no more; it is cancelled when nobody else does.
        """
        entry.waiters -= 1
        if entry.waiters <= 0:
            self.cancel(entry, message)

    def cancel(self, entry: Entry, message: str = BY_CLIENT) -> bool:
        """
        Cancel a request, at any stage; False when it was over already.
        """
        if not entry.finish("cancelled", message):
            return False
        entry.error = JobCancelled(message)
        entry.stop.set()
        return True

    async def wait(self, request: Request, entry: Entry) -> bool:
        """
        Wait for the end of a request; False when the client of `request` went away first.
        """
        ended = asyncio.ensure_future(entry.ended.wait())
        gone = asyncio.ensure_future(left(request))
        try:
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            return entry.is_over
        finally:
            ended.cancel()
            gone.cancel()
            if not entry.is_over:
                self.leave(entry)

    async def _run(self, entry: Entry) -> None:
        token = log.current_job.set(entry.order.job.id)
        job = replace(entry.order.job, queueing=entry.queueing)
        try:
            with log.MASK.during(entry.order.secrets):
                try:
                    result = await run_detached(self.service, job, entry.observe, lambda: _stopped(entry))
                    self._end(entry, result, None)
                except NothingProduced as exc:
                    self._end(entry, exc.partial, None)
                except WorkerError as exc:
                    self._end(entry, exc.partial, exc)
                except Exception:
                    logger.exception("The request ended by a fault of the worker.")
                    self._end(entry, None, WorkerError(FAULT))
        finally:
            log.current_job.reset(token)

    def _end(self, entry: Entry, result: Result | None, error: WorkerError | None) -> None:
        self.faults.note(error)
        if not entry.is_over:
            entry.result = result if isinstance(result, Result) else None
            entry.error = error
            if error is None:
                entry.finish("completed", DONE)
            elif isinstance(error, JobCancelled):
                entry.finish("cancelled", BY_CLIENT)
            else:
                entry.finish("failed", vast_reply.failure_message(error))
                logger.warning("The request failed: %s", entry.message)
        self.desk.close(entry)
        if entry.order.hook is not None:
            self.post(entry.order.hook, entry.order.id, vast_reply.webhook_body(entry))

    async def drain(self, timeout_s: float = DRAIN_S) -> None:
        """
        Wait for the requests under way, and cancel those that take longer.
        """
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=timeout_s)
        for entry in list(self.desk.running.values()):
            entry.stop.set()
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=timeout_s)


async def _stopped(entry: Entry) -> None:
    await entry.stop.wait()
