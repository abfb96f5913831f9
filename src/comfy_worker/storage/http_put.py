"""
Files to a web server: one PUT each, streamed from disk, to judged addresses only. A `store.Store`.
"""

import contextlib
import io
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import requests

from comfy_worker.errors import DeliveryFailed, InputUnavailable
from comfy_worker.fetch_failures import Again, translated
from comfy_worker.fetch_guard import Guard, Line, PinnedAdapter, checked
from comfy_worker.job import HttpTarget

CONNECT_S, REPLY_S = 10.0, 300.0
PAUSES_S = (0.5, 2.0)
"""Before the second and the third attempt."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Body(io.BufferedReader):
    """
    A file that asks before each read whether it may go on.
    """

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path))
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


class HttpPut:
    """
    The server behind one target. `sleep` waits between attempts.
    """

    def __init__(self, target: HttpTarget, guard: Guard, sleep: Callable[[float], None] = time.sleep) -> None:
        self._target = target
        self._guard = guard
        self._sleep = sleep

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> str:
        """
        Send `content` to `<url_prefix>/<key>`, again where that may help; return that URL.

        Raises:
            DeliveryFailed: `Upload failed with status N: <reason>`, or why no answer came.
        """
        url = url_of(self._target.url_prefix, key)
        for pause_s in (*PAUSES_S, None):
            check()
            try:
                status = self._once(url, content, mime, check)
            except InputUnavailable as exc:
                raise DeliveryFailed(f"The file could not be sent: {exc}") from exc
            except Again as exc:
                if pause_s is None:
                    raise DeliveryFailed(f"The file could not be sent: {exc}") from exc
            else:
                if 200 <= status < 300:
                    return url
                if pause_s is None or status not in PASSING:
                    raise DeliveryFailed(f"Upload failed with status {status}: {_phrase(status)}")
            self._sleep(pause_s)
        raise AssertionError("the last attempt returned or raised")

    def _once(self, url: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> int:
        line = Line(self._guard)
        headers = {name: value.get_secret_value() for name, value in self._target.headers}
        try:
            with (
                translated(),
                contextlib.closing(PinnedAdapter(line)) as adapter,
                contextlib.closing(
                    io.BytesIO(content) if isinstance(content, bytes) else _Body(content, check)
                ) as body,
            ):
                request = requests.Request("PUT", checked(url), {**headers, "Content-Type": mime}, data=body)
                response = adapter.send(request.prepare(), stream=True, timeout=(CONNECT_S, REPLY_S))
                response.close()
                return response.status_code
        finally:
            line.close()


def url_of(prefix: str, name: str) -> str:
    """
    Return where a file goes: its name, percent-encoded, behind the path of the prefix and before its query.
    """
    parts = urlsplit(prefix)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"
