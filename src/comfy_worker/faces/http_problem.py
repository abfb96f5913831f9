"""
What goes wrong in an HTTP face: every exception as one `Problem`, and a problem as a response.

A face that words its failures in another dialect passes its own `Render` to the factory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfy_worker.errors import ComfyUnavailable, WorkerBusy, WorkerError
from comfy_worker.faces.reply import shown
from comfy_worker.log import MASK

RETRY_AFTER_S = 5
"""What a caller is told to wait when the queue is full or ComfyUI is away."""

CODES = {
    400: "request_invalid",
    401: "unauthorized",
    403: "cross_site",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
    415: "media_type_unsupported",
    503: "worker_busy",
}
MOST_ERRORS = 10
TEXT_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Problem:
    """
    Why a request is answered with `status`: a code that is stable, a sentence without secrets, further facts.

    `invalid` names the fields that are wrong, `(path, reason)` each, when the request did not fit its schema; a path is
    `("body", "input", "width")`. `error` is the exception of the tree when there is one (its `partial` may hold files).
    """

    status: int
    code: str
    message: str
    retryable: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    invalid: tuple[tuple[tuple[str | int, ...], str], ...] = ()
    error: WorkerError | None = None


Render = Callable[[Request, Problem], Response]
"""Words a problem in a face's dialect. It must not raise, and should send `problem.headers` along."""


class Json(Response):
    """
    A JSON response, encoded at once by orjson.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """
        Return the body.
        """
        return orjson.dumps(content)


class Parts(Response):
    """
    A JSON response that is there in parts already, which are sent without being joined.
    """

    def __init__(self, parts: Sequence[bytes], status: int = 200) -> None:
        self._parts = parts
        size = sum(len(part) for part in parts)
        super().__init__(None, status, {"content-length": str(size), "content-type": "application/json"})

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """
        Send it.
        """
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def plain(request: Request, problem: Problem) -> Response:
    """
    Return a problem in our own words: `error`, `error_code`, `retryable`, `request_id`, and the details beside them.
    """
    body = {
        **MASK.value(dict(problem.details)),
        "error": problem.message,
        "error_code": problem.code,
        "retryable": problem.retryable,
        "request_id": request_id_of(request),
    }
    return Json(body, problem.status, headers=dict(problem.headers))


def request_id_of(request: Request) -> str:
    """
    Return the id of a request: its own X-Request-ID where that is one, else ours.
    """
    return str(request.scope.get("state", {}).get("request_id", ""))


def problem_of(exc: BaseException) -> Problem:
    """
    Return what an exception means for the caller; one that is not expected says nothing about itself.
    """
    if isinstance(exc, WorkerError):
        waits = isinstance(exc, (WorkerBusy, ComfyUnavailable))
        return Problem(
            exc.http_status,
            exc.code,
            shown(str(exc)),
            exc.retryable,
            exc.details,
            {"retry-after": str(RETRY_AFTER_S)} if waits else {},
            error=exc,
        )
    if isinstance(exc, RequestValidationError):
        found = tuple(_invalid(exc))
        return Problem(400, CODES[400], "; ".join(_sentence(*item) for item in found[:3]), invalid=found)
    if isinstance(exc, HTTPException):
        code = CODES.get(exc.status_code, "request_invalid" if exc.status_code < 500 else WorkerError.code)
        retryable = exc.status_code in (408, 503)
        return Problem(exc.status_code, code, shown(exc.detail), retryable, headers=exc.headers or {})
    text = "The worker failed on this request; its log has the reason."
    return Problem(WorkerError.http_status, WorkerError.code, text)


def _invalid(exc: RequestValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    # A pydantic error also holds the value, which may be a secret: only the place and the reason are shown.
    for item in exc.errors()[:MOST_ERRORS]:
        path = tuple(part if isinstance(part, int) else shown(part)[:80] for part in item["loc"])
        if item["type"] == "json_invalid":
            yield ("body",), f"is not JSON: {shown(str(item.get('ctx', {}).get('error', '')))}"[:TEXT_LIMIT]
        else:
            yield path, shown(str(item["msg"]))[:TEXT_LIMIT]


def _sentence(path: tuple[str | int, ...], reason: str) -> str:
    return f"'{'.'.join(str(part) for part in path)}': {reason}"
