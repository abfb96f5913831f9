"""
`comfy-worker serve`, and RunPod's local API of `handler.py`: a started worker behind one HTTP face.
"""

import argparse
import contextlib
import importlib
import logging
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from enum import StrEnum
from typing import Any

from comfy_worker import entry, log, settings
from comfy_worker.errors import ConfigInvalid, ModelUnavailable, ProvisioningFailed
from comfy_worker.faces import salad_environ, vast_environ
from comfy_worker.faces.runpod_sdk import exit_on_sigterm
from comfy_worker.settings_parsers import TRUE

logger = logging.getLogger(__name__)


class Face(StrEnum):
    """
    A dialect of HTTP; `MODULES` has its module.
    """

    runpod = "runpod"
    salad = "salad"
    vast = "vast"


MODULES = {Face.runpod: "runpod_http", Face.salad: "salad", Face.vast: "vast"}
"""Modules of `comfy_worker.faces`, each with `app_of(worker) -> FastAPI`."""

ADDRESSES = {Face.runpod: ("127.0.0.1", 8000), Face.salad: ("::", 3000), Face.vast: ("127.0.0.1", 18288)}
"""Where a face listens when nothing says otherwise; Salad's gateway speaks IPv6 only."""

DEFAULTS: Mapping[Face, Mapping[str, str]] = {
    # ComfyUI's queue is the lane of the GPU; a 202 and a cached download are not to wait in front of it.
    Face.salad: {"WORKER_CONCURRENCY": "16", "CACHE_DIR": "~/.cache/comfyui-api"},
    # One runs, the next one's inputs are fetched, and a finished one's files are stored.
    # The disk is cleaned as Vast's image does: outputs of a day ago, when fewer than 512 MiB are free.
    Face.vast: {"WORKER_CONCURRENCY": "3", "MIN_FREE_DISK_MB": "537", "OLD_OUTPUTS_AGE_S": "86400"},
}
"""What a face takes where a variable is not set."""

LOCAL_PORT = 8000


def serve(environ: Mapping[str, str], face: Face, host: str | None, port: int | None) -> int:
    """
    Start a worker as under RunPod and answer HTTP until SIGTERM or SIGINT.

    Returns the exit code: 2 for wrong settings, 1 when ComfyUI cannot be had any more, the address is taken, or the
    provisioning failed.
    """
    exit_on_sigterm()
    try:
        address_of(environ, face, host, port)
        config = settings.load({**DEFAULTS.get(face, {}), **_translated(face, environ)})
        _provision(face, environ, config)
        _check_manifest(face, config)
        worker = entry.started(config, builtin="RUNPOD_POD_ID" not in environ)
        _remark(face, environ, config)
    except (ConfigInvalid, ModelUnavailable, ProvisioningFailed) as exc:
        logger.error("%s", exc)
        return 2 if isinstance(exc, ConfigInvalid) else 1
    try:
        # A second of imports, so ComfyUI has begun by now.
        module: Any = importlib.import_module(f"comfy_worker.faces.{MODULES[face]}")
        from comfy_worker.faces.http_server import Address, Server

        address = Address(*address_of(environ, face, host, port))
        server = Server(module.app_of(worker), address)
        # uvicorn raises the signal again once it has drained, and leaves by itself when it cannot listen.
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            server.run(listeners(address.host, address.port))
        return 1 if server.failed or not server.started else 0
    except OSError as exc:
        logger.error("The address cannot be listened on: %s", exc.strerror)
        return 1
    finally:
        worker.close()


def _translated(face: Face, environ: Mapping[str, str]) -> Mapping[str, str]:
    if face is Face.salad:
        return salad_environ.translated(environ)
    return vast_environ.translated(environ) if face is Face.vast else environ


def _provision(face: Face, environ: Mapping[str, str], config: settings.Settings) -> None:
    if face is not Face.vast:
        return
    from comfy_worker import provisioning  # only needed here, and heavy

    log.configure(config.log_level, as_json=config.log_format == "json")
    provisioning.at_start(config, environ)


def _check_manifest(face: Face, config: settings.Settings) -> None:
    if face is not Face.salad or config.manifest is None:
        return
    from comfy_worker.comfy import launch
    from comfy_worker.models import peer_manifest  # only needed here, and heavy

    # What it asks for is fetched behind the open socket; what is wrong with it is said before anything starts.
    peer_manifest.wanted(config, config.comfyui_path if config.comfyui_url else launch.installed(config))


def _remark(face: Face, environ: Mapping[str, str], config: settings.Settings) -> None:
    if face is not Face.vast:
        return
    log.also_to(config.vast_log_file)
    for text in vast_environ.remarks(environ):
        logger.warning("%s", text)


def address_of(environ: Mapping[str, str], face: Face, host: str | None, port: int | None) -> tuple[str, int]:
    """
    Return where a face listens: what was asked for, else HOST and PORT on the Salad face, else its usual address.

    Raises:
        ConfigInvalid: PORT is no port.
    """
    usual_host, usual_port = ADDRESSES[face]
    given = environ if face is Face.salad else {}
    text = given.get("PORT", "").strip()
    if port is None and text and not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ConfigInvalid([f"PORT must be a whole number from 0 to 65535, not {text!r}"])
    return host or given.get("HOST", "").strip() or usual_host, port if port is not None else int(
        text or usual_port
    )


def listeners(host: str, port: int) -> list[socket.socket] | None:
    """
    Return the socket of `::`, which takes IPv4 too, as in Node.js; None for every other host, which uvicorn opens itself.
    """
    if host != "::":
        return None
    if not socket.has_dualstack_ipv6():
        return [socket.create_server(("0.0.0.0", port))]
    return [socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)]


def handler(environ: MutableMapping[str, str], arguments: Sequence[str]) -> int:
    """
    Be `python handler.py`: RunPod's queue, or its HTTP API on this machine where that is asked for.

    Returns the exit code.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rp_serve_api", action="store_true")
    parser.add_argument("--rp_api_host")
    parser.add_argument("--rp_api_port", type=int, default=LOCAL_PORT)
    given, _ = parser.parse_known_args(arguments)
    asked = environ.get("SERVE_API_LOCALLY", "").strip().lower() in TRUE
    if not (given.rp_serve_api or asked):
        return entry.serve_runpod(environ)
    # In a container nothing but 0.0.0.0 can be reached; a flag on one's own machine opens no door.
    host = given.rp_api_host or ("0.0.0.0" if asked else "127.0.0.1")
    return serve(environ, Face.runpod, host, given.rp_api_port)
