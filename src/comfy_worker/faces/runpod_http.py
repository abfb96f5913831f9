"""
RunPod's HTTP API on this machine: the routes and statuses that clients meet in production, over the RunPod face.

Source: RunPod's documentation, and its SDK 1.12.0 as observed. Every route is also under `/v2/{endpoint}`, for the SDK's
client with `RUNPOD_ENDPOINT_BASE_URL`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from comfy_worker.errors import JobInvalid, WorkerBusy
from comfy_worker.faces.http import JsonRoute, Service, Worker, create_app, left, service_of
from comfy_worker.faces.http_problem import Json, Parts
from comfy_worker.faces.runpod import RunpodFace
from comfy_worker.faces.runpod_jobs import FINAL, Desk, Record
from comfy_worker.faces.runpod_request import JobRequest, JobView, terms_of
from comfy_worker.faces.runpod_webhook import Webhooks
from comfy_worker.fetch_guard import Guard

RUN_LIMIT = 10_000_000
RUNSYNC_LIMIT = 20_000_000
WAIT_MS = 90_000
CLOSE_S = 10.0
WEBHOOKS_S = 5.0


class RunpodWorker(Worker, Protocol):
    """
    A worker with the RunPod face.
    """

    face: RunpodFace


class Api:
    """
    The routes' functions over one worker.
    """

    def __init__(self, worker: RunpodWorker, guard: Guard) -> None:
        self._worker = worker
        self._guard = guard
        self._id = worker.settings.runpod_pod_id or "local"
        self._desk: Desk | None = None
        self._webhooks: Webhooks | None = None
        self._warming: asyncio.Task[None] | None = None
        self._is_warm = False

    async def start(self, service: Service) -> None:
        """
        Open the desk, and warm up.
        """
        self._warming = asyncio.create_task(self._warm(service))
        self._webhooks = Webhooks(self._guard)
        self._desk = Desk(
            self._worker.face.handle,
            service.events,
            self._tell,
            most_waiting=self._worker.settings.queue_limit,
        )

    async def _warm(self, service: Service) -> None:
        self._is_warm = await asyncio.to_thread(self._worker.warm_up)
        if not self._is_warm and not service.draining:
            service.broken = "The warm-up failed, and WARMUP_REQUIRED is set"

    async def end(self, _service: Service) -> None:
        """
        Close the desk: the pool has ended the jobs, or is about to.
        """
        if self._warming is not None:
            self._warming.cancel()
        await self.desk.close(CLOSE_S)
        if self._webhooks is not None:
            await self._webhooks.close(WEBHOOKS_S)

    @property
    def desk(self) -> Desk:
        """
        The desk, open as long as the application runs.
        """
        if self._desk is None:
            raise HTTPException(503, "The server is not ready yet.")
        return self._desk

    def _tell(self, record: Record) -> None:
        if record.terms.webhook is not None and self._webhooks is not None:
            self._webhooks.send(record.terms.webhook, b"".join(record.parts(self._id)))

    async def run(self, request: Request, job: JobRequest) -> Json:
        """
        Take a job on and return its id at once.
        """
        record = await self._submit(request, job, RUN_LIMIT, sync=False)
        return Json({"id": record.id, "status": record.status})

    async def runsync(
        self,
        request: Request,
        job: JobRequest,
        wait: Annotated[int, Query(ge=1000, le=300_000, description="Milliseconds to wait.")] = WAIT_MS,
    ) -> Response:
        """
        Run a job and return its result, or its state when it takes longer than `wait`.

        A client that goes away takes the job with it, unless a webhook will tell of it: nobody else knows its id.
        """
        record = await self._submit(request, job, RUNSYNC_LIMIT, sync=True)
        done = asyncio.ensure_future(record.done.wait())
        gone = asyncio.ensure_future(left(request))
        try:
            await asyncio.wait({done, gone}, timeout=wait / 1000, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and record.terms.webhook is None:
                self.desk.stop(record, "CANCELLED")
        finally:
            done.cancel()
            gone.cancel()
        return self._shown(record)

    async def _submit(self, request: Request, job: JobRequest, limit: int, *, sync: bool) -> Record:
        if service_of(request).draining:
            raise WorkerBusy("The worker is shutting down; send the job again.")
        size = len(await request.body())
        if size > limit:
            raise JobInvalid(
                f"The request is {size:,} bytes and may be {limit:,}: send large inputs as URLs.",
                field="input",
                size_bytes=size,
                limit_bytes=limit,
            )
        raw = {**(job.model_extra or {}), "input": job.input, "s3Config": job.s3Config}
        return self.desk.submit(raw, size, terms_of(job), sync=sync)

    def _found(self, job_id: str) -> Record:
        record = self.desk.get(job_id)
        if record is None:
            raise HTTPException(404, "There is no such job, or its result is no longer kept.")
        return record

    def _shown(self, record: Record) -> Response:
        return Parts(record.parts(self._id))

    async def status(self, job_id: str) -> Response:
        """
        Return the state of a job, with its result once it has ended.
        """
        return self._shown(self._found(job_id))

    async def stream(self, job_id: str) -> Response:
        """
        Return what is new of a job's output: all of it, once, after the job's end, for this handler yields no parts.
        """
        record = self._found(job_id)
        fresh = record.status in FINAL and record.output is not None and not record.streamed
        record.streamed = record.streamed or fresh
        head = b'{"status":"%s","stream":[' % record.status.encode()
        part = (b'{"output":', record.output, b"}") if fresh and record.output is not None else ()
        return Parts((head, *part, b"]}"))

    async def cancel(self, job_id: str) -> Json:
        """
        Cancel a job that has not ended, wherever it is.
        """
        record = self._found(job_id)
        self.desk.stop(record, "CANCELLED")
        return Json({"id": record.id, "status": record.status})

    async def purge_queue(self) -> Json:
        """
        Cancel every job that waits.
        """
        return Json({"removed": self.desk.purge(), "status": "completed"})

    async def health(self) -> Json:
        """
        Return how many jobs are in which state, and what the worker does.
        """
        counts, desk = self.desk.counts, self.desk
        running, useless = desk.number("IN_PROGRESS"), int(self._worker.engine.useless)
        busy = int(running > 0)
        jobs = {
            "completed": counts["COMPLETED"],
            "failed": counts["FAILED"] + counts["TIMED_OUT"],
            "inProgress": running,
            "inQueue": desk.number("IN_QUEUE"),
            "retried": 0,
        }
        workers = {
            "idle": 1 - max(busy, useless),
            "initializing": 0,
            "ready": 1 - useless,
            "running": busy,
            "throttled": 0,
            "unhealthy": useless,
        }
        return Json({"jobs": jobs, "workers": workers})

    async def ready(self, request: Request) -> Json:
        """
        Tell whether ComfyUI answers, the warm-up is over, and jobs are taken.
        """
        is_up = self._is_warm and await service_of(request).up()
        return Json({"status": "ready" if is_up else "not ready"}, 200 if is_up else 503)


def router_of(api: Api) -> APIRouter:
    """
    Return the routes, each at its own path and below `/v2/{endpoint}`.
    """
    known = {"model": JobView, "description": "The state of the job."}
    taken: dict[int | str, dict[str, Any]] = {200: known}
    unknown: dict[int | str, dict[str, Any]] = {200: known, 404: {"description": "No such job."}}
    plain: dict[int | str, dict[str, Any]] = {}
    unready: dict[int | str, dict[str, Any]] = {503: {"description": "ComfyUI does not answer."}}
    routes: list[tuple[str, str, Callable[..., Awaitable[Response]], dict[int | str, dict[str, Any]]]] = [
        ("POST", "/run", api.run, taken),
        ("POST", "/runsync", api.runsync, taken),
        ("GET", "/status/{job_id}", api.status, unknown),
        ("POST", "/status/{job_id}", api.status, unknown),
        ("GET", "/stream/{job_id}", api.stream, {404: unknown[404]}),
        ("POST", "/stream/{job_id}", api.stream, {404: unknown[404]}),
        ("POST", "/cancel/{job_id}", api.cancel, unknown),
        ("POST", "/purge-queue", api.purge_queue, plain),
        ("GET", "/health", api.health, plain),
        ("GET", "/ready", api.ready, unready),
    ]
    router = APIRouter(route_class=JsonRoute)
    for prefix, is_shown in (("", True), ("/v2/{endpoint}", False)):
        for method, path, function, responses in routes:
            router.add_api_route(
                prefix + path,
                function,
                methods=[method],
                responses=responses,
                include_in_schema=is_shown,
            )
    return router


def app_of(worker: RunpodWorker, guard: Guard | None = None) -> FastAPI:
    """
    Return the application: RunPod's API over a worker. `guard` says where webhooks may go, by default by the settings.
    """
    api = Api(worker, guard or Guard(allow_private=worker.settings.allow_private_urls))
    return create_app(
        worker,
        title="comfy-worker, RunPod API",
        description="The API of a RunPod endpoint, answered by the worker on this machine.",
        bearer=worker.settings.server_api_key,
        max_body_bytes=RUNSYNC_LIMIT,
        routers=[router_of(api)],
        on_start=[api.start],
        on_end=[api.end],
    )
