"""
Guarded download: a URL that a job names becomes a file, or a sentence that says why not.

http, https and s3 only; where a connection may go is decided in `fetch_guard`. Bounded in size, time and redirects.
How its exceptions become ours is in `fetch_failures`.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import requests

from comfy_worker import __version__, parallel
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, WorkerError
from comfy_worker.fetch_failures import FAILURES as FAILURES
from comfy_worker.fetch_failures import Again, translated
from comfy_worker.fetch_file import PASSING as PASSING
from comfy_worker.fetch_file import STAGE, Fetched, ReadS3, from_s3, origin, saved, shared, with_query
from comfy_worker.fetch_file import shown as shown
from comfy_worker.fetch_guard import Guard, Line, PinnedAdapter, Resolve, checked, redirected, resolve
from comfy_worker.job import UrlAuth

MOST_REDIRECTS = 5
Got = TypeVar("Got")
PAUSES_S = (0.25, 1.0)
"""Before the second and the third attempt."""

HEADERS = {"User-Agent": f"comfy-worker/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Item:
    """
    One download: `field` is where the job named the URL, for messages.

    `auth` goes to the origin of the URL only. `s3` and `probe` read and look up an s3 URL with keys of its own.
    """

    url: str
    to: Path
    field: str
    auth: UrlAuth | None = None
    s3: ReadS3 | None = None
    probe: Callable[[str, Callable[[], None]], None] | None = None


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
        self,
        url: str,
        to: Path,
        deadline: Deadline,
        *,
        field: str,
        max_bytes: int,
        s3: ReadS3 | None = None,
        auth: UrlAuth | None = None,
    ) -> Fetched:
        """
        Download one URL into the file `to`, which is there only when it is complete.

        `s3` reads `s3://` URLs with the job's own credentials; without it those of the worker are used.

        Raises:
            InputUnavailable: it cannot or may not be had; the text names `field` and the reason.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        return self.fetch_item(Item(url, to, field, auth), deadline, max_bytes=max_bytes, s3=s3)

    def fetch_item(
        self, item: Item, deadline: Deadline, *, max_bytes: int, s3: ReadS3 | None = None
    ) -> Fetched:
        """
        Download one item, as `fetch`.

        Raises:
            InputUnavailable: it cannot or may not be had; the text names its field and the reason.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        (result,) = self._run([item], deadline, max_bytes, s3)
        if isinstance(result, InputUnavailable):
            raise InputUnavailable(_text(item, result), field=item.field) from result
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
                shared(result.path, item.to)
        return failures

    def _run(
        self, items: Sequence[Item], deadline: Deadline, max_bytes: int, s3: ReadS3 | None
    ) -> list[Fetched | WorkerError]:
        line = Line(self._guard)
        try:
            return parallel.each(
                [
                    partial(self._get, line, item, deadline, max_bytes, item.s3 or s3 or self._s3)
                    for item in items
                ],
                threads=self._threads,
                deadline=deadline,
                stage=STAGE,
                interrupt=line.cut,
            )
        finally:
            line.close()

    def _get(self, line: Line, item: Item, deadline: Deadline, max_bytes: int, s3: ReadS3 | None) -> Fetched:
        if item.url[:5].lower() == "s3://":
            return from_s3(item.url, item.to, deadline, max_bytes, s3)
        for pause_s in (*self._pauses_s, None):
            try:
                return self._once(line, item, deadline, max_bytes)
            except Again as again:
                deadline.check(STAGE)
                if pause_s is None:
                    raise InputUnavailable(str(again)) from again
                deadline.wait(STAGE, pause_s)
        raise AssertionError("the last attempt returned or raised")

    def _once(self, line: Line, item: Item, deadline: Deadline, max_bytes: int) -> Fetched:
        return self._asked(
            line, "GET", item, deadline, lambda response: saved(response, item.to, max_bytes, deadline)
        )

    def _asked(
        self, line: Line, method: str, item: Item, deadline: Deadline, use: Callable[[requests.Response], Got]
    ) -> Got:
        """
        Ask for a URL, follow where it leads, and return what `use` makes of the last response.
        """
        url, auth = item.url, item.auth
        with contextlib.closing(PinnedAdapter(line)) as adapter:
            for _ in range(MOST_REDIRECTS + 1):
                deadline.check(STAGE)
                with (
                    translated(),
                    contextlib.closing(self._ask(adapter, method, url, auth, deadline)) as response,
                ):
                    if not response.is_redirect:
                        return use(response)
                    url = redirected(response)
                    if origin(url) != origin(item.url):
                        auth = None
        raise InputUnavailable(f"it redirects more than {MOST_REDIRECTS} times")

    def probe(self, item: Item, deadline: Deadline) -> None:
        """
        Ask whether an http URL may be had with these credentials, without its content.

        Raises:
            InputUnavailable: it may not; the text is the reason only.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        line = Line(self._guard)
        try:
            status = self._asked(line, "HEAD", item, deadline, lambda response: response.status_code)
            if status == 405:
                status = self._asked(line, "GET", item, deadline, lambda response: response.status_code)
        except Again as again:
            raise InputUnavailable(str(again)) from again
        finally:
            line.close()
        if not 200 <= status < 300:
            raise InputUnavailable(f"the server answered {status}")

    def _ask(
        self, adapter: PinnedAdapter, method: str, url: str, auth: UrlAuth | None, deadline: Deadline
    ) -> requests.Response:
        headers = HEADERS | {name: value.get_secret_value() for name, value in (auth.headers if auth else ())}
        request = requests.Request(method, checked(with_query(url, auth)), headers).prepare()
        connect_s, read_s = (max(0.01, min(limit, deadline.left_s)) for limit in self._timeouts_s)
        return adapter.send(request, stream=True, timeout=(connect_s, read_s), verify=self._verify)


def _text(item: Item, error: InputUnavailable) -> str:
    where = shown(item.url)
    return f"'{item.field}' could not be fetched{f' from {where}' if where else ''}: {error}"
