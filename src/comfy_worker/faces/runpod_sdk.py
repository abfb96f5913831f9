"""
The runpod SDK around the face: what must be set before its import, the fitness check, the job loop, the way out.

Source: SDK 1.12.0 as observed. Its import takes over a second (one sleep in a CPU probe), so ComfyUI is started first.
"""

import json
import logging
import os
import signal
import sys
import types
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_worker import log
from comfy_worker.comfy.child import die_with_parent
from comfy_worker.errors import ComfyUnavailable, WorkerError
from comfy_worker.faces.runpod_drain import Drain, Left
from comfy_worker.faces.runpod_stops import Stops
from comfy_worker.faces.runpod_wake import Pauses

logger = logging.getLogger(__name__)

LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR", "FATAL": "ERROR"}
SDK_LEVELS = frozenset({"NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"})
SHORTEST_PING_MS = 1000
DEFAULTS = {
    # The SDK's own checks ask 8.8.8.8, import torch and hold a CUDA context; ours asks ComfyUI.
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    "RUNPOD_SKIP_GPU_CHECK": "true",
    # At its default DEBUG the SDK prints every result twice.
    "RUNPOD_DEBUG_LEVEL": "INFO",
}


def prepare(environ: MutableMapping[str, str]) -> None:
    """
    Set what the SDK reads at its import, and spare it the CPU probe.
    """
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    for name in ("RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"):
        if name in environ:
            environ[name] = _level(name, environ[name])
    ping = environ.get("RUNPOD_PING_INTERVAL", "").strip()
    if ping.isdecimal() and int(ping) < SHORTEST_PING_MS:
        # The SDK counts whole seconds, and its ping process ends at once with 0.
        environ["RUNPOD_PING_INTERVAL"] = str(SHORTEST_PING_MS)
    if "cpuinfo" not in sys.modules:
        stub = types.ModuleType("cpuinfo")
        stub.__dict__["get_cpu_info"] = lambda: {"brand_raw": "unknown"}
        sys.modules["cpuinfo"] = stub


def _level(name: str, given: str) -> str:
    # The SDK raises at its import for a level that it does not know, WARNING among them.
    word = given.strip().upper()
    if word in SDK_LEVELS:
        return word
    level = LEVELS.get(word, "INFO")
    logger.warning("%s=%s is not a level of the runpod SDK; %s is used.", name, given, level)
    return level


def exit_on_sigterm() -> None:
    """
    Leave in an orderly way when told to while the worker starts; later the SDK's own handler replaces this one.

    As the first process of a container we would not even hear a SIGTERM without a handler.
    """

    def leave(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: what is being closed is not left half open
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


@dataclass(slots=True)
class Loop:
    """
    The SDK's job loop over one handler. `config` is the SDK's own dict: it is read again after each job.

    `close` ends ComfyUI; it is called before the SDK ends the process of an unfit worker the hard way. `cancel` ends the
    running jobs when they have not ended within `grace_s` after the worker was told to stop.
    """

    handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    concurrency: int
    refresh_worker: bool
    system_stats: Callable[[], Mapping[str, Any]]
    close: Callable[[], None]
    cancel: Callable[[], object] = lambda: None
    grace_s: float = 30.0
    drain: Drain = field(init=False)
    pauses: Pauses = field(init=False, default_factory=Pauses)
    stops: Stops = field(init=False, default_factory=Stops)

    def __post_init__(self) -> None:
        self.drain = Drain(self.grace_s, self.cancel, _taken)

    def load(self) -> None:
        """
        Import the SDK, which takes its time; it reads the environment meanwhile.
        """
        import runpod.serverless

        logger.debug("The runpod SDK is loaded from %s.", runpod.serverless.__name__)

    def run(self) -> None:
        """
        Serve jobs until the platform ends the worker, or run `test_input.json` once where there is no platform.
        """
        import runpod  # a second of work, so only here
        from runpod.serverless.modules import rp_fitness, rp_scale, worker_state

        if not self.pauses.install(rp_scale):
            logger.info("This version of the runpod SDK takes its jobs on a grid of a second.")
        if not self.stops.install(rp_scale):
            logger.info("This version of the runpod SDK stops no single job.")
        rp_fitness.register_fitness_check(self.comfyui)
        if (follow := die_with_parent()) is not None:
            # The SDK's ping process outlives a killed worker, and goes on telling the platform that it lives.
            os.register_at_fork(after_in_child=follow)
        if worker_state.IS_LOCAL_TEST:
            sys.argv += wrapped_test_input(sys.argv, Path("test_input.json"))
        with suppress(Left):
            runpod.serverless.start(self.config())
        for job in list(worker_state.JobsProgress()):
            log.current_job.set(str(job))
            logger.error("Job %s was taken while the worker was shutting down, and was not run.", job)

    def config(self) -> dict[str, Any]:
        """
        Return the dict that `runpod.serverless.start` takes.
        """
        config: dict[str, Any] = {
            "handler": None,
            "concurrency_modifier": self.scale,
            "refresh_worker": self.refresh_worker,
        }

        async def handler(job: dict[str, Any]) -> dict[str, Any]:
            job_id = str(job.get("id"))
            self.drain.begins(job_id)
            self.pauses.when_this_task_ends()
            self.stops.begins(job_id)
            reply = await self.handler(job)
            if reply.get("refresh_worker"):
                # In the reply it only reaches the platform, and this worker takes another job. In the config the loop
                # ends too.
                config["refresh_worker"] = True
            return reply

        config["handler"] = handler
        return config

    def scale(self, _current: int) -> int:
        """
        Return how many jobs to take at once. The SDK asks inside its loop, before it takes the first and after each take.
        """
        self.drain.install()
        self.pauses.wake()
        return self.concurrency

    def comfyui(self) -> None:
        """
        Be the fitness check, which the platform sees by this name: raise unless the worker can serve jobs.
        """
        try:
            if not self.system_stats().get("devices"):
                raise ComfyUnavailable("ComfyUI answers and reports no device to run on.")
        except WorkerError:
            self.close()
            raise


def _taken() -> list[str]:
    from runpod.serverless.modules import worker_state  # loaded by then

    return [str(job) for job in list(worker_state.JobsProgress())]


def wrapped_test_input(argv: list[str], path: Path) -> list[str]:
    """
    Return the arguments that make the SDK run a bare workflow in `path` as a job; none where it is a job already.
    """
    if any(word.startswith(("--test_input", "--rp_serve_api")) for word in argv):
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # the SDK has words of its own for these
    if not isinstance(found, dict) or not found or "input" in found:
        return []
    nodes = [node for node in found.values() if isinstance(node, dict) and "class_type" in node]
    if len(nodes) < len(found):
        return []
    logger.warning('%s is a bare workflow; as a job it is {"input": {"workflow": ...}}.', path.name)
    return ["--test_input", json.dumps({"input": {"workflow": found}})]
