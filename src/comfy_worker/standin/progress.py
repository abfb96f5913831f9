"""
How far the nodes of one prompt are: what `progress_state` tells, and which ticks are sent at all.

The state is cumulative over the nodes touched in the prompt. Source: ComfyUI 0.27.0.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LEAST_S = 0.1
_LEAST_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Names:
    """
    The names of a node: its id, the posted node to show it at, the node that made it, the posted node it comes from.
    """

    node_id: str
    display_id: str
    parent_id: str | None
    real_id: str


class Progress:
    """
    The progress of the nodes of one prompt.
    """

    def __init__(self, prompt_id: str) -> None:
        self._prompt_id = prompt_id
        self._nodes: dict[str, dict[str, Any]] = {}

    def put(self, names: Names, value: float, maximum: float, state: str) -> None:
        """
        Note where a node is; `state` is `running` or `finished`.
        """
        self._nodes[names.node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": names.node_id,
            "prompt_id": self._prompt_id,
            "display_node_id": names.display_id,
            "parent_node_id": names.parent_id,
            "real_node_id": names.real_id,
        }

    def finish(self, names: Names) -> None:
        """
        Note that a node is done: its value becomes its maximum.
        """
        maximum = self._nodes[names.node_id]["max"]
        self.put(names, maximum, maximum, "finished")

    def message(self) -> dict[str, Any]:
        """
        Return the data of a `progress_state` as of now.
        """
        return {"prompt_id": self._prompt_id, "nodes": dict(self._nodes)}


class Throttle:
    """
    Decides which ticks of one node are sent: the first, the last, and those far enough from the one sent before.
    """

    def __init__(self, enabled: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._enabled = enabled
        self._clock = clock
        self._sent: tuple[float, float] | None = None

    def passes(self, value: float, maximum: float, always: bool) -> bool:
        """
        Tell whether a tick is sent now; `always` for those that carry a picture.
        """
        now = self._clock()
        if self._enabled and not always and self._sent is not None and value < maximum:
            then, before = self._sent
            if now - then < _LEAST_S or value - before < maximum * _LEAST_SHARE:
                return False
        self._sent = (now, value)
        return True
