"""
The parts of a Worker that are about its ComfyUI, made from Settings for `wiring`.
"""

import logging
import tempfile
from pathlib import Path

from comfy_worker import settings
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.engine import Engine
from comfy_worker.comfy.files import ComfyFiles, RemoteFiles, SharedFiles, probe_shared
from comfy_worker.comfy.launch import Launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.deadline import Deadline
from comfy_worker.housekeeping import Keeper, old_outputs_of
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

FOREIGN_INPUT_S = 3600.0
"""Inputs in a folder of a ComfyUI that is not ours may be another worker's; younger ones are not spared."""


def engine(config: Settings, chosen: Launch, client: Client, process: ComfyProcess | None) -> Engine:
    """
    Return the ComfyUI of a launch, `process` where it is supervised.
    """
    return Engine(
        chosen,
        client,
        process,
        tries=config.comfy_api_available_max_retries or 500,
        interval_s=config.comfy_api_available_interval_ms / 1000,
    )


def events(config: Settings, chosen: Launch) -> EventSocket:
    """
    Return the websocket to it; it opens with the first job.
    """
    return EventSocket(
        chosen.url,
        attempts=config.websocket_reconnect_attempts,
        delay_s=config.websocket_reconnect_delay_s,
        trace=config.websocket_trace,
    )


def ready(engine: Engine, events: EventSocket, deadline: Deadline, sure: bool) -> None:
    """
    Wait until ComfyUI answers, unless an open websocket says that it does and nobody has to be sure.
    """
    # An open websocket says it as well, and costs nothing.
    if sure or not events.connected:
        engine.wait_ready(lambda: deadline.check("waiting for ComfyUI"))


def files(config: Settings, chosen: Launch, client: Client) -> ComfyFiles:
    """
    Return what moves files: over the disk where it is shared, else over HTTP.
    """
    if chosen.input is None or chosen.output is None:
        return RemoteFiles(client)
    shared = SharedFiles(
        chosen.input,
        chosen.output,
        chosen.temp,
        max_bytes=config.input_cache_mb * settings.MEGABYTE,
        max_age_s=config.input_cache_age_s,
        spare_age_s=FOREIGN_INPUT_S if chosen.kind == "running" else 0.0,
    )
    if chosen.kind == "running" and not probe_shared(chosen.input, client):
        logger.warning("COMFY_INPUT_DIR is not the folder of the ComfyUI at COMFYUI_URL; files go over HTTP.")
        return RemoteFiles(client)
    return shared


def keeper(config: Settings, chosen: Launch, files: ComfyFiles, client: Client) -> Keeper:
    """
    Return what keeps room on the disks and in memory.
    """
    folders = (Path(tempfile.gettempdir()), chosen.input, chosen.output, chosen.temp)
    return Keeper(
        files,
        client,
        [folder for folder in folders if folder is not None],
        least_disk_mb=config.min_free_disk_mb,
        least_memory_mb=config.min_free_memory_mb,
        old_outputs=old_outputs_of(config, chosen.output),
    )
