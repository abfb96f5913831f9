"""
The envelope of a request, looked at before the SDK does: it checks that fields are there, and not what they are.

A `request_idx` that is a list breaks the SDK's loop of reports, which puts it into a set, without any signature; its own
server then reports that it failed to launch (1.9.1). Other wrong types are a 500 with a traceback in the log.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from comfy_worker.pyworker.sdk import Sdk

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WRONG = (TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""What the SDK raises over a body that it did not expect; what its jobs raise it answers itself."""


def handler_class(sdk: Sdk, handler: Any, *, legacy: bool = False) -> Callable[[], Any]:
    """
    Return the `handler_class` of one `HandlerConfig`: its own handler, behind a look at the envelope.

    `legacy` takes grants without `request_idx` too, as the router of 2024 gave them: 0 stands for none.
    """
    factory = sdk.EndpointHandlerFactory(sdk.WorkerConfig(handlers=[handler]))
    generic: Any = type(factory.get_handler(handler.route))

    class CheckedHandler(generic):  # type: ignore[misc]
        @classmethod
        def get_data_from_request(cls, req_data: Any) -> Any:
            whole = with_request_idx(req_data) if legacy else req_data
            problems = problems_of(whole)
            if problems:
                raise sdk.JsonDataException(problems)
            return super().get_data_from_request(whole)

    return CheckedHandler


def with_request_idx(envelope: Any) -> Any:
    """
    Return an envelope whose grant has a `request_idx`.
    """
    grant = envelope.get("auth_data") if isinstance(envelope, dict) else None
    if not isinstance(grant, dict) or "request_idx" in grant:
        return envelope
    return {**envelope, "auth_data": {**grant, "request_idx": 0}}


def problems_of(envelope: Any) -> dict[str, Any]:
    """
    Return what is of a wrong type in an envelope; what is absent is the SDK's to name.
    """
    if not isinstance(envelope, dict):
        return {"error": "the body must be an object"}
    grant = envelope.get("auth_data", {})
    if not isinstance(grant, dict):
        return {"auth_data": "must be an object"}
    wrong = {
        name: "must be a number" for name in ("reqnum", "request_idx") if not is_number(grant.get(name, 0))
    }
    if wrong:
        return {"auth_data": wrong}
    session = envelope.get("session_id")
    return {} if session is None or isinstance(session, str) else {"session_id": "must be a string"}


def is_number(value: Any) -> bool:
    """
    Return whether a value of JSON is a number that can be counted with.
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@web.middleware
async def refused(request: web.Request, handler: Handler) -> web.StreamResponse:
    """
    Answer 422 where a body makes the SDK stumble, with one line in the log that has nothing of it.
    """
    try:
        return await handler(request)
    except WRONG as exc:
        logger.warning(
            "A request to %s is of no form that the SDK knows (%s).", request.path, type(exc).__name__
        )
        return web.json_response(
            {"error": "the body has another form than that of Vast's clients"}, status=422
        )
