"""
A server on loopback that answers every request with the same bytes, whatever they are, and hangs up.
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

HEAD_BYTES = 64 << 10
PATIENCE_S = 5.0


class Garbage:
    """
    `answer` is what the next connections get; `requests` counts them.
    """

    def __init__(self) -> None:
        self.answer = b""
        self.requests = 0
        self.url = ""


def http(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    """
    Return a well-formed reply with any body.
    """
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, b"Connection: close", *headers, b"", body])


@contextlib.contextmanager
def served() -> Iterator[Garbage]:
    """
    Serve garbage while the block runs.
    """
    garbage = Garbage()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            garbage.requests += 1
            self.request.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                _read(self.request)
                self.request.sendall(garbage.answer)
                # An end before the request was read to its end would be a reset, and lose the answer.
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(HEAD_BYTES):
                    continue

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        garbage.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="garbage")
        thread.start()
        yield garbage
        server.shutdown()
        thread.join(10)


def _read(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(HEAD_BYTES)
        if not piece:
            return
        head += piece
