"""
Wait until a prompt is over. History is the truth, the websocket a hint; this file is the timers between the two.

`progress` says what a message means; here is when to look without one. Silence alone means nothing, so after
`SILENCE_S` without a message the prompt is looked up, and a prompt that ComfyUI no longer knows is lost at once. Losing
the socket, or any message of it, costs at most that long.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_worker.comfy.client import Client
from comfy_worker.comfy.http_errors import NotListening
from comfy_worker.comfy.mailbox import Mail, Mailbox, SocketLost
from comfy_worker.comfy.progress import PromptState
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, PromptLost
from comfy_worker.job import Observer

logger = logging.getLogger(__name__)

SILENCE_S = 2.0
NO_SOCKET_S = (0.25,) * 8 + (1.0,)
END_S = (0.05, 0.1, 0.25, 0.5, 1.0)
UNKNOWN_AGAIN_S = 0.25
REFUSALS = 4


@dataclass(slots=True)
class Watch:
    """
    One wait for one prompt.

    `alive` raises `ComfyUnavailable` when ComfyUI is known to be dead.
    """

    client: Client
    socket: EventSocket
    box: Mailbox
    prompt_id: str
    state: PromptState
    alive: Callable[[], None]
    gap: bool = False
    _looks: int = 0
    _unknown: int = 0
    _refused: int = 0
    _ending: bool = False
    _due: float = 0.0

    def run(self, deadline: Deadline, observe: Observer) -> Mapping[str, Any]:
        """
        Return the history entry of the prompt, once there is one.

        Raises:
            PromptLost: ComfyUI knows the prompt no longer.
            ComfyUnavailable: ComfyUI died or went away.
            JobTimedOut, JobCancelled: by the deadline.
        """
        self._due = time.monotonic() + self._pause()
        while True:
            deadline.check("running")
            mail = self.box.get(max(0.0, min(self._due - time.monotonic(), deadline.left_s)))
            if mail is not None:
                entry = self._read(*mail, observe)
            elif time.monotonic() >= self._due:
                entry = self._look()
                self._due = time.monotonic() + self._pause()
            else:
                continue
            if entry is not None:
                return entry

    def _read(self, at: float, mail: Mail, observe: Observer) -> Mapping[str, Any] | None:
        if isinstance(mail, SocketLost):
            self.gap, self._looks, self._due = True, 0, 0.0
            return None
        step = self.state.feed(mail, at)
        if step.event is not None:
            observe(step.event)
        if step.ending and not self._ending:
            self._ending, self._looks = True, 0
        if step.look == "now" and (entry := self._history()):
            return entry
        if step.mine:
            self._due = time.monotonic() + self._pause()
        if step.look != "no":
            self._due = min(self._due, time.monotonic() + END_S[0])
        return None

    def _pause(self) -> float:
        """
        Seconds until the next look without a message.
        """
        if self._unknown:
            return UNKNOWN_AGAIN_S
        if self._ending:
            return END_S[min(self._looks, len(END_S) - 1)]
        if not self.socket.connected:
            return NO_SOCKET_S[min(self._looks, len(NO_SOCKET_S) - 1)]
        return SILENCE_S

    def _history(self) -> Mapping[str, Any] | None:
        try:
            return self.client.history(self.prompt_id)
        except ComfyUnavailable:
            return None

    def _look(self) -> Mapping[str, Any] | None:
        self._looks += 1
        self.alive()
        try:
            where = self.client.whereabouts(self.prompt_id)
            self._refused = 0
            if where == "ended":
                entry = self.client.history(self.prompt_id)
                if entry is not None:
                    return entry
                where = "unknown"
        except NotListening as exc:
            self._refused += 1
            if self._refused >= REFUSALS:
                raise ComfyUnavailable(
                    "WebSocket communication error: ComfyUI HTTP unreachable during websocket reconnect"
                ) from exc
            return None
        except ComfyUnavailable as exc:
            # A garbage collection or a busy interpreter: the process lives, so the deadline is the bound.
            logger.warning("ComfyUI did not answer a probe: %s", exc)
            return None
        self._unknown = self._unknown + 1 if where == "unknown" else 0
        if self._unknown >= 2:
            raise PromptLost(
                f"Prompt ID {self.prompt_id} not found in history after execution. ComfyUI knows the prompt no longer: "
                "it was deleted, or ComfyUI was restarted."
            )
        return None
