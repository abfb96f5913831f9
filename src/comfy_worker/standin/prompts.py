"""
The prompts of an engine: pending, running, and the history of those that are over, all under one lock.

A prompt is in exactly one of the three at any time. Who runs them and who sends messages is not known here.
"""

import heapq
import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_worker.standin.faults import PromptFaults

HISTORY_CAP = 10_000
SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")


@dataclass(slots=True)
class Prompt:
    """
    One accepted prompt. `outputs` are the output nodes to run.
    """

    number: float
    id: str
    workflow: dict[str, Any]
    extra_data: dict[str, Any]
    outputs: list[str]
    faults: PromptFaults
    secrets: dict[str, Any] = field(default_factory=dict)

    @property
    def client_id(self) -> str | None:
        """
        Whom its messages are for.
        """
        return self.extra_data.get("client_id")

    def item(self, with_secrets: bool = False) -> list[Any]:
        """
        Return it as `[number, id, workflow, extra_data, outputs]`, the form of /queue and /history.
        """
        extra = {**self.extra_data, **self.secrets} if with_secrets else self.extra_data
        return [self.number, self.id, self.workflow, extra, self.outputs]


@dataclass(slots=True)
class _Place:
    """
    A place in the heap. While it is new it cannot be compared to one with the same number and id, like ComfyUI's tuples.
    """

    prompt: Prompt
    turn: int
    new: bool = True

    def __lt__(self, other: "_Place") -> bool:
        mine, theirs = (self.prompt.number, self.prompt.id), (other.prompt.number, other.prompt.id)
        if self.new and mine == theirs:
            raise TypeError("'<' not supported between instances of 'dict' and 'dict'")
        return (mine, self.turn) < (theirs, other.turn)


class Prompts:
    """
    The queue and the history of one engine. Thread-safe.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[_Place] = []
        self._turns = itertools.count()
        self._running: Prompt | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self.interrupt = threading.Event()

    def put(self, prompt: Prompt) -> None:
        """
        Queue a prompt. Whoever waits in `take` learns of it by `wake`.

        Raises:
            TypeError: one with the same number and id is pending; this one is queued all the same (ComfyUI 0.27.0 does so).
        """
        place = _Place(prompt, next(self._turns))
        with self._changed:
            try:
                heapq.heappush(self._heap, place)
            finally:
                place.new = False

    def take(self, timeout: float) -> Prompt | None:
        """
        Return the next prompt, which is running from now on, or None when none came within `timeout` seconds.
        """
        with self._changed:
            if not self._heap:
                self._changed.wait(timeout)
            if not self._heap:
                return None
            self._running = heapq.heappop(self._heap).prompt
            self.interrupt.clear()
            return self._running

    def finish(self, prompt: Prompt, entry: Mapping[str, Any]) -> None:
        """
        End the running prompt: from now on it is in the history, with `entry` (`outputs`, `status`, `meta`).
        """
        with self._changed:
            self._running = None
            self._history[prompt.id] = {"prompt": prompt.item(), **entry}
            while len(self._history) > HISTORY_CAP:
                del self._history[next(iter(self._history))]

    def wake(self) -> None:
        """
        Let a waiting `take` look again.
        """
        with self._changed:
            self._changed.notify_all()

    @property
    def remaining(self) -> int:
        """
        How many are pending or running.
        """
        with self._changed:
            return len(self._heap) + (self._running is not None)

    def queue(self) -> tuple[list[Prompt], list[Prompt]]:
        """
        Return the running and the pending ones, the latter in heap order.
        """
        with self._changed:
            return [self._running] if self._running else [], [place.prompt for place in self._heap]

    def look(self, prompt_id: str) -> tuple[Prompt | None, Prompt | None, dict[str, Any] | None]:
        """
        Return what is known of an id: running, pending, history entry; None where it is not.
        """
        with self._changed:
            running = self._running if self._running and self._running.id == prompt_id else None
            pending = next((place.prompt for place in self._heap if place.prompt.id == prompt_id), None)
            return running, pending, self._history.get(prompt_id)

    def drop(self, prompt_id: str) -> int:
        """
        Remove one pending prompt; return how many `status` messages that takes: 0 unknown, 2 if it was the only one.
        """
        with self._changed:
            for place in self._heap:
                if place.prompt.id == prompt_id:
                    alone = len(self._heap) == 1
                    self._heap.remove(place)
                    heapq.heapify(self._heap)
                    return 2 if alone else 1
            return 0

    def clear(self) -> None:
        """
        Remove all pending prompts.
        """
        with self._changed:
            self._heap.clear()

    def interrupt_if_running(self, prompt_id: str | None) -> bool:
        """
        Ask the running prompt to stop, if it is the one named (None: whichever runs); tell whether it was asked.
        """
        with self._changed:
            if prompt_id is not None and (self._running is None or self._running.id != prompt_id):
                return False
            self.interrupt.set()
            return True

    def history(self) -> dict[str, dict[str, Any]]:
        """
        Return all entries, oldest first.
        """
        with self._changed:
            return dict(self._history)

    def forget(self, ids: Iterable[str] | None) -> None:
        """
        Delete history entries; None deletes all.
        """
        with self._changed:
            for prompt_id in list(self._history if ids is None else ids):
                self._history.pop(prompt_id, None)
