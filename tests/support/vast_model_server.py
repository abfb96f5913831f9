"""
A model server as the PyWorker sees one: `/health` and jobs that take as long, and end as, the test says.

As a program it is one at the port that is its argument, ready at once. A job's `input.act` is what it does: `{"seconds": 2}`, `{"status": 422}`; the shapes are those of the Vast face.
"""

import gzip
import json
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

SECONDS = 0.02


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """
        The SDK breaks connections off: it reads no more than the status of a benchmark's job.
        """


class ModelServer:
    """
    The server. `health` is what `/health` answers, `act` what a job without one of its own does; `ran`, `left` are the
    bodies of jobs that were done to the end, and whose caller left before.
    """

    def __init__(self, port: int = 0) -> None:
        self.health: tuple[int, dict[str, Any]] = (200, {"status": "healthy"})
        self.act: dict[str, Any] = {}
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.began: list[Any] = []
        self.ran: list[Any] = []
        self.left: list[Any] = []
        self._server = _Quiet(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="model-server")
        self._thread.start()

    def __enter__(self) -> "ModelServer":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(5.0)
        self._server.server_close()

    @property
    def url(self) -> str:
        """
        Its address, for MODEL_SERVER_URL.
        """
        return f"http://127.0.0.1:{self._server.server_port}"


def _handler(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(*server.health)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, body, dict(self.headers)))
            if self.path in {"/result", "/cancel", "/queue-info"}:
                self._answer(200, {"asked": self.path, **body})
                return
            act = {**server.act, **body.get("input", body).get("act", {})}
            server.began.append(body)
            if self.path == "/generate/stream":
                self._stream(body, act)
            elif self._works(act.get("seconds", SECONDS)):
                self._result(body, act)
            else:
                server.left.append(body)

        def _works(self, seconds: float) -> bool:
            """
            Be busy; return whether the caller is still there.
            """
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                ready, _, _ = select.select([self.connection], [], [], left)
                if ready and self._is_gone():
                    return False
            return True

        def _is_gone(self) -> bool:
            try:
                return self.connection.recv(1, socket.MSG_PEEK) == b""
            except OSError:
                return True

        def _result(self, body: dict[str, Any], act: dict[str, Any]) -> None:
            status = act.get("status", 200)
            name = "completed" if status == 200 else "failed"
            result = {
                "id": body.get("input", {}).get("request_id", ""),
                "message": act.get("message", "Processing complete."),
                "status": name,
                "comfyui_response": {},
                "output": [],
                "timings": {},
            }
            server.ran.append(body)
            headers = {"X-Own": "kept", **act.get("headers", {})}
            self._answer(status, result, headers, gzip.compress if act.get("zip") else bytes)

        def _stream(self, body: dict[str, Any], act: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(OSError):
                self._event({"status": "queued"})
                for _ in range(act.get("pings", 1)):
                    if not self._works(act.get("seconds", SECONDS)):
                        server.left.append(body)
                        return
                    self._piece(b": ping\n\n")
                if act.get("breaks"):
                    self._piece(b"data: half")
                    self.close_connection = True
                    return
                self._event({"status": "final_result", "result": {"output": ["x" * act.get("size", 1)]}})
                self._piece(b"")
            server.ran.append(body)

        def _event(self, event: dict[str, Any]) -> None:
            self._piece(b"data: " + json.dumps(event).encode() + b"\n\n")

        def _piece(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _answer(
            self,
            status: int,
            body: dict[str, Any],
            headers: dict[str, str] | None = None,
            packed: Callable[[bytes], bytes] = bytes,
        ) -> None:
            text = packed(json.dumps(body).encode())
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(text)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def main(port: int) -> None:
    """
    Be a model server until SIGTERM.
    """
    with ModelServer(port):
        print("ready to serve", flush=True)
        signal.sigwait({signal.SIGTERM})
        print("draining", flush=True)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(int(sys.argv[1]))
