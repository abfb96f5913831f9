"""
`/health` of the Vast face: answered from what is known, whatever runs. Vast gives a worker up for good at its first no.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from comfy_worker.comfy.engine import Engine
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.errors import ComfyUnavailable, WorkerBusy, WorkerError
from comfy_worker.faces.http import Service
from comfy_worker.faces.reply import shown
from comfy_worker.faces.vast_faults import Faults

logger = logging.getLogger(__name__)

LOOK_S = 1.0
AGAIN_S = 1.0
READY_S = 600.0
LAST = "; ComfyUI is not reachable"


class Sick(Protocol):
    """
    A worker as this sees it.
    """

    engine: Engine
    socket: EventSocket

    def warm_up(self) -> bool:
        """
        Run the warm-up, if there is one; blocks. False: it failed, and the worker must not go on.
        """


@dataclass(slots=True)
class Health:
    """
    What is known of ComfyUI, looked at once a second. `is_ready` says that it could serve jobs once.
    """

    worker: Sick
    faults: Faults
    stats: Mapping[str, Any] = field(default_factory=dict)
    problem: str = "ComfyUI is starting"
    is_ready: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def start(self, service: Service) -> None:
        """
        Wait for ComfyUI, run the warm-up, and look from then on.
        """
        self._tasks = [asyncio.create_task(self._warm(service)), asyncio.create_task(self._look())]

    async def end(self, _service: Service) -> None:
        """
        Look no more.
        """
        self._ended.set()
        for task in self._tasks:
            task.cancel()

    def is_well(self, service: Service) -> bool:
        """
        Return whether the worker is of use: it was ready once, and is neither broken nor about to end.

        While a dead ComfyUI is started again it is: jobs wait for it, within their bound.
        """
        broken = self.faults.reason is not None or self.worker.engine.useless or service.broken is not None
        return self.is_ready and not broken and not service.draining

    def body(self, service: Service, stages: Mapping[str, int]) -> dict[str, Any]:
        """
        Return the body of `/health`.
        """
        is_well = self.is_well(service)
        gpu = {"unrecoverable": self.faults.reason is not None, "reason": self.faults.reason}
        answers, has_socket = bool(self.stats), self.worker.socket.connected
        backend: dict[str, Any] = {
            "base": self.worker.engine.launch.url,
            "http_ok": answers,
            "websocket_ok": has_socket,
            **({"system_stats": dict(self.stats)} if answers else {"http_error": self.problem}),
            **({} if has_socket else {"websocket_error": "it is opened with the next job"}),
            "gpu": gpu,
            "healthy": answers and not gpu["unrecoverable"],
        }
        return {
            "status": "healthy" if is_well else "unhealthy",
            "cache_type": "memory",
            "queues": {name: stages.get(name, 0) for name in ("preprocess", "generation", "postprocess")},
            "backends_healthy": f"{int(backend['healthy'])}/1",
            "gpu": gpu,
            "backends": [backend],
        }

    async def _look(self) -> None:
        while True:
            try:
                self.stats = await asyncio.to_thread(self.worker.engine.client.system_stats)
                self.problem = ""
            except WorkerError as exc:
                self.stats, self.problem = {}, shown(str(exc))
            await asyncio.sleep(LOOK_S)

    async def _warm(self, service: Service) -> None:
        late = asyncio.get_running_loop().call_later(
            READY_S, logger.error, "BACKENDS_READY_TIMEOUT: no backend after %g s%s", READY_S, LAST
        )
        try:
            if await self._wait():
                await self._heat(service)
        finally:
            late.cancel()

    async def _wait(self) -> bool:
        def check() -> None:
            if self._ended.is_set():
                raise WorkerBusy("The worker is shutting down.")

        while True:
            try:
                await asyncio.to_thread(self.worker.engine.wait_ready, check)
                return True
            except WorkerBusy:
                return False
            except ComfyUnavailable as exc:
                logger.error("%s", exc)
                await asyncio.sleep(AGAIN_S)

    async def _heat(self, service: Service) -> None:
        if not await asyncio.to_thread(self.worker.warm_up):
            service.broken = "The warm-up failed, and WARMUP_REQUIRED is set"
            return
        with contextlib.suppress(WorkerError):
            await asyncio.to_thread(self.worker.socket.ensure, AGAIN_S)
            self.stats = await asyncio.to_thread(self.worker.engine.client.system_stats)
        self.is_ready = True
        logger.info("BACKENDS_READY: 1 backend(s) reachable, ready to serve")
