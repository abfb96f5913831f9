"""
ComfyUI's refusal of a workflow -> our error, in words its reader can act on.

The first words and the start of every bullet are what clients of workers of this kind already look for: `P:` and then
`• Node <id>` per problem. The rest of a line is ours (`wording.py`).
"""

import json
from collections.abc import Mapping
from typing import Any

from comfy_worker.comfy import fields, wording
from comfy_worker.comfy.wording import Choices, shorten, without_paths
from comfy_worker.errors import WorkerError, WorkflowInvalid

FAILED = "prompt_outputs_failed_validation"
LOADER = "CheckpointLoaderSimple"
NO_CHECKPOINTS = "No checkpoint models appear to be available. Please check your model installation."
RAW_LIMIT = 2000
NAMES_LIMIT = 200
DEPTH_LIMIT = 32


def refusal(
    status: int,
    body: bytes | Mapping[str, Any],
    workflow: Mapping[str, Any],
    choices: Choices | None = None,
) -> WorkflowInvalid:
    """
    Return the error for a reply to POST /prompt that is neither a 200 nor a 5xx.

    Body of a 400: `{"error": {"type", "message", ...} | str, "node_errors": {node_id: {"errors": [...], ...}}}`.
    `choices` gives a class's `/object_info`; it is asked only for what the body leaves out.
    """
    text = shorten(without_paths(_as_text(body)), RAW_LIMIT)
    if status != 400:
        return _invalid(f"Error queuing workflow: ComfyUI answered {status}: {text}")
    try:
        answer = fields.mapping(fields.parse(body) if isinstance(body, bytes) else body)
    except fields.WRONG:
        return _invalid(f"ComfyUI validation failed (could not parse error response): {text}")
    return _from_json(answer, text, workflow, _careful(choices))


def describe(
    node_errors: Mapping[str, Any], workflow: Mapping[str, Any], choices: Choices | None = None
) -> list[str]:
    """
    Return one line per problem: `Node <id> (<class> "<title>"): <input>: <what is wrong>`.
    """
    ask = _careful(choices)
    lines = []
    for node_id, entry in node_errors.items():
        node = _mapping(workflow.get(node_id))
        class_type = _mapping(entry).get("class_type") or node.get("class_type")
        for error in _errors(entry):
            problem = wording.read(error, node, class_type, ask)
            line = f"Node {node_id} ({_name(class_type, node)}): {problem.sentence()}"
            lines.append(without_paths(line, _given(node)))
    return lines


def _from_json(
    answer: Mapping[str, Any], text: str, workflow: Mapping[str, Any], choices: Choices
) -> WorkflowInvalid:
    node_errors = _mapping(answer.get("node_errors"))
    if not node_errors and answer.get("type") == FAILED:
        hint = "This usually means a required model or parameter is not available."
        names = wording.options_of(choices(LOADER), "ckpt_name")
        return _invalid(f"{answer.get('message')}\n\n{hint}\n{_checkpoints(names)}")
    prefix = _prefix(answer.get("error"))
    if not node_errors:
        return _invalid(f"{prefix.removesuffix('.')}. Raw response: {text}")
    lines = [f"{prefix}:", *(f"• {line}" for line in describe(node_errors, workflow, choices))]
    text = "\n".join(lines) + _checkpoint_hint(node_errors, choices)
    return _invalid(text, node_errors=shareable(node_errors, workflow))


def shareable(node_errors: Mapping[str, Any], workflow: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return ComfyUI's `node_errors` without tracebacks and paths of its machine.
    """
    return {node_id: _clean(entry, _given(workflow.get(node_id))) for node_id, entry in node_errors.items()}


def partly_refused(
    node_errors: Mapping[str, Any], workflow: Mapping[str, Any], choices: Choices | None = None
) -> WorkflowInvalid:
    """
    Return the error for a strict job of whose outputs ComfyUI would run only some.
    """
    answer = {"error": {"type": FAILED}, "node_errors": node_errors}
    return refusal(400, answer, workflow, choices)


def _as_text(body: bytes | Mapping[str, Any]) -> str:
    if isinstance(body, bytes):
        return body.decode(errors="replace")
    try:
        return json.dumps(body, default=str)
    except RecursionError:
        return "…"


def _invalid(message: str, **details: Any) -> WorkflowInvalid:
    return WorkflowInvalid(message, field="workflow", **details)


def _prefix(error: Any) -> str:
    kind, text = (error.get("type"), error.get("message")) if isinstance(error, Mapping) else (None, error)
    return "Workflow validation failed" if kind == FAILED or not text else str(text)


def _name(class_type: Any, node: Mapping[str, Any]) -> str:
    title = _mapping(node.get("_meta")).get("title")
    known = str(class_type or "unknown class")
    return f'{known} "{title}"' if isinstance(title, str) and title else known


def _errors(entry: Any) -> list[Mapping[str, Any]]:
    found = _mapping(entry).get("errors")
    return [_mapping(error) for error in found] if isinstance(found, list) and found else [{}]


def _checkpoint_hint(node_errors: Mapping[str, Any], choices: Choices) -> str:
    for entry in node_errors.values():
        for error in _errors(entry):
            problem = wording.read(error, {}, _mapping(entry).get("class_type"), choices)
            if problem.kind == "value_not_in_list" and problem.name == "ckpt_name":
                return f"\n\n{_checkpoints(list(problem.options))}"
    return ""


def _checkpoints(names: list[str]) -> str:
    return f"Available checkpoint models: {', '.join(names[:NAMES_LIMIT])}" if names else NO_CHECKPOINTS


def _careful(choices: Choices | None) -> Choices:
    """
    Go without the choices when ComfyUI cannot be asked: the refusal is the news.
    """

    def ask(class_type: str) -> Mapping[str, Any]:
        try:
            return choices(class_type) if choices is not None else {}
        except WorkerError:
            return {}

    return ask


def _clean(value: Any, given: str, depth: int = 0) -> Any:
    if depth > DEPTH_LIMIT:
        return "…"
    if isinstance(value, Mapping):
        return {key: _clean(item, given, depth + 1) for key, item in value.items() if key != "traceback"}
    if isinstance(value, list):
        return [_clean(item, given, depth + 1) for item in value]
    return without_paths(value, given) if isinstance(value, str) else value


def _given(node: Any) -> str:
    inputs = _mapping(_mapping(node).get("inputs"))
    return "\n".join(value for value in inputs.values() if isinstance(value, str))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
