"""
Guarded download: a URL that a job names becomes a file, or a sentence that says why not.

http, https and s3 only; where a connection may go is decided in `fetch_guard`. Bounded in size, time and redirects.
The one place where exceptions of requests and urllib3 become ours.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests import exceptions as http
from urllib3 import exceptions as wire

from comfy_worker import __version__, parallel
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobFailed, WorkerError
from comfy_worker.fetch_guard import Guard, Line, PinnedAdapter, Resolve, checked, redirected, resolve

STAGE = "fetching inputs"
MOST_REDIRECTS = 5
CHUNK_BYTES = 64 << 10
PAUSES_S = (0.25, 1.0)
"""Before the second and the third attempt."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
HEADERS = {"User-Agent": f"comfy-worker/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}

ReadS3 = Callable[[str, Path, int, Callable[[], None]], str | None]
"""(s3 URL, file to write, most bytes, check) -> MIME type; raises InputUnavailable. `S3Store.read` is one."""

# The first row whose class fits counts. True: it may work when it is tried again.
FAILURES: tuple[tuple[type[Exception], str, bool], ...] = (
    (http.SSLError, "its certificate was not accepted", False),
    (wire.SSLError, "its certificate was not accepted", False),
    (http.ConnectTimeout, "it could not be reached in time", True),
    (http.Timeout, "it did not answer in time", True),
    (wire.TimeoutError, "it did not answer in time", True),
    (http.ConnectionError, "it could not be reached", True),
    (http.ChunkedEncodingError, "the connection broke before the end", True),
    (wire.ProtocolError, "the connection broke before the end", True),
    (http.ContentDecodingError, "its content could not be decoded", False),
    (wire.DecodeError, "its content could not be decoded", False),
    (http.RequestException, "the request failed", False),
    (wire.HTTPError, "the request failed", False),
    (ValueError, "it is not a valid URL", False),
)


@dataclass(frozen=True, slots=True)
class Item:
    """
    One download: `field` is where the job named the URL, for messages.
    """

    url: str
    to: Path
    field: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """
    A file that is complete; `mime` is what the server called it, `sha256` in hex.
    """

    path: Path
    size_bytes: int
    mime: str | None
    sha256: str


class _Again(Exception):
    """
    A failure that may pass; its text is the reason.
    """


class Fetcher:
    """
    Downloads for jobs. `ca_bundle` names a file of certificates to trust instead of the usual ones.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        allowed_hosts: Collection[str] = (),
        threads: int = 8,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 30.0,
        pauses_s: Sequence[float] = PAUSES_S,
        s3: ReadS3 | None = None,
        resolve: Resolve = resolve,
        ca_bundle: Path | None = None,
    ) -> None:
        self._guard = Guard(allow_private=allow_private, allowed_hosts=allowed_hosts, resolve=resolve)
        self._threads = threads
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._pauses_s = tuple(pauses_s)
        self._s3 = s3
        self._verify = str(ca_bundle) if ca_bundle else True

    def fetch(
        self, url: str, to: Path, deadline: Deadline, *, field: str, max_bytes: int, s3: ReadS3 | None = None
    ) -> Fetched:
        """
        Download one URL into the file `to`, which is there only when it is complete.

        `s3` reads `s3://` URLs with the job's own credentials; without it those of the worker are used.

        Raises:
            InputUnavailable: it cannot or may not be had; the text names `field` and the reason.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        item = Item(url, to, field)
        (result,) = self._run([item], deadline, max_bytes, s3)
        if isinstance(result, InputUnavailable):
            raise InputUnavailable(_text(item, result), field=field) from result
        if isinstance(result, WorkerError):
            raise result
        return result

    def fetch_all(
        self, items: Sequence[Item], deadline: Deadline, *, max_bytes: int, s3: ReadS3 | None = None
    ) -> dict[str, str]:
        """
        Download all items, several at once and each URL once; return why not, by field, for those that failed.

        Raises:
            JobFailed: the worker's disk did not take a file.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        first = {item.url: item for item in reversed(items)}
        results = dict(zip(first, self._run(list(first.values()), deadline, max_bytes, s3), strict=True))
        failures: dict[str, str] = {}
        for item in items:
            result = results[item.url]
            if isinstance(result, InputUnavailable):
                failures[item.field] = _text(item, result)
            elif isinstance(result, WorkerError):
                raise result
            elif result.path != item.to:
                _shared(result.path, item.to)
        return failures

    def _run(
        self, items: Sequence[Item], deadline: Deadline, max_bytes: int, s3: ReadS3 | None
    ) -> list[Fetched | WorkerError]:
        line = Line(self._guard)
        try:
            return parallel.each(
                [partial(self._get, line, item, deadline, max_bytes, s3 or self._s3) for item in items],
                threads=self._threads,
                deadline=deadline,
                stage=STAGE,
                interrupt=line.cut,
            )
        finally:
            line.close()

    def _get(self, line: Line, item: Item, deadline: Deadline, max_bytes: int, s3: ReadS3 | None) -> Fetched:
        if item.url[:5].lower() == "s3://":
            return _from_s3(item, deadline, max_bytes, s3)
        for pause_s in (*self._pauses_s, None):
            try:
                return self._once(line, item, deadline, max_bytes)
            except _Again as again:
                deadline.check(STAGE)
                if pause_s is None:
                    raise InputUnavailable(str(again)) from again
                deadline.wait(STAGE, pause_s)
        raise AssertionError("the last attempt returned or raised")

    def _once(self, line: Line, item: Item, deadline: Deadline, max_bytes: int) -> Fetched:
        url = item.url
        with contextlib.closing(PinnedAdapter(line)) as adapter:
            for _ in range(MOST_REDIRECTS + 1):
                deadline.check(STAGE)
                with _translated(), contextlib.closing(self._ask(adapter, url, deadline)) as response:
                    if not response.is_redirect:
                        return _saved(response, item.to, max_bytes, deadline)
                    url = redirected(response)
        raise InputUnavailable(f"it redirects more than {MOST_REDIRECTS} times")

    def _ask(self, adapter: PinnedAdapter, url: str, deadline: Deadline) -> requests.Response:
        request = requests.Request("GET", checked(url), HEADERS).prepare()
        connect_s, read_s = (max(0.01, min(limit, deadline.left_s)) for limit in self._timeouts_s)
        return adapter.send(request, stream=True, timeout=(connect_s, read_s), verify=self._verify)


def shown(url: str) -> str:
    """
    Return a URL as it may be shown: scheme, host and path; no user, password, query or fragment.
    """
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}:{parts.port}" if parts.port else parts.hostname or ""
    except ValueError:
        return ""
    path = parts.path if len(parts.path) <= 200 else f"{parts.path[:200]}…"
    return f"{parts.scheme}://{host}{path}" if host else ""


def _text(item: Item, error: InputUnavailable) -> str:
    where = shown(item.url)
    return f"'{item.field}' could not be fetched{f' from {where}' if where else ''}: {error}"


def _saved(response: requests.Response, to: Path, max_bytes: int, deadline: Deadline) -> Fetched:
    if response.status_code in PASSING:
        raise _Again(f"the server answered {response.status_code}")
    if not 200 <= response.status_code < 300:
        raise InputUnavailable(f"the server answered {response.status_code}")
    announced = response.headers.get("Content-Length", "")
    if announced.isascii() and announced.isdigit():
        _check(int(announced), max_bytes)
    digest, size = hashlib.sha256(), 0
    with _part_of(to) as part, part.open("wb") as file:
        # read1 comes back with what there is, so that a slow sender cannot hold this loop from its checks.
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            deadline.check(STAGE)
            size += len(chunk)
            _check(size, max_bytes)
            digest.update(chunk)
            file.write(chunk)
        if not size:
            raise InputUnavailable("the file is empty")
    mime = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Fetched(to, size, mime or None, digest.hexdigest())


def _from_s3(item: Item, deadline: Deadline, max_bytes: int, read: ReadS3 | None) -> Fetched:
    if read is None:
        raise InputUnavailable(
            "an s3 URL needs a bucket: BUCKET_ENDPOINT_URL on the worker, or the job's `s3Config`"
        )
    with _translated(), _part_of(item.to) as part:
        mime = read(item.url, part, max_bytes, partial(deadline.check, STAGE))
        size = part.stat().st_size
        if not size:
            raise InputUnavailable("the file is empty")
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    return Fetched(item.to, size, mime, digest.hexdigest())


def _check(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputUnavailable(f"it has more than {max_bytes:,} bytes, the most an input may have")


@contextlib.contextmanager
def _part_of(to: Path) -> Iterator[Path]:
    """
    Give a name beside `to`; what was written there becomes `to` when the block ends well, and is gone when not.
    """
    part = to.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
        os.replace(part, to)
    finally:
        part.unlink(missing_ok=True)


def _shared(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # the file system knows no links, or the name exists
        with _translated():
            shutil.copyfile(path, to)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (http.RequestException, wire.HTTPError, ValueError) as exc:
        text, passes = next((text, passes) for kind, text, passes in FAILURES if isinstance(exc, kind))
        raise (_Again if passes else InputUnavailable)(text) from exc
    except OSError as exc:
        raise JobFailed(
            "An input could not be saved: the worker's disk is full or cannot be written to."
        ) from exc
