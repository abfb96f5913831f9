"""
A result or a failure -> what the Salad face answers and posts to webhooks. Pure, but for the clock of `Record`.

Shapes and first words are those of SaladTechnologies/comfyui-api 1.18.0; where it says less than it knows, more is said.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from comfy_worker.errors import (
    DeliveryFailed,
    InputUnavailable,
    JobCancelled,
    JobInterrupted,
    JobInvalid,
    NodeFailed,
    OutOfMemory,
    WorkerBusy,
    WorkerError,
    WorkflowInvalid,
)
from comfy_worker.faces.reply import shown
from comfy_worker.faces.salad_request import Order, RequestInvalid
from comfy_worker.job import Event, Result, Workflow
from comfy_worker.log import MASK
from comfy_worker.storage import keys

NO_OUTPUTS = "Failed to get prompt outputs"
INTERRUPTED = f"{NO_OUTPUTS}: Prompt execution interrupted"
NOT_QUEUED = "Failed to queue prompt: "
RETRY_AFTER_S = 5
MS = 1000


@dataclass(slots=True)
class Record:
    """
    What happened to a request so far, in epoch milliseconds: an observer of its job. `clock` gives epoch seconds.
    """

    clock: Callable[[], float] = time.time
    workflow: Workflow | None = None
    prompt_id: str | None = None
    is_queued: bool = False
    is_staging: bool = False
    queued_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    nodes: dict[str, float] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        """
        Take note of one event.
        """
        now = round(self.clock() * MS)
        self.is_staging = True
        if event.kind == "queued":
            self.is_queued, self.queued_at = True, now
        if event.kind == "running":
            self.started_at = self.started_at or now
            if event.node_id is not None:
                self.nodes.setdefault(event.node_id, now)
        if event.kind == "delivering":
            self.ended_at = now

    def queueing(self, prompt_id: str, workflow: Workflow) -> None:
        """
        Take note of a run that is about to begin.
        """
        self.workflow, self.prompt_id = workflow, prompt_id
        self.nodes.clear()

    def execution(self) -> dict[str, Any]:
        """
        Return when ComfyUI ran the prompt; `total` is how the peer's documentation shows it.
        """
        start = self.started_at or self.queued_at
        end = max(self.ended_at or start, start)
        span = {"start": start, "end": end, "duration": end - start}
        return {**span, "nodes": {name: {"start": at} for name, at in self.nodes.items()}, "total": span}


def prompt_of(order: Order, record: Record) -> dict[str, Any]:
    """
    Return the graph as it was queued, or as far as it got; never the data of a file.
    """
    if record.workflow is not None:
        return dict(record.workflow)
    return {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in order.job.workflow.items()}


def to_reply(order: Order, result: Result, record: Record) -> dict[str, Any]:
    """
    Return the body of a 200.
    """
    files = [output for output in result.outputs if output.type != "text"]
    reply: dict[str, Any] = {
        **order.echo,
        "prompt": prompt_of(order, record),
        "images": [output.data for output in files],
        "filenames": keys.names_of(files),
        "images_info": [
            {
                "node_id": output.node_id,
                "mime": output.mime,
                "size_bytes": output.size_bytes,
                "subfolder": output.subfolder,
            }
            for output in files
        ],
        "stats": _stats(result, record),
    }
    if result.warnings:
        reply["warnings"] = [shown(text) for text in result.warnings]
    return reply


def _stats(result: Result, record: Record) -> dict[str, Any]:
    times = result.timings
    return {
        "comfy_execution": record.execution(),
        "preprocess_time": times.staged,
        "comfy_round_trip_time": times.executed,
        "postprocess_time": times.converted,
        "upload_time": max(0.0, round(times.delivered - times.converted, 3)),
        "total_time": times.total,
    }


def to_accepted(order: Order, record: Record) -> dict[str, Any]:
    """
    Return the body of a 202.
    """
    return {**order.echo, "prompt": prompt_of(order, record), "status": "ok"}


def to_failure(exc: WorkerError, order: Order | None = None) -> tuple[int, dict[str, Any]]:
    """
    Return status and body of a failure: a 400 with `error`, `message` and `location`, else a 500 with `message`.
    """
    if isinstance(exc, RequestInvalid):
        body = _refusal("Bad Request", shown(str(exc)), str(exc.details["field"]))
        return 400, {**body, "code": _code_of(exc)}
    if isinstance(exc, JobInvalid):
        text, location = _refused(exc, order)
        facts = _facts(exc)
        return 400, {**_refusal(text, text, location), "code": exc.code, **facts}
    status = 503 if isinstance(exc, WorkerBusy) else 500
    failure: dict[str, Any] = {
        "statusCode": status,
        "error": HTTPStatus(status).phrase,
        "message": failure_text(exc, order),
        "code": exc.code,
        "retryable": exc.retryable,
        **_facts(exc),
    }
    return status, failure | ({"id": order.id} if order is not None else {})


def _code_of(exc: RequestInvalid) -> str:
    return "FST_ERR_CTP_INVALID_JSON_BODY" if exc.details["field"] == "body" else "FST_ERR_VALIDATION"


def _refusal(error: str, message: str, location: str) -> dict[str, Any]:
    return {"statusCode": 400, "error": error, "message": message, "location": location}


def failure_text(exc: WorkerError, order: Order | None = None) -> str:
    """
    Return the sentence for a failure that webhooks and replies share.
    """
    match exc:
        case JobInvalid():
            return _refused(exc, order)[0]
        case JobInterrupted() | JobCancelled():
            return INTERRUPTED
        case NodeFailed() | OutOfMemory():
            return shown(f"{NO_OUTPUTS}: {_node_text(exc)}")
        case DeliveryFailed():
            return shown(f"Upload failed: {exc}" if exc.details.get("failures") else f"{NO_OUTPUTS}: {exc}")
    return shown(f"{NO_OUTPUTS}: {exc}")


def _node_text(exc: WorkerError) -> str:
    facts = exc.details
    where = f"node {facts.get('node_id')} ({facts.get('class_type')})"
    return f"{where}: {facts.get('exception_type')}: {_message(exc)}"


def _message(exc: WorkerError) -> str:
    _, _, message = str(exc).partition("Message: ")
    return message or str(exc)


def _facts(exc: WorkerError) -> dict[str, Any]:
    """
    Return what stands beside the text.
    """
    if isinstance(exc, (JobInterrupted, JobCancelled)):
        return {"interrupted": True}
    if isinstance(exc, (NodeFailed, OutOfMemory)):
        facts = exc.details
        error = {
            "node_id": facts.get("node_id"),
            "node_type": facts.get("class_type"),
            "exception_type": facts.get("exception_type"),
            "exception_message": _message(exc),
        }
        return {"execution_error": MASK.value(error)}
    if isinstance(exc, WorkflowInvalid) and "node_errors" in exc.details:
        node_errors = MASK.value(exc.details["node_errors"])
        return {
            "node_errors": node_errors,
            "comfy_error": {"message": shown(str(exc)), "node_errors": node_errors},
        }
    if isinstance(exc, DeliveryFailed):
        return {"failures": MASK.value(list(exc.details.get("failures", ())))}
    return {}


def _refused(exc: JobInvalid, order: Order | None) -> tuple[str, str]:
    """
    Return text and location of a refusal.
    """
    place = str(exc.details.get("field") or "")
    spot = order.spots.get(place) if order is not None else None
    if isinstance(exc, InputUnavailable) and spot is not None:
        return f"{spot.opening}{reason_of(exc)}", spot.location
    if isinstance(exc, WorkflowInvalid):
        nodes = exc.details.get("node_errors") or {}
        found = next(iter(nodes), None) if isinstance(nodes, Mapping) else None
        return shown(f"{NOT_QUEUED}{exc}"), f"prompt.{found}" if found else "prompt"
    return shown(str(exc)), re.sub(r"^workflow\b", "prompt", place) or "prompt"


def reason_of(exc: WorkerError) -> str:
    """
    Return why a file could not be had, in the words of the field.
    """
    details = exc.details.get("details") or [str(exc)]
    text = shown(str(details[0]))
    answered = re.search(r"the server answered (\d{3})$", text)
    if answered:
        return f"Error downloading file: {_phrase(int(answered[1]))}"
    # The place is named already.
    return re.sub(r"^'[^']*' could not be fetched(?: from \S+)?: ", "", text)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return str(status)


def now_text() -> str:
    """
    Return the time as webhooks carry it: ISO 8601 in UTC, to the millisecond.
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def complete_v2(reply: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the body of `prompt.complete` from that of a 200.
    """
    return {"type": "prompt.complete", "timestamp": now_text(), **reply}


def complete_v1(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Return the bodies of `output.complete`, one per file.
    """
    shared = {name: reply[name] for name in ("id", "prompt", "stats")}
    return [
        {"event": "output.complete", "image": image, "filename": name, **shared}
        for image, name in zip(reply["images"], reply["filenames"], strict=True)
    ]


def failed(key: str, order: Order, record: Record, exc: WorkerError) -> dict[str, Any]:
    """
    Return the body of `prompt.failed`; `key` is `event` for v1, `type` for v2.
    """
    body: dict[str, Any] = {key: "prompt.failed"}
    if key == "type":
        body["timestamp"] = now_text()
    return {**body, "id": order.id, "prompt": prompt_of(order, record), "error": failure_text(exc, order)}
