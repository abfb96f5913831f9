"""
The routes of Vast.ai's former ComfyUI template: `/prompt` with five parameters, `/custom-workflow` with a graph.

The reply is a superset of both shapes that clients know: data URIs as `images`, and ComfyUI's own reply with `outputs`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from comfy_worker import graph
from comfy_worker.errors import ConfigInvalid, JobInvalid, NodeFailed, WorkerError, WorkflowInvalid
from comfy_worker.faces import vast_body, vast_reply, vast_request
from comfy_worker.faces.reply import shown
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.faces.vast_models import GenerateInput
from comfy_worker.faces.vast_request import Order
from comfy_worker.faces.vast_routes import Api, written
from comfy_worker.log import MASK
from comfy_worker.templates import Template, Templates

PROMPT = ("prompt", "width", "height", "seed")
CUSTOM = ("custom_fields", "workflow")
NUMBERS = ("width", "height", "steps", "seed")
FAILED = "there was an error in the workflow"
EMPTY = "workflow did not produce any images"
ROUTES = ("/prompt", "/custom-workflow", "/custom_workflow")


class Missing(JobInvalid):
    """
    Keys of the payload are not there, or wrong; `details["payload"]` says which.
    """


def model_of(name: str | None, templates: Templates, *, required: bool) -> Template | None:
    """
    Return the template that `/prompt` runs, by COMFY_MODEL; None when none is chosen and none has to be.

    Raises:
        ConfigInvalid: COMFY_MODEL names no template, or is missing while BACKEND=comfyui asks for it.
    """
    if not name:
        if required:
            raise ConfigInvalid(["COMFY_MODEL must be set with BACKEND=comfyui: flux or sd3"])
        return None
    found = templates.by_name.get(name)
    if found is None:
        raise ConfigInvalid(
            [f"COMFY_MODEL must be flux or sd3, or the name of a template of yours, not {name[:40]!r}"]
        )
    return found


@dataclass(slots=True)
class Legacy:
    """
    The routes' functions, over those of the face. `template` is what `/prompt` runs, None when nothing is chosen.
    """

    api: Api
    template: Template | None

    async def prompt(self, request: Request) -> Response:
        """
        Draw a prompt with the model of COMFY_MODEL.
        """
        return await self._answer(request, self._prompt)

    async def custom(self, request: Request) -> Response:
        """
        Run a graph.
        """
        return await self._answer(request, self._custom)

    async def _answer(self, request: Request, made: Any) -> Response:
        body = await request.body()
        try:
            order: Order = await asyncio.to_thread(
                lambda: self.api.admitted(made(_payload(vast_body.decoded(body))))
            )
            entry = self.api.face.start(order)
        except Missing as exc:
            return await written(422, {"payload": exc.details["payload"]})
        except WorkerError as exc:
            return await written(*failed(exc))
        if not await self.api.face.wait(request, entry):
            return await written(vast_reply.CANCELLED, {"error": FAILED, "detail": "The client went away."})
        return await written(*await asyncio.to_thread(replied, entry))

    def _prompt(self, payload: Mapping[str, Any]) -> Order:
        if self.template is None:
            text = "'/prompt' needs a model: have the worker's operator set COMFY_MODEL to flux or sd3"
            raise JobInvalid(text, field="prompt")
        _check(payload, PROMPT)
        params = {name: vast_request.drawn(payload[name]) for name in (*PROMPT, "steps") if name in payload}
        built = self.template.build(params, "payload")
        return self._order((built.workflow, built.inputs, built.warnings))

    def _custom(self, payload: Mapping[str, Any]) -> Order:
        _check(payload, CUSTOM)
        return self._order((graph.check_shape(payload["workflow"]), (), ()))

    def _order(self, made: vast_request.Made) -> Order:
        given = GenerateInput.model_validate({"workflow_json": made[0], "return_outputs_as_base64": True})
        return vast_request.order_of(given, made, self.api.rules, self.api.info)


def _payload(raw: Any) -> Mapping[str, Any]:
    if isinstance(raw, dict) and isinstance(raw.get("payload"), dict):
        raw = raw["payload"]
    if not isinstance(raw, dict):
        raise Missing("The payload must be an object.", payload="must be an object")
    return raw


def _check(payload: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = {name: "missing parameter" for name in names if name not in payload}
    if missing:
        raise Missing("Parameters are missing.", payload=missing)
    wrong = {
        name: "must be a whole number"
        for name in NUMBERS
        if name in names or name == "steps"
        if name in payload and not _is_whole(payload[name])
    }
    if "prompt" in names and not isinstance(payload["prompt"], str):
        wrong["prompt"] = "must be a text"
    if "workflow" in names and not isinstance(payload["workflow"], dict):
        wrong["workflow"] = "must be an object in ComfyUI's API format"
    if wrong:
        raise Missing("Parameters are wrong.", payload=wrong)


def _is_whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or value == vast_request.RANDOM


def replied(entry: Entry) -> tuple[int, dict[str, Any]]:
    """
    Return status and body for a request that is over.
    """
    if entry.status != "completed" or entry.result is None:
        return failed(entry.error or WorkerError("The job failed."), entry)
    result = vast_reply.result_of(entry, includes=False)
    outputs = [output for output in entry.result.outputs if output.type != "text"]
    if not outputs:
        return 422, {"error": EMPTY, "detail": vast_reply.NO_FILES, **_facts(entry), "status": "failed"}
    images = [
        f"data:{output.mime};base64,{output.inline}"
        for output in outputs
        if output.kind == "image" and output.inline is not None
    ]
    shared = {key: result[key] for key in ("id", "status", "message", "output", "timings")}
    return 200, {
        "images": images,
        **_facts(entry),
        "number": _number(entry),
        "outputs": _outputs(entry),
        **shared,
    }


def _facts(entry: Entry) -> dict[str, Any]:
    node_errors = dict(entry.result.node_errors) if entry.result is not None else {}
    return {"prompt_id": entry.prompt_id or "", "node_errors": MASK.value(node_errors)}


def _number(entry: Entry) -> int:
    history = entry.result.history if entry.result is not None else None
    prompt = (history or {}).get("prompt")
    number = prompt[0] if isinstance(prompt, list) and prompt else 0
    return int(number) if isinstance(number, (int, float)) else 0


def _outputs(entry: Entry) -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for output in entry.result.outputs if entry.result is not None else ():
        if output.type != "text":
            item = {"filename": output.filename, "subfolder": output.subfolder, "type": output.folder}
            found.setdefault(output.node_id, {}).setdefault(output.key, []).append(item)
    return found


def failed(exc: WorkerError, entry: Entry | None = None) -> tuple[int, dict[str, Any]]:
    """
    Return status and body of a failure.
    """
    known = isinstance(exc, (NodeFailed, WorkflowInvalid))
    body: dict[str, Any] = {
        "error": FAILED,
        "detail": shown(str(exc)) if known else vast_reply.failure_message(exc),
        "status": "cancelled" if vast_reply.failure_status(exc) == vast_reply.CANCELLED else "failed",
        "node_errors": MASK.value(exc.details.get("node_errors") or {}),
    }
    if entry is not None and entry.prompt_id:
        body["prompt_id"] = entry.prompt_id
    return vast_reply.failure_status(exc), body


def router_of(legacy: Legacy) -> APIRouter:
    """
    Return the routes, each with and without a slash at its end.
    """
    router = APIRouter(include_in_schema=False)
    for path in ROUTES:
        for end in ("", "/"):
            run = legacy.prompt if path == "/prompt" else legacy.custom
            router.add_api_route(path + end, run, methods=["POST"])

    async def ping() -> PlainTextResponse:
        return PlainTextResponse("pong")

    router.add_api_route("/ping", ping, methods=["GET"])
    return router
