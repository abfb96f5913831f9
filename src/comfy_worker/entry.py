"""
How a process becomes a worker: settings, log, ComfyUI's start, and only then everything that takes time to import.

ComfyUI needs seconds to boot; what is imported here before it is spawned is added to them, so this module imports little
and `wiring` late.
"""

import atexit
import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_worker import log, settings
from comfy_worker.comfy import launch
from comfy_worker.comfy.process import ComfyProcess, Restarts
from comfy_worker.errors import ComfyUnavailable, ConfigInvalid
from comfy_worker.faces.runpod_sdk import Loop, exit_on_sigterm, prepare
from comfy_worker.settings import Settings

if TYPE_CHECKING:
    from comfy_worker.wiring import Worker

logger = logging.getLogger(__name__)


def started(config: Settings, *, builtin: bool) -> "Worker":
    """
    Set up the log, start ComfyUI if it is ours to start, and wire a worker to it while it boots.

    `builtin` allows the built-in engine where there is no ComfyUI.

    Raises:
        ConfigInvalid: the settings cannot work.
    """
    as_json = config.log_format == "json" or (
        config.log_format == "auto" and config.runpod_endpoint_id is not None
    )
    log.configure(config.log_level, as_json=as_json)
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-engine-"))
    process = None
    try:
        chosen = launch.choose(config, scratch, builtin=builtin)
        process = process_of(config, chosen)
        if process is not None:
            process.start()
        from comfy_worker import wiring  # half of the boot that is ours, so ComfyUI has begun by now

        return wiring.build(config, chosen, scratch, process)
    except BaseException:
        if process is not None:
            process.stop()
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def process_of(config: Settings, chosen: launch.Launch) -> ComfyProcess | None:
    """
    Return the supervised process of a launch, not yet started; None for a ComfyUI that runs already.
    """
    if not chosen.command or chosen.folder is None:
        return None
    return ComfyProcess(
        chosen.command,
        chosen.folder,
        chosen.url,
        boot_timeout_s=config.comfy_boot_timeout_s,
        interval_s=config.comfy_api_available_interval_ms / 1000,
        restarts=Restarts(
            config.comfy_restart_delay, config.comfy_max_rapid_restarts, config.comfy_rapid_restart_window
        ),
    )


def local_worker(environ: Mapping[str, str]) -> "Worker":
    """
    Return a worker for a person at a terminal: a quiet log, a free port, and COMFYUI_URL only where it answers.

    Raises:
        ConfigInvalid: a setting is wrong.
    """
    config = settings.load({"LOG_LEVEL": "WARNING", "COMFY_PORT": "0", **environ})
    if config.comfyui_url is not None and not _answers(config.comfyui_url):
        logger.warning("The ComfyUI at COMFYUI_URL does not answer.")
        config = replace(config, comfyui_url=None)
    return started(config, builtin=True)


def _answers(url: str) -> bool:
    from comfy_worker.comfy.client import Client  # only needed here, and heavy

    client = Client(url)
    try:
        return client.answers()
    finally:
        client.close()


_shared: list["Worker"] = []
_sharing = threading.Lock()


def shared(environ: Mapping[str, str]) -> "Worker":
    """
    Return the worker of this process, started at the first call.

    Raises:
        ConfigInvalid: a setting is wrong.
    """
    with _sharing:
        if not _shared:
            builtin = "RUNPOD_WEBHOOK_GET_JOB" not in environ
            _shared.append(started(settings.load(environ), builtin=builtin))
            atexit.register(close_shared)  # for who only imports the handler
        return _shared[0]


def close_shared() -> None:
    """
    End the worker of this process, if there is one.
    """
    with _sharing:
        for worker in _shared:
            worker.close()
        _shared.clear()


def serve_runpod(environ: MutableMapping[str, str]) -> int:
    """
    Be `python handler.py`: start ComfyUI, import the SDK while it boots, wait until it answers, serve jobs.

    Returns the exit code: 2 for wrong settings, 1 when ComfyUI cannot be had.
    """
    log.configure("INFO", as_json="RUNPOD_ENDPOINT_ID" in environ)  # until the settings are read
    exit_on_sigterm()
    try:
        worker = shared(environ)
    except ConfigInvalid as exc:
        logger.error("%s", exc)
        return 2
    try:
        prepare(environ)
        loop = Loop(
            worker.face.handle,
            worker.settings.worker_concurrency,
            worker.settings.refresh_worker,
            worker.engine.client.system_stats,
            close_shared,
        )
        loop.load()
        worker.engine.wait_ready()
        loop.run()
    except ComfyUnavailable as exc:
        logger.error("%s", exc)
        return 1
    finally:
        close_shared()
    return 0
