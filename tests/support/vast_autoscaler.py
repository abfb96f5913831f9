"""
Vast.ai's serverless router on loopback, with an RSA key of its own: public key, reports, signed grants, failures on demand.

What it answers: vastai 1.9.1 as worker and as client.
"""

import base64
import itertools
import json
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from support.control_plane import wait_until

SIGNED = {
    "legacy": ("cost", "endpoint", "reqnum", "url"),
    "interim": ("cost", "endpoint", "reqnum", "request_idx", "url"),
    "sdk": ("url",),
}


class Signer:
    """
    An RSA key that signs as the router does: PKCS1 v1.5 with SHA-256, base64.
    """

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public = self._key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def sign(self, text: str) -> str:
        """
        Return the signature of a text.
        """
        return base64.b64encode(self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())).decode()


class Autoscaler:
    """
    The router. `statuses` and `deleted` are the bodies that workers reported, oldest first.
    """

    def __init__(self) -> None:
        self.signer = Signer()
        self.statuses: list[dict[str, Any]] = []
        self.deleted: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.routed: list[dict[str, Any]] = []
        self._failures: dict[str, list[int]] = {}
        self._reqnums = itertools.count(1)
        self._indices = itertools.count(1001)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="autoscaler")
        self._thread.start()

    def __enter__(self) -> "Autoscaler":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(5.0)
        self._server.server_close()

    @property
    def url(self) -> str:
        """
        Its address, for REPORT_ADDR.
        """
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def last(self) -> dict[str, Any]:
        """
        The newest status of a worker; empty before the first.
        """
        return self.statuses[-1] if self.statuses else {}

    @property
    def ended(self) -> dict[int, str]:
        """
        The requests that workers say have ended: `request_idx` and how.
        """
        return {each["request_idx"]: each["status"] for body in self.deleted for each in body["requests"]}

    def fail(self, path: str, times: int, status: int = 503) -> None:
        """
        Let the next calls of a path fail.
        """
        self._failures[path] = [times, status]

    def failure(self, path: str) -> int | None:
        """
        Note a call; return the status it is to fail with, None for none.
        """
        self.asked.append(path)
        left = self._failures.get(path, [0, 0])
        left[0] -= 1
        return left[1] if left[0] >= 0 else None

    def wait_loaded(self) -> dict[str, Any]:
        """
        Wait for a worker that is loaded without an error; return its status.
        """
        self.wait(lambda: self.last.get("loadtime", 0) > 0 and self.last["error_msg"] == "")
        return self.last

    def wait_error(self) -> str:
        """
        Wait for a worker's error and return its text.
        """
        self.wait(lambda: self.last.get("error_msg"))
        return str(self.last["error_msg"])

    def wait(self, is_so: Callable[[], object]) -> None:
        """
        Wait until something holds.
        """
        wait_until(is_so)

    def grant(self, url: str, generation: str = "sdk", /, **over: Any) -> dict[str, Any]:
        """
        Return a grant for a worker, signed as a generation of the router does; `over` is put in after signing.
        """
        grant = {
            "endpoint": "test",
            "url": url,
            "cost": 100,
            "reqnum": next(self._reqnums),
            "request_idx": next(self._indices),
            "__request_id": uuid.uuid4().hex,
        }
        text = json.dumps({name: grant[name] for name in SIGNED[generation]}, indent=4)
        return {**grant, "signature": self.signer.sign(text), **over}

    def route(self, body: dict[str, Any]) -> dict[str, Any]:
        """
        Answer a client: a grant for the last worker that is loaded, else that there is none yet.
        """
        self.routed.append(body)
        index = int(body.get("request_idx") or 0) or next(self._indices)
        last, endpoint = self.last, body.get("endpoint", "")
        if not last.get("max_perf") or last["error_msg"]:
            return {"endpoint": endpoint, "status": "no worker is loaded", "request_idx": index}
        return self.grant(last["url"], endpoint=endpoint, cost=body.get("cost", 100), request_idx=index)


def _handler(router: Autoscaler) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = router.failure(self.path)
            if status is None and self.path == "/pubkey/":
                self._answer(200, router.signer.public.encode())
            else:
                self._answer(status or 404, b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.partition("?")[0]
            status, reply = router.failure(path), {"ok": True}
            if status is None and path == "/worker_status/":
                router.statuses.append(body)
            elif status is None and path == "/delete_requests/":
                router.deleted.append(body)
            elif status is None and path == "/route/":
                reply = router.route(body)
            self._answer(status or 200, json.dumps(reply).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
