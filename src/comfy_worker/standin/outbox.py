"""
What one prompt tells the world: every message of its run, to whom it goes, and what of it history keeps.

Without a client_id some messages go to everybody and the others to nobody. Source: ComfyUI 0.27.0.
"""

import time
from typing import Any

from comfy_worker.standin import frames
from comfy_worker.standin.progress import Names, Progress
from comfy_worker.standin.prompts import Prompt
from comfy_worker.standin.sockets import Message, Sockets


class Outbox:
    """
    The messages of one prompt. `messages` are those that history keeps; `last_node` is what a late client is told.
    """

    def __init__(self, prompt: Prompt, sockets: Sockets) -> None:
        self._prompt = prompt
        self._sockets = sockets
        self.client_id = prompt.client_id
        self.progress = Progress(prompt.id)
        self.messages: list[list[Any]] = []
        self.last_node: str | None = None

    def _send(self, kind: str, data: dict[str, Any] | bytes, everybody: bool = False) -> None:
        target = None if everybody else self.client_id
        if everybody or target is not None:
            self._sockets.send(Message(kind, data, target, self._prompt.faults, self.client_id))

    def _to_client_or_all(self, kind: str, data: dict[str, Any] | bytes) -> None:
        self._send(kind, data, everybody=self.client_id is None)

    def status(self, remaining: int) -> None:
        """
        Tell everybody how many prompts are pending or running.
        """
        self._send("status", status(remaining), everybody=True)

    def milestone(self, kind: str, to_all_without_client: bool = False, **data: Any) -> None:
        """
        Tell of the start, the cached nodes or the end of the prompt, and keep it for history.
        """
        row = {"prompt_id": self._prompt.id, **data, "timestamp": int(time.time() * 1000)}
        if kind == "execution_cached":
            row = {"nodes": data["nodes"], "prompt_id": self._prompt.id, "timestamp": row["timestamp"]}
        self.messages.append([kind, row])
        self._send(kind, row, everybody=to_all_without_client and self.client_id is None)

    def blocked(self, data: dict[str, Any]) -> None:
        """
        Tell of a verbose blocker; history does not learn of it.
        """
        self._to_client_or_all("execution_error", {"prompt_id": self._prompt.id, **data})

    def executing(self, names: Names) -> None:
        """
        Tell which node runs now.
        """
        self.last_node = names.node_id
        data = {"node": names.node_id, "display_node": names.display_id, "prompt_id": self._prompt.id}
        self._send("executing", data)

    def over(self) -> None:
        """
        Send the null event.
        """
        self.last_node = None
        self._send("executing", {"node": None, "prompt_id": self._prompt.id})

    def executed(self, names: Names, output: dict[str, Any] | None) -> None:
        """
        Tell what a node showed.
        """
        data = {"node": names.node_id, "display_node": names.display_id, "output": output}
        self._send("executed", {**data, "prompt_id": self._prompt.id})

    def state(self) -> None:
        """
        Send the progress of all nodes so far.
        """
        self._to_client_or_all("progress_state", self.progress.message())

    def tick(self, node_id: str, value: float, maximum: float) -> None:
        """
        Send the progress of one node.
        """
        data = {"value": value, "max": maximum, "prompt_id": self._prompt.id, "node": node_id}
        self._to_client_or_all("progress", data)

    @property
    def wants_metadata(self) -> bool:
        """
        Whether the client takes pictures with metadata (event 4).
        """
        return self._sockets.wants_metadata(self.client_id)

    def picture(self, names: Names, data: bytes, mime: str) -> None:
        """
        Send a picture, as event 4 where the client asked for that.
        """
        if not self.wants_metadata:
            self._to_client_or_all("binary", frames.picture(data, mime))
            return
        metadata = {
            "node_id": names.node_id,
            "prompt_id": self._prompt.id,
            "display_node_id": names.display_id,
            "parent_node_id": names.parent_id,
            "real_node_id": names.real_id,
        }
        self._send("binary", frames.picture_with_metadata(data, mime, metadata))

    def text(self, node_id: str, message: str) -> None:
        """
        Send a text to everybody, client_id or not.
        """
        self._send("binary", frames.text(node_id, message), everybody=True)


def status(remaining: int) -> dict[str, Any]:
    """
    Return the data of a `status` message.
    """
    return {"status": {"exec_info": {"queue_remaining": remaining}}}
