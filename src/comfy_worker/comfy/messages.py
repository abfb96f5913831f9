"""
One frame of ComfyUI's websocket -> one typed message. Pure: no socket, no clock, no state.

A frame that is not what we expect is an `Other`, never an error: custom nodes send types of their own, and nothing that
decides about a job rests on a frame (see `progress.py`). Shapes are those of ComfyUI 0.3.64 and 0.27.0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_worker.comfy.fields import WRONG, mapping, number, optional_text, parse, text, texts


class Message:
    """
    What a frame says: one of the classes below.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Status(Message):
    """
    How many prompts ComfyUI has, the running one included; the first one after connecting tells our client id.
    """

    queue_remaining: int | None
    sid: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureFlags(Message):
    """
    The server's answer to our feature flags.
    """

    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Started(Message):
    """
    `execution_start`.
    """

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Cached(Message):
    """
    `execution_cached`: these nodes will not run, needed or not.
    """

    prompt_id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Executing(Message):
    """
    `executing`. Node None ends the prompt; prompt_id None is the reminder after a reconnect, and no more than that.
    """

    prompt_id: str | None
    node: str | None
    display_node: str | None = None


@dataclass(frozen=True, slots=True)
class Ticked(Message):
    """
    `progress`: one tick of one node.
    """

    prompt_id: str
    node: str
    value: float
    max: float


@dataclass(frozen=True, slots=True)
class NodeState:
    """
    One node in `progress_state`; `display_node_id` is the node of the posted workflow that this one stands for.
    """

    value: float
    max: float
    state: str
    display_node_id: str | None = None
    real_node_id: str | None = None


@dataclass(frozen=True, slots=True)
class ProgressState(Message):
    """
    `progress_state`: every node touched so far, by id.
    """

    prompt_id: str
    nodes: Mapping[str, NodeState]


@dataclass(frozen=True, slots=True)
class Executed(Message):
    """
    `executed`: a node with something to show; `output` is None for a cached output node without any.
    """

    prompt_id: str
    node: str
    display_node: str | None
    output: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Succeeded(Message):
    """
    `execution_success`.
    """

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Errored(Message):
    """
    `execution_error`. One without a timestamp is an execution blocker's, after which the prompt goes on.
    """

    prompt_id: str
    node_id: str
    node_type: str
    exception_type: str
    exception_message: str
    timestamped: bool
    executed: tuple[str, ...] = ()
    traceback: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Interrupted(Message):
    """
    `execution_interrupted`.
    """

    prompt_id: str
    node_id: str | None


@dataclass(frozen=True, slots=True)
class Picture(Message):
    """
    An image: a preview, or the output of a SaveImageWebsocket node. `data` is a view into the frame, not a copy.

    Event 4 says whose it is in `metadata`; event 1 does not, and has neither prompt nor node.
    """

    prompt_id: str | None
    node_id: str | None
    mime: str
    data: memoryview = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text(Message):
    """
    A text of a node (event 3); sent to every client, and does not say for which prompt.
    """

    node_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Other(Message):
    """
    Anything else: a type of a custom node, or garbage (then `type` is empty).
    """

    type: str = ""


# Event 1 numbers its image types.
IMAGE_TYPES = {1: "image/jpeg", 2: "image/png"}


def parse_text(raw: str | bytes) -> Message:
    """
    Return the message of a text frame, `{"type": str, "data": {...}}`.
    """
    try:
        frame = parse(raw)
    except ValueError:
        return Other()
    kind = frame.get("type") if isinstance(frame, dict) else None
    if not isinstance(kind, str):
        return Other()
    build = BUILDERS.get(kind)
    if build is None:
        return Other(kind)
    try:
        return build(mapping(frame["data"]))
    except WRONG:
        return Other(kind)


def parse_binary(raw: bytes | memoryview) -> Message:
    """
    Return the message of a binary frame: a big-endian u32 event type, then the payload.

    1: u32 image type, image. 3: u32 n, n bytes node id, text. 4: u32 n, n bytes JSON, image.
    """
    frame = memoryview(raw)
    event, second, body = int.from_bytes(frame[:4]), int.from_bytes(frame[4:8]), frame[8:]
    kind = f"binary {event}"
    if len(frame) < 8:
        return Other()
    if event == 1 and second in IMAGE_TYPES:
        return Picture(None, None, IMAGE_TYPES[second], body)
    if event not in (3, 4) or second > len(body):
        return Other(kind)
    try:
        head, rest = bytes(body[:second]), body[second:]
        return Text(head.decode(), bytes(rest).decode()) if event == 3 else _described(head, rest)
    except WRONG:
        return Other(kind)


def _described(head: bytes, image: memoryview) -> Picture:
    metadata = mapping(parse(head))
    prompt_id, node_id = optional_text(metadata.get("prompt_id")), optional_text(metadata.get("node_id"))
    return Picture(prompt_id, node_id, text(metadata["image_type"]), image, metadata)


def _status(data: Mapping[str, Any]) -> Message:
    remaining = data["status"]["exec_info"]["queue_remaining"]
    is_count = isinstance(remaining, int) and not isinstance(remaining, bool)
    return Status(remaining if is_count else None, optional_text(data.get("sid")))


def _executing(data: Mapping[str, Any]) -> Message:
    prompt_id, display = optional_text(data.get("prompt_id")), optional_text(data.get("display_node"))
    return Executing(prompt_id, optional_text(data["node"]), display)


def _ticked(data: Mapping[str, Any]) -> Message:
    prompt_id, node = text(data["prompt_id"]), text(data["node"])
    return Ticked(prompt_id, node, number(data["value"]), number(data["max"]))


def _progress_state(data: Mapping[str, Any]) -> Message:
    nodes = {node_id: _node_state(mapping(node)) for node_id, node in mapping(data["nodes"]).items()}
    return ProgressState(text(data["prompt_id"]), nodes)


def _node_state(node: Mapping[str, Any]) -> NodeState:
    display, real = optional_text(node.get("display_node_id")), optional_text(node.get("real_node_id"))
    return NodeState(number(node["value"]), number(node["max"]), text(node["state"]), display, real)


def _executed(data: Mapping[str, Any]) -> Message:
    output = None if data["output"] is None else mapping(data["output"])
    display = optional_text(data.get("display_node"))
    return Executed(text(data["prompt_id"]), text(data["node"]), display, output)


def _errored(data: Mapping[str, Any]) -> Message:
    keys = ("prompt_id", "node_id", "node_type", "exception_type", "exception_message")
    prompt_id, *rest = [text(data[key]) for key in keys]
    lists = texts(data.get("executed", [])), texts(data.get("traceback", []))
    return Errored(prompt_id, rest[0], rest[1], rest[2], rest[3], "timestamp" in data, *lists)


BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], Message]] = {
    "status": _status,
    "feature_flags": FeatureFlags,
    "execution_start": lambda data: Started(text(data["prompt_id"])),
    "execution_cached": lambda data: Cached(text(data["prompt_id"]), texts(data["nodes"])),
    "executing": _executing,
    "progress": _ticked,
    "progress_state": _progress_state,
    "executed": _executed,
    "execution_success": lambda data: Succeeded(text(data["prompt_id"])),
    "execution_error": _errored,
    "execution_interrupted": lambda data: Interrupted(
        text(data["prompt_id"]), optional_text(data.get("node_id"))
    ),
}
