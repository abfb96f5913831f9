"""
A worker behind an HTTP face, on a thread: a real uvicorn on a free port of loopback.
"""

import threading
import time
from typing import Any

import requests
from fastapi import FastAPI

from comfy_worker.faces.http_server import Address, BoundedProtocol, Server
from support.worker_process import WorkerProcess

STARTED_S = 40.0
ENDED_S = 60.0


def base_of(process: WorkerProcess) -> str:
    """
    Wait until a process that serves HTTP listens, and return where.
    """
    end = time.monotonic() + STARTED_S
    while "Listening on " not in process.text:
        assert time.monotonic() < end, process.text
        time.sleep(0.02)
    return process.text.partition("Listening on ")[2].split()[0]


class Served:
    """
    An application that is served until `close`, which ends its worker too.
    """

    def __init__(self, app: FastAPI, protocol: type[BoundedProtocol] = BoundedProtocol) -> None:
        self.app = app
        self.server = Server(app, Address("127.0.0.1", 0), protocol)
        self._thread = threading.Thread(target=self.server.run, name="served", daemon=True)
        self._thread.start()
        end = time.monotonic() + STARTED_S
        while not self.server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.server.started
        self.port = self.server.port
        self.url = f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> requests.Response:
        """
        Ask for a path.
        """
        return requests.get(self.url + path, timeout=30, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        """
        Post JSON to a path.
        """
        return requests.post(self.url + path, json=body, timeout=60, **options)

    def until(self, job_id: str, *statuses: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """
        Wait until a job of the RunPod API is in one of the states, and return its view.
        """
        end = time.monotonic() + timeout_s
        while True:
            view: dict[str, Any] = self.get(f"/status/{job_id}").json()
            if view.get("status") in statuses:
                return view
            assert time.monotonic() < end, view
            time.sleep(0.02)

    def stop(self) -> None:
        """
        Tell it to end, as a SIGTERM does. Returns at once.
        """
        self.server.should_exit = True

    def close(self) -> None:
        """
        End it and wait for its end. Idempotent.
        """
        self.stop()
        self._thread.join(ENDED_S)
        assert not self._thread.is_alive()
