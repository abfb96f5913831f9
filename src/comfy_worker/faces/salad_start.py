"""
The start of the Salad face, behind an open socket: the manifest's models, ComfyUI, the warm-up; then the worker is healthy.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from comfy_worker.comfy.engine import Engine
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, ConfigInvalid, JobFailed, WorkerBusy, WorkerError
from comfy_worker.faces.http import Service
from comfy_worker.models import peer_manifest
from comfy_worker.models.peer_manifest import Wanted
from comfy_worker.settings import Settings
from comfy_worker.stage import Shelf

logger = logging.getLogger(__name__)

WAIT_AGAIN_S = 1.0


class Web(Protocol):
    """
    What a worker on the web has beside the rest.
    """

    shelf: Shelf | None


class Worker(Protocol):
    """
    A worker as its start needs it.
    """

    settings: Settings
    engine: Engine
    socket: EventSocket

    @property
    def web(self) -> Web:
        """
        The cache.
        """

    def warm_up(self) -> bool:
        """
        Run the warm-up, if there is one; blocks. False: it failed, and the worker must not go on.
        """


@dataclass(slots=True)
class Start:
    """
    One start. `run` until healthy; `end` stops whatever of it still goes on.
    """

    worker: Worker
    warm: Callable[[], None]
    _deadline: Deadline = field(init=False)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._deadline = Deadline(self.worker.settings.models_timeout_s)

    async def begin(self, service: Service) -> None:
        """
        Begin; returns at once.
        """
        self._tasks.append(asyncio.create_task(self._run(service)))

    async def end(self, _service: Service) -> None:
        """
        Stop.
        """
        self._ended.set()
        self._deadline.cancel()
        for task in self._tasks:
            task.cancel()

    async def _run(self, service: Service) -> None:
        shelf = self.worker.web.shelf
        if shelf is not None:
            with suppress(JobFailed):
                await asyncio.to_thread(shelf.cache.start)
        try:
            wanted = await asyncio.to_thread(self._supply)
        except (ConfigInvalid, WorkerError) as exc:
            if not self._ended.is_set():
                service.broken = f"The models of MANIFEST could not be had: {exc}"
            return
        problem = await self._comfyui()
        if problem is None and not await asyncio.to_thread(self.worker.warm_up):
            problem = "The warm-up failed, and WARMUP_REQUIRED is set"
        if problem is not None:
            service.broken = problem or None
            return
        await asyncio.to_thread(self.worker.socket.ensure, WAIT_AGAIN_S)
        self.warm()
        if wanted.after:
            self._tasks.append(asyncio.create_task(asyncio.to_thread(self._fetch_later, wanted)))

    async def _comfyui(self) -> str | None:
        """
        Wait for ComfyUI; return None once it answers, "" when the worker ends, else why it is of no use to wait.
        """
        while True:
            try:
                await asyncio.to_thread(self.worker.engine.wait_ready, self._check)
                return None
            except WorkerBusy:
                return ""
            except ComfyUnavailable as exc:
                if self._ended.is_set():
                    return ""
                if self.worker.engine.process is not None:
                    return str(exc)
                logger.error("%s", exc)
                await asyncio.sleep(WAIT_AGAIN_S)

    def _check(self) -> None:
        if self._ended.is_set():
            raise WorkerBusy("The worker is shutting down.")

    def _supply(self) -> Wanted:
        config, launch = self.worker.settings, self.worker.engine.launch
        home = launch.folder if launch.kind == "comfyui" else config.comfyui_path
        wanted = peer_manifest.wanted(config, home)
        peer_manifest.fetch(config, wanted.before, self._deadline)
        return wanted

    def _fetch_later(self, wanted: Wanted) -> None:
        try:
            peer_manifest.fetch(self.worker.settings, wanted.after, self._deadline)
        except WorkerError as exc:
            logger.error("after_start of MANIFEST: %s", exc)
