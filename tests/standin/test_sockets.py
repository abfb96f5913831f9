"""
The websocket: who is registered, what a late client is told, feature flags, pongs, and a reader that does not read.
"""

import re
import socket as sockets
import threading
from typing import Any

import pytest
import websocket

from comfy_worker.standin.thread import EngineThread

from .client import Client, wait_for
from .gate import Gate, chain, picture

JPEG = b"\xff\xd8\xff\xe0"


def test_a_late_client_is_told_the_running_node_and_no_prompt_id(client: Client, gate: Gate) -> None:
    """
    Whoever connects with the id of a running prompt gets status, then a bare executing.
    """
    client.queue(chain("Gate"), "late")
    gate.entered.wait(5)

    late = client.socket("late")
    second = late.next()

    assert late.frames[0]["data"] == {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "late"}
    assert second == {"type": "executing", "data": {"node": "1"}}


def test_a_client_that_comes_after_the_end_gets_only_status(client: Client) -> None:
    """
    Nothing is kept for an absent client.
    """
    prompt_id = client.queue(picture(), "later")
    client.history(prompt_id)
    wait_for(lambda: client.get("/prompt").json()["exec_info"]["queue_remaining"] == 0)

    later = client.socket("later")

    assert later.next(timeout_s=0.1) is None


def test_a_second_socket_takes_over_and_is_forgotten_with_the_first(client: Client, gate: Gate) -> None:
    """
    The older socket falls silent; when it ends, the newer one is deaf too, though still open.
    """
    first = client.socket("same")
    second = client.socket("same")
    client.post("/queue", {"clear": True})
    second.until(lambda message: message["type"] == "status")
    heard_by_first = first.next(timeout_s=0.1)
    first.close()

    def deaf() -> bool:
        client.post("/queue", {"clear": True})
        return second.next(timeout_s=0.05) is None

    assert heard_by_first is None
    assert wait_for(deaf)
    assert second.ws.connected


def test_a_socket_without_client_id_gets_one(client: Client) -> None:
    """
    The server makes 32 hex digits and tells them as sid.
    """
    socket = websocket.create_connection(client.url.replace("http", "ws") + "/ws", timeout=5)
    text = socket.recv()
    socket.close()

    assert re.search(r'"sid": "[0-9a-f]{32}"', str(text))


def test_a_socket_route_without_upgrade_is_400(client: Client) -> None:
    """
    A plain GET is told so in text.
    """
    reply = client.get("/ws")

    assert (reply.status_code, reply.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("before", "answered"),
    [(None, True), ("hello", True), ("[1]", True), ('{"type": "ping"}', False)],
)
def test_feature_flags_count_only_in_the_first_json_object(
    before: str | None, answered: bool, client: Client
) -> None:
    """
    Text that is no JSON object does not use up the first message, any other object does.
    """
    socket = client.socket()
    if before is not None:
        socket.send(before)

    socket.send({"type": "feature_flags", "data": {}})
    reply: Any = socket.next(timeout_s=2 if answered else 0.2)

    assert (reply is not None) is answered
    if answered:
        assert reply["data"] == client.get("/features").json()


def test_pings_are_answered_and_a_close_is_echoed(client: Client) -> None:
    """
    A pong carries the payload back, and the close frame comes back with 1000.
    """
    socket = client.socket()

    socket.ws.ping("hey")
    pong = socket.ws.recv_frame()
    socket.ws.send_close(1000)
    close = socket.ws.recv_frame()

    assert (pong.opcode, pong.data) == (websocket.ABNF.OPCODE_PONG, b"hey")
    assert (close.opcode, close.data[:2]) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8")


def test_a_reader_that_does_not_read_holds_up_everybody_but_no_prompt(client: Client, gate: Gate) -> None:
    """
    Messages to other clients wait behind the stuck one; history fills all the same, and all arrives once it reads.
    """
    small = ((sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096),)
    stuck = client.socket("stuck", sockopt=small)
    other = client.socket("other")
    gate.ticks = [(value, 40, JPEG + bytes(400_000)) for value in range(40)]
    gate.open.set()

    prompt_id = client.queue(chain("Ticks"), "stuck", extra_data={"preview_method": "auto"})
    entry = client.history(prompt_id)
    second = client.queue(picture(), "other")
    client.history(second)
    seen = threading.Event()
    reader = threading.Thread(target=lambda: (other.until_over(second), seen.set()))
    reader.start()
    held_up = not seen.wait(0.3)
    stuck.until_over(prompt_id)
    reader.join(10)

    assert entry["status"]["completed"] is True
    assert held_up
    assert seen.is_set()


def test_the_end_of_the_engine_cuts_sockets_without_a_close_frame(
    client: Client, engine: EngineThread
) -> None:
    """
    A client sees the connection break, not a goodbye.
    """
    socket = client.socket()

    engine.stop()

    with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
        socket.ws.recv()
