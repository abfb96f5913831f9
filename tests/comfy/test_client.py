"""
ComfyUI over HTTP: each route's answer read as it is, and every foreign exception turned into one of ours.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket
from urllib3 import exceptions as wire

from comfy_worker.comfy import launch
from comfy_worker.comfy.client import Client, Reply
from comfy_worker.comfy.http_errors import NotListening, translated
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.errors import ComfyUnavailable, InputUnavailable
from comfy_worker.standin.thread import EngineThread

LOST = "HTTP communication error with ComfyUI: "
ID = "8a4c6b0e-5f3d-5c55-9a53-0f2f6b9d1c11"


def family(kind: type[Exception]) -> set[type[Exception]]:
    """
    Return a class and all below it.
    """
    return {kind}.union(*(family(child) for child in kind.__subclasses__()))


HTTP_ERRORS = sorted(
    family(requests.RequestException) | family(wire.HTTPError),
    key=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
# What cannot have sent anything; everything else may have.
NOTHING_SENT = {requests.ConnectTimeout}


@pytest.mark.parametrize("kind", HTTP_ERRORS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_exception_of_the_http_libraries_becomes_ours(kind: type[Exception]) -> None:
    """No exception of requests or urllib3 may pass; ours names ComfyUI, keeps the cause, and can be tried elsewhere."""
    with pytest.raises(ComfyUnavailable) as caught, translated("gpu:8188"):
        raise kind.__new__(kind)

    assert isinstance(caught.value.__cause__, kind)
    assert "ComfyUI" in str(caught.value)
    assert caught.value.retryable
    assert isinstance(caught.value, NotListening) == (kind in NOTHING_SENT)


@pytest.mark.parametrize(
    ("inner", "sent"),
    [
        (ConnectionRefusedError(111, "Connection refused"), False),
        (wire.NewConnectionError(None, "no route"), False),  # type: ignore[arg-type]
        (wire.NameResolutionError("gpu", None, socket.gaierror()), False),  # type: ignore[arg-type]
        (wire.MaxRetryError(None, "/", wire.NewConnectionError(None, "no route")), False),  # type: ignore[arg-type]
        (wire.ProtocolError("Connection aborted.", ConnectionResetError(104, "reset")), True),
        (wire.MaxRetryError(None, "/", wire.ProtocolError("cut")), True),  # type: ignore[arg-type]
    ],
)
def test_connection_that_never_was_is_told_apart(inner: Exception, sent: bool) -> None:
    """Only when nothing was sent may a caller post again without a look: that must be told from a lost answer."""
    with pytest.raises(ComfyUnavailable) as caught, translated("gpu:8188"):
        raise requests.ConnectionError(inner)

    assert isinstance(caught.value, NotListening) is not sent
    assert ("gpu:8188" in str(caught.value)) is not sent


def test_other_exceptions_pass() -> None:
    """What is no trouble with HTTP must not be called one."""
    with pytest.raises(KeyError), translated("gpu:8188"):
        raise KeyError


@dataclass
class Script:
    """
    A server that answers each request with the next (status, body), and keeps what was asked.
    """

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    url: str = ""

    def answer(self, status: int, body: Any) -> None:
        """
        Add an answer; what is no bytes is sent as JSON.
        """
        self.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))


@pytest.fixture
def script() -> Iterator[Script]:
    """
    A scripted server on loopback.
    """
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append((self.command, self.path, body))
            status, answer = script.answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        script.url = f"http://127.0.0.1:{port}"
        yield script


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[int]:
    """
    Run a server for as long as the block runs; gives its port.
    """
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="script")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def raw_server(answer: bytes) -> Iterator[int]:
    """
    Answer the first bytes of every connection with `answer`, and end it; gives the port.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                end, _ = listening.accept()
            except TimeoutError:
                continue
            with end:
                end.settimeout(2)
                end.recv(65536)
                end.sendall(answer)

    thread = threading.Thread(target=serve, name="raw-server")
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        over.set()
        thread.join(10)
        listening.close()


@pytest.fixture
def client(script: Script) -> Iterator[Client]:
    """
    A client of the scripted server.
    """
    client = Client(script.url, timeout_s=5, probe_timeout_s=5)
    yield client
    client.close()


@pytest.fixture
def engine_client(engine: EngineThread) -> Iterator[Client]:
    """
    A client of the built-in engine.
    """
    client = Client(engine.url + "/")
    yield client
    client.close()


ASKING: list[Callable[[Client], Any]] = [
    lambda client: client.history(ID),
    lambda client: client.queued(),
    lambda client: client.system_stats(),
    lambda client: client.object_info("A"),
    lambda client: client.object_info(),
]


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"Server got itself in trouble"),
        (200, b"<html>"),
        (200, b""),
        (200, b"[1]"),
        (404, b"{}"),
        (302, b""),
    ],
)
def test_answer_that_is_none_is_told_with_route_and_status(
    script: Script, client: Client, ask: Callable[[Client], Any], status: int, body: bytes
) -> None:
    """An error, a page of a proxy and anything but a JSON object must become ours, never a surprise."""
    script.answer(status, body)

    with pytest.raises(ComfyUnavailable, match=f"{LOST}/.* answered {status}"):
        ask(client)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_broken_answer_becomes_ours(answer: bytes, tmp_path: Path) -> None:
    """An answer that is cut off, or no HTTP at all, must be ours for every way of reading it."""
    with raw_server(answer) as port:
        client = Client(f"http://127.0.0.1:{port}", timeout_s=5, probe_timeout_s=5)

        with pytest.raises(ComfyUnavailable) as caught:
            client.queue({})
        assert not isinstance(caught.value, NotListening)
        with pytest.raises(ComfyUnavailable):
            client.view("x.png", "", "output", tmp_path / "x")
        assert not client.answers()
        client.close()


def test_nobody_listening_is_told() -> None:
    """A port without a server must be told as nothing sent, with the address."""
    port = launch.free_port()
    client = Client(f"http://127.0.0.1:{port}")

    with pytest.raises(NotListening, match=rf"ComfyUI server \(127\.0\.0\.1:{port}\) not reachable"):
        client.queue({})
    assert not client.answers()


def test_no_answer_in_time_is_told() -> None:
    """A server that takes a request and says nothing must be given up, and is not called dead."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.1, probe_timeout_s=0.1)

        with pytest.raises(ComfyUnavailable, match="no answer in time") as caught:
            client.system_stats()

        assert not isinstance(caught.value, NotListening)
        client.close()


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, {"status": "pending"}, "queued"),
        (200, {"status": "in_progress"}, "running"),
        (200, {"status": "completed"}, "ended"),
        (200, {"status": "failed"}, "ended"),
        (200, {"status": "cancelled"}, "ended"),
        (404, {"error": "not found"}, "unknown"),
    ],
)
def test_jobs_api_says_where_a_prompt_is(
    script: Script, client: Client, status: int, body: Any, state: str
) -> None:
    """One question must be enough where there is a Jobs API."""
    script.answer(status, body)

    assert client.whereabouts(ID) == state
    assert script.asked == [("GET", f"/api/jobs/{ID}", b"")]


@pytest.mark.parametrize(
    ("queue", "history", "state"),
    [
        ({"queue_running": [[0, ID, {}]], "queue_pending": []}, None, "running"),
        ({"queue_running": [], "queue_pending": [[0, "other", {}], [1, ID, {}]]}, None, "queued"),
        ({"queue_running": [], "queue_pending": []}, {ID: {"outputs": {}}}, "ended"),
        ({"queue_running": [], "queue_pending": []}, {}, "unknown"),
        ({"queue_running": None, "queue_pending": [5, [], ["x"]]}, {}, "unknown"),
    ],
)
def test_without_jobs_api_queue_and_history_are_asked(
    script: Script, client: Client, queue: Any, history: Any, state: str
) -> None:
    """An older ComfyUI must be asked for its queue first and its history then, and no more for what it has not."""
    script.answer(404, b"404: Not Found")
    for _ in range(2):
        script.answer(200, queue)
        if history is not None:
            script.answer(200, history)

    assert client.whereabouts(ID) == client.whereabouts(ID) == state
    assert [path for _, path, _ in script.asked].count(f"/api/jobs/{ID}") == 1


def test_broken_jobs_api_is_gone_around(script: Script, client: Client) -> None:
    """A 500 of the Jobs API, which one odd prompt can cause, must not hide the others."""
    script.answer(500, b"500 Internal Server Error")
    script.answer(200, {"queue_running": [[0, ID]], "queue_pending": []})

    assert client.whereabouts(ID) == "running"


@pytest.mark.parametrize(
    ("status", "body", "acted"),
    [(200, {"cancelled": True}, True), (200, {"cancelled": False}, False), (404, b"404: Not Found", None)],
)
def test_cancel_says_whether_it_acted(
    script: Script, client: Client, status: int, body: Any, acted: Any
) -> None:
    """A cancel must say whether it did something, and None where there is no such route."""
    script.answer(status, body)

    assert client.cancel(ID) is acted


def test_routes_that_change_something_name_their_prompt(script: Script, client: Client) -> None:
    """No route may ever touch another prompt than the one that it is given."""
    for _ in range(4):
        script.answer(200, b"")

    client.dequeue(ID)
    client.interrupt(ID)
    client.forget([ID])
    client.free()

    assert [(method, path, json.loads(body)) for method, path, body in script.asked] == [
        ("POST", "/queue", {"delete": [ID]}),
        ("POST", "/interrupt", {"prompt_id": ID}),
        ("POST", "/history", {"delete": [ID]}),
        ("POST", "/free", {"free_memory": True}),
    ]


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (400, b"", "Error uploading in.png: ComfyUI answered 400"),
        (413, b"", "Error uploading in.png: ComfyUI answered 413 (larger than its --max-upload-size)"),
        (500, b"Server got itself in trouble", "Error uploading in.png: ComfyUI answered 500"),
        (200, b"", "Error uploading in.png: ComfyUI answered 200"),
        (200, {"name": None}, "Error uploading in.png: ComfyUI answered 200"),
    ],
)
def test_refused_upload_is_told_with_its_name(
    script: Script, client: Client, tmp_path: Path, status: int, body: Any, text: str
) -> None:
    """A file that ComfyUI does not take must be told in the words users know, without a path or URL."""
    (tmp_path / "source").write_bytes(b"x")
    script.answer(status, body)

    with pytest.raises(InputUnavailable) as caught:
        client.upload("in.png", tmp_path / "source")
    assert str(caught.value) == text


def test_upload_follows_the_answer(script: Script, client: Client, tmp_path: Path) -> None:
    """The name that ComfyUI answers must be the one to use, with its folder."""
    (tmp_path / "source").write_bytes(b"x")
    script.answer(200, {"name": "in (1).png", "subfolder": "sub", "type": "input"})

    assert client.upload("sub/in.png", tmp_path / "source") == "sub/in (1).png"


def test_class_names_are_quoted(script: Script, client: Client) -> None:
    """A class with odd characters must not lead to another route."""
    script.answer(200, {"../../queue?x#y": {"output_node": True}})

    assert client.object_info("../../queue?x#y") == {"output_node": True}
    assert script.asked[0][1] == "/object_info/..%2F..%2Fqueue%3Fx%23y"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": NaN, "b": Infinity}', {"a": None, "b": None}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b"", None),
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_answers_are_read_as_python_wrote_them(body: bytes, value: Any) -> None:
    """What ComfyUI's own JSON writer lets through must be read, and anything else be None."""
    assert Reply(200, body).json() == value


def test_built_in_engine_is_spoken_to(engine_client: Client, tmp_path: Path) -> None:
    """Every reading route must work on an engine that is there."""
    assert engine_client.answers()
    assert engine_client.history(ID) is None
    assert engine_client.whereabouts(ID) == "unknown"
    assert engine_client.queued() == (frozenset(), frozenset())
    assert engine_client.system_stats()["devices"]
    assert engine_client.object_info("SaveImage")["output_node"] is True
    assert engine_client.object_info("NoSuchNode") == {}
    assert "LoadImage" in engine_client.object_info()
    assert engine_client.queue({}).status == 400
    assert not engine_client.view("missing.png", "", "output", tmp_path / "x")


def test_exceptions_of_the_websocket_library_have_one_root() -> None:
    """The socket catches the library's one root: no exception of it may lie outside."""
    found = [
        kind
        for name, kind in vars(websocket).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]

    assert len(found) >= 6
    assert all(issubclass(kind, websocket.WebSocketException) for kind in found)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc Nothing\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: zz\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: ftp://\xff\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 101 \xff\xfe\r\nUpgrade: \xff\r\n\r\n",
    ],
)  # fmt: skip
def test_server_that_is_no_websocket_does_not_end_the_socket(answer: bytes) -> None:
    """Whatever answers at the address, the socket must go on trying, so that a later ComfyUI is found."""
    with raw_server(answer) as port:
        events = EventSocket(f"http://127.0.0.1:{port}", attempts=1000, delay_s=0.01, connect_timeout_s=2)

        for _ in range(3):
            assert events.ensure(2.0)
            assert not events.connected
        assert any(thread.name == "comfy-socket" for thread in threading.enumerate())
        events.close()
