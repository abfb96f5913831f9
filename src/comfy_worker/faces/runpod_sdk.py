"""
The runpod SDK around the face: what must be set before its import, the fitness check, the job loop, the way out.

Source: SDK 1.12.0 as observed. Its import takes over a second (one sleep in a CPU probe), so ComfyUI is started first.
"""

import logging
import sys
import types
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from comfy_worker.errors import ComfyUnavailable

logger = logging.getLogger(__name__)

LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR", "FATAL": "ERROR"}
SDK_LEVELS = frozenset({"NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"})
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
        given = environ.get(name)
        if given is None:
            continue
        level = LEVELS.get(given.strip().upper(), given.strip().upper())
        if level not in SDK_LEVELS:
            logger.warning("%s=%s is not a level of the SDK; INFO is used.", name, given)
            level = "INFO"
        environ[name] = level
    if "cpuinfo" not in sys.modules:
        stub = types.ModuleType("cpuinfo")
        stub.__dict__["get_cpu_info"] = lambda: {"brand_raw": "unknown"}
        sys.modules["cpuinfo"] = stub


@dataclass(slots=True)
class Loop:
    """
    The SDK's job loop over one handler. `config` is the SDK's own dict: it is read again after each job.
    """

    handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    concurrency: int
    refresh_worker: bool
    system_stats: Callable[[], Mapping[str, Any]]

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
        from runpod.serverless.modules import rp_fitness, worker_state

        rp_fitness.register_fitness_check(self.is_fit)
        runpod.serverless.start(self.config())
        for job in list(worker_state.JobsProgress().get_job_list() or ()):
            logger.error("Job %s was taken while the worker was shutting down, and was not run.", job)

    def config(self) -> dict[str, Any]:
        """
        Return the dict that `runpod.serverless.start` takes.
        """
        config: dict[str, Any] = {
            "handler": None,
            "concurrency_modifier": lambda current: self.concurrency,
            "refresh_worker": self.refresh_worker,
        }

        async def handler(job: dict[str, Any]) -> dict[str, Any]:
            reply = await self.handler(job)
            if reply.get("refresh_worker"):
                # In the reply it only reaches the platform, and this worker takes another job. In the config the loop
                # ends too.
                config["refresh_worker"] = True
            return reply

        config["handler"] = handler
        return config

    def is_fit(self) -> None:
        """
        Raise unless ComfyUI answers and has a device to run on.
        """
        devices = self.system_stats().get("devices")
        if not devices:
            raise ComfyUnavailable("ComfyUI answers and reports no device to run on.")
