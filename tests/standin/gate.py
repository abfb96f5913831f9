"""
Nodes for the tests of the engine that stop where a test wants them to, so that no test depends on time.
"""

import threading
from collections.abc import Mapping
from typing import Any

from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.nodes import NODES

WAIT_S = 10.0
_ANY = Input("any", "*", optional=True)


class Gate:
    """
    A node class `Gate` that waits: `entered` tells that one runs, `open` lets it (and all later ones) go on.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.ticks: list[tuple[float, float, bytes | None]] = []

    def nodes(self) -> Mapping[str, Node]:
        """
        Return the built-in nodes and those of this gate.
        """
        own = (
            Node("Gate", self._wait, (_ANY, Input("mark", "STRING", {}, optional=True)), ("*",)),
            Node("Ticks", self._tick, (_ANY,), ("*",)),
            Node("Show", _show, (_ANY,), output_node=True),
            Node("Silent", lambda _inputs, _context: Returned(()), output_node=True),
            Node("Loop", _loop, (_ANY,), ("*",)),
            Node("Twice", _twice, (_ANY,), ("*",)),
        )
        return {**NODES, **{node.class_type: node for node in own}}

    def _wait(self, inputs: Mapping[str, Any], _context: Context) -> Returned:
        self.entered.set()
        self.open.wait(WAIT_S)
        return Returned((inputs.get("any", 1),))

    def _tick(self, inputs: Mapping[str, Any], context: Context) -> Returned:
        self.entered.set()
        self.open.wait(WAIT_S)
        for value, maximum, preview in self.ticks:
            context.progress(value, maximum, preview)
        return Returned((inputs.get("any", 1),))


def _show(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((), {"text": [str(inputs.get("any"))]})


def _loop(_inputs: Mapping[str, Any], _context: Context) -> Returned:
    first = {"class_type": "Twice", "inputs": {"any": ["second", 0]}}
    second = {"class_type": "Twice", "inputs": {"any": ["first", 0]}}
    return Returned((["first", 0],), expand={"first": first, "second": second})


def _twice(inputs: Mapping[str, Any], _context: Context) -> Returned:
    inner = {"one": {"class_type": "Gate", "inputs": {"any": inputs.get("any", 1)}}}
    return Returned((["one", 0],), expand=inner)


def chain(*class_types: str) -> dict[str, Any]:
    """
    Return a workflow in which each node feeds the next: ids "1", "2", ...; the last one is of class `Show`.
    """
    workflow: dict[str, Any] = {}
    for index, class_type in enumerate((*class_types, "Show"), start=1):
        inputs = {"any": [str(index - 1), 0]} if index > 1 else {}
        workflow[str(index)] = {"class_type": class_type, "inputs": inputs}
    return workflow


def picture(prefix: str = "p", color: int = 1) -> dict[str, Any]:
    """
    Return a workflow that saves one small picture.
    """
    size = {"width": 16, "height": 16, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }
