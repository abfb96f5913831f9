"""
An engine in a thread of this process, for tests and for trying: started on a free loopback port, ended with its block.
"""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_worker.standin.engine import Engine
from comfy_worker.standin.node import Folders, Node
from comfy_worker.standin.server import Server, nodes_for
from comfy_worker.standin.settings import Settings, folders_in

_START_S = 10.0
_STOP_S = 5.0


class EngineThread:
    """
    A running engine: `with EngineThread(folder) as engine: ... engine.url`.

    `base` is a folder to make input, output, temp and models in, or the four folders themselves. `nodes` replaces the
    built-in ones; every other keyword is a field of `Settings`. `died` is set when a fault ended the engine, which then
    is gone without a word: connections cut, port closed.
    """

    def __init__(
        self, base: Path | Folders, nodes: Mapping[str, Node] | None = None, **settings: Any
    ) -> None:
        folders = folders_in(base) if isinstance(base, Path) else base
        self.settings = replace(Settings(folders, port=0), **settings)
        self.died = threading.Event()
        self._nodes = nodes if nodes is not None else nodes_for(self.settings)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._error: OSError | None = None
        self._port = 0
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="standin-http", daemon=True
        )

    @property
    def folders(self) -> Folders:
        """
        The folders of the engine.
        """
        return self.settings.folders

    @property
    def url(self) -> str:
        """
        The base URL, without a slash at its end.
        """
        return f"http://{self.settings.host}:{self._port}"

    def start(self) -> None:
        """
        Start the engine and wait until its port is open.

        Raises:
            OSError: the port cannot be had.
            TimeoutError: it did not start.
        """
        self._thread.start()
        if not self._ready.wait(_START_S + self.settings.start_delay_s):
            raise TimeoutError("The built-in engine did not start.")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """
        End the engine and wait for its threads, a few seconds at most.
        """
        if self._loop is not None and self._end is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._end.set)
            except RuntimeError:
                return
        self._thread.join(_STOP_S)

    def __enter__(self) -> "EngineThread":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _die(self, _how: Mapping[str, Any]) -> None:
        self.died.set()
        if self._loop is not None and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        # The node must not go on; the end of the engine wakes this thread up.
        self._thread.join(_STOP_S)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = Server(Engine(self.settings, self._nodes, self._die))
        try:
            await server.start()
            self._port = server.port
        except OSError as exc:
            self._error = exc
            self._end.set()
        self._ready.set()
        await self._end.wait()
        await server.stop()
