"""
What the Vast face says of itself: its OpenAPI document, and the pages that show it.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import HTMLResponse

from comfy_worker import __version__
from comfy_worker.faces.http_pages import page_of
from comfy_worker.faces.vast_models import GenerateRequest, IdRequest
from comfy_worker.templates import Templates

DESCRIPTION = (
    "The API of Vast.ai's ComfyUI templates. Send a workflow in API format as `workflow_json`, or the name of a template as "
    "`modifier` with its `modifications`."
)
REFS = "#/components/schemas/{model}"
RESULT = {
    "type": "object",
    "required": ["id", "message", "status", "comfyui_response", "output", "timings"],
    "properties": {
        "id": {"type": "string"},
        "message": {"type": "string"},
        "status": {
            "type": "string",
            "enum": [
                *("pending", "processing", "generating", "generated"),
                *("completed", "failed", "cancelled"),
            ],
        },
        "comfyui_response": {"type": "object"},
        "output": {"type": "array", "items": {"type": "object"}},
        "timings": {"type": "object"},
        "error": {"type": "object"},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
GENERAL = {
    "400": "The request is wrong.",
    "401": "The key is missing or wrong, where SERVER_API_KEY is set.",
    "403": "The request comes from a page of another site.",
    "408": "The body came in too slowly.",
    "413": "The body is too large.",
}
GENERATES = {
    "409": "Another request with this id is under way.",
    "422": "The request does not fit, or the job will fail again.",
    "499": "The job was cancelled.",
    "503": "The worker is full, or another one may manage it; try again after `Retry-After`.",
}


def router_of() -> APIRouter:
    """
    Return the pages at `/` and `/redoc`, which are those of `/docs`.
    """
    router = APIRouter(include_in_schema=False)
    page = page_of("/openapi.json")

    async def docs() -> HTMLResponse:
        return HTMLResponse(page)

    for path in ("/", "/redoc"):
        router.add_api_route(path, docs, methods=["GET"])
    return router


def document(templates: Templates, *, secured: bool) -> dict[str, Any]:
    """
    Return the OpenAPI document.
    """
    schemas: dict[str, Any] = {"Result": RESULT}
    generate = _schema(GenerateRequest, schemas)
    by_id = _schema(IdRequest, schemas)
    names = ", ".join(f"`{name}`" for name in templates.names()[:100])
    paths = {
        "/generate": _post("Take a job on", generate, "202", GENERATES),
        "/generate/sync": _post("Run a job", generate, "200", GENERATES),
        "/generate/stream": _post("Run a job and follow it", generate, "200", GENERATES, "text/event-stream"),
        "/result/{request_id}": {"get": _operation("Get a result", _with_path("404", "422", "499", "503"))},
        "/result": _post("Get a result", by_id, "200", {**GENERATES, "404": "There is no such request."}),
        "/cancel/{request_id}": {"post": _operation("Cancel a job", _with_path("404"), plain=True)},
        "/cancel": _post(
            "Cancel a job",
            by_id,
            "200",
            {"404": "There is no such request.", "422": "The body does not fit."},
        ),
        "/queue-info": {"get": _operation("Look at the queue", {}, plain=True)},
        "/health": {
            "get": _operation("Look at the worker", {"503": "It is of no use, or not yet."}, plain=True)
        },
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "ComfyUI API",
            "version": __version__,
            "description": f"{DESCRIPTION} Modifiers: {names}.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }
    for path, item in paths.items():
        if "{request_id}" in path:
            item["parameters"] = [
                {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
    if secured:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    found = model.model_json_schema(ref_template=REFS)
    schemas.update(found.pop("$defs", {}))
    schemas[model.__name__] = found
    return {"$ref": REFS.format(model=model.__name__)}


def _with_path(*statuses: str) -> dict[str, str]:
    words = {**GENERATES, "404": "There is no such request."}
    return {status: words[status] for status in statuses}


def _post(
    summary: str,
    schema: dict[str, str],
    success: str,
    answers: dict[str, str],
    kind: str = "application/json",
) -> dict[str, Any]:
    operation = _operation(summary, answers, success, kind)
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": operation}


def _operation(
    summary: str,
    answers: dict[str, str],
    success: str = "200",
    kind: str = "application/json",
    *,
    plain: bool = False,
) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": "object"} if plain else {"$ref": REFS.format(model="Result")}
    content = {kind: {"schema": {"type": "string"} if kind != "application/json" else shape}}
    return {
        "summary": summary,
        "responses": {
            success: {"description": "Success.", "content": content},
            **{status: {"description": text} for status, text in {**GENERAL, **answers}.items()},
        },
    }
