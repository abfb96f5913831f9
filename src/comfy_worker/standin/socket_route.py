"""
The websocket route: handshake, feature flags, pongs, and the close. What is sent besides is the publisher's business.
"""

import json
import uuid
from typing import Any

from aiohttp import WSMsgType, web

from comfy_worker.standin.engine import Engine
from comfy_worker.standin.outbox import status
from comfy_worker.standin.replies import ENGINE
from comfy_worker.standin.settings import Settings
from comfy_worker.standin.sockets import Message, Socket


def features(settings: Settings) -> dict[str, Any]:
    """
    Return what the server announces, at /features and on the socket. Source: ComfyUI 0.27.0.
    """
    limit = settings.max_upload_bytes
    shown = {
        "supports_preview_metadata": True,
        "max_upload_size": float(limit) if isinstance(settings.max_upload_mb, float) else limit,
    }
    if settings.old:
        return shown
    return {
        **shown,
        "extension": {"manager": {"supports_v4": True}},
        "node_replacements": True,
        "assets": False,
    }


async def get_socket(request: web.Request) -> web.StreamResponse:
    """
    Serve one socket until it ends.
    """
    engine: Engine = request.app[ENGINE]
    sid = request.query.get("clientId") or uuid.uuid4().hex
    if engine.refuses(sid):
        return web.Response(status=503, text="refused on purpose")
    ws = web.WebSocketResponse(autoping=False)
    await ws.prepare(request)
    socket = Socket(ws, request)
    engine.sockets.register(sid, socket)
    try:
        await _greet(socket, sid, engine)
        await _read(socket, sid, engine)
    finally:
        engine.sockets.unregister(sid)
    return ws


async def _greet(socket: Socket, sid: str, engine: Engine) -> None:
    hello = {**status(engine.prompts.remaining), "sid": sid}
    await socket.send(Message("status", hello, sid).payload())
    node = engine.late_node(sid)
    if node is not None:
        await socket.send(Message("executing", {"node": node}, sid).payload())


async def _read(socket: Socket, sid: str, engine: Engine) -> None:
    first = True
    async for message in socket.ws:
        if message.type is WSMsgType.PING:
            await engine.sockets.open.wait()
            await socket.ws.pong(message.data)
        elif message.type is WSMsgType.TEXT and first:
            first = not _first(message.data, socket, sid, engine)


def _first(text: str, socket: Socket, sid: str, engine: Engine) -> bool:
    """
    Take the first message that is a JSON object; only there feature flags count. Tell whether this was one.
    """
    try:
        body = json.loads(text)
    except ValueError:
        return False
    if not isinstance(body, dict):
        return False
    if body.get("type") == "feature_flags":
        socket.flags = dict(body.get("data") or {})
        engine.sockets.send(Message("feature_flags", features(engine.settings), sid))
    return True
