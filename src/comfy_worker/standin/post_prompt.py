"""
POST /prompt: the request's keys, the validation, and the queueing. Rules and texts: ComfyUI 0.27.0.
"""

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from comfy_worker.comfy.validate import Validation, validate
from comfy_worker.standin import faults, object_info
from comfy_worker.standin.engine import Engine
from comfy_worker.standin.prompts import SECRETS, Prompt
from comfy_worker.standin.replies import ENGINE, Crash, as_json, crashed, read_json

REPLACEMENTS: Mapping[str, list[dict[str, Any]]] = {
    "Preview3DAnimation": [
        {
            "new_node_id": "Preview3D",
            "old_node_id": "Preview3DAnimation",
            "old_widget_ids": None,
            "input_mapping": None,
            "output_mapping": None,
        }
    ]
}


class Classes(Mapping[str, dict[str, Any]]):
    """
    `/object_info`, each entry made when it is asked for.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self._made:
            self._made[name] = object_info.entry(self._engine.nodes[name], self._engine.settings.folders)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._engine.nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._engine.nodes)

    def __len__(self) -> int:
        return len(self._engine.nodes)


def refusal(kind: str, message: str, details: str) -> web.Response:
    """
    Answer 400 without errors of nodes.
    """
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return as_json({"error": error, "node_errors": {}}, status=400)


async def post_prompt(request: web.Request) -> web.Response:
    """
    Validate and queue a prompt.
    """
    engine: Engine = request.app[ENGINE]
    body = await read_json(request)
    if body is None or isinstance(body, int | float):
        raise Crash
    number = _number(body if isinstance(body, dict) else {}, engine)
    if "prompt" not in body or not isinstance(body, dict):
        return refusal("no_prompt", "No prompt provided", "No prompt provided")
    prompt_id = body.get("prompt_id") if not engine.settings.old else str(body.get("prompt_id", uuid.uuid4()))
    prompt_id = str(uuid.uuid4()) if prompt_id is None else prompt_id
    if not engine.settings.old and not _is_canonical(prompt_id):
        details = "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
        details += "omit it to let the server generate one"
        return refusal("invalid_prompt_id", "prompt_id must be a valid UUID", details)
    judged = _judge(body, engine)
    extra_data = _extra_data(body, request, engine)
    if judged.error is not None:
        return as_json({"error": judged.error, "node_errors": _node_errors(judged, engine)}, status=400)
    given = extra_data.get("standin", {})
    prompt = Prompt(
        number,
        prompt_id,
        judged.workflow,
        extra_data,
        list(judged.outputs),
        engine.faults.of(faults.checked(given)),
        {name: extra_data.pop(name) for name in SECRETS if name in extra_data},
    )
    return _queue(prompt, _node_errors(judged, engine), engine)


def _number(body: Mapping[str, Any], engine: Engine) -> float:
    if "number" not in body:
        number = next(engine.counter)
        return -number if body.get("front") else number
    try:
        return float(body["number"])
    except (TypeError, ValueError) as exc:
        raise Crash from exc


def _is_canonical(prompt_id: Any) -> bool:
    try:
        return isinstance(prompt_id, str) and str(uuid.UUID(prompt_id)) == prompt_id
    except ValueError:
        return False


def _judge(body: Mapping[str, Any], engine: Engine) -> Validation:
    workflow, targets = body["prompt"], body.get("partial_execution_targets")
    if not isinstance(workflow, dict):
        raise Crash
    _replace(workflow, engine)
    judged = validate(workflow, Classes(engine), check=engine.check, targets=targets)
    if judged.error is not None and judged.error["type"] == "invalid_prompt":
        raise Crash
    return judged


def _replace(workflow: Mapping[str, Any], engine: Engine) -> None:
    for node in workflow.values():
        if not isinstance(node, dict) or "inputs" not in node:
            continue
        rows = REPLACEMENTS.get(str(node.get("class_type")))
        if rows and node["class_type"] not in engine.nodes:
            if "_meta" not in node:
                raise Crash
            node["class_type"], node["inputs"] = rows[0]["new_node_id"], {}


def _extra_data(body: Mapping[str, Any], request: web.Request, engine: Engine) -> dict[str, Any]:
    extra_data = body.get("extra_data", {})
    if not isinstance(extra_data, dict):
        raise Crash
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    source = request.headers.get("Comfy-Usage-Source")
    if source and "comfy_usage_source" not in extra_data:
        extra_data["comfy_usage_source"] = source
    if not engine.settings.old:
        extra_data["create_time"] = int(time.time() * 1000)
    return extra_data


def _node_errors(judged: Validation, engine: Engine) -> dict[str, Any]:
    kinds = {error["type"] for row in judged.node_errors.values() for error in row["errors"]}
    return {} if engine.settings.old and kinds == {"dependency_cycle"} else judged.node_errors


def _queue(prompt: Prompt, node_errors: Mapping[str, Any], engine: Engine) -> web.Response:
    rules = prompt.faults
    if rules.on("post_status"):
        return web.Response(status=int(rules.values["post_status"]), text="refused on purpose")
    if not rules.on("lost_but_200"):
        try:
            engine.prompts.put(prompt)
        except TypeError:
            return crashed()
        # The reply is written first, as with ComfyUI: the thread that runs prompts would take the interpreter from it.
        asyncio.get_running_loop().call_soon(engine.prompts.wake)
        if rules.on("queued_but_500"):
            return crashed()
        engine.tell_status(rules, prompt.client_id)
    return as_json({"prompt_id": prompt.id, "number": prompt.number, "node_errors": node_errors})
