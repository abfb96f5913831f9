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
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_worker import log, machine, settings
from comfy_worker.comfy import gpu, launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.comfy.restarts import Restarts
from comfy_worker.errors import ComfyUnavailable, ConfigInvalid, ModelUnavailable
from comfy_worker.faces.runpod_sdk import Loop, exit_on_sigterm, prepare
from comfy_worker.settings import Settings

if TYPE_CHECKING:
    from comfy_worker.wiring import Worker

logger = logging.getLogger(__name__)


def started(config: Settings, *, builtin: bool) -> "Worker":
    """
    Set up the log, start ComfyUI if it is ours to start, and wire a worker to it while it boots; with MODELS_MANIFEST
    return once the models are there.

    `builtin` allows the built-in engine where there is no ComfyUI.

    Raises:
        ConfigInvalid: the settings cannot work.
        ModelUnavailable: a model of MODELS_MANIFEST could not be had.
    """
    as_json = config.log_format == "json" or (
        config.log_format == "auto" and config.runpod_endpoint_id is not None
    )
    log.configure(config.log_level, as_json=as_json)
    machine.share_arenas()
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-engine-"))
    process, look = None, gpu.Look()
    try:
        chosen = launch.choose(config, scratch, builtin=builtin)
        process = process_of(config, chosen, look.problem)
        if process is not None:
            process.start()
        # From here on ComfyUI boots, and what takes time costs none.
        if config.gpu_check and wants_gpu(chosen):
            look.start()
        from comfy_worker import wiring

        worker = wiring.build(config, chosen, scratch, process)
        _tidy_up(config, chosen)
        _supply(config, chosen, worker)
        return worker
    except BaseException:
        if process is not None:
            process.stop()
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def wants_gpu(chosen: launch.Launch) -> bool:
    """
    Return whether this ComfyUI is started by us, for an NVIDIA GPU.
    """
    return chosen.kind == "comfyui" and "--cpu" not in chosen.command and launch.has_gpu(launch.NVIDIA_SIGNS)


def _tidy_up(config: Settings, chosen: launch.Launch) -> None:
    from comfy_worker.housekeeping import prune_orphans  # only needed here, and heavy

    folders = [] if config.keep_outputs else [chosen.output, chosen.input]
    threading.Thread(
        target=prune_orphans,
        args=([folder for folder in folders if folder is not None], config.orphan_age_s),
        name="prune-orphans",
        daemon=True,
    ).start()


def _supply(config: Settings, chosen: launch.Launch, worker: "Worker") -> None:
    folder = chosen.folder if chosen.kind == "comfyui" else None
    if config.models_manifest is not None:
        from comfy_worker.models import fetching  # only needed here, and heavy

        fetching.at_start(config, folder)
    if config.network_volume_debug:
        args = (config, folder, worker)
        threading.Thread(target=_report_volumes, args=args, name="volumes", daemon=True).start()


def _report_volumes(config: Settings, folder: Path | None, worker: "Worker") -> None:
    from comfy_worker.models import diagnostics

    try:
        worker.engine.wait_ready()
        for line in diagnostics.report(config, folder, worker.engine.client.models):
            logger.info("%s", line)
    except ComfyUnavailable as exc:
        logger.warning("The volumes are not reported: %s", exc)


def process_of(
    config: Settings, chosen: launch.Launch, gpu_problem: Callable[[], str] = str
) -> ComfyProcess | None:
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
        gpu=gpu_problem,
    )


def local_worker(environ: Mapping[str, str]) -> "Worker":
    """
    Return a worker for a person at a terminal: a quiet log, a free port, and COMFYUI_URL only where it answers.

    Raises:
        ConfigInvalid: a setting is wrong.
    """
    # Whoever presses Ctrl-C waits: a node that does not end soon is ended with its ComfyUI.
    quick = {"LOG_LEVEL": "WARNING", "COMFY_PORT": "0", "CANCEL_GRACE_S": "3"}
    config = settings.load({**quick, **environ})
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
    Be `python handler.py`: start ComfyUI, import the SDK while it boots, wait until it answers, warm up, serve jobs.

    Returns the exit code: 2 for wrong settings, 1 when ComfyUI cannot be had any more, a model cannot, or a required
    warm-up failed.
    """
    log.configure("INFO", as_json="RUNPOD_ENDPOINT_ID" in environ)  # until the settings are read
    exit_on_sigterm()
    try:
        worker = shared(environ)
    except (ConfigInvalid, ModelUnavailable) as exc:
        logger.error("%s", exc)
        return 2 if isinstance(exc, ConfigInvalid) else 1
    try:
        prepare(environ)
        loop = Loop(
            worker.face.handle,
            worker.settings.worker_concurrency,
            worker.settings.refresh_worker,
            worker.fit,
            close_shared,
            cancel=partial(worker.pool.close, 0.0),
            grace_s=worker.settings.shutdown_grace_s,
        )
        loop.load()
        worker.engine.wait_ready()
        if not worker.warm_up():
            return 1
        if worker.engine.process is not None:
            # While a job runs, its reply asks for the replacement; while none runs, nobody else would.
            worker.engine.process.on_given_up = loop.drain.leave
        loop.run()
    except ComfyUnavailable as exc:
        logger.error("%s", exc)
        return 1
    finally:
        close_shared()
    return 1 if worker.engine.useless else 0
