"""
The faults that tests of the worker ask for do what their names say, and nothing else.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from comfy_worker.standin.thread import EngineThread

from .client import Client, Socket, is_null_event, wait_for
from .gate import Gate, chain, picture


def _faulty(client: Client, socket: Socket, workflow: dict[str, Any] | None = None, **faults: Any) -> str:
    return client.queue(workflow or picture(), socket.client_id, extra_data={"standin": faults})


@pytest.mark.parametrize(("with_frame", "last"), [(True, b"\x03\xe9"), (False, None)])
def test_the_socket_ends_after_the_frame_asked_for(
    with_frame: bool, last: bytes | None, client: Client
) -> None:
    """
    Frames are counted from the prompt's first status on; the end comes with or without a close frame.
    """
    socket = client.socket()

    prompt_id = _faulty(client, socket, close_socket_after_frame=4, close_frame=with_frame)
    seen = [socket.next() for _ in range(4)]
    try:
        frame = socket.ws.recv_frame().data[:2]
    except (websocket.WebSocketException, ConnectionError):
        frame = None

    assert [message["type"] for message in seen if isinstance(message, dict)] == [
        "status",
        "status",
        "execution_start",
        "execution_cached",
    ]
    assert frame == last
    assert client.history(prompt_id)["status"]["completed"] is True


def test_a_refused_socket_is_answered_503_until_the_prompt_is_over(client: Client, gate: Gate) -> None:
    """
    Only the client of the prompt is refused, and only while it is pending or running.
    """
    client.queue(chain("Gate"), "refused", extra_data={"standin": {"refuse_socket": True}})
    gate.entered.wait(5)

    with pytest.raises(websocket.WebSocketBadStatusException):
        client.socket("refused")
    client.socket("other")
    gate.open.set()
    wait_for(lambda: client.get("/prompt").json()["exec_info"]["queue_remaining"] == 0)

    assert client.socket("refused").frames


@pytest.mark.parametrize("lost", ["execution_success", "status", "executed", "execution_start"])
def test_lost_messages_are_not_sent(lost: str, client: Client) -> None:
    """
    The type named is missing, everything else arrives.
    """
    socket = client.socket()

    prompt_id = _faulty(client, socket, lose=[lost])
    socket.until_over(prompt_id)

    assert lost not in socket.types()[1:]


def test_the_null_event_can_be_lost_alone(client: Client) -> None:
    """
    `null_event` means the end of a prompt, not every executing.
    """
    socket = client.socket()

    prompt_id = _faulty(client, socket, lose=["null_event"])
    second = client.queue(picture("next"), socket.client_id)
    socket.until_over(second)

    assert "executing" in socket.types()
    assert not [
        frame for frame in socket.frames if isinstance(frame, dict) and is_null_event(frame, prompt_id)
    ]


def test_messages_can_come_twice(client: Client) -> None:
    """
    A duplicate follows its original at once.
    """
    socket = client.socket()

    socket.until_over(_faulty(client, socket, duplicate=["execution_success"]))

    assert socket.types().count("execution_success") == 2


def test_delayed_messages_hold_back_those_behind_them(client: Client) -> None:
    """
    The order stays, history does not wait.
    """
    socket = client.socket()

    prompt_id = _faulty(client, socket, delay_ms={"execution_start": 400})
    client.history(prompt_id)
    early = socket.types()
    while socket.next(timeout_s=0.05) is not None:
        early = socket.types()
    socket.until_over(prompt_id)

    assert "execution_start" not in early
    assert socket.types()[3] == "execution_start"


@pytest.mark.parametrize(
    ("faults", "status", "runs"),
    [
        ({"post_status": 500}, 500, False),
        ({"post_status": 503}, 503, False),
        ({"queued_but_500": True}, 500, True),
        ({"lost_but_200": True}, 200, False),
    ],
)
def test_the_answer_to_a_post_can_lie(
    faults: dict[str, Any], status: int, runs: bool, client: Client
) -> None:
    """
    Whether a prompt runs and what the reply says are two things.
    """
    prompt_id = "3d9aba5d-ff0d-4c9f-a7e0-fa17b0335c57"
    body = {"prompt": picture(), "prompt_id": prompt_id, "client_id": "a", "extra_data": {"standin": faults}}

    reply = client.post("/prompt", body)
    client.history(client.queue(picture("after"), "a"))

    assert reply.status_code == status
    assert (prompt_id in client.get("/history").json()) is runs


def test_the_engine_dies_at_the_node_asked_for(client: Client, engine: EngineThread) -> None:
    """
    The port is closed and the socket cut before the node runs.
    """
    socket = client.socket()

    _faulty(client, socket, die_at_node="2")
    died = engine.died.wait(5)
    while socket.next() is not None:
        pass
    engine.stop()

    assert died
    assert not list(engine.folders.output.iterdir())
    with pytest.raises(requests.ConnectionError):
        client.get("/prompt")


def test_a_node_runs_out_of_memory_when_told(client: Client) -> None:
    """
    The error has the type and the words by which a client recognises it.
    """
    socket = client.socket()

    entry = client.history(_faulty(client, socket, oom_at_node="1"))
    data = entry["status"]["messages"][-1][1]

    assert data["exception_type"] == "torch.OutOfMemoryError"
    assert "out of memory" in data["exception_message"]


def test_a_hanging_engine_lives_and_says_nothing(client: Client) -> None:
    """
    HTTP times out and pings stay unanswered until the time is over or the fault is taken back.
    """
    socket = client.socket()

    client.post("/standin/faults", {"hang": 60})
    socket.ws.ping("hey")
    with pytest.raises(requests.Timeout):
        requests.get(client.url + "/prompt", timeout=0.2)
    silent = socket.next(timeout_s=0.1) is None
    client.post("/standin/faults", {})

    assert silent
    assert client.get("/prompt").status_code == 200


def test_outputs_are_gone_before_history_names_them(client: Client, engine: EngineThread) -> None:
    """
    History looks as always, /view is 404.
    """
    socket = client.socket()

    entry = client.history(_faulty(client, socket, delete_outputs_after_run=True))
    item = entry["outputs"]["2"]["images"][0]

    assert client.get("/view", params=item).status_code == 404
    assert not list(engine.folders.output.iterdir())


def test_paths_fail_as_often_as_asked(client: Client) -> None:
    """
    A prefix fails a number of times, with the status asked for, and other paths do not.
    """
    client.post("/standin/faults", {"http_500_on": {"/history": 2}, "http_status": 503})

    statuses = [client.get(path).status_code for path in ("/history/x", "/queue", "/history", "/history")]

    assert statuses == [503, 200, 503, 200]


def test_faults_of_the_engine_hold_for_every_prompt_until_cleared(client: Client) -> None:
    """
    They can be given at any time, and a prompt's own value wins.
    """
    socket = client.socket()
    client.post("/standin/faults", {"lose": ["execution_success"]})
    socket.until_over(client.queue(picture(), socket.client_id))
    without = socket.types().count("execution_success")
    socket.until_over(_faulty(client, socket, lose=[]))
    own = socket.types().count("execution_success")

    client.post("/standin/faults", {})
    socket.until_over(client.queue(picture(), socket.client_id))

    assert (without, own, socket.types().count("execution_success")) == (0, 1, 2)


def test_an_unknown_fault_is_refused(client: Client) -> None:
    """
    A misspelt fault must not pass as no fault.
    """
    reply = client.post("/standin/faults", {"loose": []})

    assert reply.status_code == 400
    assert "loose" in reply.json()["error"]


def test_a_stall_after_the_prompt_freezes_http(client: Client) -> None:
    """
    As at a garbage collection, one answer takes as long as the stall lasts.
    """
    client.queue(picture(), "a", extra_data={"standin": {"gc_stall_ms": 300, "history_delay_ms": 50}})

    def is_held_up() -> bool:
        before = time.monotonic()
        client.get("/prompt")
        return time.monotonic() - before > 0.15

    assert wait_for(is_held_up)


def test_the_engine_can_start_late(tmp_path: Path) -> None:
    """
    The port is closed until the engine is ready.
    """
    engine = EngineThread(tmp_path, start_delay_s=0.2)

    start = time.monotonic()
    with engine, Client(engine.url) as client:
        ready = time.monotonic() - start

        assert client.get("/prompt").status_code == 200
    assert ready >= 0.2
