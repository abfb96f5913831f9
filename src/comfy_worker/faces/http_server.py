"""
uvicorn as the faces need it: bounded times for every connection, an orderly end, our log.
"""

import asyncio
import logging
import socket
from asyncio import TimerHandle, Transport
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from comfy_worker.faces.http import Service

logger = logging.getLogger(__name__)

HEADERS_S = 15.0
"""How long the head of a request may take, and what is still sent after an answer."""

STALL_S = 60.0
"""How long a client may take nothing of its answer."""

LAST_ANSWERS_S = 10
BACKLOG = 2048


class BoundedProtocol(H11Protocol):
    """
    HTTP/1.1 whose connections end when a request does not begin, or an answer is not taken. h11 bounds the head's size.
    """

    headers_s = HEADERS_S
    stall_s = STALL_S
    _begins: TimerHandle | None = None
    _stalls: TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """
        Expect a request.
        """
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """
        Take a piece of a request.
        """
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._begins is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """
        End the timers.
        """
        self._forget()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """
        Watch that the client goes on taking its answer.
        """
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stalls = self.loop.call_later(self.stall_s, self._stalled)

    def resume_writing(self) -> None:
        """
        Watch no more.
        """
        if self._stalls is not None:
            self._stalls.cancel()
            self._stalls = None
        super().resume_writing()

    def _expect(self) -> None:
        self._begins = self.loop.call_later(self.headers_s, self._late)

    def _forget(self) -> None:
        if self._begins is not None:
            self._begins.cancel()
            self._begins = None

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _stalled(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._stalls = self.loop.call_later(self.stall_s, self._stalled)


@dataclass(slots=True)
class Address:
    """
    Where a face listens; port 0 takes a free one.
    """

    host: str
    port: int


class Server(uvicorn.Server):
    """
    Serves one application until SIGTERM or SIGINT, or until its worker is of no use any more (`failed`).

    Told to end, it is no longer ready and refuses new jobs at once, lets the running ones finish within the grace, sends
    the answers, and closes the worker.
    """

    def __init__(
        self, app: FastAPI, address: Address, protocol: type[BoundedProtocol] = BoundedProtocol
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=address.host,
                port=address.port,
                http=protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=LAST_ANSWERS_S,
            )
        )
        self.service: Service = app.state.service
        self.failed = False

    @property
    def port(self) -> int:
        """
        The port it listens on, once `started`.
        """
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Listen, and say where.
        """
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            logger.info("Listening on http://%s:%d", host, self.port)

    async def on_tick(self, counter: int) -> bool:
        """
        Tell whether to end (asked ten times a second).
        """
        if self.service.worker.is_worn:
            self.service.broken = self.service.broken or "No job can be served any more"
        if self.service.broken is not None and not self.should_exit:
            logger.error("%s; the worker ends.", self.service.broken)
            self.failed = self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Drain, then stop listening.
        """
        worker = self.service.worker
        self.service.draining = True
        await asyncio.to_thread(worker.pool.close, worker.settings.shutdown_grace_s)
        await super().shutdown(sockets)
