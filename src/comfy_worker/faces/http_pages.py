"""
What an HTTP face says of itself: its OpenAPI document, a page that shows it without any other host, and its metrics.
"""

import asyncio
import logging
from collections.abc import Iterator
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse

from comfy_worker.errors import ComfyUnavailable
from comfy_worker.faces.http_problem import Json
from comfy_worker.metrics import Gauge

logger = logging.getLogger(__name__)

STATS_TIMEOUT_S = 5.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PROBLEM = {
    "type": "object",
    "required": ["error", "error_code"],
    "properties": {
        "error": {"type": "string", "description": "One sentence: what is wrong, and the way out."},
        "error_code": {"type": "string", "description": "Stable; see the list of error codes."},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
        "request_id": {"type": "string"},
    },
}
EVERYWHERE = {"400": "The request is wrong."}
WITH_A_KEY = {"401": "The key is missing or wrong."}
WITHOUT_A_KEY = {"403": "The request comes from a page of another site."}
WITH_A_BODY = {
    "408": "The body came in too slowly.",
    "413": "The body is too large.",
    "503": "The queue is full, or the worker is shutting down; try again later.",
}


def documented(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    """
    Return the OpenAPI document of an application: FastAPI's, with the answers that come from what all faces share.

    A status that a face documents itself is left as it is.
    """
    if app.openapi_schema is not None:
        return app.openapi_schema
    document: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for operation in _operations(document):
        answers = operation.setdefault("responses", {})
        if "HTTPValidationError" in str(answers.get("422")):
            del answers["422"]  # a request that does not fit is a 400 here
        more = EVERYWHERE | (WITH_A_KEY if secured else WITHOUT_A_KEY)
        if "requestBody" in operation:
            more |= WITH_A_BODY
        for status, text in more.items():
            answers.setdefault(status, _refusal(text))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Problem"] = PROBLEM
    if secured:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    app.openapi_schema = document
    return document


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document.get("paths", {}).values():
        yield from (item for item in path.values() if isinstance(item, dict))


def _refusal(text: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": text, "content": content}


def pages_router(openapi_path: str, docs_path: str | None) -> APIRouter:
    """
    Return the routes of the OpenAPI document, its page (None: no page) and `/metrics`.
    """
    router = APIRouter(include_in_schema=False)

    @router.get(openapi_path)
    async def openapi(request: Request) -> Json:
        return Json(request.app.openapi())

    @router.get("/metrics")
    async def metrics(request: Request) -> PlainTextResponse:
        service = request.app.state.service
        gauges = await asyncio.to_thread(lambda: list(gauges_of(service.worker)))
        return PlainTextResponse(service.worker.metrics.exposition(gauges), media_type=METRICS_TYPE)

    if docs_path is not None:
        page = page_of(openapi_path)

        @router.get(docs_path)
        async def docs() -> HTMLResponse:
            return HTMLResponse(page)

    return router


def page_of(openapi_path: str) -> str:
    """
    Return the page that shows an OpenAPI document.
    """
    page = resources.files("comfy_worker.faces").joinpath("docs.html").read_text(encoding="utf-8")
    return page.replace("{{openapi}}", openapi_path.removeprefix("/"))


def gauges_of(worker: Any) -> Iterator[Gauge]:
    """
    Yield the numbers of the moment: the queue, ComfyUI's starts, its devices' memory. Asks ComfyUI, so it blocks.
    """
    waiting, busy = worker.pool.waiting, worker.pool.busy
    yield Gauge("comfy_worker_queue_length", "Jobs that wait for a pipeline thread.", waiting)
    yield Gauge("comfy_worker_jobs_running", "Jobs in the pipeline.", busy - waiting)
    process = worker.engine.process
    if process is not None:
        text = "How often the worker started ComfyUI again."
        yield Gauge("comfy_worker_comfyui_restarts_total", text, max(0, process.starts - 1), kind="counter")
    try:
        stats = worker.engine.client.system_stats()
    except ComfyUnavailable as exc:
        logger.debug("The devices' memory is unknown: %s", exc)
        stats = {}
    yield Gauge("comfy_worker_comfyui_up", "Whether ComfyUI answers.", float(bool(stats)))
    for place, device in enumerate(stats.get("devices", ())):
        index = device.get("index")
        label = f'{{device="{place if index is None else index}"}}'
        for name, key in (("free", "vram_free"), ("total", "vram_total")):
            if isinstance(device.get(key), (int, float)):
                text = f"Bytes of device memory, {name}, as ComfyUI sees them."
                yield Gauge(f"comfy_worker_device_memory_{name}_bytes", text, device[key], label)
