"""
How far a prompt is and how long its nodes took, from the messages that came through.

Estimates only: nothing is decided by them. What is over, and how, is in `progress.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from comfy_worker.comfy.messages import NodeState

# 100 belongs to the verdict: until then something may still go wrong.
ALMOST = 99.0


class Meter:
    """
    The share of the workflow that is done, 0..99 and never falling, with cached nodes done from the start.

    `at` is seconds of any steady clock. A node that another one expanded into counts for the node of the workflow that
    it stands for.
    """

    def __init__(self, workflow: Mapping[str, Any]) -> None:
        self.percent = 0.0
        self.current: str | None = None
        self.value: float | None = None
        self.max: float | None = None
        self.node_ms: dict[str, float] = {}
        self._shares = dict.fromkeys(workflow, 0.0)
        self._display: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._has_states = False

    def display(self, node_id: str) -> str:
        """
        Return the node of the workflow that `node_id` stands for.
        """
        return self._display.get(node_id, node_id)

    def skip(self, nodes: Iterable[str]) -> None:
        """
        Count nodes that will not run as done.
        """
        for node_id in nodes:
            self._count(node_id, 1.0)

    def enter(self, node_id: str, display: str | None, at: float) -> None:
        """
        Note that a node began.

        Servers without `progress_state` run one node at a time and do not say when one is done: the next one does.
        """
        if display is not None:
            self._display[node_id] = display
        if not self._has_states:
            for other in [other for other in self._since if other != node_id]:
                self._leave(other, at)
                self._count(other, 1.0)
        self._since.setdefault(node_id, at)
        self._turn_to(node_id)

    def tick(self, node_id: str, value: float, most: float) -> None:
        """
        Note a tick of a node.
        """
        self._turn_to(node_id)
        self.value, self.max = value, most
        self._count(node_id, value / most if most > 0 else 0.0)

    def update(self, nodes: Mapping[str, NodeState], at: float) -> None:
        """
        Note the state of every node touched so far.
        """
        self._has_states = True
        for node_id, node in nodes.items():
            if node.display_node_id is not None:
                self._display[node_id] = node.display_node_id
            if node.state == "finished":
                self._leave(node_id, at)
                self._count(node_id, 1.0)
            elif node.state == "running":
                if node_id not in self._since:
                    self._since[node_id] = at
                    self._turn_to(node_id)
                self._count(node_id, node.value / node.max if node.max > 0 else 0.0)

    def stop(self, at: float) -> None:
        """
        Note that nothing runs any more.
        """
        for node_id in list(self._since):
            self._leave(node_id, at)
        self.current = self.value = self.max = None

    def _turn_to(self, node_id: str) -> None:
        if node_id != self.current:
            self.current, self.value, self.max = node_id, None, None

    def _leave(self, node_id: str, at: float) -> None:
        since = self._since.pop(node_id, None)
        if since is not None:
            shown = self.display(node_id)
            self.node_ms[shown] = self.node_ms.get(shown, 0.0) + (at - since) * 1000

    def _count(self, node_id: str, share: float) -> None:
        if node_id in self._shares:
            self._shares[node_id] = max(self._shares[node_id], min(share, 1.0))
            self.percent = min(100 * sum(self._shares.values()) / len(self._shares), ALMOST)
