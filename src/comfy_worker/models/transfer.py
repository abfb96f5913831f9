"""
One attempt at one file over HTTP: start or continue the partial file, count and hash what comes.

The one place of this package where exceptions of requests, urllib3 and the disk become ours.
"""

import contextlib
import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3 import exceptions as wire

from comfy_worker.errors import InputUnavailable, ModelUnavailable
from comfy_worker.fetch import HEADERS, MOST_REDIRECTS
from comfy_worker.fetch_failures import FAILURES
from comfy_worker.fetch_file import PASSING
from comfy_worker.fetch_guard import PinnedAdapter, checked, redirected
from comfy_worker.models.lines import Lines
from comfy_worker.models.lock import Hold
from comfy_worker.models.plan import Item
from comfy_worker.models.tokens import Tokens

CHUNK_BYTES = 256 << 10
LONGEST_VALIDATOR = 400
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Tick = Callable[[int], None]
"""Called with the bytes that are there; says that we are alive, and raises when time is over."""


class Again(Exception):
    """
    A failure that may pass; `after_s` is what the server asked to wait.
    """

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Wire:
    """
    How requests are sent: over lines that can be cut, with tokens for their own hosts only.
    """

    def __init__(self, lines: Lines, tokens: Tokens, timeouts_s: tuple[float, float]) -> None:
        self._lines = lines
        self._tokens = tokens
        self._timeouts_s = timeouts_s

    @contextlib.contextmanager
    def get(self, item: Item, headers: dict[str, str]) -> Iterator[requests.Response]:
        """
        Ask for an item and follow redirects; each address is judged, and given the token of its own host or none.
        """
        url = item.url
        with self._lines.one() as line, contextlib.closing(PinnedAdapter(line)) as adapter:
            for _ in range(MOST_REDIRECTS + 1):
                request = requests.Request(
                    "GET", checked(url), {**HEADERS, **headers, **self._tokens.headers(url)}
                )
                sent = adapter.send(request.prepare(), stream=True, timeout=self._timeouts_s)
                with contextlib.closing(sent) as response:
                    if not response.is_redirect:
                        yield response
                        return
                    url = redirected(response)
        raise ModelUnavailable(f"{named(item)}: it redirects more than {MOST_REDIRECTS} times.")

    def refused(self, item: Item, response: requests.Response) -> ModelUnavailable:
        """
        Return the sentence for an answer that is no file.
        """
        host, status = urlsplit(response.url or item.url).hostname, response.status_code
        if status in (401, 403):
            return ModelUnavailable(_forbidden(item, status, str(host), self._tokens.has(item.url)))
        if status == 404:
            return ModelUnavailable(f"{named(item)}: {host} has no such file (404).")
        return ModelUnavailable(f"{named(item)}: {host} answered {status}.")


def pull(wire_: Wire, item: Item, part: Path, hold: Hold, tick: Tick) -> str:
    """
    Complete the partial file; return the sha256 of the whole.

    Raises:
        Again: it broke off, or the partial file was of no use; another attempt may do it.
        ModelUnavailable: it will not work.
    """
    with translated(item):
        have = part.stat().st_size if part.exists() else 0
        if have and have == item.size:
            return _hashed(part, tick)
        with wire_.get(item, _range(item, have, hold.validator)) as response:
            offset = _offset(wire_, item, response, have, part)
            announced = response.headers.get("Content-Length", "")
            if announced.isascii() and announced.isdigit():
                _check_size(item, offset + int(announced), part)
            hold.remember(_validator(response))
            return _stream(response, part, offset, tick)


def forget(part: Path) -> None:
    """
    Remove a partial file.
    """
    part.unlink(missing_ok=True)


def _range(item: Item, have: int, validator: str) -> dict[str, str]:
    if not have or not (validator or item.sha256):
        return {}  # without either, two versions of a file could be sewn together
    return {"Range": f"bytes={have}-", **({"If-Range": validator} if validator else {})}


def _validator(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")
    found = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return found if len(found) <= LONGEST_VALIDATOR else ""


def _offset(wire_: Wire, item: Item, response: requests.Response, have: int, part: Path) -> int:
    status = response.status_code
    if status == 206:
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            forget(part)
            raise Again("the server sent another range than it was asked for")
        return have
    if status == 416:
        forget(part)
        raise Again("the partial file did not fit")
    if status in PASSING:
        raise Again(f"the server answered {status}", _retry_after(response))
    if status != 200:
        raise wire_.refused(item, response)
    return 0


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _check_size(item: Item, size: int, part: Path) -> None:
    if item.size is not None and size != item.size:
        forget(part)
        raise ModelUnavailable(
            f"{named(item)}: the server's file has {size:,} bytes, not {item.size:,} as its manifest says."
        )


def _stream(response: requests.Response, part: Path, offset: int, tick: Tick) -> str:
    with part.open("r+b" if offset else "wb") as file:
        digest = _digest_of(file, offset, tick)
        size = offset
        # read1 comes back with what there is, so that a slow sender cannot hold this loop from its checks.
        while chunk := response.raw.read1(CHUNK_BYTES):
            file.write(chunk)
            size += len(chunk)
            digest.update(chunk)
            tick(size)
    return str(digest.hexdigest())


def _digest_of(file: Any, length: int, tick: Tick) -> Any:
    digest = hashlib.sha256()
    left = length
    while left and (chunk := file.read(min(left, 4 * CHUNK_BYTES))):
        left -= len(chunk)
        digest.update(chunk)
        tick(length - left)
    return digest


def _hashed(path: Path, tick: Tick) -> str:
    with path.open("rb") as file:
        return str(_digest_of(file, path.stat().st_size, tick).hexdigest())


def sha256_of(item: Item, tick: Tick) -> str:
    """
    Return the sha256 of a target that is there.
    """
    with translated(item):
        return _hashed(item.to, tick)


def named(item: Item) -> str:
    """
    Return what an item is called in messages: its file and its host, no query.
    """
    host = urlsplit(item.url).hostname
    return item.title if item.repo is None else f"{item.title} from {host}"


def _forbidden(item: Item, status: int, host: str, with_token: bool) -> str:
    page = f"https://huggingface.co/{item.repo}" if item.repo else "its page"
    name = "HF_TOKEN" if item.repo else "the token of that host (CIVITAI_TOKEN)"
    if with_token:
        return f"{named(item)}: {host} refused the token ({status}): accept the conditions on {page}, with the account of the token."
    return f"{named(item)}: {host} wants a token ({status}): accept the conditions on {page} and set {name}."


def no_token(item: Item) -> ModelUnavailable:
    """
    Return the sentence for a gated file without a token.
    """
    page = f"https://huggingface.co/{item.repo}" if item.repo else "its page"
    return ModelUnavailable(
        f"{item.title} is gated and there is no token: accept the conditions on {page} and set HF_TOKEN (for a build HUGGINGFACE_ACCESS_TOKEN)."
    )


@contextlib.contextmanager
def translated(item: Item) -> Iterator[None]:
    """
    Turn foreign exceptions into `Again` or `ModelUnavailable`.
    """
    try:
        yield
    except InputUnavailable as exc:
        raise ModelUnavailable(f"{named(item)}: {exc}.") from exc
    except (requests.RequestException, wire.HTTPError, ValueError) as exc:
        text, passes = next((text, passes) for kind, text, passes in FAILURES if isinstance(exc, kind))
        if passes:
            raise Again(text) from exc
        raise ModelUnavailable(f"{named(item)}: {text}.") from exc
    except OSError as exc:
        if exc.errno in FULL:
            raise ModelUnavailable(f"{named(item)}: the disk is full.", disk_full=True) from exc
        raise ModelUnavailable(f"{named(item)}: the models folder cannot be written to.") from exc
