"""
A web server for tests: serves files, takes PUT and POST, and remembers every request.
"""

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import orjson


@dataclass
class Seen:
    """
    One request.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """
        Return the body as JSON.
        """
        return orjson.loads(self.body)


@dataclass
class Answer:
    """
    What a path answers.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    delay_s: float = 0.0


class HttpDesk:
    """
    The server. `answers` by path without its query (a list is used up one by one); a PUT or POST is 200 by default.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: dict[str, Answer | list[Answer]] = {}
        self._lock = threading.Condition()
        desk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                desk.serve(self)

            do_GET = do_HEAD = do_PUT = do_POST = do

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="desk", daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HttpDesk":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

    def put(self, path: str, body: bytes, **options: Any) -> str:
        """
        Serve `body` at a path; return its URL.
        """
        self.answers[path] = Answer(body, **options)
        return self.url + path

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """
        Answer one request.
        """
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        path = handler.path.partition("?")[0]
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.seen.append(Seen(handler.command, handler.path, headers, body))
            answer = self._answer(handler.command, path)
            self._lock.notify_all()
        time.sleep(answer.delay_s)
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body[: answer.cut_after])
        if answer.cut_after is not None:
            handler.close_connection = True

    def _answer(self, method: str, path: str) -> Answer:
        found = self.answers.get(path)
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        if found is not None:
            return found
        return Answer() if method in {"PUT", "POST"} else Answer(b"no such file", 404)

    def wait(self, count: int, method: str = "POST", timeout_s: float = 20.0) -> list[Seen]:
        """
        Wait until there are `count` requests of a method, and return them.
        """

        def got() -> list[Seen]:
            return [seen for seen in self.seen if seen.method == method]

        with self._lock:
            assert self._lock.wait_for(lambda: len(got()) >= count, timeout_s), self.seen
            return got()
