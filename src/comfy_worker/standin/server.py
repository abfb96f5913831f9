"""
The HTTP server of an engine: its routes, what every request passes through, and its start and end.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from aiohttp import web

from comfy_worker.standin import control, files, info, jobs_api, post_prompt, socket_route
from comfy_worker.standin.engine import Engine
from comfy_worker.standin.faults import UnknownFault
from comfy_worker.standin.node import Node
from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.nodes_testing import TEST_NODES
from comfy_worker.standin.replies import ENGINE, Crash, crashed
from comfy_worker.standin.settings import ENGINE_NAME, Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_END_S = 0.5

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/ws", socket_route.get_socket),
    ("GET", "/prompt", control.get_prompt),
    ("POST", "/prompt", post_prompt.post_prompt),
    ("GET", "/queue", control.get_queue),
    ("POST", "/queue", control.post_queue),
    ("GET", "/history", control.get_history),
    ("POST", "/history", control.post_history),
    ("GET", "/history/{prompt_id}", control.get_history_entry),
    ("POST", "/interrupt", control.post_interrupt),
    ("POST", "/free", control.post_free),
    ("POST", "/upload/image", files.post_image),
    ("POST", "/upload/mask", files.post_mask),
    ("GET", "/view", files.get_view),
    ("GET", "/system_stats", info.get_system_stats),
    ("GET", "/features", info.get_features),
    ("GET", "/object_info", info.get_object_info),
    ("GET", "/object_info/{name}", info.get_object_info_of),
    ("GET", "/models", info.get_models),
    ("GET", "/models/{folder}", info.get_models_in),
    ("GET", "/embeddings", info.get_embeddings),
    ("GET", "/extensions", info.get_none),
    ("GET", "/users", info.get_users),
    ("GET", "/settings", info.get_nothing),
    ("GET", "/workflow_templates", info.get_nothing),
    ("GET", "/i18n", info.get_nothing),
    ("GET", "/global_subgraphs", info.get_nothing),
    ("GET", "/userdata", info.get_none),
    ("GET", "/v2/userdata", info.get_none),
    ("GET", "/experiment/models", info.get_model_folders),
    ("GET", "/experiment/models/{folder}", info.get_model_files),
)
_NEW_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/node_replacements", info.get_node_replacements),
    ("GET", "/api/jobs", jobs_api.get_jobs),
    ("GET", "/api/jobs/{job_id}", jobs_api.get_job),
    ("POST", "/api/jobs/cancel", jobs_api.post_cancel_many),
    ("POST", "/api/jobs/{job_id}/cancel", jobs_api.post_cancel),
    ("*", "/api/assets", info.assets_off),
    ("*", "/api/assets/{rest:.*}", info.assets_off),
    ("*", "/api/tags", info.assets_off),
)
_OWN_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/internal/logs", info.get_log),
    ("GET", "/internal/logs/raw", info.get_log),
    ("GET", "/internal/folder_paths", info.get_folder_paths),
    ("GET", "/internal/files/{kind}", info.get_files),
    ("GET", "/standin/faults", control.get_faults),
    ("POST", "/standin/faults", control.post_faults),
)


async def _not_found(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=404)
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write_eof()
    return response


async def _root(_request: web.Request) -> web.StreamResponse:
    return web.Response(text=f"{ENGINE_NAME}\n")


def _origin_is_foreign(request: web.Request) -> bool:
    """
    Tell whether a browser page of another site asks: 403 in 0.27.0 unless CORS is enabled.
    """
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return True
    origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
    if origin is None:
        return False
    asked, page = urlsplit(f"//{host}"), urlsplit(origin)
    if asked.hostname not in _LOOPBACK:
        return False
    same_port = asked.port is None or page.port is None or asked.port == page.port
    return asked.hostname != page.hostname or not same_port


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    engine: Engine = request.app[ENGINE]
    if not request.path.startswith("/standin/"):
        await engine.sockets.open.wait()
        status = engine.faults.fails(request.path)
        if status is not None:
            return crashed() if status == 500 else web.Response(status=status, text=f"<html>{status}</html>")
    cors = engine.settings.cors
    if cors is None and _origin_is_foreign(request):
        return web.Response(status=403)
    response = web.Response() if request.method == "OPTIONS" else await _handled(request, handler)
    if cors is not None and not response.prepared:
        response.headers["Access-Control-Allow-Origin"] = cors
        response.headers["Access-Control-Allow-Methods"] = "POST, GET, DELETE, PUT, OPTIONS, PATCH"
        response.headers["Access-Control-Allow-Headers"] = "Content-Type, Authorization"
        response.headers["Access-Control-Allow-Credentials"] = "true"
    return response


async def _handled(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except UnknownFault as exc:
        return web.Response(status=400, text=str(exc))
    except Crash:
        return crashed()
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[ENGINE].settings.max_upload_bytes
        return web.Response(status=413, text=f"Maximum request body size {limit} exceeded.")


def application(engine: Engine) -> web.Application:
    """
    Return the application with every route, each also under /api.
    """
    app = web.Application(client_max_size=engine.settings.max_upload_bytes, middlewares=[_guard])
    app[ENGINE] = engine
    rows = _ROUTES if engine.settings.old else _ROUTES + _NEW_ROUTES
    for method, path, handler in rows + tuple(
        (method, f"/api{path}", handler) for method, path, handler in rows
    ):
        _add(app, method, path, handler)
    for method, path, handler in (*_OWN_ROUTES, ("GET", "/", _root), ("GET", "/{path:.*}", _not_found)):
        _add(app, method, path, handler)
    return app


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    if method == "GET":
        app.router.add_get(path, handler)
    else:
        app.router.add_route(method, path, handler)


def nodes_for(settings: Settings) -> Mapping[str, Node]:
    """
    Return the nodes that an engine with these settings knows.
    """
    return {**NODES, **TEST_NODES} if settings.test_nodes else NODES


class Server:
    """
    An engine and its HTTP server, both on the running loop.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runner = web.AppRunner(
            application(engine), access_log=None, shutdown_timeout=0.1, handler_cancellation=False
        )
        self._publisher: asyncio.Task[None] | None = None
        self._hanging: asyncio.TimerHandle | None = None
        self.port = 0

    async def start(self) -> None:
        """
        Start the engine and open the port, in that order.

        Raises:
            OSError: the port cannot be had.
        """
        loop = asyncio.get_running_loop()
        settings = self._engine.settings
        self._engine.stall = lambda seconds: _soon(loop, time.sleep, seconds)
        self._engine.hang = lambda seconds: _soon(loop, self._hang, seconds)
        self._engine.start()
        self._hang(float(settings.faults.get("hang", 0)))
        self._publisher = asyncio.create_task(self._engine.sockets.publish())
        await asyncio.sleep(settings.start_delay_s)
        await self._runner.setup()
        site = web.TCPSite(self._runner, settings.host, settings.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _hang(self, seconds: float) -> None:
        if self._hanging is not None:
            self._hanging.cancel()
        gate = self._engine.sockets.open
        gate.set()
        if seconds > 0:
            gate.clear()
            self._hanging = asyncio.get_running_loop().call_later(seconds, gate.set)

    async def stop(self) -> None:
        """
        Cut the sockets, close the port, and end the engine; a node that does not return is left behind.
        """
        self._engine.sockets.open.set()
        self._engine.sockets.abort()
        if self._publisher is not None:
            self._publisher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._publisher
        await self._runner.cleanup()
        await asyncio.to_thread(self._engine.stop, _END_S)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[float], None], seconds: float) -> None:
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, seconds)
