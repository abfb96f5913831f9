"""
A receiver of webhooks on loopback: answers by a script, keeps what it was sent.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Received:
    """
    One POST, and when it came.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """
    `answers` are used one after the other, the last one for ever. `wait(n)` returns the first n requests.
    """

    url: str = ""
    answers: Sequence[Answer] = ()
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)
    release: threading.Event = field(default_factory=threading.Event)

    def wait(self, count: int, timeout_s: float = 20.0) -> list[Received]:
        """
        Wait until so many have come.
        """
        with self.arrived:
            if not self.arrived.wait_for(lambda: len(self.received) >= count, timeout_s):
                raise AssertionError(f"{len(self.received)} of {count} requests came")
            return list(self.received)


def status(code: int, **headers: str) -> Answer:
    """
    Answer with a status and an empty body.
    """

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def resets(request: BaseHTTPRequestHandler) -> None:
    """
    Break the connection off without an answer.
    """
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    request.connection.close()
    request.close_connection = True


def huge(request: BaseHTTPRequestHandler) -> None:
    """
    Answer 200 with a body that has no end.
    """
    request.send_response(200)
    request.end_headers()
    request.close_connection = True
    try:
        while True:
            request.wfile.write(b"x" * 65536)
    except OSError:
        return


def trickles(request: BaseHTTPRequestHandler) -> None:
    """
    Send the head of an answer byte by byte, never all of it.
    """
    request.close_connection = True
    try:
        for _ in range(200):
            request.wfile.write(b"H")
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        return


@contextmanager
def receiving(*answers: Answer, holds: bool = False) -> Iterator[Receiver]:
    """
    Serve a receiver while the block runs. With `holds` it answers nothing until `release` is set.
    """
    receiver = Receiver(answers=answers or (status(200),))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            receiver.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with receiver.arrived:
                number = len(receiver.received)
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body, time.monotonic()))
                receiver.arrived.notify_all()
            if holds:
                receiver.release.wait(30)
            receiver.answers[min(number, len(receiver.answers) - 1)](self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # connections are broken on purpose

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="receiver")
    thread.start()
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
