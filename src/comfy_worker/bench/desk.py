"""
The other side of the bench on loopback: files to fetch, and a store, each as late as asked; and RunPod's job queue.
"""

import http.server
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

HOLD_S = 1.0
PIECE = 1 << 20


class Desk:
    """
    Serves what `content` makes of a path, and swallows uploads, `delay_s` late each. `seen` has when each began and ended.
    """

    def __init__(self, content: Callable[[str], bytes]) -> None:
        self.delay_s = 0.0
        self.content = content
        self.seen: list[tuple[float, float]] = []
        self.url = ""


@contextmanager
def desk(content: Callable[[str], bytes]) -> Iterator[Desk]:
    """
    Serve files and take uploads until the end of the block.
    """
    made = Desk(content)

    class Handler(_Handler):
        def do_GET(self) -> None:
            began = time.monotonic()
            time.sleep(made.delay_s)
            self.answer(made.content(self.path))
            made.seen.append((began, time.monotonic()))

        def do_PUT(self) -> None:
            began = time.monotonic()
            self.swallow()
            time.sleep(made.delay_s)
            self.answer(b"", {"ETag": '"x"'})
            made.seen.append((began, time.monotonic()))

        def do_POST(self) -> None:
            # Just enough of S3's multipart upload: begin, and complete.
            self.swallow()
            begins = self.path.endswith("uploads")
            name = "InitiateMultipartUploadResult" if begins else "CompleteMultipartUploadResult"
            self.answer(f"<{name}><UploadId>1</UploadId><ETag>x</ETag></{name}>".encode())

        def do_HEAD(self) -> None:
            self.send_error(404)

    with _serving(Handler) as made.url:
        yield made


class Plane:
    """
    RunPod's queue, as the SDK's job loop sees it. `run` gives it a job and waits for the result.
    """

    def __init__(self) -> None:
        self.url = ""
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._results: dict[str, queue.Queue[Any]] = {}

    def run(self, job_id: str, input_: Any, timeout_s: float) -> Any:
        """
        Hand a job out and return the body of its result.
        """
        mine: queue.Queue[Any] = queue.Queue()
        self._results[job_id] = mine
        self._jobs.put({"id": job_id, "input": input_})
        try:
            return mine.get(timeout=timeout_s)
        finally:
            self._results.pop(job_id, None)

    def take(self, most: int) -> list[dict[str, Any]]:
        """
        Return up to `most` waiting jobs; wait a second for the first one.
        """
        found = []
        try:
            found.append(self._jobs.get(timeout=HOLD_S))
            while len(found) < most:
                found.append(self._jobs.get_nowait())
        except queue.Empty:
            pass
        return found

    def done(self, job_id: str, body: Any) -> None:
        """
        Take what the worker posts of a job: progress is let go, a result ends `run`.
        """
        waiting = self._results.get(job_id)
        if waiting is not None and body.get("status") != "IN_PROGRESS":
            waiting.put(body)

    def environ(self) -> dict[str, str]:
        """
        Return what RunPod sets in the environment of a worker.
        """
        return {
            "RUNPOD_ENDPOINT_ID": "bench",
            "RUNPOD_POD_ID": "w1",
            "RUNPOD_AI_API_KEY": "bench-key",
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=none",
        }


@contextmanager
def plane() -> Iterator[Plane]:
    """
    Serve RunPod's queue until the end of the block.
    """
    made = Plane()

    class Handler(_Handler):
        def do_GET(self) -> None:
            where = urlsplit(self.path)
            if "/job-take" in where.path:
                most = dict(part.partition("=")[::2] for part in where.query.split("&")).get("batch_size")
                jobs = made.take(int(most or 1))
                self.answer(
                    json.dumps(jobs if most else jobs[0]).encode(), status=200
                ) if jobs else self.answer(b"", status=204)
                return
            if "/job-stop" in where.path:
                time.sleep(HOLD_S)
                self.answer(b"", status=204)
                return
            self.answer(b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            made.done(urlsplit(self.path).path.rpartition("/")[2], body)
            self.answer(b"{}")

    with _serving(Handler) as made.url:
        yield made


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body[:1] in {b"{", b"["} else "image/png")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def swallow(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            left -= len(self.rfile.read(min(left, PIECE)))

    def log_message(self, *_: Any) -> None:
        """
        Stay silent.
        """


@contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """
            Stay silent: a worker that ends lets its polls go.
            """

    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="bench-desk", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
