"""
What the HTTP faces share: the application factory, and how a job is run for a client that may go away.

A face is an `APIRouter` (with `route_class=JsonRoute`) whose routes call `run_job`, and a `Render` where it words failures
in its own dialect. It reaches the worker through `service_of(request)`.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from comfy_worker import __version__
from comfy_worker.comfy.engine import Engine
from comfy_worker.errors import JobCancelled, WorkerBusy, WorkerError
from comfy_worker.faces.http_events import EventHub, events_router
from comfy_worker.faces.http_gate import Bodies, Gate
from comfy_worker.faces.http_pages import documented, pages_router
from comfy_worker.faces.http_problem import Render, plain, problem_of
from comfy_worker.job import Job, Observer, Result, ignore
from comfy_worker.metrics import Metrics
from comfy_worker.pool import Pool, Ticket
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

CANCEL_WAIT_S = 60.0
LOOK_S = 1.0
LOOK_WAIT_S = 3.0
BODIES_AT_ONCE = 8
LEAST_BODIES_BYTES = 512_000_000
OPEN_PATHS = ("/health", "/ready", "/ping")


class Worker(Protocol):
    """
    What a face sees of a wired worker.
    """

    settings: Settings
    engine: Engine
    pool: Pool
    metrics: Metrics

    @property
    def is_worn(self) -> bool:
        """
        Whether it must be replaced.
        """

    def warm_up(self) -> bool:
        """
        Run the warm-up, if there is one; blocks. False: it failed, and the worker must not go on.
        """

    def close(self) -> None:
        """
        Finish or cancel the running jobs, then end everything. Idempotent; blocks.
        """


@dataclass(slots=True)
class Service:
    """
    What lives as long as the application: the worker, the events of its jobs, the bodies of its requests, and whether it
    is about to end. `broken` says why the worker is of no use any more; the server then ends.

    A face keeps what it needs beside them in `state`, by a name of its own.
    """

    worker: Worker
    events: EventHub
    bodies: Bodies
    draining: bool = False
    broken: str | None = None
    state: dict[str, Any] = field(default_factory=dict)
    _look: "asyncio.Future[bool] | None" = None
    _looked: float = -LOOK_S

    async def up(self) -> bool:
        """
        Tell whether ComfyUI answers, asked at most once a second, and whether jobs are taken at all; bounded.
        """
        now = asyncio.get_running_loop().time()
        if self._look is None or (self._look.done() and now - self._looked >= LOOK_S):
            self._looked = now
            self._look = asyncio.ensure_future(asyncio.to_thread(self.worker.engine.client.answers))
        look = self._look
        await asyncio.wait({look}, timeout=LOOK_WAIT_S)
        return look.done() and look.result() and not self.draining


Hook = Callable[[Service], Awaitable[None]]
"""Runs at the start or at the end of an application."""


def service_of(request: Request) -> Service:
    """
    Return the service that a request belongs to.
    """
    service: Service = request.app.state.service
    return service


class JsonRequest(Request):
    """
    A request whose JSON is strict: no NaN, no lone surrogates, bounded nesting.
    """

    async def json(self) -> Any:
        """
        Return the decoded body.
        """
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


class JsonRoute(APIRoute):
    """
    A route that takes JSON whatever the content type says, decoded strictly; a body that is not JSON is a 400.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """
        Return what serves a request.
        """
        inner = super().get_route_handler()

        async def serve(request: Request) -> Response:
            scope = dict(request.scope)
            others = [item for item in scope["headers"] if item[0] != b"content-type"]
            scope["headers"] = [*others, (b"content-type", b"application/json")]
            return await inner(JsonRequest(scope, request.receive))

        return serve


def create_app(
    worker: Worker,
    *,
    title: str,
    bearer: SecretStr | None,
    max_body_bytes: int,
    routers: Sequence[APIRouter],
    render: Render = plain,
    open_paths: Collection[str] = OPEN_PATHS,
    description: str = "",
    openapi_path: str = "/openapi.json",
    docs_path: str | None = "/docs",
    version: str = __version__,
    on_start: Sequence[Hook] = (),
    on_end: Sequence[Hook] = (),
) -> FastAPI:
    """
    Return the application of one face over a worker. Its end closes the worker.

    `routers` come first, so a face may answer `/jobs/{id}/events`, `/metrics` or `/docs` itself. `render` words every failure,
    those of the gate and of unknown routes included. `open_paths` need no key. `on_start` runs before the first request and
    `on_end` before the worker is closed; both get the `Service`.
    """
    bodies = Bodies(max(LEAST_BODIES_BYTES, BODIES_AT_ONCE * max_body_bytes))
    service = Service(worker, EventHub(worker.pool.position), bodies)
    app = FastAPI(
        title=title,
        description=description,
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service, on_start, on_end),
    )
    app.state.service = service
    for router in (*routers, events_router(), pages_router(openapi_path, docs_path)):
        app.include_router(router)
    app.openapi = functools.partial(documented, app, secured=bearer is not None)  # type: ignore[method-assign]
    _answer_failures(app, render)
    app.add_middleware(
        Gate,
        bearer=bearer,
        max_body_bytes=max_body_bytes,
        open_paths=frozenset(open_paths),
        render=render,
        bodies=bodies,
    )
    return app


def _lifespan(
    service: Service, on_start: Sequence[Hook], on_end: Sequence[Hook]
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.events.bind(asyncio.get_running_loop())
        for hook in on_start:
            await hook(service)
        try:
            yield
        finally:
            service.draining = True
            for hook in on_end:
                await hook(service)
            await asyncio.to_thread(service.worker.close)

    return lifespan


def _answer_failures(app: FastAPI, render: Render) -> None:
    async def answer(request: Request, exc: Exception) -> Response:
        return render(request, problem_of(exc))

    for kind in (WorkerError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)


async def run_job(request: Request, job: Job, observe: Observer = ignore) -> Result:
    """
    Run a job for the client of a request, whose going away cancels it, and return its result.

    Its events are at `/jobs/{job.id}/events` too. The body of the request must have been read.

    Raises:
        WorkerError: it failed, was cancelled, or was not taken on (`WorkerBusy`).
    """
    return await run_detached(service_of(request), job, observe, lambda: left(request))


async def run_detached(
    service: Service,
    job: Job,
    observe: Observer = ignore,
    gone: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> Result:
    """
    Run a job that no connection is tied to (or whose client is away once `gone()` returns), and return its result.

    A cancel of the calling task cancels the job.

    Raises:
        WorkerError: as `run_job`.
    """
    with service.events.of(job.id) as tell:

        def both(event: Any) -> None:
            tell(event)
            observe(event)

        try:
            return await _ended(service.worker.pool.submit(job, both), gone)
        except JobCancelled as exc:
            if not service.draining:
                raise
            raise WorkerBusy("The worker is shutting down; send the job again.") from exc


async def _ended(ticket: Ticket, gone: Callable[[], Coroutine[Any, Any, None]] | None) -> Result:
    waiting = asyncio.wrap_future(ticket.future)
    waiting.add_done_callback(_seen)
    watching = asyncio.ensure_future(gone()) if gone is not None else None
    try:
        await asyncio.wait({waiting, *([watching] if watching else ())}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
    finally:
        if watching is not None:
            watching.cancel()
        if not waiting.done():
            ticket.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=CANCEL_WAIT_S)
    if not done:
        raise JobCancelled("The job was cancelled and has not ended yet.")
    return waiting.result()


def _seen(future: "asyncio.Future[Result]") -> None:
    # Nobody may be left who asks for it.
    if not future.cancelled():
        future.exception()


async def left(request: Request) -> None:
    """
    Return when the client of a request, whose body has been read, goes away.
    """
    while (await request.receive())["type"] != "http.disconnect":
        continue
