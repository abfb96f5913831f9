"""
The graph of a running prompt: posted nodes, nodes made at run time, and which one is next. Nothing runs in here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_worker.standin.cache import is_link, links
from comfy_worker.standin.progress import Names


class DependencyCycleError(Exception):
    """
    The nodes that are left wait for each other; carries the id of one of them.
    """

    def __init__(self, node_id: str) -> None:
        super().__init__("Dependency cycle detected")
        self.node_id = node_id


DependencyCycleError.__module__ = "graph"


@dataclass(frozen=True, slots=True)
class Box:
    """
    One node of the graph.
    """

    class_type: str
    inputs: Mapping[str, Any]
    names: Names


class Graph:
    """
    The nodes of a prompt by id; it grows when a node replaces itself with a graph.
    """

    def __init__(self, workflow: Mapping[str, Any]) -> None:
        self._boxes = {
            node_id: Box(row["class_type"], row.get("inputs") or {}, Names(node_id, node_id, None, node_id))
            for node_id, row in workflow.items()
            if isinstance(row, Mapping)
        }

    def __getitem__(self, node_id: str) -> Box:
        return self._boxes[node_id]

    def expand(self, parent: str, made: Mapping[str, Any], prefix: str) -> dict[str, str]:
        """
        Add the graph that `parent` made; return its new ids by local id.

        Ids become `<parent>.<call>.<graph>.<local>` (ComfyUI's form); links among the new nodes follow.
        """
        ids = {local: local if local.startswith(prefix) else prefix + local for local in made}
        above = self._boxes[parent].names
        for local, row in made.items():
            inputs = {name: relink(value, ids) for name, value in row.get("inputs", {}).items()}
            shown = row.get("override_display_id") or above.display_id
            names = Names(ids[local], shown, parent, above.real_id)
            self._boxes[ids[local]] = Box(row["class_type"], inputs, names)
        return ids


def relink(value: Any, ids: Mapping[str, str]) -> Any:
    """
    Return a link with its local id replaced; anything else as it is.
    """
    if is_link(value) and value[0] in ids:
        return [ids[value[0]], value[1]]
    return value


class Agenda:
    """
    What is still to run. Wanted nodes bring what they need; of several that are ready an output node goes first.
    """

    def __init__(
        self, graph: Graph, is_done: Callable[[str], bool], is_output: Callable[[str], bool]
    ) -> None:
        self._graph = graph
        self._is_done = is_done
        self._is_output = is_output
        self._waits: dict[str, set[str]] = {}
        self._blocks: dict[str, set[str]] = {}

    def want(self, node_id: str) -> None:
        """
        Add a node and whatever it needs that is not done; the last input's needs come first (ComfyUI 0.27.0).
        """
        stack = [node_id]
        while stack:
            one = stack.pop()
            if one in self._waits:
                continue
            needs = (
                []
                if self._is_done(one)
                else [target for target, _ in links(self._graph[one].inputs).values()]
            )
            stack += self._hold(one, needs)

    def _hold(self, node_id: str, needs: Iterable[str]) -> list[str]:
        missing = [target for target in needs if not self._is_done(target)]
        self._waits.setdefault(node_id, set()).update(missing)
        for target in missing:
            self._blocks.setdefault(target, set()).add(node_id)
        return missing

    def wait_for(self, node_id: str, others: Iterable[str]) -> None:
        """
        Put a node back until others are done.
        """
        for other in self._hold(node_id, list(others)):
            self.want(other)

    def next(self) -> str | None:
        """
        Return the node to run now, None when all is done.

        Raises:
            DependencyCycleError: nodes are left and none of them is ready.
        """
        ready = [node_id for node_id, waits in self._waits.items() if not waits]
        if not ready:
            if self._waits:
                raise DependencyCycleError(self._in_cycle())
            return None
        return next(filter(self._is_output, ready), ready[0])

    def _in_cycle(self) -> str:
        node_id, seen = next(iter(self._waits)), set[str]()
        while node_id not in seen:
            seen.add(node_id)
            node_id = next(iter(self._waits[node_id]))
        return node_id

    def done(self, node_id: str) -> None:
        """
        Take a node off; who waited for it may go on.
        """
        del self._waits[node_id]
        for other in self._blocks.pop(node_id, ()):
            self._waits[other].discard(node_id)
