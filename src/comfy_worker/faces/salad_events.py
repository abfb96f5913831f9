"""
What the operator of a Salad container group is told beside replies: ComfyUI's messages, and how costly an end would be.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import requests

from comfy_worker.webhook import SystemEvents

logger = logging.getLogger(__name__)

COST_URL = "http://169.254.169.254/v1/deletion-cost"
COST_TIMEOUT_S = 2.0
FORGOTTEN_LATER = 64
"""Ended prompts whose requests are still known: ComfyUI's last messages come after the end."""

Put = Callable[[int], None]


class ComfyEvents:
    """
    Forwards ComfyUI's messages under the ids of requests; a `salad_run.Prompts`, and what the websocket tells.

    `cost` is told the length of ComfyUI's queue whenever it changes.
    """

    def __init__(self, events: SystemEvents | None, cost: Put | None = None) -> None:
        self._events = events
        self._cost = cost
        self._lock = threading.Lock()
        self._requests: dict[str, str] = {}
        self._ended: list[str] = []
        self._remaining: int | None = None

    def known(self, prompt_id: str, request_id: str) -> None:
        """
        Note which request a prompt belongs to.
        """
        with self._lock:
            self._requests[prompt_id] = request_id

    def over(self, prompt_id: str) -> None:
        """
        Forget a prompt, a little later.
        """
        with self._lock:
            self._ended.append(prompt_id)
            while len(self._ended) > FORGOTTEN_LATER:
                self._requests.pop(self._ended.pop(0), None)

    @property
    def remembered(self) -> int:
        """
        How many prompts are known.
        """
        with self._lock:
            return len(self._requests)

    def __call__(self, frame: bytes | str) -> None:
        """
        Take one text frame of ComfyUI's websocket; returns at once.
        """
        try:
            message = orjson.loads(frame)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        data = message.get("data")
        data = data if isinstance(data, dict) else {}
        if message.get("type") == "status":
            self._weigh(data)
        if self._events is not None:
            with self._lock:
                request_id = self._requests.get(str(data.get("prompt_id")))
            self._events.comfy(message, request_id)

    def _weigh(self, data: Mapping[str, Any]) -> None:
        status = data.get("status")
        info = status.get("exec_info") if isinstance(status, dict) else None
        remaining = info.get("queue_remaining") if isinstance(info, dict) else None
        if self._cost is not None and isinstance(remaining, int) and remaining != self._remaining:
            self._remaining = remaining
            self._cost(remaining)


class DeletionCost:
    """
    Tells Salad's platform what ending this machine would cost: the prompts in the queue. Only the latest counts.
    """

    def __init__(self, url: str = COST_URL) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._next: int | None = None
        self._is_busy = False

    def __call__(self, cost: int) -> None:
        """
        Put a new cost some time soon; returns at once.
        """
        with self._lock:
            self._next = cost
            if self._is_busy:
                return
            self._is_busy = True
        threading.Thread(target=self._work, name="deletion-cost", daemon=True).start()

    def _work(self) -> None:
        session = requests.Session()
        session.trust_env = False  # never through a proxy
        with session:
            while True:
                with self._lock:
                    cost, self._next = self._next, None
                    if cost is None:
                        self._is_busy = False
                        return
                try:
                    session.put(
                        self._url,
                        json={"deletion_cost": cost},
                        headers={"Metadata": "true"},
                        timeout=COST_TIMEOUT_S,
                    )
                except requests.RequestException as exc:
                    logger.debug("The deletion cost could not be set: %s", type(exc).__name__)
