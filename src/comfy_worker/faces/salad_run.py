"""
The Salad face at work: requests that run, those that are stopped, and the webhooks at their end.

What a request means is in `salad_request`, what is answered in `salad_reply`, where it is asked in `salad_routes`.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from starlette.requests import Request

from comfy_worker import log
from comfy_worker.errors import JobInvalid, WorkerBusy, WorkerError
from comfy_worker.faces import salad_reply
from comfy_worker.faces.http import Service, left, run_detached, service_of
from comfy_worker.faces.salad_delivery import Rules
from comfy_worker.faces.salad_graph import Surroundings
from comfy_worker.faces.salad_models import Credential
from comfy_worker.faces.salad_reply import Record
from comfy_worker.faces.salad_request import Order
from comfy_worker.job import Event, HttpTarget, Result, Workflow
from comfy_worker.storage import azure_access

logger = logging.getLogger(__name__)

IN_LINE_S = 0.5
"""How long a request that is to be answered at once may wait for a pipeline thread before it is answered unseen."""

STAGING_S = 90.0
"""The same for its inputs; the gateways of the field cut a request at 100 s."""

STOP_S = 30.0
FAULT = "The worker failed on this request; its log has the reason."
DRAIN_S = 30.0

Send = Callable[[str, str, Mapping[str, Any]], None]
"""(URL, id, body): post a webhook some time soon; returns at once."""


class Prompts(Protocol):
    """
    Told which prompt belongs to which request, for the events of ComfyUI.
    """

    def known(self, prompt_id: str, request_id: str) -> None:
        """
        Note a prompt.
        """

    def over(self, prompt_id: str) -> None:
        """
        Forget a prompt.
        """


@dataclass(eq=False, slots=True)
class Running:
    """
    A request on its way. `stop` ends it, `staged` says that its inputs are in place, `accepted` that a 202 was sent.
    """

    order: Order
    record: Record = field(default_factory=Record)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    staged: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: bool = False


@dataclass(slots=True)
class SaladFace:
    """
    Runs the requests of one worker. `around` gives what a graph is read with, for a key and the request's credentials.
    """

    rules: Rules
    around: Callable[[str, list[Credential]], Surroundings]
    send: Send
    admit: Callable[[str, str], None]
    prompts: Prompts | None = None
    running: dict[str, set[Running]] = field(default_factory=dict)
    background: set["asyncio.Task[None]"] = field(default_factory=set)

    def surroundings(self, credentials: list[Credential]) -> Surroundings:
        """
        Return what one graph is read with.
        """
        return self.around(f"cwreq-{uuid.uuid4().hex}", credentials)

    def admitted(self, order: Order) -> Order:
        """
        Return the order if its webhooks and its target may be posted to. May look names up, so it blocks.

        Raises:
            JobInvalid: one may not.
        """
        target = order.job.delivery.target
        prefix = target.url_prefix if isinstance(target, HttpTarget) else None
        places = {
            "webhook": order.webhook,
            "webhook_v2": order.webhook_v2,
            "http_upload.url_prefix": prefix,
        }
        for name, url in places.items():
            if url is not None:
                self.admit(url, name)
        return order

    async def answer(
        self, request: Request, order: Order, extra: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """
        Run an order and return status and body; `extra` is added to the body of a success.
        """
        try:
            if order.is_async:
                return 202, {**await self._accepted(service_of(request), order), **extra}
            with self._noted(order) as running:
                result = await self._run(service_of(request), running, request)
                return 200, {**salad_reply.to_reply(order, result, running.record), **extra}
        except WorkerError as exc:
            return salad_reply.to_failure(exc, order)

    async def _run(self, service: Service, running: Running, request: Request | None) -> Result:
        loop, record = asyncio.get_running_loop(), running.record

        def in_place() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                loop.call_soon_threadsafe(running.staged.set)

        def queueing(prompt_id: str, workflow: Workflow) -> None:
            if self.prompts is not None:
                if record.prompt_id is not None:
                    self.prompts.over(record.prompt_id)
                self.prompts.known(prompt_id, running.order.id)
            record.queueing(prompt_id, workflow)
            in_place()

        def observe(event: Event) -> None:
            record(event)
            # Who joins a run that goes on already is not told of its beginning.
            if event.kind != "staging" and not running.staged.is_set():
                in_place()

        job = replace(running.order.job, queueing=queueing)
        try:
            return await run_detached(service, job, observe, lambda: _unwanted(running, request))
        finally:
            if self.prompts is not None and record.prompt_id is not None:
                self.prompts.over(record.prompt_id)

    @contextlib.contextmanager
    def _noted(self, order: Order) -> Iterator[Running]:
        running = Running(order)
        self.running.setdefault(order.id, set()).add(running)
        try:
            with log.MASK.during(_secrets_of(order)):
                yield running
        finally:
            running.ended.set()
            same = self.running[order.id]
            same.discard(running)
            if not same:
                del self.running[order.id]

    async def _accepted(self, service: Service, order: Order) -> dict[str, Any]:
        """
        Start an order in the background; return the body of its 202 once its inputs are in place, if that is soon.

        Raises:
            WorkerError: it was refused meanwhile; then nothing is posted.
        """
        started: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._unattended(service, order, started))
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        running = await started
        staged = asyncio.ensure_future(running.staged.wait())
        try:
            await asyncio.wait({task, staged}, timeout=IN_LINE_S, return_when=asyncio.FIRST_COMPLETED)
            if running.record.is_staging and not staged.done():
                await asyncio.wait({task, staged}, timeout=STAGING_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            staged.cancel()
        if task.done():
            task.result()
        running.accepted = True
        return salad_reply.to_accepted(order, running.record)

    async def _unattended(self, service: Service, order: Order, started: "asyncio.Future[Running]") -> None:
        token = log.current_job.set(order.job.id)
        try:
            with self._noted(order) as running:
                started.set_result(running)
                try:
                    result = await self._run(service, running, None)
                    reply = salad_reply.to_reply(order, result, running.record)
                    # Its files are written into the message here, which takes a while.
                    await asyncio.to_thread(self._tell, order, reply)
                except WorkerError as exc:
                    refused = isinstance(exc, JobInvalid | WorkerBusy) and running.record.workflow is None
                    if refused and not running.accepted:
                        raise
                    self._tell_failure(running, exc)
                except Exception:
                    logger.exception("The request ended by a fault of the worker.")
                    self._tell_failure(running, WorkerError(FAULT))
        finally:
            log.current_job.reset(token)

    def _tell(self, order: Order, reply: Mapping[str, Any]) -> None:
        if order.webhook_v2:
            self.send(order.webhook_v2, order.id, salad_reply.complete_v2(reply))
        if order.webhook:
            for body in salad_reply.complete_v1(reply):
                self.send(order.webhook, order.id, body)

    def _tell_failure(self, running: Running, exc: WorkerError) -> None:
        order = running.order
        logger.warning("An asynchronous request failed: %s", salad_reply.failure_text(exc, order))
        if order.webhook_v2:
            self.send(order.webhook_v2, order.id, salad_reply.failed("type", order, running.record, exc))
        if order.webhook:
            self.send(order.webhook, order.id, salad_reply.failed("event", order, running.record, exc))

    async def interrupt(self, request_id: str) -> bool:
        """
        Stop every request of this id, running or waiting, and wait for their end; False when there is none.
        """
        found = list(self.running.get(request_id, ()))
        for running in found:
            running.stop.set()
        waits = [asyncio.ensure_future(running.ended.wait()) for running in found]
        if waits:
            _, late = await asyncio.wait(waits, timeout=STOP_S)
            for wait in late:
                wait.cancel()
        return bool(found)

    async def drain(self, timeout_s: float = DRAIN_S) -> None:
        """
        Wait for the requests in the background, stop those that take longer, and wait for their webhooks to be handed over.
        """
        if self.background:
            await asyncio.wait(set(self.background), timeout=timeout_s)
        for running in [one for same in self.running.values() for one in same]:
            running.stop.set()
        if self.background:
            await asyncio.wait(set(self.background), timeout=STOP_S)


def _secrets_of(order: Order) -> Iterator[str]:
    for file in order.job.inputs:
        if file.auth is not None:
            shown = (*file.auth.headers, *file.auth.query)
            yield from (value.get_secret_value() for name, value in shown if name not in azure_access.OPEN)


async def _unwanted(running: Running, request: Request | None) -> None:
    """
    Return when a request was stopped, or its client has left.
    """
    waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(running.stop.wait())}
    if request is not None:
        waits.add(asyncio.ensure_future(left(request)))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
