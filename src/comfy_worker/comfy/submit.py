"""
Queue one prompt, exactly once: our own prompt id makes an ambiguous answer checkable.

ComfyUI may answer 500 and run the prompt all the same, or the connection may break after it was taken (0.27.0). So
whatever is not a clear yes or no is looked up before anything is posted again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_worker.comfy import refusals
from comfy_worker.comfy.client import Client, Reply
from comfy_worker.comfy.http_errors import NotListening
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, WorkflowInvalid

LOOK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Queued:
    """
    A prompt that ComfyUI took. `node_errors` is not empty when ComfyUI dropped some outputs and runs the rest.
    """

    node_errors: Mapping[str, Any]


def submit(
    client: Client, body: Mapping[str, Any], deadline: Deadline, choices: Callable[[str], Mapping[str, Any]]
) -> Queued:
    """
    Post `{"prompt", "prompt_id", "client_id", "extra_data"}`. `choices` gives a class's /object_info, for messages.

    Raises:
        WorkflowInvalid: ComfyUI refused the workflow; the text says what to change.
        ComfyUnavailable: ComfyUI did not take it and does not know it.
    """
    for attempt in (1, 2):
        reply: Reply | None
        try:
            reply = client.queue(body if attempt == 1 else _with_meta(body))
        except NotListening:
            raise
        except ComfyUnavailable:
            reply = None
        if reply is not None and reply.status < 500:
            return _judged(reply, body, choices)
        if _known(client, body["prompt_id"], deadline):
            return Queued({})
        if attempt == 2:
            raise _not_taken(reply, client.address)
    raise AssertionError("unreachable: the second attempt returns or raises")


def _judged(reply: Reply, body: Mapping[str, Any], choices: Callable[[str], Mapping[str, Any]]) -> Queued:
    if reply.status == 200:
        answer = reply.json()
        if not isinstance(answer, dict) or "prompt_id" not in answer:
            raise ComfyUnavailable("Missing 'prompt_id' in queue response")
        errors = answer.get("node_errors")
        return Queued(errors if isinstance(errors, dict) else {})
    if reply.status == 403:
        raise ComfyUnavailable(
            "Error queuing workflow: ComfyUI answered 403; its Host or Origin check refused us."
        )
    if reply.status == 413:
        raise WorkflowInvalid(
            "Error queuing workflow: it is larger than ComfyUI's --max-upload-size.", field="workflow"
        )
    raise refusals.refusal(reply.status, reply.body, body["prompt"], choices)


def _with_meta(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Give every node a `_meta`: ComfyUI 0.27 answers 500 to a class that it replaces by a newer one on a node without it.
    """
    return {**body, "prompt": {node_id: {"_meta": {}, **node} for node_id, node in body["prompt"].items()}}


def _known(client: Client, prompt_id: str, deadline: Deadline) -> bool:
    for _ in range(2):
        deadline.wait("queueing", LOOK_AGAIN_S)
        if client.whereabouts(prompt_id) != "unknown":
            return True
    return False


def _not_taken(reply: Reply | None, address: str) -> Exception:
    if reply is None:
        return ComfyUnavailable(f"Error queuing workflow: ComfyUI ({address}) broke the connection twice.")
    text = f"Error queuing workflow: ComfyUI answered {reply.status}"
    if reply.status == 500:
        # The shape was checked before, so this is a graph that ComfyUI's own code trips over.
        return WorkflowInvalid(f"{text} twice; it cannot read this workflow.", field="workflow")
    return ComfyUnavailable(text)
