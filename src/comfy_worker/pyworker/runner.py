"""
The server around the SDK's worker, in place of `Worker.run()`.

The SDK's own runner opens session and update routes to everybody, writes callers' API keys to the access log and ends on
SIGTERM without leaving its lifecycle (1.9.1). This one has our routes only, no access log, and drains: what was accepted
may end within `grace_s`, then it is cancelled, which cancels its job in ComfyUI.
"""

import asyncio
import contextlib
import errno
import logging
import signal
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from comfy_worker.pyworker import envelope, handlers, sessions
from comfy_worker.pyworker.benchmark import Benchmark
from comfy_worker.pyworker.config import Config
from comfy_worker.pyworker.lifecycle import HEALTH, Lifecycle
from comfy_worker.pyworker.model_server import ModelServer
from comfy_worker.pyworker.public_key import PublicKey
from comfy_worker.pyworker.sdk import Sdk, set_up_log

logger = logging.getLogger(__name__)

NO_SESSIONS = -1
"""The SDK refuses each new session then; 0 and None would mean any number."""

LAST_REPORTS_S = 3.0
WATCH_S = 1.0
ANNOUNCE_S = 0.1
LOOPBACK = "127.0.0.1"


class PortTaken(Exception):
    """
    Somebody listens on a port already; `str()` says what to do.
    """


WORKER_PORT_TAKEN = "Port {} is taken: another PyWorker runs here already, or WORKER_PORT is another program's. Start the PyWorker once."
MODEL_PORT_TAKEN = (
    "Port {0} is taken, where the model server is to listen. MODEL_SERVER_URL=http://127.0.0.1:{0} uses the one that runs "
    "there, --model-port another port."
)


def make_worker(sdk: Sdk, config: Config, benchmark: Benchmark, lifecycle: Lifecycle) -> Any:
    """
    Make the SDK's `Worker` and put the log right again, which making one sets to DEBUG.
    """
    host, port = config.model_server
    worker = sdk.Worker(
        sdk.WorkerConfig(
            model_server_url=host,
            model_server_port=port,
            model_healthcheck_url=HEALTH,
            lifecycle=lifecycle,
            handlers=handlers.table(sdk, config, benchmark),
            max_sessions=config.sessions or NO_SESSIONS,
        )
    )
    set_up_log(config.log_level)
    lifecycle.backend = worker.backend
    return worker


def application(config: Config, worker: Any, key: PublicKey) -> web.Application:
    """
    Return the public routes: those of the table, `/ping`, and those of sessions where they were asked for.
    """

    async def pong(_: web.Request) -> web.Response:
        return web.Response(text="pong")

    app = web.Application(client_max_size=config.max_body_bytes, middlewares=[envelope.refused])
    app.add_routes(worker.routes)
    app.router.add_get("/ping", pong)
    app.add_routes(sessions.routes(config, worker.backend, key))
    return app


async def serve(
    config: Config,
    worker: Any,
    key: PublicKey,
    tls: ssl.SSLContext | None,
    model_server: ModelServer | None,
    told: threading.Event,
) -> int:
    """
    Serve until SIGTERM or SIGINT (or `told`), then drain. Returns the exit code.

    Raises:
        PortTaken: the port is another's.
    """
    stop = _stop_event(told)
    # Cancelling the handler of a caller that left is what cancels the job behind it.
    runner = web.AppRunner(
        application(config, worker, key),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=config.grace_s,
    )
    runners = [runner]
    tasks: list[asyncio.Future[Any]] = []
    try:
        await _listen(runner, config.host, config.port, tls)
        if config.sessions:
            runners.append(await _session_end(config, worker.backend))
        if not config.unsecured:
            tasks.append(asyncio.ensure_future(_fetch(key, worker.backend)))
            await _first(tasks[0], stop)
        tracking = asyncio.ensure_future(tracking_of(worker)())
        tasks += [tracking, asyncio.ensure_future(_announce(worker.backend))]
        if model_server is not None:
            tasks.append(asyncio.ensure_future(_watch(model_server, worker.backend)))
        await _first(tracking, stop)
        return _outcome(tracking)
    finally:
        logger.info("Stopping: requests may end within %.0f s.", config.grace_s)
        for each in runners:
            await each.cleanup()
        await _last_reports(worker.backend)
        await _leave(tasks, worker.backend)


def _stop_event(told: threading.Event) -> asyncio.Event:
    stop = asyncio.Event()
    if told.is_set():
        stop.set()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _listen(runner: web.AppRunner, host: str | None, port: int, tls: ssl.SSLContext | None) -> None:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortTaken(WORKER_PORT_TAKEN.format(port)) from exc
        raise


async def _session_end(config: Config, backend: Any) -> web.AppRunner:
    """
    Open the plain door for a webhook of this machine that ends its session.
    """
    app = web.Application(middlewares=[envelope.refused])
    app.router.add_post("/session/end", backend.session_end_handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await _listen(runner, LOOPBACK, config.http_port, None)
    return runner


async def _fetch(key: PublicKey, backend: Any) -> None:
    await key.fetch()
    # The SDK takes a list of addresses for one (1.9.1).
    backend.report_addr = key.address


async def _first(task: "asyncio.Future[Any]", stop: asyncio.Event) -> None:
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()


def tracking_of(worker: Any) -> Callable[[], Coroutine[Any, Any, Any]]:
    """
    Return what runs lifecycle, benchmark, health checks and reports: the one private function of the SDK that is called.
    """
    found: Callable[[], Coroutine[Any, Any, Any]] = worker.backend._start_tracking
    return found


def can_track(worker: Any) -> bool:
    """
    Return whether this SDK has that function.
    """
    return callable(getattr(worker.backend, "_start_tracking", None))


def _outcome(tracking: "asyncio.Future[Any]") -> int:
    if not tracking.done():
        return 0
    error = None if tracking.cancelled() else tracking.exception()
    logger.error("The SDK stopped tracking this worker: %s", error or "without a reason")
    return 1


async def _announce(backend: Any) -> None:
    """
    Report as soon as the worker is loaded, or cannot be: the SDK lets up to 10 s pass before it says so (1.9.1).
    """
    while not backend.metrics.system_metrics.model_is_loaded:
        await asyncio.sleep(ANNOUNCE_S)
    backend.metrics.update_pending = True


async def _watch(model_server: ModelServer, backend: Any) -> None:
    """
    Report the end of the model server by its reason, which the SDK's health checks would write over.
    """
    said = ""
    while True:
        await asyncio.sleep(WATCH_S)
        reason = model_server.ended()
        if reason is None:
            continue
        if not said:
            logger.error("%s", reason)
        if backend.metrics.model_metrics.error_msg != said or not said:
            said = reason
            backend.backend_errored(reason)


async def _last_reports(backend: Any) -> None:
    """
    Let the SDK tell the router which requests have ended.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + LAST_REPORTS_S
    while backend.metrics.model_metrics.requests_deleting and loop.time() < until:
        await asyncio.sleep(0.05)


async def _leave(tasks: "list[asyncio.Future[Any]]", backend: Any) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(Exception):
        await backend.session.close()
        await backend.metrics.aclose()
