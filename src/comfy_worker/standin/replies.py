"""
The few forms in which the engine answers, and how a request body is read. Source: ComfyUI 0.27.0.
"""

import json
from typing import Any

from aiohttp import web

ENGINE: web.AppKey[Any] = web.AppKey("engine")


class Crash(Exception):
    """
    A request on which ComfyUI itself fails: 500 with a fixed text.
    """


def as_json(data: Any, status: int = 200) -> web.Response:
    """
    Answer with JSON in Python's default form.
    """
    return web.Response(text=json.dumps(data), status=status, content_type="application/json")


def empty(status: int = 200) -> web.Response:
    """
    Answer without a body.
    """
    return web.Response(status=status)


def crashed() -> web.Response:
    """
    Answer as a server does that failed inside.
    """
    return web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")


async def read_json(request: web.Request) -> Any:
    """
    Return the JSON body, whatever its Content-Type.

    Raises:
        Crash: it is no JSON.
    """
    raw = await request.read()
    try:
        return json.loads(raw)
    except ValueError as exc:
        raise Crash from exc


def field(body: Any, name: str, default: Any = None) -> Any:
    """
    Return a key of a JSON body.

    Raises:
        Crash: the body is no object.
    """
    if not isinstance(body, dict):
        raise Crash
    return body.get(name, default)
