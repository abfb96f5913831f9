"""
The bare client that everything is measured against: the least that somebody without a worker has to do.
"""

import base64
import json
import threading
import time
import uuid
from typing import Any

import requests
import websocket

from comfy_worker.bench.graphs import BenchJob

WAIT_S = 600.0


class EachOwn:
    """
    Bare clients for several threads, each with connections of its own.
    """

    name = "bare client"

    def __init__(self, url: str, put_url: str | None = None) -> None:
        self.url = url
        self.put_url = put_url
        self._local = threading.local()

    def run(self, job: BenchJob) -> int:
        """
        Run a job; return how many files came of it.
        """
        if not hasattr(self._local, "client"):
            self._local.client = Bare(self.url, self.put_url)
        count: int = self._local.client.run(job)
        return count

    def close(self) -> None:
        """
        Nothing is left: connections end with their threads.
        """


class Bare:
    """
    Upload the inputs, submit, wait on the websocket, read the history, fetch the files. One job at a time.

    With `persistent` it keeps its websocket over all jobs, which no client of the field does.
    """

    def __init__(self, url: str, put_url: str | None = None, *, persistent: bool = False) -> None:
        self.name = "bare client, one websocket" if persistent else "bare client"
        self.url = url
        self.put_url = put_url
        self.session = requests.Session()
        self.session.trust_env = False
        self.client_id = uuid.uuid4().hex
        self.socket = self._connect() if persistent else None

    def _connect(self) -> websocket.WebSocket:
        socket = websocket.WebSocket(skip_utf8_validation=True)
        socket.connect(f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}", timeout=WAIT_S)
        return socket

    def run(self, job: BenchJob) -> int:
        """
        Run a job; return how many files came of it, each of them as base64, or stored when there is a store.
        """
        socket = self.socket or self._connect()
        try:
            body = {"prompt": job.placed(self._uploaded), "client_id": self.client_id}
            asked = self.session.post(f"{self.url}/prompt", json=body, timeout=WAIT_S)
            asked.raise_for_status()
            prompt_id = asked.json()["prompt_id"]
            self._wait(socket, prompt_id)
        finally:
            if self.socket is None:
                socket.close()
        entry = self.session.get(f"{self.url}/history/{prompt_id}", timeout=WAIT_S).json()[prompt_id]
        files = [
            item
            for output in entry["outputs"].values()
            for items in output.values()
            for item in items
            if isinstance(item, dict)
        ]
        for item in files:
            self._fetch(item)
        return len(files)

    def _wait(self, socket: websocket.WebSocket, prompt_id: str) -> None:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            message = socket.recv()
            if isinstance(message, str):
                data = json.loads(message)
                if data["type"] == "executing" and data["data"] == {"node": None, "prompt_id": prompt_id}:
                    return
        raise TimeoutError(f"the prompt did not end in {WAIT_S:g} s")

    def _uploaded(self, content: str | bytes) -> str:
        data = content if isinstance(content, bytes) else self.session.get(content, timeout=WAIT_S).content
        files = {"image": (f"{uuid.uuid4().hex}.{_kind(data)}", data)}
        reply = self.session.post(f"{self.url}/upload/image", files=files, timeout=WAIT_S)
        reply.raise_for_status()
        name: str = reply.json()["name"]
        return name

    def _fetch(self, item: dict[str, Any]) -> None:
        params = {key: item[key] for key in ("filename", "subfolder", "type")}
        content = self.session.get(f"{self.url}/view", params=params, timeout=WAIT_S).content
        if self.put_url is None:
            base64.b64encode(content).decode()
        else:
            self.session.put(f"{self.put_url}/bare/{item['filename']}", data=content, timeout=WAIT_S)

    def close(self) -> None:
        """
        Close the connections.
        """
        if self.socket is not None:
            self.socket.close()
        self.session.close()


def _kind(data: bytes) -> str:
    return "mp4" if data[4:8] == b"ftyp" else "png"
