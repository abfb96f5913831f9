"""
The OpenAPI document of the Salad face, in OpenAPI 3.0 as its clients' generators expect, and `/docs/yaml`.

Built from the models of the requests and from the templates; nothing in it is drawn at random.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from fastapi import APIRouter
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from comfy_worker import __version__, convert
from comfy_worker.faces.salad_models import (
    DownloadRequest,
    InterruptRequest,
    PromptRequest,
    WorkflowRequest,
)
from comfy_worker.templates import Templates

DESCRIPTION = "Any ComfyUI workflow as an API call. The routes are those of SaladTechnologies/comfyui-api."
SPEED = ("comfy_round_trip_time", "postprocess_time", "preprocess_time", "total_time", "upload_time")
NUMBER = {"type": "number"}
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}

Schema = dict[str, Any]


def router_of() -> APIRouter:
    """
    Return the route of the document as YAML.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/docs/yaml")
    async def as_yaml(request: Request) -> Response:
        text = yaml.safe_dump(request.app.openapi(), sort_keys=False, allow_unicode=True)
        return Response(text, media_type="application/x-yaml")

    return router


def document(templates: Templates, types: Callable[[], list[str]], *, secured: bool) -> Schema:
    """
    Return the OpenAPI document; `types` are the model types that `/download` takes.
    """
    models: list[type[BaseModel]] = [PromptRequest, InterruptRequest, DownloadRequest, WorkflowRequest]
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = {name: _old(schema) for name, schema in found.get("$defs", {}).items()}
    _refine(schemas, types())
    schemas |= {"Error": _error(), "Failure": _failure(), "Stats": _stats(), "Reply": _reply(schemas)}
    paths = dict(_paths())
    for name in templates.names():
        paths[f"/workflow/{name}"] = {"post": _workflow(templates, name, schemas)}
    result: Schema = {
        "openapi": "3.0.0",
        "info": {"title": "ComfyUI API", "version": __version__, "description": DESCRIPTION},
        "servers": [_server()],
        "components": {"schemas": schemas},
        "paths": paths,
    }
    if secured:
        result["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        result["security"] = [{"key": []}]
    return result


def _server() -> Schema:
    variable = {"default": "http://localhost:3000", "description": "Where this server is, with its protocol"}
    names = {"accessDomainName": variable}
    return {"url": "{accessDomainName}", "description": "Your server", "variables": names}


def _old(schema: Any) -> Any:
    """
    Return a schema of JSON Schema 2020-12 as OpenAPI 3.0 has it: no `const`, no type null, bounds as flags.
    """
    if isinstance(schema, list):
        return [_old(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _old(value) for key, value in schema.items() if not (key == "default" and value is None)}
    made.pop("title", None) if isinstance(made.get("title"), str) else None
    if "const" in made:
        made["enum"] = [made.pop("const")]
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(made.get(flag), int | float) and not isinstance(made.get(flag), bool):
            made[bound], made[flag] = made[flag], True
    for choice in ("anyOf", "oneOf"):
        options = made.get(choice)
        if isinstance(options, list) and {"type": "null"} in options:
            made[choice] = [option for option in options if option != {"type": "null"}]
            made["nullable"] = True
    if "$ref" in made and len(made) > 1:
        return {"allOf": [{"$ref": made.pop("$ref")}], **made}
    return made


def _refine(schemas: dict[str, Schema], types: list[str]) -> None:
    schemas["ConvertOutput"]["properties"]["options"] = {
        "anyOf": [_options("jpeg"), _options("webp")],
        "description": "Of the chosen format; options of another one are dropped",
    }
    if types:
        schemas["DownloadRequest"]["properties"]["model_type"]["enum"] = types
    schemas["DownloadRequest"]["properties"]["url"]["format"] = "uri"


def _options(format_: str) -> Schema:
    return {
        "type": "object",
        "properties": {name: _option(entry) for name, entry in convert.OPTIONS[format_].items()},
    }


def _option(entry: convert.Option) -> Schema:
    if entry.type == "flag":
        return {"type": "boolean", "default": entry.default}
    if entry.type == "choice":
        return {"type": "string", "enum": list(entry.choices), "default": entry.default}
    type_ = "integer" if entry.type == "whole" else "number"
    return {"type": type_, "minimum": entry.low, "maximum": entry.high, "default": entry.default}


def _error() -> Schema:
    properties: Schema = dict.fromkeys(("error", "location", "message", "code"), TEXT)
    properties |= {"statusCode": {"type": "integer"}}
    properties |= {key: {"type": "object"} for key in ("node_errors", "comfy_error")}
    return {"type": "object", "properties": properties, "required": ["error"]}


def _failure() -> Schema:
    properties: Schema = dict.fromkeys(("error", "message", "code", "id"), TEXT)
    properties |= {"statusCode": {"type": "integer"}, "execution_error": {"type": "object"}}
    properties |= {key: {"type": "boolean"} for key in ("retryable", "interrupted")}
    return {"type": "object", "properties": properties, "required": ["statusCode", "error", "message"]}


def _stats() -> Schema:
    nodes = {"type": "object", "properties": {"start": NUMBER}, "required": ["start"]}
    execution = {
        "type": "object",
        "properties": {
            **dict.fromkeys(("start", "end", "duration"), NUMBER),
            "nodes": {"type": "object", "additionalProperties": nodes},
            "total": {
                "type": "object",
                "properties": dict.fromkeys(("start", "end", "duration"), NUMBER),
            },
        },
        "required": ["start", "end", "duration", "nodes"],
    }
    properties = {"comfy_execution": execution, **dict.fromkeys(SPEED, NUMBER)}
    return {"type": "object", "properties": properties, "required": ["comfy_execution"]}


def _reply(schemas: Mapping[str, Schema]) -> Schema:
    own = {
        "images": TEXTS,
        "filenames": TEXTS,
        "images_info": {"type": "array", "items": {"type": "object"}},
        "stats": _ref("Stats"),
        "status": {"type": "string", "enum": ["ok"]},
        "warnings": TEXTS,
    }
    properties = {**schemas["PromptRequest"]["properties"], **own}
    return {"type": "object", "properties": properties, "required": ["prompt"]}


def _json(schema: Schema, text: str) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _asked(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


COMMON: Schema = {
    "400": _json(_ref("Error"), "The request is wrong."),
    "401": _json(_ref("Failure"), "The key is missing or wrong."),
    "408": _json(_ref("Failure"), "The body came in too slowly."),
    "413": _json(_ref("Failure"), "The body is too large."),
    "415": _json(_ref("Failure"), "The body is a form."),
    "500": _json(_ref("Failure"), "It was tried and failed."),
    "503": _json(_ref("Failure"), "The queue is full, or the worker is shutting down."),
}


def _ran() -> Schema:
    done = _json(_ref("Reply"), "The outputs.")
    return {
        "200": done,
        "202": _json(_ref("Reply"), "Taken on; a webhook or the storage will tell."),
        **COMMON,
    }


def _workflow(templates: Templates, name: str, schemas: dict[str, Schema]) -> Schema:
    template = templates.get(name)
    schema = template.schema()
    for key, part in schema.pop("$defs", {}).items():
        schemas.setdefault(key, _old(part))
    given = _old(_with_refs(schema))
    options = {
        key: value for key, value in schemas["WorkflowRequest"]["properties"].items() if key != "input"
    }
    body = {"type": "object", "properties": {"input": given, **options}, "required": ["input"]}
    return {
        "summary": template.summary or name.rpartition("/")[2],
        "description": template.description or template.summary or name,
        "requestBody": _asked(body),
        "responses": _ran(),
    }


def _with_refs(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_refs(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.replace("#/$defs/", "#/components/schemas/")
        if key == "$ref" and isinstance(value, str)
        else _with_refs(value)
        for key, value in schema.items()
    }


def _paths() -> Iterator[tuple[str, Schema]]:
    yield "/health", {"get": _probe("Health Probe", "healthy", "500", "Whether the worker was ever ready")}
    yield "/ready", {"get": _probe("Readiness Probe", "ready", "503", "Whether a request would be run now")}
    listing = {"type": "object", "additionalProperties": TEXTS}
    yield "/models", {"get": {"summary": "List Models", "responses": {"200": _json(listing, "By type.")}}}
    prompt = {
        "summary": "Submit Prompt",
        "description": "Run a graph.",
        "requestBody": _asked(_ref("PromptRequest")),
    }
    yield "/prompt", {"post": {**prompt, "responses": _ran()}}
    stopped = {"200": _stopped("success"), "404": _stopped("failed"), **_without(COMMON, "500", "503")}
    stop = {
        "summary": "Interrupt Prompt",
        "requestBody": _asked(_ref("InterruptRequest")),
        "responses": stopped,
    }
    yield "/interrupt", {"post": stop}
    answers = {"200": _downloaded("It is there."), "202": _downloaded("It was started."), **COMMON}
    fetch = {
        "summary": "Download Model",
        "requestBody": _asked(_ref("DownloadRequest")),
        "responses": answers,
    }
    yield "/download", {"post": fetch}


def _without(answers: Schema, *statuses: str) -> Schema:
    return {status: answer for status, answer in answers.items() if status not in statuses}


def _probe(summary: str, word: str, failed: str, text: str) -> Schema:
    def body(status: str) -> Schema:
        properties = {"version": TEXT, "status": {"type": "string", "enum": [status]}}
        return {"type": "object", "properties": properties, "required": ["version", "status"]}

    answers = {"200": _json(body(word), "Yes."), failed: _json(body(f"not {word}"), "Not now.")}
    return {"summary": summary, "description": text, "responses": answers}


def _stopped(word: str) -> Schema:
    properties = {"id": TEXT, "interrupted": {"type": "string", "enum": [word]}}
    schema = {"type": "object", "properties": properties, "required": ["id", "interrupted"]}
    return _json(schema, f"The interruption: {word}.")


def _downloaded(text: str) -> Schema:
    facts: Schema = dict.fromkeys(("url", "model_type", "filename"), TEXT)
    facts["status"] = {"type": "string", "enum": ["started", "completed"]}
    required = [*facts]
    facts |= {"size": NUMBER, "duration": NUMBER}
    return _json({"type": "object", "properties": facts, "required": required}, text)
