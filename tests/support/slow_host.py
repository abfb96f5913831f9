"""
A host on loopback that takes its time: a request is noted, held until the test lets it go, and then answered.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOLD_S = 50.0


class SlowHost:
    """
    `with SlowHost() as host:` - `asked` is set by the first request, `go` ends the wait of all; `body` is the answer.
    """

    def __init__(self, status: int = 403, body: bytes = b"") -> None:
        self.asked = threading.Event()
        self.go = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.set()
                host.go.wait(HOLD_S)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the client has gone, which is what some tests are about

            do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """
        Its address.
        """
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "SlowHost":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
