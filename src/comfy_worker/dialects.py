"""
One row per HTTP face: where it listens, what it takes where a variable is not set, and what its start has of its own.

What a face answers is in `faces`; this is what `serve` must know before and around it. A new face is a row.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from comfy_worker import log
from comfy_worker.faces import salad_environ, vast_environ
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

Environ = Mapping[str, str]
Hook = Callable[[Environ, Settings], None]


class Face(StrEnum):
    """
    A dialect of HTTP; `DIALECTS` has its row.
    """

    runpod = "runpod"
    salad = "salad"
    vast = "vast"


def _as_it_is(environ: Environ) -> Environ:
    return environ


def _nothing(_environ: Environ, _config: Settings) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Dialect:
    """
    What `serve` must know of a face.

    `module` of `comfy_worker.faces` has `app_of(worker) -> FastAPI`. `host` and `port` are where it listens when nothing
    says otherwise, HOST and PORT where it `heeds_address`. `defaults` are for variables that are not set, `translated`
    reads other names for ours. `before` and `after` are called around the start of ComfyUI, and may raise what ends it.
    """

    module: str
    host: str
    port: int
    heeds_address: bool = False
    defaults: Environ = field(default_factory=dict)
    translated: Callable[[Environ], Environ] = _as_it_is
    before: Hook = _nothing
    after: Hook = _nothing


def _check_manifest(_environ: Environ, config: Settings) -> None:
    if config.manifest is None:
        return
    from comfy_worker.comfy import launch
    from comfy_worker.models import peer_manifest  # only needed here, and heavy

    # What it asks for is fetched behind the open socket; what is wrong with it is said before anything starts.
    peer_manifest.wanted(config, config.comfyui_path if config.comfyui_url else launch.installed(config))


def _provision(environ: Environ, config: Settings) -> None:
    from comfy_worker import provisioning  # only needed here, and heavy

    log.configure(config.log_level, as_json=config.log_format == "json")
    provisioning.at_start(config, environ)


def _remark(environ: Environ, config: Settings) -> None:
    log.also_to(config.vast_log_file)
    for text in vast_environ.remarks(environ):
        logger.warning("%s", text)


DIALECTS = {
    Face.runpod: Dialect("runpod_http", "127.0.0.1", 8000),
    Face.salad: Dialect(
        "salad",
        "::",  # Salad's gateway speaks IPv6 only
        3000,
        heeds_address=True,
        # ComfyUI's queue is the lane of the GPU; a 202 and a cached download are not to wait in front of it.
        defaults={"WORKER_CONCURRENCY": "16", "CACHE_DIR": "~/.cache/comfyui-api"},
        translated=salad_environ.translated,
        before=_check_manifest,
    ),
    Face.vast: Dialect(
        "vast",
        "127.0.0.1",
        18288,
        # One runs, the next one's inputs are fetched, and a finished one's files are stored.
        # The disk is cleaned as Vast's image does: outputs of a day ago, when fewer than 512 MiB are free.
        defaults={"WORKER_CONCURRENCY": "3", "MIN_FREE_DISK_MB": "537", "OLD_OUTPUTS_AGE_S": "86400"},
        translated=vast_environ.translated,
        before=_provision,
        after=_remark,
    ),
}
