"""
A plain client of the engine for these tests: HTTP with requests, sockets with websocket-client, every wait bounded.
"""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import requests
import websocket

WAIT_S = 10.0
T = TypeVar("T")


class Socket:
    """
    One websocket connection; `frames` holds everything received so far.
    """

    def __init__(self, url: str, client_id: str, **options: Any) -> None:
        self.client_id = client_id
        self.frames: list[dict[str, Any] | bytes] = []
        address = url.replace("http://", "ws://") + f"/ws?clientId={client_id}"
        self.ws = websocket.create_connection(address, timeout=WAIT_S, **options)

    def send(self, message: Any) -> None:
        """
        Send JSON, or text as it is.
        """
        self.ws.send(message if isinstance(message, str) else json.dumps(message))

    def next(self, timeout_s: float = WAIT_S) -> dict[str, Any] | bytes | None:
        """
        Return the next frame, None when none came in time or the connection ended.
        """
        self.ws.settimeout(timeout_s)
        try:
            opcode, data = self.ws.recv_data()
        except (websocket.WebSocketException, OSError):
            return None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return None
        frame = json.loads(data) if opcode == websocket.ABNF.OPCODE_TEXT else bytes(data)
        self.frames.append(frame)
        return frame

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """
        Read on to the first text message that is wanted; fails when the socket ends or stays silent.
        """
        while (frame := self.next()) is not None:
            if isinstance(frame, dict) and wanted(frame):
                return frame
        raise AssertionError(f"not seen; last frames: {self.frames[-3:]}")

    def until_over(self, prompt_id: str) -> None:
        """
        Read on to the null event of a prompt.
        """
        self.until(lambda message: is_null_event(message, prompt_id))

    def types(self) -> list[str]:
        """
        Return the types of the text messages so far; binary frames are `binary`.
        """
        return ["binary" if isinstance(frame, bytes) else frame["type"] for frame in self.frames]

    def close(self) -> None:
        """
        Close the connection; a second time does nothing.
        """
        self.ws.close(timeout=1)
        self.ws.shutdown()


def is_null_event(message: dict[str, Any], prompt_id: str) -> bool:
    """
    Tell whether a message is the end of a prompt.
    """
    data = message["data"]
    return message["type"] == "executing" and data["node"] is None and data.get("prompt_id") == prompt_id


class Client:
    """
    HTTP calls to one engine.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = requests.Session()
        self._sockets: list[Socket] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        for socket in self._sockets:
            socket.close()
        self.http.close()

    def get(self, path: str, **options: Any) -> requests.Response:
        """
        GET a path.
        """
        return self.http.get(self.url + path, timeout=WAIT_S, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        """
        POST JSON to a path.
        """
        return self.http.post(self.url + path, json=body, timeout=WAIT_S, **options)

    def queue(self, workflow: dict[str, Any], client_id: str | None = None, **more: Any) -> str:
        """
        Queue a workflow and return its prompt id.
        """
        body = {"prompt": workflow, **more} | ({} if client_id is None else {"client_id": client_id})
        reply = self.post("/prompt", body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any]:
        """
        Wait for the history entry of a prompt and return it.
        """
        return wait_for(lambda: self.get(f"/history/{prompt_id}").json().get(prompt_id))

    def socket(self, client_id: str | None = None, **options: Any) -> Socket:
        """
        Open a socket and read its greeting.
        """
        socket = Socket(self.url, client_id or uuid.uuid4().hex, **options)
        self._sockets.append(socket)
        socket.next()
        return socket


def wait_for(look: Callable[[], T | None]) -> T:
    """
    Return the first true answer of `look`, asked again and again for some seconds.
    """
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.002)
    raise AssertionError("it did not happen in time")
