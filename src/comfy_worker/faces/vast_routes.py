"""
The routes of the Vast face. Each reads a body, calls the face, and writes a Result.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from comfy_worker import log
from comfy_worker.errors import WorkerBusy, WorkerError
from comfy_worker.faces import vast_body, vast_reply, vast_request, vast_stream
from comfy_worker.faces.http import service_of
from comfy_worker.faces.http_problem import Problem
from comfy_worker.faces.vast_body import Misfit
from comfy_worker.faces.vast_delivery import Rules
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.faces.vast_health import Health
from comfy_worker.faces.vast_models import IdRequest
from comfy_worker.faces.vast_request import Info, Order
from comfy_worker.faces.vast_run import VastFace
from comfy_worker.faces.vast_store import IdInUse
from comfy_worker.settings_parsers import TRUE
from comfy_worker.templates import Templates

MEDIA_TYPE = "application/json"
WANTS_BASE64 = "x-return-outputs-as-base64"
INCLUDES = "x-include-comfyui-response"
GONE = "Client closed connection"


@dataclass(slots=True)
class Api:
    """
    The routes' functions. `admit` judges a webhook's address and may look it up; `face` is set once the server runs.
    """

    rules: Rules
    templates: Templates
    info: Info
    admit: Callable[[str, str], None]
    health_of: Health
    includes_by_default: bool = True
    face_: VastFace | None = None

    @property
    def face(self) -> VastFace:
        """
        What runs requests.

        Raises:
            WorkerBusy: the server is not ready yet.
        """
        if self.face_ is None:
            raise WorkerBusy("The server is not ready yet.")
        return self.face_

    async def order(self, request: Request) -> Order:
        """
        Return what a request asks for.

        Raises:
            WorkerError: it cannot be run as it was sent.
        """
        body = await request.body()
        as_base64 = request.headers.get(WANTS_BASE64, "").strip().lower() in TRUE

        def read() -> Order:
            raw = vast_body.decoded(body)
            order = vast_request.to_order(raw, self.rules, self.templates, self.info, as_base64=as_base64)
            return self.admitted(order)

        return await asyncio.to_thread(read)

    def admitted(self, order: Order) -> Order:
        """
        Return the order if its webhook may be posted to. May look a name up, so it blocks.

        Raises:
            JobInvalid: it may not.
        """
        if order.hook is not None and not order.hook.is_trusted:
            self.admit(order.hook.url, order.hook.place)
        return order

    def includes(self, request: Request, order: Order) -> bool:
        """
        Return whether ComfyUI's record goes into a result: as the body says, else the header, else the setting.
        """
        if order.includes is not None:
            return order.includes
        given = request.headers.get(INCLUDES)
        return self.includes_by_default if given is None else given.strip().lower() in TRUE

    async def generate(self, request: Request) -> Response:
        """
        Take a job on (202); its result is at `/result/{id}`.
        """
        try:
            entry = self.face.start(await self.order(request))
        except WorkerError as exc:
            return await refusal(request, exc)
        timings = entry.times.shown("pending")
        body = vast_reply.bare(entry.order.id, "pending", "Request accepted")
        return await written(202, {**body, "timings": timings})

    async def generate_sync(self, request: Request) -> Response:
        """
        Run a job and return its result. A client that goes away cancels it.
        """
        try:
            order = await self.order(request)
            entry = self.face.start(order)
        except WorkerError as exc:
            return await refusal(request, exc)
        if not await self.face.wait(request, entry):
            return await written(vast_reply.CANCELLED, vast_reply.bare(order.id, "cancelled", GONE))
        reply = await self.result_reply(entry, self.includes(request, order))
        self.face.desk.slim(entry)
        return reply

    async def generate_stream(self, request: Request) -> Response:
        """
        Run a job and tell of its progress; the result is the last event.
        """
        try:
            order = await self.order(request)
            entry = self.face.start(order)
        except WorkerBusy as exc:
            headers = {"retry-after": str(vast_reply.RETRY_AFTER_S)}
            return await written(503, {"detail": vast_reply.failure_message(exc)}, headers)
        except WorkerError as exc:
            return await refusal(request, exc)
        return vast_stream.Followed(self.face, entry, includes=self.includes(request, order))

    async def result(self, request: Request, request_id: str) -> Response:
        """
        Return the state of a request, or its result.
        """
        entry = self.face.desk.find(request_id)
        if entry is not None:
            return await self.result_reply(entry, self.includes(request, entry.order))
        gone = self.face.desk.was_forgotten(request_id)
        text = vast_reply.EVICTED if gone else vast_reply.NOT_FOUND
        return await written(404, vast_reply.bare(request_id, "failed", text))

    async def result_by_body(self, request: Request) -> Response:
        """
        Do as `GET /result/{id}`, for the PyWorker, which forwards POST only.
        """
        return await self._by_id(request, partial(self.result, request))

    async def cancel(self, request_id: str) -> Response:
        """
        Cancel a request, at any stage.
        """
        entry = self.face.desk.find(request_id)
        if entry is None:
            return await written(404, {"error": f"Request {request_id} not found"})
        if self.face.cancel(entry):
            text = f"Successfully cancelled request {request_id}"
            return await written(200, {"message": text, "status": "cancelled"})
        return await written(
            200, {"message": f"Request {request_id} is already {entry.status}", "status": entry.status}
        )

    async def cancel_by_body(self, request: Request) -> Response:
        """
        Do as `POST /cancel/{id}`, with the id in the body.
        """
        return await self._by_id(request, self.cancel)

    async def _by_id(self, request: Request, do: Callable[[str], Any]) -> Response:
        try:
            raw = vast_body.unwrapped_id(vast_body.decoded(await request.body()))
            given = vast_body.checked(IdRequest, raw)
        except WorkerError as exc:
            return await refusal(request, exc)
        reply: Response = await do(given.request_id)
        return reply

    async def queue_info(self) -> Response:
        """
        Return how many requests are at each stage.
        """
        return await written(200, vast_reply.queue_info(self.face.desk.stages()))

    async def health(self, request: Request) -> Response:
        """
        Tell whether this worker is of use: 503 before it was ready, after a fault that stays, and at its end.
        """
        service = service_of(request)
        stages = self.face_.desk.stages() if self.face_ is not None else {}
        status = 200 if self.health_of.is_well(service) else 503
        return await written(status, self.health_of.body(service, stages))

    async def result_reply(self, entry: Entry, includes: bool) -> Response:
        """
        Return the Result of a request with the status of its state.
        """
        with log.MASK.during(entry.order.secrets):
            body = await asyncio.to_thread(vast_reply.result_of, entry, includes=includes)
        return await written(vast_reply.status_of(body["status"], entry.error), body)


async def written(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """
    Return a reply with its length; a large one is encoded beside the event loop.
    """
    waits = {"retry-after": str(vast_reply.RETRY_AFTER_S)} if status == 503 and "error" in body else {}
    data = await asyncio.to_thread(orjson.dumps, body, option=orjson.OPT_NON_STR_KEYS)
    return Response(data, status, {**waits, **(headers or {})}, MEDIA_TYPE)


async def refusal(request: Request, exc: WorkerError) -> Response:
    """
    Return what a request is told that was not taken on: FastAPI's list for a misfit, else a Result.
    """
    if isinstance(exc, Misfit):
        return await written(422, {"detail": exc.details["detail"]})
    status = exc.http_status if isinstance(exc, IdInUse) else vast_reply.failure_status(exc)
    return await written(status, vast_reply.refused(await _id_in(request), exc))


async def _id_in(request: Request) -> str:
    try:
        raw = vast_body.unwrapped(orjson.loads(await request.body()))
    except ValueError:
        return str(uuid.uuid4())
    given = raw.get("input") if isinstance(raw, dict) else None
    name = given.get("request_id") if isinstance(given, dict) else None
    return name if isinstance(name, str) and name else str(uuid.uuid4())


def render(_request: Request, problem: Problem) -> Response:
    """
    Return what goes wrong outside of a job as FastAPI does: an unknown route, a body that is too large.
    """
    words = {404: "Not Found", 405: "Method Not Allowed"}
    body = {"detail": words.get(problem.status, problem.message)}
    return Response(orjson.dumps(body), problem.status, dict(problem.headers), MEDIA_TYPE)


def router_of(api: Api) -> APIRouter:
    """
    Return the routes. Their documentation is written by `vast_docs`.
    """
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/generate", api.generate, methods=["POST"])
    router.add_api_route("/generate/sync", api.generate_sync, methods=["POST"])
    router.add_api_route("/generate/stream", api.generate_stream, methods=["POST"])
    router.add_api_route("/result/{request_id:path}", api.result, methods=["GET"])
    router.add_api_route("/result", api.result_by_body, methods=["POST"])
    router.add_api_route("/cancel/{request_id:path}", api.cancel, methods=["POST"])
    router.add_api_route("/cancel", api.cancel_by_body, methods=["POST"])
    router.add_api_route("/queue-info", api.queue_info, methods=["GET", "POST"])
    router.add_api_route("/health", api.health, methods=["GET"])
    return router
