"""
The PyWorker as a program: settings, the model server where it is ours to start, the SDK, and the way out of each failure.

Exit codes: 0 told to stop, 1 it failed, 2 the settings cannot work or the SDK is missing.
"""

import argparse
import asyncio
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from comfy_worker import __version__
from comfy_worker.pyworker import benchmark, certificate, config, report, runner, score, sdk
from comfy_worker.pyworker.config import Config, Misconfigured
from comfy_worker.pyworker.lifecycle import Lifecycle
from comfy_worker.pyworker.model_server import ModelServer
from comfy_worker.pyworker.public_key import PublicKey

logger = logging.getLogger(__name__)

SERVE = "--serve"
"""What follows is the command of the model server, to be started and ended with the PyWorker."""


def main(arguments: Sequence[str], environ: MutableMapping[str, str], program: Path) -> int:
    """
    Be a PyWorker until told to stop; `program` is the folder of the worker program. Returns the exit code.
    """
    sdk.set_up_log("INFO")
    told = _told_to_stop()
    environ.update(
        {name: text for name, text in config.DEFAULTS.items() if not environ.get(name, "").strip()}
    )
    command = _command(arguments)
    if importlib.util.find_spec("vastai") is None:
        logger.error("%s", sdk.MISSING.format(reason="it is not on this Python's path"))
        return 2
    try:
        settings = config.load(environ, program)
        _refuse_taken(settings.host or "0.0.0.0", settings.port, runner.WORKER_PORT_TAKEN)
        if command:
            _refuse_taken("127.0.0.1", settings.model_server[1], runner.MODEL_PORT_TAKEN)
    except Misconfigured as exc:
        for problem in exc.problems:
            logger.error("%s", problem)
        _report(environ, str(exc), told)
        return 2
    except runner.PortTaken as exc:
        # Not reported: the router would take it for the failure of the worker that has the port.
        logger.error("%s", exc)
        return 1
    try:
        model_server = ModelServer(command, environ) if command else None
    except OSError as exc:
        logger.error("The model server cannot be started: %s", exc)
        _report(environ, f"The model server cannot be started: {exc}", told)
        return 1
    try:
        return _run(settings, environ, model_server, told)
    finally:
        if model_server is not None:
            model_server.stop(settings.grace_s)


def _run(
    settings: Config,
    environ: MutableMapping[str, str],
    model_server: ModelServer | None,
    told: threading.Event,
) -> int:
    try:
        return asyncio.run(_serve(settings, model_server, told))
    except runner.PortTaken as exc:
        logger.error("%s", exc)
        return 1
    except (sdk.SdkMissing, certificate.NoCertificate) as exc:
        logger.error("%s", exc)
        reason = str(exc)
    except Exception as exc:
        # Whatever the SDK raises while it is built: the router has to hear of it.
        logger.exception("The PyWorker could not start.")
        reason = f"{type(exc).__name__}: {exc}"
    if model_server is not None:
        model_server.stop(settings.grace_s)
    _report(environ, reason, told)
    return 1


async def _serve(settings: Config, model_server: ModelServer | None, told: threading.Event) -> int:
    loop = asyncio.get_running_loop()
    tls = None
    if settings.use_ssl:
        tls = await loop.run_in_executor(
            None,
            certificate.context,
            settings.certificate,
            settings.certificate_key,
            settings.identity.container_id,
        )
    kit = sdk.load()
    measure = benchmark.choose(settings.benchmark, settings.legacy_model, __version__)
    measured = score.keep_or_remove(Path(), measure.fingerprint)
    key = PublicKey(settings.identity.report_addresses)
    lifecycle = Lifecycle(settings, measure, key, model_server, measured)
    worker = runner.make_worker(kit, settings, measure, lifecycle)
    if not runner.can_track(worker):
        logger.warning("This vastai is newer than what was tested; its own server is used, without sessions.")
        await worker.run_async(host=settings.host)
        return 1
    return await runner.serve(settings, worker, key, tls, model_server, told)


def _told_to_stop() -> threading.Event:
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    return told


def _command(arguments: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(
        prog="worker.py", description="A PyWorker of Vast.ai.", allow_abbrev=False
    )
    parser.add_argument(
        SERVE,
        nargs=argparse.REMAINDER,
        default=[],
        help="the model server's command, started and ended with this",
    )
    return list(parser.parse_args(list(arguments)).serve)


def _refuse_taken(host: str, port: int, text: str) -> None:
    """
    Look whether a port is free before anything is started behind it.

    Raises:
        PortTaken: it is not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise runner.PortTaken(text.format(port)) from exc


def _report(environ: MutableMapping[str, str], reason: str, told: threading.Event) -> None:
    try:
        who = config.identity(environ)
    except Misconfigured:
        return
    logger.error("The failed start is reported to the router for %.0f s.", report.FOR_S)
    report.failed_launch(who, reason, told)


def start(
    environ: MutableMapping[str, str], serve: Sequence[str], url: str, defaults: Mapping[str, str]
) -> int:
    """
    Be `comfy-worker vast`: the PyWorker in this process, or in its place by another Python that has the SDK.

    `serve` is the command of the model server at `url`, `defaults` its own; it is started unless MODEL_SERVER_URL names
    one that runs.
    """
    arguments: list[str] = []
    environ.update({name: text for name, text in defaults.items() if not environ.get(name, "").strip()})
    if not environ.get("MODEL_SERVER_URL", "").strip():
        environ["MODEL_SERVER_URL"] = url
        arguments = [SERVE, *serve]
    python = environ.get("VAST_PYTHON", "").strip()
    if not python:
        return main(arguments, environ, Path())
    launcher = Path(__file__).with_name("launch.py")
    try:
        os.execve(python, [python, "-u", str(launcher), *arguments], dict(environ))
    except OSError as exc:
        reason = f"VAST_PYTHON is {python}, which cannot be run: {exc.strerror}"
        sys.stderr.write(sdk.MISSING.format(reason=reason) + "\n")
    return 2
