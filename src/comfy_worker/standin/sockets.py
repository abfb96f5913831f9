"""
The sockets of an engine: who is registered under which id, and the one publisher that sends to all of them in turn.

One sender means that one client that stops reading holds up the rest, as in ComfyUI. Nothing is kept for absent clients.
"""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, web

from comfy_worker.standin.faults import PromptFaults


@dataclass(slots=True)
class Socket:
    """
    One open connection and the feature flags it sent.
    """

    ws: web.WebSocketResponse
    request: web.Request
    flags: dict[str, Any] = field(default_factory=dict)

    async def send(self, payload: str | bytes) -> None:
        """
        Send one frame; a connection that is gone swallows it.
        """
        try:
            if isinstance(payload, str):
                await self.ws.send_str(payload)
            else:
                await self.ws.send_bytes(payload)
        except ConnectionError:
            return

    async def end(self, with_frame: bool) -> None:
        """
        Close with a close frame (1001), or cut the connection.
        """
        if with_frame:
            await self.ws.close(code=WSCloseCode.GOING_AWAY)
        elif self.request.transport is not None:
            self.request.transport.abort()


@dataclass(frozen=True, slots=True)
class Message:
    """
    One message: text (`data` an object) or binary (`data` bytes), for the socket `target`, or None for everybody.
    """

    kind: str
    data: dict[str, Any] | bytes
    target: str | None
    faults: PromptFaults | None = None
    client: str | None = None

    @property
    def name(self) -> str:
        """
        The name that faults use for it.
        """
        if isinstance(self.data, bytes):
            return "binary"
        return "null_event" if self.kind == "executing" and self.data.get("node", "") is None else self.kind

    def payload(self) -> str | bytes:
        """
        Return it as it goes over the wire.
        """
        if isinstance(self.data, bytes):
            return self.data
        return json.dumps({"type": self.kind, "data": self.data})


class Sockets:
    """
    All sockets of one engine. `send` may be called from any thread, the rest belongs to the loop.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Socket] = {}
        self._messages: deque[Message] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    def register(self, sid: str, socket: Socket) -> None:
        """
        Let `sid` mean this socket; an older one stays open and gets nothing more.
        """
        self._by_id[sid] = socket

    def unregister(self, sid: str) -> None:
        """
        Forget what `sid` means, even if that is a newer socket than the one that ended (ComfyUI 0.27.0 does so).
        """
        self._by_id.pop(sid, None)

    def wants_metadata(self, sid: str | None) -> bool:
        """
        Tell whether a client announced `supports_preview_metadata`.
        """
        socket = self._by_id.get(sid) if sid is not None else None
        return socket is not None and bool(socket.flags.get("supports_preview_metadata"))

    def send(self, message: Message) -> None:
        """
        Queue a message. Who gets it is decided when its turn comes.
        """
        self._messages.append(message)
        if self._loop is not None and not self._arrived.is_set():
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:
                self._messages.clear()

    async def publish(self) -> None:
        """
        Send queued messages in order until cancelled.
        """
        self._loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._messages:
                await self.open.wait()
                await self._deliver(self._messages.popleft())

    async def _deliver(self, message: Message) -> None:
        if message.faults is not None and message.faults.values:
            await asyncio.sleep(message.faults.delay_s(message.name))
            for _ in range(message.faults.copies(message.name)):
                await self._post(message)
        else:
            await self._post(message)

    async def _post(self, message: Message) -> None:
        if message.target is None:
            to = list(self._by_id.items())
        else:
            to = [
                (message.target, socket) for socket in [self._by_id.get(message.target)] if socket is not None
            ]
        payload = message.payload() if to else ""
        for sid, socket in to:
            if not await _cut(message, sid, socket):
                await socket.send(payload)
                await _cut(message, sid, socket, sent=1)

    def abort(self) -> None:
        """
        Cut every registered connection, as the death of a process does.
        """
        for socket in self._by_id.values():
            if socket.request.transport is not None:
                socket.request.transport.abort()


async def _cut(message: Message, sid: str, socket: Socket, sent: int = 0) -> bool:
    faults = message.faults
    last = faults.values.get("close_socket_after_frame") if faults is not None else None
    if faults is None or last is None or sid != message.client:
        return False
    faults.frames += sent
    if faults.frames != last:
        return False
    faults.frames += 1
    await socket.end(faults.on("close_frame"))
    return True
