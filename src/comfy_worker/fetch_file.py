"""
A response becomes a file, whole or not at all; and what a URL is made of.
"""

import contextlib
import email.message
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import requests

from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable
from comfy_worker.fetch_failures import Again, translated
from comfy_worker.job import UrlAuth

STAGE = "fetching inputs"
CHUNK_BYTES = 64 << 10
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

ReadS3 = Callable[[str, Path, int, Callable[[], None]], str | None]
"""(s3 URL, file to write, most bytes, check) -> MIME type; raises InputUnavailable. `S3Store.read` is one."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """
    A file that is complete; `mime` is what the server called it, `sha256` in hex.

    `name` is the file name that the reply gave, else the last part of the URL that it came from in the end.
    """

    path: Path
    size_bytes: int
    mime: str | None
    sha256: str
    name: str = ""


def origin(url: str) -> tuple[str, str | None, int | None]:
    """
    Return scheme, host and port of a URL, to be compared.
    """
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None


def with_query(url: str, auth: UrlAuth | None) -> str:
    """
    Return the URL with the parameters that its credential asks for.
    """
    if auth is None or not auth.query:
        return url
    parts = urlsplit(url)
    own = {name: value.get_secret_value() for name, value in auth.query}
    kept = [(key, text) for key, text in parse_qsl(parts.query, keep_blank_values=True) if key not in own]
    return urlunsplit(parts._replace(query=urlencode([*kept, *own.items()])))


def _name_in(response: requests.Response) -> str:
    disposition = email.message.Message()
    disposition["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    return disposition.get_filename() or PurePosixPath(unquote(urlsplit(response.url).path)).name


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


def saved(response: requests.Response, to: Path, max_bytes: int, deadline: Deadline) -> Fetched:
    """
    Write a response to the file `to`, which is there only when it is complete.

    Raises:
        Again: the server asks to be asked again.
        InputUnavailable: it answered something else than a file, an empty one, or one that is too large.
    """
    if response.status_code in PASSING:
        raise Again(f"the server answered {response.status_code}")
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
    return Fetched(to, size, mime or None, digest.hexdigest(), _name_in(response))


def from_s3(url: str, to: Path, deadline: Deadline, max_bytes: int, read: ReadS3 | None) -> Fetched:
    """
    Read an s3 URL into the file `to`, as `saved`.

    Raises:
        InputUnavailable: it cannot be had, or nothing can read it.
    """
    if read is None:
        raise InputUnavailable(
            "an s3 URL needs a bucket: BUCKET_ENDPOINT_URL on the worker, or the job's `s3Config`"
        )
    with translated(), _part_of(to) as part:
        mime = read(url, part, max_bytes, partial(deadline.check, STAGE))
        size = part.stat().st_size
        if not size:
            raise InputUnavailable("the file is empty")
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    return Fetched(to, size, mime, digest.hexdigest())


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


def shared(path: Path, to: Path) -> None:
    """
    Give a file a second name; a copy where the file system knows no links.
    """
    try:
        os.link(path, to)
    except OSError:  # the file system knows no links, or the name exists
        with translated():
            shutil.copyfile(path, to)
