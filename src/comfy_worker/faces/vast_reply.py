"""
A request on its way, or over -> what the Vast face answers and posts. Pure.

Shapes and first words are those of Vast.ai's ComfyUI API wrapper; where it says less than it knows, more is said.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from comfy_worker.errors import (
    ComfyUnavailable,
    DeliveryFailed,
    DiskFull,
    InputUnavailable,
    JobCancelled,
    JobInterrupted,
    JobInvalid,
    ModelUnavailable,
    PromptLost,
    WorkerBusy,
    WorkerError,
    WorkflowInvalid,
)
from comfy_worker.faces.reply import shown
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.job import Output
from comfy_worker.log import MASK

RETRY_AFTER_S = 5
CANCELLED = 499
NO_FILES = "the workflow produced no files"
NOT_FOUND = "Request ID not found"
EVICTED = "Request ID not found: its result was let go of to make room for newer ones"

# What passes is worth another try on another worker; the client of Vast repeats every 5xx without end.
PASSES = (WorkerBusy, ComfyUnavailable, PromptLost, JobInterrupted, DiskFull, ModelUnavailable)
UNREACHED = re.compile(
    r"could not be reached|did not answer in time|connection broke|answered (?:408|429|5\d\d)\b"
)
REFUSED = re.compile(r"HTTP 4\d\d|credentials are missing|not valid")
RUN_FOLDER = re.compile(r"^cw-[0-9a-f]{20}(?:/|\\|$)")
SECRET_EXTRAS = frozenset({"api_key_comfy_org", "auth_token_comfy_org"})


def passes(exc: WorkerError) -> bool:
    """
    Return whether the same request may succeed later, or on another worker.
    """
    if isinstance(exc, PASSES):
        return True
    reasons = [str(exc), *map(str, _list(exc.details.get("details")))]
    if isinstance(exc, InputUnavailable):
        return any(UNREACHED.search(text) for text in reasons)
    if isinstance(exc, DeliveryFailed):
        failures = [str(item.get("reason", "")) for item in _list(exc.details.get("failures"))]
        return not any(REFUSED.search(text) for text in failures or reasons)
    return type(exc) is WorkerError


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def status_of(status: str, error: WorkerError | None) -> int:
    """
    Return the HTTP status of a request's state.
    """
    if status == "cancelled":
        return CANCELLED
    return failure_status(error) if status == "failed" and error is not None else 200


def failure_status(exc: WorkerError) -> int:
    """
    Return 503 for what may pass, 499 for a cancel, 422 for what will fail again.
    """
    if isinstance(exc, JobCancelled):
        return CANCELLED
    return 503 if passes(exc) else 422


def failure_message(exc: WorkerError) -> str:
    """
    Return the sentence of a failure, with the stage in front.
    """
    if isinstance(exc, WorkerBusy):
        return shown(str(exc))
    if isinstance(exc, DeliveryFailed):
        stage = "Post-processing"
    elif isinstance(exc, JobInvalid) and not isinstance(exc, WorkflowInvalid):
        stage = "Preprocessing"
    else:
        stage = "Generation"
    reasons = _list(exc.details.get("details")) if isinstance(exc, InputUnavailable) else []
    text = "; ".join([sentence(exc), *map(str, reasons[:5])])
    return shown(f"{stage} failed: {text}")


def sentence(exc: WorkerError) -> str:
    """
    Return what an error says, without ComfyUI's raw reply behind it: that is in the details.
    """
    return str(exc).partition(" Raw response:")[0]


def failure(exc: WorkerError) -> dict[str, Any]:
    """
    Return the `error` of a result.
    """
    details = {key: value for key, value in exc.details.items() if key != "detail"}
    return {
        "code": exc.code,
        "message": shown(sentence(exc)),
        "details": MASK.value(details),
        "retryable": passes(exc),
    }


def result_of(entry: Entry, *, includes: bool) -> dict[str, Any]:
    """
    Return the Result of a request; `includes` puts ComfyUI's own record into it.
    """
    outputs = [output for output in entry.result.outputs if output.type != "text"] if entry.result else []
    body: dict[str, Any] = {
        "id": entry.order.id,
        "message": entry.message,
        "status": entry.status,
        "comfyui_response": _record(entry) if includes else {},
        "output": [_item(output) for output in outputs],
        "timings": entry.times.shown(entry.status),
    }
    if entry.status == "failed" and entry.error is not None:
        body["error"] = failure(entry.error)
    warnings = [*entry.result.warnings] if entry.result else []
    if entry.status == "completed" and not outputs:
        warnings.append(NO_FILES)
    if warnings:
        body["warnings"] = [shown(text) for text in warnings]
    return body


def refused(request_id: str, exc: WorkerError) -> dict[str, Any]:
    """
    Return the Result of a request that was not taken on.
    """
    return {**bare(request_id, "failed", failure_message(exc)), "error": failure(exc)}


def bare(request_id: str, status: str, message: str) -> dict[str, Any]:
    """
    Return a Result with nothing in it.
    """
    return {
        "id": request_id,
        "message": message,
        "status": status,
        "comfyui_response": {},
        "output": [],
        "timings": {},
    }


def _item(output: Output) -> dict[str, Any]:
    item: dict[str, Any] = {
        "filename": output.filename,
        "local_path": str(output.path) if output.path is not None else "",
        "type": output.folder,
        "subfolder": output.subfolder,
        "node_id": output.node_id,
        "output_type": output.key,
    }
    if output.type == "s3_url":
        item["url"] = output.data
    if output.upload_error is not None:
        item["upload_error"] = shown(output.upload_error)
    if output.inline is not None:
        item |= {"data": output.inline, "mimetype": output.mime}
    if output.inline_error is not None:
        item["error"] = output.inline_error
    return item


def _record(entry: Entry) -> dict[str, Any]:
    history = entry.result.history if entry.result is not None else None
    if history is None or entry.prompt_id is None:
        return {}
    record = dict(history)
    prompt = record.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 3:
        extra = prompt[3] if isinstance(prompt[3], dict) else {}
        clean = {key: value for key, value in extra.items() if key not in SECRET_EXTRAS}
        graph = dict(entry.workflow) if entry.workflow is not None else prompt[2]
        record["prompt"] = [*prompt[:2], graph, clean, *prompt[4:]]
    if isinstance(record.get("outputs"), dict):
        record["outputs"] = without_folder(record["outputs"])
    return {entry.prompt_id: MASK.value(record), "execution_details": _execution(entry)}


def _execution(entry: Entry) -> dict[str, Any]:
    error = entry.error
    details: dict[str, Any] = {
        "prompt_id": entry.prompt_id,
        "nodes_executed": list(entry.nodes),
        "progress_updates": list(entry.updates),
        "completed": entry.status == "completed",
        "error": None if error is None else {"code": error.code, "message": shown(str(error))},
    }
    if entry.result is not None and entry.result.cached_nodes and not entry.nodes:
        details["cached"] = True
    return details


def without_folder(value: Any) -> Any:
    """
    Return outputs of a history as ComfyUI would have shown them without the folder of the run.
    """
    if isinstance(value, dict):
        found = {key: without_folder(item) for key, item in value.items()}
        folder = found.get("subfolder")
        if isinstance(folder, str):
            found["subfolder"] = RUN_FOLDER.sub("", folder)
        return found
    if isinstance(value, list):
        return [without_folder(item) for item in value]
    return value


def webhook_body(entry: Entry) -> bytes:
    """
    Return what the webhook of a request posts: the Result without ComfyUI's record, and the caller's own parameters.
    """
    result = result_of(entry, includes=False)
    body = {key: result[key] for key in ("id", "status", "message", "output", "timings")}
    extra = entry.order.hook.extra if entry.order.hook is not None else {}
    if extra:
        body = {**{str(key): value for key, value in extra.items()}, **body, "extra": dict(extra)}
    for key in ("error", "warnings"):
        if key in result:
            body.setdefault(key, result[key])
    return orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)


def webhook_headers(secret: str, body: bytes) -> Iterator[tuple[str, str]]:
    """
    Yield the header that signs a webhook: HMAC-SHA256 over the exact bytes, in hex. None without a secret.
    """
    if secret:
        digest = hmac.new(secret.encode(errors="replace"), body, hashlib.sha256).hexdigest()
        yield "X-Webhook-Signature", f"sha256={digest}"


def queue_info(stages: Mapping[str, int]) -> dict[str, int]:
    """
    Return how many requests are at each stage.
    """
    names = ("preprocess", "generation", "postprocess")
    return {f"{name}_queue_size": stages.get(name, 0) for name in names}
