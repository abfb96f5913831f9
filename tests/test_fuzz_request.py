"""
Any request at all through the face, on the built-in engine: a reply that arrives, in bounded time, without our insides.

Reproducible: the same examples in every run. To dig deeper: `FUZZ_EXAMPLES=5000 pytest tests/test_fuzz_request.py`.
"""

import asyncio
import copy
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.pictures import b64, node, png

import comfy_worker
from comfy_worker.comfy.cached import is_cached
from comfy_worker.errors import every_error
from comfy_worker.parse import KNOWN_KEYS
from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", settings.default.max_examples))
PATIENCE_S = 60.0
PICTURE = b64(png((4, 4), (9, 8, 7)))
DEEP: Any = json.loads("[" * 300 + "]" * 300)
INSIDES = (
    "Traceback",
    'File "',
    "site-packages",
    sys.prefix,
    str(Path(comfy_worker.__file__).parent),
    tempfile.gettempdir() + os.sep,
    *([socket.gethostname()] if len(socket.gethostname()) > 6 else []),
)

fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)

ODD_TEXTS = (
    *(
        "",
        " ",
        "\x00",
        "\n",
        "\ud800",
        "\udfff",
        "a" * 300,
        "🎈",
        "'",
        '"',
        "%s {0} $x",
        "\\",
        "/",
        "..",
        ".",
    ),
    *(
        "in.png",
        "./in.png",
        "../in.png",
        "IN.PNG",
        "in.png [input]",
        "in.png [output]",
        "cw-" + "0" * 32 + ".png",
    ),
    *("/etc/passwd", "C:\\x", "a/b/c", "in.png/x", "con", "~", "-", "--port"),
    *(
        "http://127.0.0.1:9/x",
        " https://10.0.0.1/a?b#c",
        "http://u:p@127.0.0.1/",
        "http://[::1",
        "http://",
        "https:///x",
    ),
    *(
        "s3://b/k",
        "s3://",
        "data:,",
        "data:image/png;base64",
        f"data:image/png;base64,{PICTURE}",
        "file:///etc/passwd",
    ),
    *("!!!!", "QUJ", "QUJD=", "QUJD", PICTURE, PICTURE[:-5], f"x,{PICTURE}", "A" * 5000, "AA\nAA"),
    *(
        "true",
        "null",
        "NaN",
        "1e999",
        "[]",
        "{}",
        '{"workflow": {}}',
        "SaveImage",
        "LoadImage",
        "PreviewAny",
        "1",
        "2",
    ),
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    2**64 - 1,
    2**64,
    10**400,
)
ODD_VALUES = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["1", 0],
    ["1", 5],
    ["9", 0],
    ["1", "0"],
    [1, 0],
    ["1"],
    DEEP,
)

scalars = (
    st.sampled_from((*ODD_TEXTS, *ODD_NUMBERS, None, True, False))
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
)
any_json = st.recursive(
    scalars | st.sampled_from(ODD_VALUES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(ODD_TEXTS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def valid_input() -> dict[str, Any]:
    """
    Return the input of a job that has something of everything, and is valid.
    """
    return {
        "workflow": {
            "1": {**node("LoadImage", image="in.png"), "_meta": {"title": "A title"}},
            "2": node(
                "ImageScale", image=("1", 0), upscale_method="bilinear", width=8, height=8, crop="disabled"
            ),
            "3": node("SaveImage", images=("2", 0), filename_prefix="a/out"),
            "4": node("PreviewAny", source=("2", 0)),
            "5": node("PreviewImage", images=("1", 0)),
            "6": node("LoadImage", image=f"data:image/png;base64,{PICTURE}"),
            "7": node("SaveImage", images=("6", 0), filename_prefix="out"),
        },
        "images": [{"name": "in.png", "image": PICTURE}, {"name": "sub/plain.png", "image": PICTURE}],
        "files": [{"name": "other.bin", "data": "QUJD"}],
        "timeout_s": 20,
        "strict": False,
        "include_temp": True,
        "comfy_org_api_key": "key-of-the-job",
        "extra_pnginfo": {"workflow": {"nodes": []}},
        "convert_output": {"format": "webp", "options": {"quality": 50}, "keep_metadata": False},
        "strip_metadata": True,
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """
    Yield the path of everything inside a JSON value.
    """
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


PLACES = list(places(valid_input()))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """
    Draw a valid input with one to three things in it changed, removed, renamed, or doubled.
    """
    data = valid_input()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        holder: Any = data
        try:
            for key in path[:-1]:
                holder = holder[key]
            _change(draw, holder, path[-1])
        except (LookupError, TypeError):
            continue  # an earlier change took this place away
    return data


def _change(draw: st.DrawFn, holder: Any, key: Any) -> None:
    if not isinstance(holder, (dict, list)):
        return
    what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "double", "wrap"]))
    if what == "replace":
        holder[key] = copy.deepcopy(draw(scalars | st.sampled_from(ODD_VALUES) | any_json))
    elif what == "remove":
        del holder[key]
    elif what == "wrap":
        holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}, [holder[key]] * 2]))
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif what == "double":
        holder[draw(st.sampled_from(ODD_TEXTS))] = copy.deepcopy(holder[key])
    else:
        holder[draw(st.sampled_from(ODD_TEXTS))] = holder.pop(key)


class Fuzzed:
    """
    A worker on an engine of its own, and what must hold after any request.
    """

    def __init__(self, worker: Worker, engine: EngineThread) -> None:
        self._worker = worker
        self._input = engine.folders.input
        self._codes = set(every_error()) - {"worker_error"}

    def __call__(self, job: Any) -> dict[str, Any]:
        """
        Run one job, and check its reply and what it left.
        """
        reply = asyncio.run(asyncio.wait_for(self._worker.face.handle(job), PATIENCE_S))

        text = json.dumps(reply, allow_nan=False, ensure_ascii=False)
        assert text.encode()
        assert not [inside for inside in INSIDES if inside in text]
        if "error" in reply:
            assert isinstance(reply["error"], str)
            assert reply["error"].strip()
            assert reply["error_code"] in self._codes
        else:
            assert isinstance(reply["images"], list)
        left = [path for path in self._input.rglob("*") if path.is_file()]
        assert all(is_cached(path.name) and path.stat().st_size for path in left)
        return reply


@pytest.fixture
def fuzzed(tmp_path: Path, make_worker: WorkerFactory) -> Iterator[Fuzzed]:
    """
    A worker with small limits.
    """
    with EngineThread(tmp_path) as engine:
        worker = make_worker(launch_of(engine), job_timeout_s=20.0, job_timeout_max_s=20.0, input_max_mb=1.0)
        yield Fuzzed(worker, engine)


def test_job_that_is_mutated_is_valid_to_begin_with(fuzzed: Fuzzed) -> None:
    """The job that the mutations start from must succeed with everything that it asks for."""
    reply = fuzzed({"id": "valid", "input": valid_input()})

    assert [entry["node_id"] for entry in reply["images"]] == ["3", "5", "7"]
    assert [entry["mime"] for entry in reply["images"]] == ["image/webp"] * 3
    assert len(reply["text"]) == 1
    assert "errors" not in reply


@fuzzing
@given(any_json)
def test_any_json_as_input_gets_a_reply(fuzzed: Fuzzed, value: Any) -> None:
    """Whatever JSON is sent as `input` must get a reply in words."""
    assert fuzzed({"id": "any", "input": value})["error"]


@fuzzing
@given(st.dictionaries(st.sampled_from(KNOWN_KEYS), any_json, max_size=3))
def test_any_json_in_any_field_gets_a_reply(fuzzed: Fuzzed, fields: dict[str, Any]) -> None:
    """Whatever JSON stands in a known field must get a reply."""
    fuzzed({"id": "fields", "input": {"workflow": valid_input()["workflow"], **fields}})


@fuzzing
@given(mutated())
def test_mutated_job_gets_a_reply(fuzzed: Fuzzed, data: dict[str, Any]) -> None:
    """A good job with something odd in it must get a reply, good or bad."""
    fuzzed({"id": "mutated", "input": data})


@fuzzing
@given(mutated(), st.booleans())
def test_mutated_job_as_text_gets_a_reply(fuzzed: Fuzzed, data: dict[str, Any], cut: bool) -> None:
    """The same as JSON text, with escapes that no reader takes, or cut short, must get a reply."""
    text = json.dumps(data)

    fuzzed({"id": "text", "input": text[: len(text) // 2] if cut else text})


@fuzzing
@given(st.dictionaries(st.sampled_from(["id", "s3Config", "webhook", "policy"]), any_json, max_size=3))
def test_any_envelope_gets_a_reply(fuzzed: Fuzzed, envelope: dict[str, Any]) -> None:
    """Whatever stands around the input must get a reply."""
    fuzzed(
        {
            **envelope,
            "input": {"workflow": {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}},
        }
    )
