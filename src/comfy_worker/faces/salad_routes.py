"""
The routes of the Salad face, and how their replies are written. Each reads a body, calls the face, and writes.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from comfy_worker import __version__, log
from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobInvalid, WorkerBusy, WorkerError
from comfy_worker.faces import salad_auth, salad_reply, salad_request, salad_written
from comfy_worker.faces.http import Service, service_of
from comfy_worker.faces.http_problem import Problem
from comfy_worker.faces.reply import shown
from comfy_worker.faces.salad_models import DownloadRequest, InterruptRequest, WorkflowRequest
from comfy_worker.faces.salad_models_api import Library
from comfy_worker.faces.salad_request import Order
from comfy_worker.faces.salad_run import SaladFace
from comfy_worker.faces.salad_written import MEDIA_TYPE
from comfy_worker.templates import Templates

logger = logging.getLogger(__name__)

THREADS = 32
"""Threads that read requests and write replies: of their own, since looking a name up may take long."""

DOWNLOADS = 8
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
T = TypeVar("T")


@dataclass(slots=True)
class Api:
    """
    The routes' functions. `is_warm` says that the worker was ready once; `depth` that of the queue, `most_waiting` its limit.
    """

    face: SaladFace
    library: Library
    templates: Templates
    depth: Callable[[], int]
    most_waiting: int = 0
    is_warm: bool = False
    downloads: dict["asyncio.Task[None]", Deadline] = field(default_factory=dict)
    threads: Executor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "salad"))
    fetching: Executor = field(default_factory=lambda: ThreadPoolExecutor(DOWNLOADS, "download"))

    def warmed(self) -> None:
        """
        Say that the worker is healthy from now on.
        """
        self.is_warm = True

    async def prompt(self, request: Request) -> Response:
        """
        Run a graph and return its outputs, or take it on (202) and tell a webhook.
        """
        raw = await _body(request)
        return await self._answer(request, raw, lambda: self._order(raw), {})

    def _order(self, raw: Any) -> Order:
        return salad_request.to_order(raw, self.face.rules, self.face.surroundings)

    async def workflow(self, request: Request, name: str) -> Response:
        """
        Run a named workflow with parameters, as `/prompt` runs a graph.
        """
        if name not in self.templates.by_name:
            raise HTTPException(404)
        raw = await _body(request)
        echo: dict[str, Any] = {}

        def order() -> Order:
            options = salad_request.checked(WorkflowRequest, raw)
            made, found = salad_request.from_template(
                self.templates.get(name), options, self.face.rules, self.face.surroundings
            )
            echo["input"] = found
            return made

        return await self._answer(request, raw, order, echo)

    async def _answer(
        self, request: Request, raw: Any, make: Callable[[], Order], extra: Mapping[str, Any]
    ) -> Response:
        with log.MASK.during(salad_auth.secrets_of(raw)):
            try:
                order = await self._threaded(lambda: self.face.admitted(make()))
            except WorkerError as exc:
                return await self._written(*salad_reply.to_failure(exc))
            return await self._written(*await self.face.answer(request, order, extra))

    async def interrupt(self, request: Request) -> Response:
        """
        Stop the requests of an id, running or waiting.
        """
        given = salad_request.checked(InterruptRequest, await _body(request))
        found = await self.face.interrupt(given.id)
        body = {"id": given.id, "interrupted": "success" if found else "failed"}
        return await self._written(200 if found else 404, body)

    async def models(self) -> Response:
        """
        List the models that ComfyUI has, by type.
        """
        return await self._written(200, await self._threaded(self.library.listing))

    async def download(self, request: Request) -> Response:
        """
        Fetch a model into the folder of its type.
        """
        raw = await _body(request)
        given = salad_request.checked(DownloadRequest, raw)
        deadline = Deadline(self.face.rules.timeout_s)
        with log.MASK.during(salad_auth.secrets_of(raw)):
            name = await self._threaded(partial(self.library.check, given))
            task = asyncio.create_task(self._fetched(given, deadline))
            self.downloads[task] = deadline
            task.add_done_callback(lambda done: self.downloads.pop(done, None))
            if given.wait:
                try:
                    return await self._written(200, await task)
                except WorkerError as exc:
                    return await self._written(400, {"error": salad_reply.reason_of(exc), "location": "url"})
            task.add_done_callback(_told)
        started = {"url": given.url, "model_type": given.model_type, "filename": name, "status": "started"}
        return await self._written(202, started)

    async def _fetched(self, given: DownloadRequest, deadline: Deadline) -> Any:
        with log.MASK.during(salad_auth.secrets_of(given.model_dump(exclude_none=True))):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.fetching, self.library.download, given, deadline)

    async def health(self) -> Response:
        """
        Tell whether the worker was ever ready, as a start-up and liveness probe asks.
        """
        status = "healthy" if self.is_warm else "not healthy"
        return await self._written(200 if self.is_warm else 500, {"version": __version__, "status": status})

    async def ready(self, request: Request) -> Response:
        """
        Tell whether a request would be run now: ComfyUI answers, and the queue is not full.
        """
        has_room = not self.most_waiting or self.depth() < self.most_waiting
        is_ready = self.is_warm and has_room and await service_of(request).up()
        status = "ready" if is_ready else "not ready"
        return await self._written(200 if is_ready else 503, {"version": __version__, "status": status})

    async def _threaded(self, do: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, do)

    async def _written(self, status: int, body: Mapping[str, Any]) -> Response:
        waits = status == 503 and "message" in body
        headers = {"retry-after": str(salad_reply.RETRY_AFTER_S)} if waits else {}
        return await self._threaded(partial(salad_written.response, status, body, headers))

    async def end(self, _service: Service) -> None:
        """
        Wait for what runs in the background, and stop what takes too long.
        """
        for deadline in self.downloads.values():
            deadline.cancel()
        await self.face.drain()
        self.threads.shutdown(wait=False)
        self.fetching.shutdown(wait=False)


def _told(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.warning("A download failed: %s", shown(str(task.exception())))


async def _body(request: Request) -> Any:
    """
    Return the JSON of a request.

    Raises:
        HTTPException: it is a form (415).
        JobInvalid: it is not JSON.
    """
    type_ = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if type_ in FORMS:
        raise HTTPException(415)
    return await asyncio.to_thread(salad_request.decoded, body)


FIXED: dict[int, dict[str, Any]] = {
    413: {
        "statusCode": 413,
        "code": "FST_ERR_CTP_BODY_TOO_LARGE",
        "error": "Payload Too Large",
        "message": "Request body is too large",
    },
    415: {
        "statusCode": 415,
        "code": "FST_ERR_CTP_INVALID_MEDIA_TYPE",
        "error": "Unsupported Media Type",
        "message": "Unsupported Media Type",
    },
}


def render(request: Request, problem: Problem) -> Response:
    """
    Return what goes wrong outside of a job, in the shapes of fastify: an unknown route, a body that is too large.
    """
    status, headers = problem.status, dict(problem.headers)
    if status in {404, 405}:
        where = f"{request.method}:{request.url.path}"
        body = {"message": f"Route {where} not found", "error": "Not Found", "statusCode": 404}
        return Response(orjson.dumps(body), 404, media_type=MEDIA_TYPE)
    if status in FIXED:
        return Response(orjson.dumps(FIXED[status]), status, headers, MEDIA_TYPE)
    if isinstance(problem.error, JobInvalid | WorkerBusy):
        status, refused = salad_reply.to_failure(problem.error)
        return Response(orjson.dumps(refused), status, headers, MEDIA_TYPE)
    title = "Internal Server Error" if status == 500 else problem.code.replace("_", " ").capitalize()
    failed = {"statusCode": status, "error": title, "message": problem.message, "code": problem.code}
    return Response(orjson.dumps(failed), status, headers, MEDIA_TYPE)


def router_of(api: Api) -> APIRouter:
    """
    Return the routes. Their documentation is written by `salad_docs`.
    """
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/health", api.health, methods=["GET", "HEAD"])
    router.add_api_route("/ready", api.ready, methods=["GET", "HEAD"])
    router.add_api_route("/models", api.models, methods=["GET", "HEAD"])
    router.add_api_route("/prompt", api.prompt, methods=["POST"])
    router.add_api_route("/interrupt", api.interrupt, methods=["POST"])
    router.add_api_route("/download", api.download, methods=["POST"])
    router.add_api_route("/workflow/{name:path}", api.workflow, methods=["POST"])
    router.add_api_route("/workflows/{name:path}", api.workflow, methods=["POST"])
    return router
