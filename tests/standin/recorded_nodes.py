"""
Stand-ins for the nodes of ComfyUI's own tests that some recordings use; only what those recordings show of them.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin.node import Blocked, Context, Folders, Input, Node, Returned

_VALUE = Input("value", "*")


def _stub_image(inputs: Mapping[str, Any], _context: Context) -> Returned:
    level = {"WHITE": 1.0, "BLACK": 0.0, "NOISE": 0.5}[inputs["content"]]
    shape = (inputs["batch_size"], inputs["height"], inputs["width"], 3)
    return Returned((np.full(shape, level, np.float32),))


def _blocker(inputs: Mapping[str, Any], _context: Context) -> Returned:
    if not inputs["block"]:
        return Returned((inputs["input"],))
    return Returned((Blocked("Blocked Execution" if inputs["verbose"] else None),))


def _make_list(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned(([inputs[name] for name in ("value1", "value2", "value3") if name in inputs],))


def _sleep(inputs: Mapping[str, Any], context: Context) -> Returned:
    start, seconds = time.monotonic(), inputs["seconds"]
    while (passed := time.monotonic() - start) < seconds:
        context.progress(passed, seconds)
        context.sleep(0.01)
    context.progress(seconds, seconds)
    return Returned((inputs["value"],))


def _fail(message: str, _inputs: Mapping[str, Any], _context: Context) -> Returned:
    raise RuntimeError(message)


def _check_value(inputs: Mapping[str, Any], _folders: Folders) -> str | None:
    value, limit = inputs["value"], inputs["max_value"]
    return f"Async validation failed: {value} > {limit}" if value > limit else None


def _first(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((next(iter(inputs.values())),))


def _failing(message: str) -> Any:
    return lambda inputs, context: _fail(message, inputs, context)


_SIZE = {"default": 512, "min": 1, "max": 16384}
_NODES = (
    Node(
        "StubImage",
        _stub_image,
        (
            Input("content", ("WHITE", "BLACK", "NOISE")),
            Input("height", "INT", _SIZE),
            Input("width", "INT", _SIZE),
            Input("batch_size", "INT", {"default": 1, "min": 1, "max": 1024}),
        ),
        ("IMAGE",),
    ),
    Node(
        "TestExecutionBlocker",
        _blocker,
        (Input("input", "*"), Input("block", "BOOLEAN"), Input("verbose", "BOOLEAN")),
        ("*",),
    ),
    Node(
        "TestMakeListNode",
        _make_list,
        (Input("value1", "*"), Input("value2", "*", optional=True)),
        ("*",),
        output_is_list=(True,),
    ),
    Node("TestSleep", _sleep, (_VALUE, Input("seconds", "FLOAT", {"default": 1.0, "min": 0.0})), ("*",)),
    Node("TestSyncError", _failing("Intentional sync execution error for testing"), (_VALUE,), ("*",)),
    Node(
        "TestAsyncValidationError",
        _first,
        (Input("value", "FLOAT"), Input("max_value", "FLOAT")),
        ("FLOAT",),
        check=_check_value,
    ),
    Node(
        "TestCustomIsChanged",
        _first,
        (Input("image", "IMAGE"), Input("should_change", "BOOLEAN", {"default": False}, optional=True)),
        ("IMAGE",),
        fingerprint=lambda inputs, _folders: float("nan") if inputs.get("should_change") else False,
    ),
)

RECORDED_NODES: Mapping[str, Node] = {node.class_type: node for node in _NODES}
