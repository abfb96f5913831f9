"""
`comfy-worker serve`, and RunPod's local API of `handler.py`: a started worker behind one HTTP face.
"""

import argparse
import contextlib
import importlib
import logging
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from comfy_worker import entry, settings
from comfy_worker.dialects import DIALECTS, Face
from comfy_worker.errors import ConfigInvalid, ModelUnavailable, ProvisioningFailed
from comfy_worker.faces.runpod_sdk import exit_on_sigterm
from comfy_worker.settings_parsers import TRUE

logger = logging.getLogger(__name__)


LOCAL_PORT = 8000


def serve(environ: Mapping[str, str], face: Face, host: str | None, port: int | None) -> int:
    """
    Start a worker as under RunPod and answer HTTP until SIGTERM or SIGINT.

    Returns the exit code: 2 for wrong settings, 1 when ComfyUI cannot be had any more, the address is taken, or the
    provisioning failed.
    """
    dialect = DIALECTS[face]
    exit_on_sigterm()
    try:
        address_of(environ, face, host, port)
        config = settings.load({**dialect.defaults, **dialect.translated(environ)})
        dialect.before(environ, config)
        worker = entry.started(config, builtin="RUNPOD_POD_ID" not in environ)
        dialect.after(environ, config)
    except (ConfigInvalid, ModelUnavailable, ProvisioningFailed) as exc:
        logger.error("%s", exc)
        return 2 if isinstance(exc, ConfigInvalid) else 1
    try:
        # A second of imports, so ComfyUI has begun by now.
        module: Any = importlib.import_module(f"comfy_worker.faces.{dialect.module}")
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


def address_of(environ: Mapping[str, str], face: Face, host: str | None, port: int | None) -> tuple[str, int]:
    """
    Return where a face listens: what was asked for, else HOST and PORT where it heeds them, else its usual address.

    Raises:
        ConfigInvalid: PORT is no port.
    """
    dialect = DIALECTS[face]
    given = environ if dialect.heeds_address else {}
    text = given.get("PORT", "").strip()
    if port is None and text and not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ConfigInvalid([f"PORT must be a whole number from 0 to 65535, not {text!r}"])
    chosen = port if port is not None else int(text or dialect.port)
    return host or given.get("HOST", "").strip() or dialect.host, chosen


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
