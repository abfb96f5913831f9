"""
The engine itself: its queue, its cache, its sockets, and the one thread that runs prompts. HTTP is elsewhere.
"""

import contextlib
import itertools
import logging
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comfy_worker.standin import object_info
from comfy_worker.standin.cache import Cache
from comfy_worker.standin.failures import Attempt
from comfy_worker.standin.faults import Faults, PromptFaults
from comfy_worker.standin.node import Folders, Node
from comfy_worker.standin.outbox import Outbox, status
from comfy_worker.standin.prompts import Prompt, Prompts
from comfy_worker.standin.run import Run, Workshop
from comfy_worker.standin.settings import Settings
from comfy_worker.standin.sockets import Message, Sockets

log = logging.getLogger(__name__)


class Engine:
    """
    One engine. `die` ends it as if its process had died; `stall` freezes its loop for some seconds.
    """

    def __init__(
        self, settings: Settings, nodes: Mapping[str, Node], die: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.settings = settings
        self.nodes = nodes
        self.rng = random.Random(settings.seed)
        self.faults = Faults(settings.faults, self.rng)
        self.prompts = Prompts()
        self.sockets = Sockets()
        self.counter = itertools.count()
        self.stall: Callable[[float], None] = time.sleep
        self.hang: Callable[[float], None] = lambda _seconds: None
        self._free = threading.Event()
        self._stopping = threading.Event()
        self._cache = Cache(settings.cache, settings.cache_size)
        self._shop = Workshop(settings, nodes, self._cache, self.rng.randrange(2**32), self._stopping, die)
        self._outbox: Outbox | None = None
        self._thread = threading.Thread(target=self._work, name="standin-prompts", daemon=True)

    def start(self) -> None:
        """
        Make the folders, empty the temp folder and start the thread.
        """
        folders = self.settings.folders
        _wipe(folders.temp)
        for folder in (folders.input, folders.output, folders.temp, folders.models / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """
        End the thread, waiting for it at most `timeout_s`, and empty the temp folder.
        """
        self._stopping.set()
        self.prompts.interrupt.set()
        self.prompts.wake()
        self._thread.join(timeout_s)
        _wipe(self.settings.folders.temp)

    def classes(self) -> dict[str, dict[str, Any]]:
        """
        Return `/object_info` as of now.
        """
        return {name: object_info.entry(node, self.settings.folders) for name, node in self.nodes.items()}

    def check(self, class_type: str, inputs: Mapping[str, Any]) -> str | None:
        """
        Return what a node's own check says about its inputs.
        """
        own = self.nodes[class_type].check
        return own(inputs, self.settings.folders) if own is not None else None

    def tell_status(self, faults: PromptFaults | None = None, client: str | None = None) -> None:
        """
        Send `status` to everybody.
        """
        self.sockets.send(Message("status", status(self.prompts.remaining), None, faults, client))

    def free(self) -> None:
        """
        Drop the cache before the next prompt.
        """
        self._free.set()

    def late_node(self, client_id: str) -> str | None:
        """
        Return the node that runs now for that client, as a new socket of it is told.
        """
        outbox = self._outbox
        return outbox.last_node if outbox is not None and outbox.client_id == client_id else None

    def refuses(self, client_id: str) -> bool:
        """
        Tell whether a new socket with that id must be refused (a fault).
        """
        if self.faults.values.get("refuse_socket"):
            return True
        running, pending = self.prompts.queue()
        return any(
            prompt.client_id == client_id and prompt.faults.on("refuse_socket")
            for prompt in running + pending
        )

    def _work(self) -> None:
        while not self._stopping.is_set():
            prompt = self.prompts.take(timeout=1.0)
            if self._free.is_set():
                self._free.clear()
                self._cache.clear()
            if prompt is not None:
                self._run(prompt)

    def _execute(self, prompt: Prompt, outbox: Outbox) -> dict[str, Any]:
        entry = _broken(outbox)
        with Attempt() as attempt:
            entry = Run(prompt, outbox, self._shop, self.prompts.interrupt).execute()
        if attempt.error is not None:
            log.error("The engine itself failed on prompt %s", prompt.id, exc_info=attempt.error)
        return entry

    def _run(self, prompt: Prompt) -> None:
        faults = prompt.faults
        if faults.on("hang") and "hang" in prompt.extra_data.get("standin", ()):
            self.hang(float(faults.values["hang"]))
        outbox = Outbox(prompt, self.sockets)
        self._outbox = outbox
        outbox.status(self.prompts.remaining)
        entry = self._execute(prompt, outbox)
        self._stopping.wait(faults.history_delay_s)
        if faults.on("delete_outputs_after_run"):
            _delete(entry["outputs"], self.settings.folders)
        self.prompts.finish(prompt, entry)
        outbox.status(self.prompts.remaining)
        outbox.over()
        if faults.on("gc_stall_ms"):
            self.stall(faults.seconds("gc_stall_ms"))


def _broken(outbox: Outbox) -> dict[str, Any]:
    status = {"status_str": "error", "completed": False, "messages": outbox.messages}
    return {"outputs": {}, "status": status, "meta": {}}


def _wipe(folder: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


def _delete(outputs: Mapping[str, Mapping[str, list[Any]]], folders: Folders) -> None:
    roots = {"input": folders.input, "output": folders.output, "temp": folders.temp}
    for ui in outputs.values():
        for item in itertools.chain.from_iterable(ui.values()):
            if isinstance(item, Mapping) and "filename" in item:
                (roots[item["type"]] / item["subfolder"] / item["filename"]).unlink(missing_ok=True)
