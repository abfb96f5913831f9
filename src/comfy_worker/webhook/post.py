"""
One attempt to deliver a message: one POST, bounded in time, to a judged address, without following a redirect.

Nothing is raised: what went wrong is the text of an answer.
"""

import email.utils
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import requests
from requests import exceptions as http
from urllib3 import exceptions as wire

from comfy_worker import __version__
from comfy_worker.errors import InputUnavailable, JobInvalid
from comfy_worker.fetch_failures import FAILURES
from comfy_worker.fetch_guard import Guard, Line, PinnedAdapter, checked

IN_MEMORY_BYTES = 1 << 20
SLOWEST_BYTES_PER_S = 500_000
"""What an attempt may take beyond its limit: the time a large body needs on a slow line."""

CONNECT_S = 10.0
REPLY_BYTES = 64 << 10
"""A longer reply is not read; its connection is closed."""

REUSED_MOST = 100
STALE_S = 1.0
"""A connection that its receiver had closed fails at once, or not for that reason."""

HEADERS = {"Content-Type": "application/json", "User-Agent": f"comfy-worker/{__version__}"}


def checked_url(url: Any, field: str) -> str:
    """
    Return a webhook's URL when it is one that may be posted to.

    Raises:
        JobInvalid: it is no http or https URL with a host, or holds a user or password.
    """
    text = url.strip() if isinstance(url, str) else ""
    try:
        usable = bool(text) and checked(text) == text
    except (InputUnavailable, wire.HTTPError):
        usable = False
    if not usable:
        raise JobInvalid(
            f"'{field}' must be an http or https URL with a host, without user or password", field=field
        )
    return text


def host_of(url: str) -> str:
    """
    Return `scheme://host:port` of a URL: what may be said of it, since its path and query may be secrets.
    """
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except ValueError:
        return "an invalid URL"


class Body:
    """
    The bytes of a message; many of them wait in a file instead of in memory.
    """

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data: bytes | None = data
        self._file: IO[bytes] | None = None
        if self.size > IN_MEMORY_BYTES:
            self._spool(data)

    def _spool(self, data: bytes) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="comfy-worker-webhook-")  # noqa: SIM115 - lives with the message
            self._file.write(data)
            self._file.flush()
        except OSError:
            self.close()  # a full disk: it stays in memory
            return
        self._data = None

    def pieces(self) -> Iterator[bytes]:
        """
        Yield the bytes.
        """
        if self._data is not None or self._file is None:
            yield self._data or b""
            return
        self._file.seek(0)
        while piece := self._file.read(IN_MEMORY_BYTES):
            yield piece

    def sendable(self) -> "bytes | IO[bytes]":
        """
        Return what requests sends: the bytes, or the file from its beginning.
        """
        if self._data is not None or self._file is None:
            return self._data or b""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """
        Let go of the file.
        """
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What came of an attempt: `problem` is None when it was delivered. `again_s` is what Retry-After asked for.
    """

    problem: str | None = None
    final: bool = False
    again_s: float = 0.0


DELIVERED = Answer()


class Poster:
    """
    The connection of one thread. It is kept while one message follows the other. `cut` may come from any thread.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._session: requests.Session | None = None
        self._used = 0
        self._is_cut = False

    def post(self, url: str, headers: Mapping[str, str], body: Body, limit_s: float) -> Answer:
        """
        Post once, within `limit_s` seconds (more for a large body).
        """
        limit_s += body.size / SLOWEST_BYTES_PER_S
        was_used, began = self._used > 0, time.monotonic()
        try:
            try:
                return self._posted(url, headers, body, limit_s)
            except http.ConnectionError as exc:
                self.rest()
                if not was_used or isinstance(exc, http.Timeout) or time.monotonic() - began > STALE_S:
                    raise
                # The receiver had closed the connection meanwhile: that says nothing about this message.
                return self._posted(url, headers, body, limit_s)
        except InputUnavailable as exc:
            self.rest()
            return Answer(str(exc), final=True)
        except (requests.RequestException, wire.HTTPError, ValueError, OSError) as exc:
            self.rest()
            return Answer(
                next((text for kind, text, _ in FAILURES if isinstance(exc, kind)), "the connection broke")
            )

    def _posted(self, url: str, headers: Mapping[str, str], body: Body, limit_s: float) -> Answer:
        session, line = self._opened()
        clock = threading.Timer(limit_s, line.cut)
        clock.daemon = True
        clock.start()
        try:
            response = session.post(
                url,
                data=body.sendable(),
                headers={**HEADERS, **headers},
                timeout=(min(CONNECT_S, limit_s), limit_s),
                allow_redirects=False,
                stream=True,
            )
            answer = answer_of(response)
            if not _drained(response):
                self.rest()
            return answer
        finally:
            clock.cancel()

    def _opened(self) -> tuple[requests.Session, Line]:
        if self._used >= REUSED_MOST:
            self.rest()
        with self._lock:
            if self._session is None or self._line is None:
                self._line = Line(self._guard)
                self._session = requests.Session()
                self._session.trust_env = False
                for scheme in ("http://", "https://"):
                    self._session.mount(scheme, PinnedAdapter(self._line))
            if self._is_cut:
                self._line.cut()
            self._used += 1
            return self._session, self._line

    def rest(self) -> None:
        """
        Close the connection, if there is one.
        """
        with self._lock:
            session, line = self._session, self._line
            self._session, self._line, self._used = None, None, 0
        if session is not None:
            session.close()
        if line is not None:
            line.close()

    def cut(self) -> None:
        """
        End what is in flight, and let nothing more out.
        """
        with self._lock:
            self._is_cut = True
            if self._line is not None:
                self._line.cut()


def answer_of(response: requests.Response) -> Answer:
    """
    Judge a receiver's answer: 2xx is delivered, 410 means that it wants no more, all else is tried again.
    """
    status = response.status_code
    if 200 <= status < 300:
        return DELIVERED
    if status == 410:
        return Answer("it answered 410: it is gone", final=True)
    note = ", and redirects are not followed" if 300 <= status < 400 else ""
    return Answer(f"it answered {status}{note}", again_s=retry_after_s(response.headers.get("Retry-After")))


def retry_after_s(text: str | None, now: float | None = None) -> float:
    """
    Return the seconds that a Retry-After header asks for, 0 for one that cannot be read.
    """
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - (
                time.time() if now is None else now
            )
        except (ValueError, OverflowError, OSError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _drained(response: requests.Response) -> bool:
    """
    Read a short reply to its end, so that the connection can be used again; return whether it was.
    """
    length = response.headers.get("Content-Length", "")
    # Python reads no number of more than 4,300 digits, and a message that was taken must not be sent again for that.
    if not length.isdecimal() or len(length) > len(str(REPLY_BYTES)) or int(length) > REPLY_BYTES:
        return False
    try:
        return len(response.raw.read(REPLY_BYTES, decode_content=False)) == int(length)
    except (requests.RequestException, wire.HTTPError, OSError):
        return False
