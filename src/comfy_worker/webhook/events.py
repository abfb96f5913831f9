"""
System events: what ComfyUI says and what happens to files, told to the operator's own receiver.

Source of names and shapes: SaladTechnologies/comfyui-api 1.18.0 as observed from outside.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import orjson

from comfy_worker.log import MASK
from comfy_worker.settings import SYSTEM_EVENTS
from comfy_worker.webhook.sender import Message, Sender, Weight

logger = logging.getLogger(__name__)

StorageName = Literal["file_downloaded", "file_uploaded", "file_deleted"]
COMFY_NAMES = frozenset(SYSTEM_EVENTS) - frozenset(get_args(StorageName))

PROGRESS = frozenset({"status", "progress", "progress_state"})
TERMINAL = frozenset({"execution_success", "execution_interrupted", "execution_error"})


def weight_of(name: str) -> Weight:
    """
    Return what may become of an event when the receiver cannot keep up.
    """
    return "progress" if name in PROGRESS else "terminal" if name in TERMINAL else "event"


def renamed(message: Mapping[str, Any], job_id: str | None) -> dict[str, Any]:
    """
    Return one of ComfyUI's messages with the job's id in the place of ComfyUI's, where the job is known.

    `data.prompt_id`, and `data.nodes[*].prompt_id` of `progress_state`.
    """
    data = message.get("data")
    if job_id is None or not isinstance(data, dict):
        return dict(message)
    data = dict(data)
    if "prompt_id" in data:
        data["prompt_id"] = job_id
    if isinstance(data.get("nodes"), dict):
        data["nodes"] = {
            key: {**node, "prompt_id": job_id} if isinstance(node, dict) and "prompt_id" in node else node
            for key, node in data["nodes"].items()
        }
    return {**message, "data": data}


class SystemEvents:
    """
    Tells the operator's receiver at `url` the `events` that are wanted (SYSTEM_WEBHOOK_EVENTS). Every method returns at once.

    `sender` is one of its own: the address is the operator's, and jobs' webhooks are not to wait behind it.
    """

    def __init__(
        self, sender: Sender, url: str, events: Collection[str], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._sender = sender
        self._url = url
        self._events = frozenset(events)
        self._metadata = dict(metadata or {})

    def comfy(self, message: Mapping[str, Any], job_id: str | None = None) -> None:
        """
        Tell one text message of ComfyUI's websocket, `{"type": str, "data": {...}}`, if it is wanted.

        The messages of one prompt arrive in order.
        """
        name = message.get("type")
        if name not in COMFY_NAMES or name not in self._events:
            return
        data = message.get("data")
        prompt = data.get("prompt_id") if isinstance(data, dict) else None
        self._send(f"comfy.{name}", renamed(message, job_id), str(prompt or ""), weight_of(str(name)))

    def storage(
        self,
        name: StorageName,
        url: str | None,
        local_path: str,
        size_bytes: int,
        duration_s: float | None = None,
    ) -> None:
        """
        Tell what happened to a file. The path is the operator's own, and told to nobody else.
        """
        if name not in self._events:
            return
        data: dict[str, Any] = {"url": url or "unknown", "local_path": local_path, "size": size_bytes}
        if duration_s is not None:
            data["duration"] = duration_s
        self._send(f"storage.{name}", data, "", "event")

    def _send(self, event: str, data: dict[str, Any], lane: str, weight: Weight) -> None:
        payload = {"event": event, "data": MASK.value(data), "metadata": self._metadata}
        try:
            body = orjson.dumps(payload, default=str, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:
            logger.debug("A system event %s could not be encoded.", event)
            return
        # Without a prompt (`status`), messages of one name are in order among themselves.
        self._sender.send(Message(self._url, body, lane=lane or event, weight=weight))
