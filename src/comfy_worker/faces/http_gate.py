"""
What every request passes before it reaches a route: its id, the key, the bounds of its body, the access log.

Plain ASGI: a body is counted while it streams in and is never held twice.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request

from comfy_worker.faces.http_problem import Render, plain, problem_of

logger = logging.getLogger("comfy_worker.http")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
BODY_GRACE_S = 30.0
SLOWEST_BYTES_PER_S = 50_000
"""A body has `BODY_GRACE_S` and a second more for each of these bytes; so one that trickles in ends."""

PIECE_BYTES = 262_144
GONE = 499
"""What the access log says of a client that went away before its answer."""


@dataclass(slots=True)
class Bodies:
    """
    The bytes of all request bodies in memory, with their bound.
    """

    limit_bytes: int
    held_bytes: int = 0

    def take(self, size: int) -> None:
        """
        Count some more bytes.

        Raises:
            HTTPException: there are too many (503).
        """
        if self.held_bytes + size > self.limit_bytes:
            text = "The bodies of the requests in progress fill the memory set aside for them; send it again later."
            raise HTTPException(503, text, {"retry-after": "5"})
        self.held_bytes += size


@dataclass(slots=True)
class Gate:
    """
    ASGI middleware around a face. `bearer` None lets everybody in; `open_paths` need no key and are not logged.
    """

    app: App
    bearer: SecretStr | None = None
    max_body_bytes: int = 100_000_000
    open_paths: frozenset[str] = frozenset()
    render: Render = plain
    body_grace_s: float = BODY_GRACE_S
    bodies: Bodies = field(default_factory=lambda: Bodies(1_000_000_000))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """
        Serve one request, or refuse it.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        began = time.monotonic()
        try:
            await exchange.serve()
        finally:
            self.bodies.held_bytes -= exchange.size
            quiet = scope["path"] in self.open_paths and exchange.status < 400
            logger.log(
                logging.DEBUG if quiet else logging.INFO,
                "%s %s %d %.0f ms %s",
                scope["method"],
                scope.get("raw_path", b"?").decode("ascii", "replace")[:200],
                exchange.status,
                (time.monotonic() - began) * 1000,
                exchange.request_id,
            )

    def admit(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        """
        Refuse what can be refused by its headers alone.

        Raises:
            HTTPException: a wrong key (401), a page of another site (403), or a body that says it is too large (413).
        """
        if self.bearer is None and headers.get(b"sec-fetch-site") == b"cross-site":
            # Any page that somebody here looks at could post to this machine, where no key keeps it out.
            raise HTTPException(403, "A page of another site may not use this server: set SERVER_API_KEY.")
        if self.bearer is not None and scope["path"] not in self.open_paths:
            given = headers.get(b"authorization", b"").strip()
            word, _, rest = given.partition(b" ")
            key = rest.strip() if word.lower() == b"bearer" else given
            if not hmac.compare_digest(key, self.bearer.get_secret_value().encode()):
                text = "The key is missing or wrong: send 'Authorization: Bearer <key>'."
                raise HTTPException(401, text, {"www-authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> HTTPException:
        """
        Return the refusal of a body over the limit.
        """
        return HTTPException(413, f"The body of a request may be {self.max_body_bytes:,} bytes.")


class _Exchange:
    """
    One request and its response on their way through the gate.
    """

    def __init__(self, gate: Gate, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self._gate, self._scope, self._receive, self._send = gate, scope, receive, send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id", b"").decode("ascii", "replace")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.size = 0
        self.status = GONE
        self._body_ended = False
        self._began = time.monotonic()
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def serve(self) -> None:
        try:
            self._gate.admit(self._scope, self._headers)
            await self._gate.app(self._scope, self.receive, self.send)
        except HTTPException as exc:
            await self._refuse(exc)
        except Exception as exc:
            logger.exception("The request ended by a fault of the worker.")
            await self._refuse(exc)

    async def _refuse(self, exc: Exception) -> None:
        if self.status == GONE:  # nothing was sent yet
            response = self._gate.render(Request(self._scope), problem_of(exc))
            await response(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        """
        Return the next piece of the body, counted, within the time a body has.
        """
        if self._body_ended:
            return await self._receive()
        left_s = self._gate.body_grace_s + self.size / SLOWEST_BYTES_PER_S - (time.monotonic() - self._began)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, left_s))
        except TimeoutError:
            raise HTTPException(
                408, "The body of the request came in too slowly.", {"connection": "close"}
            ) from None
        piece = len(message.get("body", b""))
        if self.size + piece > self._gate.max_body_bytes:
            raise self._gate.too_large()
        self._gate.bodies.take(piece)
        self.size += piece
        self._body_ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """
        Send a part of the response, with the id of the request among its headers.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
            ]
        body = message.get("body", b"")
        # The server copies what it is given, and waits for the client between two pieces.
        for start in range(0, max(0, len(body) - PIECE_BYTES), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            await self._send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        if len(body) > PIECE_BYTES:
            rest = (len(body) - 1) % PIECE_BYTES + 1
            message = {**message, "body": bytes(body[len(body) - rest :])}
        await self._send(message)
