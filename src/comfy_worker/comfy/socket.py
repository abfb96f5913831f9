"""
One persistent websocket per ComfyUI: one thread owns it, reads it, and hands each message to the job it belongs to.

The reader never blocks on a job: ComfyUI sends to all its clients from one place, so one slow reader stalls them all.
A lost socket is opened again under a NEW client id: with the old one ComfyUI may forget the new socket when it notices
the end of the old (0.27.0, 0.3.64). Prompts in flight over a lost socket are told so, and go on by polling.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import websocket

from comfy_worker.comfy import messages
from comfy_worker.comfy.mailbox import Mailbox, SocketLost
from comfy_worker.comfy.messages import Message

logger = logging.getLogger(__name__)

HELLO = '{"type":"feature_flags","data":{"supports_preview_metadata":true}}'
PING_EVERY_S = 10.0
FLAGS_WITHIN = 20
"""Messages to read before going on without an answer to our flags."""


class EventSocket:
    """
    The websocket of one ComfyUI. Start with `ensure`, end with `close`.

    `attempts` bounds how often in a row a lost socket is opened again, `delay_s` apart; `ensure` starts anew.
    """

    def __init__(
        self,
        url: str,
        *,
        attempts: int = 5,
        delay_s: float = 3.0,
        trace: bool = False,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._url = url.replace("http", "ws", 1) + "/ws"
        self._attempts = attempts
        self._delay_s = delay_s
        self._trace = trace
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Condition()
        self._boxes: dict[str, Mailbox] = {}
        self._client_id: str = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None
        self._wanted = threading.Event()
        self._hurry = threading.Event()  # ends the rest between two attempts
        self._closing = threading.Event()
        self._failures = 0
        self._thread: threading.Thread | None = None
        self.tap: Callable[[Any], None] | None = None
        """Handed every text frame as it came, on the reader's thread; must return at once."""

    @property
    def connected(self) -> bool:
        """
        Whether messages arrive, as far as is known.
        """
        return self._socket is not None

    def ensure(self, timeout_s: float) -> str:
        """
        Have a socket if one can be had within `timeout_s`; return the client id to post with either way.

        Without a socket the job still ends correctly, by polling; a client id must be sent all the same, since
        ComfyUI 0.27 leaves cached outputs out of the history of a prompt without one.
        """
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._live, name="comfy-socket", daemon=True)
                self._thread.start()
            failures = self._failures
            if self._socket is None:
                self._wanted.set()
                self._hurry.set()
                self._lock.wait_for(
                    lambda: self._socket is not None or self._failures != failures or self._closing.is_set(),
                    timeout_s,
                )
            return self._client_id

    def subscribe(self, prompt_id: str, box: Mailbox) -> None:
        """
        Hand the messages of this prompt, and those that name no prompt, to `box` from now on.
        """
        with self._lock:
            self._boxes[prompt_id] = box

    def unsubscribe(self, prompt_id: str) -> None:
        """
        Drop the messages of this prompt from now on.
        """
        with self._lock:
            self._boxes.pop(prompt_id, None)

    def close(self, timeout_s: float = 5.0) -> None:
        """
        Close the socket and end its thread.
        """
        self._closing.set()
        self._wanted.set()
        self._hurry.set()
        with self._lock:
            socket, thread = self._socket, self._thread
            self._lock.notify_all()
        if socket is not None:
            socket.abort()
        if thread is not None:
            thread.join(timeout_s)

    def _live(self) -> None:
        tries = 0
        while self._wait_until_wanted():
            began = time.monotonic()
            if self._open():
                tries = 0
                self._read()
                self._lost()
                if not self._attempts:
                    self._wanted.clear()
                if time.monotonic() - began > self._delay_s:
                    continue
            tries += 1
            if tries >= self._attempts:
                self._wanted.clear()
                tries = 0
            self._hurry.wait(self._delay_s)
            self._hurry.clear()
        self._drop()

    def _wait_until_wanted(self) -> bool:
        while not self._closing.is_set():
            if self._wanted.wait(1.0):
                return not self._closing.is_set()
        return False

    def _open(self) -> bool:
        client_id = uuid.uuid4().hex
        socket = websocket.WebSocket(enable_multithread=False, skip_utf8_validation=True)
        try:
            socket.connect(
                f"{self._url}?clientId={client_id}", timeout=self._connect_timeout_s, http_no_proxy=["*"]
            )
            socket.send(HELLO)
            _await_flags(socket)
        except (websocket.WebSocketException, OSError) as exc:
            logger.warning("The websocket to ComfyUI could not be opened: %s", type(exc).__name__)
            socket.shutdown()
            with self._lock:
                self._failures += 1
                self._lock.notify_all()
            return False
        with self._lock:
            self._client_id, self._socket = client_id, socket
            self._lock.notify_all()
        return True

    def _read(self) -> None:
        socket = self._socket
        if socket is None:
            return
        socket.settimeout(PING_EVERY_S)
        pinged = False
        while not self._closing.is_set():
            try:
                opcode, frame = socket.recv_data_frame(control_frame=True)
            except websocket.WebSocketTimeoutException:
                if pinged or not _ping(socket):
                    return
                pinged = True
                continue
            except (websocket.WebSocketException, OSError, ValueError):
                return
            pinged = False
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return
            self._hand_over(opcode, frame.data)

    def _hand_over(self, opcode: int, data: Any) -> None:
        parse = _PARSERS.get(opcode)
        if parse is None:
            return
        message = parse(data)
        if self.tap is not None and opcode == websocket.ABNF.OPCODE_TEXT:
            self.tap(data)
        if self._trace:
            logger.info("websocket: %s", type(message).__name__)
        prompt_id = getattr(message, "prompt_id", None)
        with self._lock:
            if prompt_id is None:
                boxes = list(self._boxes.values())
            else:
                boxes = [self._boxes[prompt_id]] if prompt_id in self._boxes else []
        for box in boxes:
            box.put(message)

    def _lost(self) -> None:
        if not self._closing.is_set():
            logger.warning("The websocket to ComfyUI was lost; running jobs go on by polling.")
        self._drop()
        with self._lock:
            boxes = list(self._boxes.values())
        for box in boxes:
            box.put(SocketLost())

    def _drop(self) -> None:
        with self._lock:
            socket, self._socket = self._socket, None
        if socket is not None:
            socket.shutdown()


_PARSERS: dict[int, Callable[[Any], Message]] = {
    websocket.ABNF.OPCODE_TEXT: messages.parse_text,
    websocket.ABNF.OPCODE_BINARY: messages.parse_binary,
}


def _await_flags(socket: websocket.WebSocket) -> None:
    """
    Read until ComfyUI has taken our flags: a prompt posted before would send pictures that do not say whose they are.
    """
    for _ in range(FLAGS_WITHIN):
        opcode, data = socket.recv_data()
        if opcode == websocket.ABNF.OPCODE_TEXT and isinstance(
            messages.parse_text(data), messages.FeatureFlags
        ):
            return


def _ping(socket: websocket.WebSocket) -> bool:
    try:
        socket.ping()
    except (websocket.WebSocketException, OSError):
        return False
    return True
