"""
Too much of everything, on each face: an answer in words, in bounded time, and the next job runs.

Bodies beyond their limit, bodies that trickle, memory for bodies: tests/http/test_gate.py. Downloads: tests/test_fetch.py.
A full queue of webhooks: tests/test_webhook.py. A store of many jobs: tests/http/test_runpod_jobs.py.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from support import garbage
from support.every_face import FACES, Entrance
from support.pictures import b64, node, png

from comfy_worker.collect import collect
from comfy_worker.comfy import messages
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.progress import PromptState, verdict
from comfy_worker.errors import WorkerError
from comfy_worker.standin.thread import EngineThread

PICTURE = b64(png((4, 4), (9, 8, 7)))
BOUND_S = 60.0
MOST_ECHO = 8
"""How often a refusal may repeat what it refuses: some name a value in the message, in the details and per node."""


def small(prefix: str = "out") -> dict[str, Any]:
    """
    Return a graph that succeeds.
    """
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", images=("1", 0), filename_prefix=prefix),
    }


def chain(count: int) -> dict[str, Any]:
    """
    Return a graph as deep as it has nodes.
    """
    graph = {str(n): node("ImageInvert", image=(str(n - 1), 0)) for n in range(1, count)}
    return {"0": node("EmptyImage", width=8, height=8, batch_size=1, color=0), **graph}


GRAPHS: dict[str, dict[str, Any]] = {
    "300 nodes": {**small(), **{f"n{n}": node("PreviewAny", source="x") for n in range(300)}},
    "2,000 deep": chain(2_000),
    "long cycle": {
        **small(),
        **{f"c{n}": node("ImageInvert", image=(f"c{(n + 1) % 1_000}", 0)) for n in range(1_000)},
    },
    "10,000 inputs": {
        **small(),
        "3": {"class_type": "PreviewAny", "inputs": {f"i{n}": n for n in range(10_000)}},
    },
    "long text": {**small(), "3": node("PreviewAny", source="x" * 4_000_000)},
    "long class": {**small(), "3": {"class_type": "x" * 1_000_000, "inputs": {}}},
    "long id": {**small(), "x" * 1_000_000: node("PreviewAny", source="x")},
    "long name": {**small(), "3": node("LoadImage", image="a" * 100_000 + ".png")},
    "long url": {**small(), "3": node("LoadImage", image="http://127.0.0.1:9/" + "a" * 1_000_000)},
    "long host": {**small(), "3": node("LoadImage", image=f"http://{'a' * 100_000}.example/")},
    "many urls": {
        **small(),
        **{f"u{n}": node("LoadImage", image=f"http://127.0.0.1:9/{n}") for n in range(300)},
    },
    "long prefix": small("a" * 100_000),
    "deep prefix": small("a/" * 2_000 + "a"),
    "deep value": {**small(), "3": node("PreviewAny", source=json.loads("[" * 200 + "]" * 200))},
    "big number": {**small(), "3": node("EmptyImage", width=10**400, height=8, batch_size=1, color=0)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_graph_too_large_is_answered(entrance: Entrance, name: str) -> None:
    """A graph with too much of something must be answered in bounded time and space, and the next job must run."""
    began = time.monotonic()
    said = entrance.send(GRAPHS[name], "large")

    assert time.monotonic() - began < BOUND_S
    assert said.text
    if said.failed:
        assert len(said.text) < 300_000 + MOST_ECHO * len(json.dumps(GRAPHS[name]))
        assert "Traceback" not in said.text
    assert not entrance.send(small(), "next").failed


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_deep_json_is_refused(http_entrance: Entrance, depth: int, pair: str) -> None:
    """JSON nested deeper than any reader takes must be a 4xx, not the end of the process."""
    opened = "[" if pair == "[]" else '{"a":'
    body = opened * depth + ("1" if pair != "[]" else "") + pair[-1] * depth

    assert 400 <= http_entrance.post(body.encode()).status < 500
    assert not http_entrance.send(small(), "next").failed


@pytest.mark.parametrize(
    "body",
    [b'{"input": ' + b"9" * 100_000 + b"}", b'{"id": "' + b"\\u0000" * 100_000 + b'"}', b"\xff" * 1_000_000],
)
def test_odd_bodies_are_refused(http_entrance: Entrance, body: bytes) -> None:
    """Numbers without end, nulls and bytes that are no text must be a 4xx."""
    assert 400 <= http_entrance.post(body).status < 500


@pytest.mark.slow
@pytest.mark.parametrize("count", [2_000])
def test_many_images_are_answered(open_entrance: Any, engine: EngineThread, count: int) -> None:
    """Thousands of input images must be placed or refused, and be gone afterwards."""
    entrance = open_entrance(FACES[0])
    images = [{"name": f"{n}.png", "image": PICTURE} for n in range(count)]

    said = entrance.send(small(), images=images)

    assert said.text
    assert not list(engine.folders.input.glob("[0-9]*.png"))


@pytest.mark.parametrize(
    "path",
    [
        "/" + "a" * 20_000,
        "/" + "%2e%2e/" * 200 + "etc/passwd",
        "/status/" + "x" * 5_000,
        "/%00",
        "//evil.example/",
    ],
)
def test_long_and_odd_paths_are_refused(http_entrance: Entrance, path: str) -> None:
    """A path that is nobody's must be a 4xx, and never a redirect to somewhere else."""
    assert http_entrance.served is not None
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", http_entrance.served.port, timeout=20)
    try:
        connection.putrequest("GET", path)
        connection.endheaders()
        reply = connection.getresponse()
        assert 400 <= reply.status < 500
        assert "evil.example" not in (reply.getheader("Location") or "")
    except (ConnectionError, http.client.RemoteDisconnected):
        pass  # refused before it was a request
    finally:
        connection.close()
    assert requests.get(f"{http_entrance.served.url}/health", timeout=20).status_code < 500


def test_many_headers_are_refused(http_entrance: Entrance) -> None:
    """A head without end must be refused, and the server live on."""
    assert http_entrance.served is not None
    try:
        reply = requests.get(
            f"{http_entrance.served.url}/health",
            headers={f"x-{n}": "y" * 1_000 for n in range(500)},
            timeout=20,
        )
        assert 400 <= reply.status_code < 500
    except requests.RequestException:
        pass  # hung up on, in the middle of the head
    assert requests.get(f"{http_entrance.served.url}/health", timeout=20).status_code < 500


def test_history_of_a_hostile_comfyui_is_bounded() -> None:
    """A record with a hundred thousand files that are not there must be read in seconds and not be repeated whole."""
    images = [{"filename": f"{n}.png", "subfolder": "", "type": "output"} for n in range(100_000)]
    entry = {
        "outputs": {"1": {"images": images}},
        "status": {"messages": [["execution_success", {}]] * 10_000},
    }
    began = time.monotonic()

    found = collect(
        verdict(entry).outputs, {"1": {}}, [], locate=lambda *_: None, job_folder="", include_temp=True
    )

    assert len(found.missing) == 100_000
    assert time.monotonic() - began < BOUND_S


def test_frames_of_a_hostile_comfyui_are_bounded() -> None:
    """A hundred thousand frames about nodes that do not exist must leave a state that is no larger than its graph."""
    state = PromptState("p", small())
    frames = [
        json.dumps(
            {"type": "progress", "data": {"prompt_id": "p", "node": f"n{n}", "value": n, "max": 10**9}}
        )
        for n in range(20_000)
    ]
    began = time.monotonic()
    for frame in frames:
        state.feed(messages.parse_text(frame))

    assert time.monotonic() - began < BOUND_S


def test_endless_reply_of_comfyui_ends(tmp_path: Path) -> None:
    """A reply that says it is larger than what comes must be an error of ours and not a wait."""
    with garbage.served() as world:
        world.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 1_000_000
        client = Client(world.url, timeout_s=5.0, probe_timeout_s=5.0)
        with pytest.raises(WorkerError):
            client.history("p")
        with pytest.raises(WorkerError):
            client.view("a", "", "output", tmp_path / "a")
        client.close()
