"""
The SDK's sessions, opened on purpose (`VAST_SESSIONS`), behind the checks that the SDK leaves out.

Its `/session/create` checks no signature: whoever reaches the port can raise the reported load and have the worker POST
anywhere (1.9.1). Here a session is made for a signed grant with a plausible cost, and its hook calls listed hosts only.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from comfy_worker.pyworker import envelope, signature, workload
from comfy_worker.pyworker.config import Config
from comfy_worker.pyworker.public_key import PublicKey

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COST_UNITS = 10
"""A session may count as so many jobs of the benchmark's size."""

LIFETIME_MAX_S = 86_400.0
GRANT = ("cost", "endpoint", "reqnum", "request_idx", "signature", "url")


def routes(config: Config, backend: Any, key: PublicKey) -> list[web.RouteDef]:
    """
    Return the routes of sessions: none unless they were asked for.
    """
    if not config.sessions:
        return []
    return [
        web.post("/session/create", _checked(config, backend, key)),
        web.post("/session/end", backend.session_end_handler),
        web.post("/session/get", backend.session_get_handler),
        web.post("/session/health", backend.session_health_handler),
    ]


def _checked(config: Config, backend: Any, key: PublicKey) -> Handler:
    create: Handler = backend.session_create_handler
    most = COST_UNITS * workload.unit(config.legacy_model)

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            return web.json_response({"error": "invalid JSON"}, status=422)
        problems = problems_of(body, most, config.session_hosts)
        if problems:
            return web.json_response(problems, status=422)
        grant = body["auth_data"]
        if not config.unsecured and not signature.holds(
            key.text, signature.message("sdk", grant), grant["signature"]
        ):
            return web.Response(status=401)
        return await create(request)

    return handle


def problems_of(body: Any, most_cost: float, hosts: frozenset[str]) -> dict[str, Any]:
    """
    Return what is wrong with the body of `/session/create`, by its field.
    """
    if not isinstance(body, dict):
        return {"error": "the body must be an object"}
    grant, payload = body.get("auth_data"), body.get("payload")
    if not isinstance(grant, dict):
        return {"auth_data": "field missing"}
    if not isinstance(payload, dict):
        return {"payload": "field missing"}
    problems = {name: "missing parameter" for name in GRANT if name not in grant}
    if not _within(grant.get("cost", 0), most_cost):
        problems["cost"] = f"must be a number from 0 to {most_cost:g}"
    for name in ("reqnum", "request_idx"):
        if not envelope.is_number(grant.get(name, 0)):
            problems[name] = "must be a number"
    if problems:
        return {"auth_data": problems}
    if not _within(payload.get("lifetime", 60), LIFETIME_MAX_S):
        problems["lifetime"] = f"must be seconds from 0 to {LIFETIME_MAX_S:g}"
    hook = payload.get("on_close_route")
    if hook is not None and not _is_listed(hook, hosts):
        problems["on_close_route"] = "its host is not in VAST_SESSION_HOSTS"
    return {"payload": problems} if problems else {}


def _within(value: Any, most: float) -> bool:
    return envelope.is_number(value) and 0 <= value <= most


def _is_listed(url: Any, hosts: frozenset[str]) -> bool:
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and (parts.hostname or "") in hosts
