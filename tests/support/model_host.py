"""
A host of model files on loopback: ranges, ETags, redirects, tokens, and everything that goes wrong with them.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 16 << 10


@dataclass
class Entry:
    """
    One file and how it is given. `cuts` has, per request, after how many bytes the connection breaks (None: never).
    """

    body: bytes
    etag: str = '"v1"'
    ranges: bool = True
    token: str | None = None
    redirect: str | None = None
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    gate: threading.Event | None = None
    lies: int = 0


class ModelHost:
    """
    `files` by path; `requests` has (path, headers) of every request; `most` is how many were answered at once.
    """

    def __init__(self) -> None:
        self.files: dict[str, Entry] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.now = 0
        self.most = 0
        self.lock = threading.Lock()
        self.several = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="model-host")

    @property
    def url(self) -> str:
        """
        Its address.
        """
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def ranges_of(self, path: str) -> list[str | None]:
        """
        Return the Range header of every request for a path.
        """
        return [headers.get("range") for asked, headers in self.requests if asked == path]

    def __enter__(self) -> "ModelHost":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for entry in self.files.values():
            if entry.gate is not None:
                entry.gate.set()
        self._server.shutdown()
        self._thread.join(30)
        self._server.server_close()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """
        Count how many answers are under way.
        """
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now > 1:
                self.several.set()
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1


def _handler(host: ModelHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            host.requests.append((path, headers))
            self.close_connection = True
            entry = host.files.get(path)
            with host.busy():
                try:
                    self._answer(entry, headers)
                except OSError:
                    return  # the client has gone

        def _answer(self, entry: Entry | None, headers: dict[str, str]) -> None:
            if entry is None:
                self._plain(404)
            elif entry.token is not None and headers.get("authorization") != f"Bearer {entry.token}":
                self._plain(403 if "authorization" in headers else 401)
            elif entry.redirect is not None:
                self._plain(302, Location=entry.redirect)
            elif entry.statuses:
                self._plain(entry.statuses.pop(0), **entry.headers)
            else:
                self._file(entry, headers)

        def _plain(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def _file(self, entry: Entry, headers: dict[str, str]) -> None:
            start = _start(entry, headers)
            body = entry.body[start or 0 :]
            if start is not None and start >= len(entry.body):
                return self._plain(416)
            self.send_response(200 if start is None else 206)
            if start is not None:
                self.send_header("Content-Range", f"bytes {start}-{len(entry.body) - 1}/{len(entry.body)}")
            self.send_header("Content-Length", str(len(body) + entry.lies))
            if entry.etag:
                self.send_header("ETag", entry.etag)
            self.end_headers()
            cut = entry.cuts.pop(0) if entry.cuts else None
            for offset in range(0, len(body) if cut is None else cut, PIECE):
                self.wfile.write(body[offset : min(offset + PIECE, len(body) if cut is None else cut)])
                self.wfile.flush()
                if entry.gate is not None:
                    entry.gate.wait(20)
            return None

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _start(entry: Entry, headers: dict[str, str]) -> int | None:
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    if match is None or not entry.ranges:
        return None
    if headers.get("if-range", entry.etag) != entry.etag:
        return None
    return int(match[1])
