"""
Every frame of ComfyUI's websocket is read as what it says, and nothing that comes over it raises.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import replay

from comfy_worker.comfy.messages import (
    BUILDERS,
    Cached,
    Errored,
    Executed,
    Executing,
    FeatureFlags,
    Interrupted,
    Message,
    NodeState,
    Other,
    Picture,
    ProgressState,
    Started,
    Status,
    Succeeded,
    Text,
    Ticked,
    parse_binary,
    parse_text,
)

P = "0b22d616-fb56-43de-aab9-e2dc656f8ed2"
ERROR = {
    "prompt_id": P,
    "node_id": "3",
    "node_type": "KSampler",
    "executed": ["4"],
    "exception_message": "no\n",
    "exception_type": "RuntimeError",
    "traceback": ["line"],
    "current_inputs": {},
    "timestamp": 1,
}
STATE = {"value": 1, "max": 4, "state": "running", "display_node_id": "2", "real_node_id": "2.0.1"}
FRAMES: list[tuple[str, dict[str, Any], Message]] = [
    ("status", {"status": {"exec_info": {"queue_remaining": 2}}, "sid": "me"}, Status(2, "me")),
    ("status", {"status": {"exec_info": {"queue_remaining": "two"}}}, Status(None)),
    ("feature_flags", {"supports_preview_metadata": True}, FeatureFlags({"supports_preview_metadata": True})),
    ("execution_start", {"prompt_id": P, "timestamp": 1}, Started(P)),
    ("execution_cached", {"prompt_id": P, "nodes": ["1", "2"]}, Cached(P, ("1", "2"))),
    ("executing", {"prompt_id": P, "node": "2.0.1", "display_node": "2"}, Executing(P, "2.0.1", "2")),
    ("executing", {"prompt_id": P, "node": None}, Executing(P, None)),
    ("executing", {"node": "3"}, Executing(None, "3")),
    ("progress", {"prompt_id": P, "node": "3", "value": 1, "max": 20}, Ticked(P, "3", 1.0, 20.0)),
    (
        "progress_state",
        {"prompt_id": P, "nodes": {"2.0.1": STATE}},
        ProgressState(P, {"2.0.1": NodeState(1.0, 4.0, "running", "2", "2.0.1")}),
    ),
    (
        "executed",
        {"prompt_id": P, "node": "9", "display_node": "9", "output": {}},
        Executed(P, "9", "9", {}),
    ),
    (
        "executed",
        {"prompt_id": P, "node": "9", "display_node": "9", "output": None},
        Executed(P, "9", "9", None),
    ),
    ("execution_success", {"prompt_id": P, "timestamp": 1}, Succeeded(P)),
    (
        "execution_error",
        ERROR,
        Errored(P, "3", "KSampler", "RuntimeError", "no\n", True, ("4",), ("line",)),
    ),
    ("execution_interrupted", {"prompt_id": P, "node_id": "3"}, Interrupted(P, "3")),
    ("assets.seed.started", {"roots": ["output"]}, Other("assets.seed.started")),
    ("crystools.monitor", {"cpu": 3}, Other("crystools.monitor")),
]
GARBAGE = [
    "",
    "null",
    "[]",
    "7",
    "{}",
    '{"type": 5, "data": {}}',
    '{"type": "executing"}',
    '{"type": "executing", "data": null}',
    '{"type": "executing", "data": {"node": 3}}',
    '{"type": "executing", "data": {"prompt_id": "x"}}',
    '{"type": "execution_start", "data": {"prompt_id": null}}',
    '{"type": "execution_cached", "data": {"prompt_id": "x", "nodes": [1]}}',
    '{"type": "progress", "data": {"prompt_id": "x", "node": "1", "value": 1e400, "max": 1}}',
    '{"type": "progress", "data": {"prompt_id": "x", "node": "1", "value": "1", "max": 1}}',
    '{"type": "progress_state", "data": {"prompt_id": "x", "nodes": {"1": null}}}',
    '{"type": "status", "data": {"status": 5}}',
    '{"type": "executed", "data": {"prompt_id": "x", "node": "1", "output": []}}',
    "[" * 5000,
    '{"type": "status"',
    "\ud800",
]
SHORT = [
    b"",
    b"\0\0\0\1",
    b"\0\0\0\3\0\0\0\5abc",
    b"\0\0\0\4\0\0\0\2[]",
    b"\0\0\0\4\0\0\0\2{}",
    b"\0\0\0\2abcd",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=64)
KEYS = st.sampled_from(["prompt_id", "node", "nodes", "value", "max", "output", "status", "node_id", "data"])


@pytest.mark.parametrize(("kind", "data", "message"), FRAMES, ids=[frame[0] for frame in FRAMES])
def test_parse_text_returns_the_typed_message(kind: str, data: dict[str, Any], message: Message) -> None:
    """
    Each type of ComfyUI has its class, and each other type is an `Other` that names it.
    """
    frame = json.dumps({"type": kind, "data": data})

    assert parse_text(frame) == parse_text(frame.encode()) == message


def test_parse_text_tells_a_blocker_by_its_missing_timestamp() -> None:
    """
    The error of an execution blocker has no timestamp and must be told apart from a real one.
    """
    data = {key: value for key, value in ERROR.items() if key != "timestamp"}

    message = parse_text(json.dumps({"type": "execution_error", "data": data}))

    assert isinstance(message, Errored)
    assert not message.timestamped


@pytest.mark.parametrize("raw", GARBAGE)
def test_parse_text_gives_other_for_garbage(raw: str) -> None:
    """
    What cannot be read is an `Other`, whether it is no JSON, the wrong shape or the wrong types.
    """
    assert isinstance(parse_text(raw), Other)


def test_parse_text_reads_what_only_python_writes() -> None:
    """
    NaN, Infinity and half a surrogate pair in one field do not hide the rest of the message.
    """
    frame = (
        '{"type": "executed", "data": {"prompt_id": "x", "node": "1", "output": {"text": [NaN, "\\ud800"]}}}'
    )

    assert parse_text(frame) == Executed("x", "1", None, {"text": [None, "?"]})


@pytest.mark.parametrize("transcript", replay.every())
def test_parse_knows_every_recorded_frame(transcript: replay.Transcript) -> None:
    """
    No frame of a recorded conversation is unknown, except those of the asset scanner.
    """
    unknown = {message.type for _, message in transcript.frames if isinstance(message, Other)}

    assert {kind for kind in unknown if not kind.startswith("assets.seed.")} == set()


def test_parse_binary_reads_a_legacy_picture_without_copying() -> None:
    """
    Event 1 names the image type by number and its bytes are a view into the frame.
    """
    frame = b"\0\0\0\1\0\0\0\2PNG"

    picture = parse_binary(frame)

    assert isinstance(picture, Picture)
    assert (picture.prompt_id, picture.node_id, picture.mime) == (None, None, "image/png")
    assert bytes(picture.data) == b"PNG"
    assert picture.data.obj is frame


def test_parse_binary_reads_a_picture_with_metadata() -> None:
    """
    Event 4 says whose picture it is, and keeps what else it says.
    """
    metadata = {"node_id": "2", "prompt_id": P, "display_node_id": "2", "image_type": "image/jpeg"}
    head = json.dumps(metadata).encode()

    picture = parse_binary(b"\0\0\0\4" + len(head).to_bytes(4) + head + b"JPEG")

    assert isinstance(picture, Picture)
    assert (picture.prompt_id, picture.node_id, picture.mime) == (P, "2", "image/jpeg")
    assert (bytes(picture.data), picture.metadata) == (b"JPEG", metadata)


def test_parse_binary_reads_a_text() -> None:
    """
    Event 3 is a node id and a text, both UTF-8.
    """
    assert parse_binary("\0\0\0\3\0\0\0\2é64 × 64".encode()) == Text("é", "64 × 64")


@pytest.mark.parametrize("raw", SHORT)
def test_parse_binary_gives_other_for_what_is_cut_off(raw: bytes) -> None:
    """
    A frame that is shorter than it says, of an unknown event or with other metadata is an `Other`.
    """
    assert isinstance(parse_binary(raw), Other)


@given(st.builds(lambda event, rest: event.to_bytes(4) + rest, st.integers(0, 5), BYTES) | BYTES)
def test_parse_never_raises_for_any_bytes(raw: bytes) -> None:
    """
    Any bytes give a message, as a text frame and as a binary one.
    """
    assert isinstance(parse_binary(raw), Message)
    assert isinstance(parse_binary(memoryview(raw)), Message)
    assert isinstance(parse_text(raw), Message)


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs"])))
def test_parse_text_never_raises_for_any_text(raw: str) -> None:
    """
    Any text gives a message, surrogates included.
    """
    assert isinstance(parse_text(raw), Message)


@given(st.sampled_from(sorted(BUILDERS)), st.dictionaries(KEYS, JSON, max_size=6) | JSON)
def test_parse_text_never_raises_for_any_data(kind: str, data: Any) -> None:
    """
    A known type with any data gives a message.
    """
    assert isinstance(parse_text(json.dumps({"type": kind, "data": data})), Message)
