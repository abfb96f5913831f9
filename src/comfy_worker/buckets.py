"""
Which bucket a job may use, and for what: its own under the guard of input URLs, the operator's for its own purpose only.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

from comfy_worker.azure import AzureTarget
from comfy_worker.errors import InputUnavailable, JobInvalid
from comfy_worker.fetch_file import ReadS3
from comfy_worker.fetch_guard import Guard
from comfy_worker.job import Bucket, HttpTarget, Target
from comfy_worker.storage.azure import AzureStore
from comfy_worker.storage.hf import HfStore
from comfy_worker.storage.http_put import HttpPut
from comfy_worker.storage.s3 import S3Store, Stores
from comfy_worker.storage.store import Store, Telling, Told

Probe = Callable[[str, Callable[[], None]], None]

DEFAULT_PORTS = {"http": 80, "https": 443}


class Buckets:
    """
    The buckets of one worker; `operator` is the one of its settings, `trusted` are further endpoints of the operator.

    `told` hears of every file that was handed over.
    """

    def __init__(
        self,
        stores: Stores,
        guard: Guard,
        operator: Bucket | None,
        trusted: Collection[str | None] = (),
        told: Told | None = None,
    ) -> None:
        self._stores = stores
        self._guard = guard
        self._operator = operator
        self._trusted = frozenset(trusted)
        self._told = told

    def admit(self, bucket: Bucket | None) -> None:
        """
        Return if a job may use this bucket.

        Raises:
            JobInvalid: its endpoint is no public address, and not the operator's own endpoint.
        """
        if bucket is None or bucket.endpoint_url is None or self._is_trusted(bucket):
            return
        try:
            parts = urlsplit(bucket.endpoint_url)
            host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
        except (LookupError, ValueError) as exc:
            raise JobInvalid(
                "The endpoint of the job's bucket must be an http or https URL.", field="s3Config"
            ) from exc
        try:
            self._guard.addresses(host, port)
        except InputUnavailable as exc:
            raise JobInvalid(
                f"The endpoint of the job's bucket cannot be used: {exc}", field="s3Config"
            ) from exc
        except OSError as exc:
            raise JobInvalid("The endpoint of the job's bucket has no address.", field="s3Config") from exc

    def _is_trusted(self, bucket: Bucket) -> bool:
        if bucket == self._operator or bucket.endpoint_url in self._trusted:
            return True
        known, given = self._operator, bucket.endpoint_url
        return known is not None and given is not None and given.rstrip("/") == known.endpoint_url

    def _s3(self, bucket: Bucket) -> S3Store:
        is_free = bucket.endpoint_url is None or self._is_trusted(bucket)
        return self._stores(bucket, None if is_free else self._guard)

    def store(self, bucket: Bucket | Target) -> Store:
        """
        Return the store to put files into.
        """
        store = self._store(bucket)
        return store if self._told is None else Telling(store, self._told)

    def _store(self, bucket: Bucket | Target) -> Store:
        if isinstance(bucket, Bucket):
            return self._s3(bucket)
        if isinstance(bucket, AzureTarget):
            return AzureStore(bucket)
        return HttpPut(bucket, self._guard) if isinstance(bucket, HttpTarget) else HfStore(bucket)

    def prober(self, bucket: Bucket) -> Probe:
        """
        Return what looks an `s3://` URL up with a job's own keys.
        """
        return self._s3(bucket).probe

    def reader(self, bucket: Bucket | None) -> ReadS3 | None:
        """
        Return what reads `s3://` inputs with a bucket's keys; with the operator's keys only from the operator's bucket.
        """
        if bucket is None:
            return None
        read = self._s3(bucket).read
        if bucket != self._operator:
            return read

        def read_own(url: str, to: Path, max_bytes: int, check: Callable[[], None]) -> str | None:
            if urlsplit(url).netloc != bucket.bucket:
                raise InputUnavailable(
                    "this worker reads s3 URLs from its own bucket only; send the job's `s3Config` for another one"
                )
            return read(url, to, max_bytes, check)

        return read_own
