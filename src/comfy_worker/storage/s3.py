"""
S3 and everything that speaks it: put files, hand out links, read inputs.

boto3 is imported here, in `parts` and in `s3_errors` only, and takes a third of a second: by the first use of a bucket,
not by this module.
No text that leaves here holds a key, a signature or the query of a signed URL.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from comfy_worker.errors import DeliveryFailed, InputUnavailable
from comfy_worker.fetch_guard import Guard
from comfy_worker.job import Bucket
from comfy_worker.storage import parts
from comfy_worker.storage.endpoint import check, hints, region_of, without_bucket
from comfy_worker.storage.pinned import pin
from comfy_worker.storage.s3_errors import broken_streams, translated

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client

__all__ = ["PART_BYTES", "S3Store", "Stores", "check", "hints"]

PART_BYTES = parts.PART_BYTES
_READ_BYTES = 256 << 10
_MOST_CLIENTS = 16  # jobs may bring their own bucket
_ATTEMPTS = 3


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long S3 may take, in seconds, and how often a transient failure is tried again.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    retries: int = 3


class Stores:
    """
    Makes the store of a bucket; clients are shared by all stores with the same endpoint and credentials. Thread-safe.
    """

    def __init__(self, patience: Patience = Patience(), today: Callable[[], date] = date.today) -> None:
        self._patience = patience
        self._today = today
        self._lock = threading.Lock()
        self._clients: OrderedDict[tuple[Any, ...], S3Client] = OrderedDict()
        self._session: Session | None = None

    def __call__(self, bucket: Bucket, guard: Guard | None = None) -> "S3Store":
        """
        Return the store; with a guard, which a bucket of a job needs, it connects to judged addresses only.
        """
        return S3Store(bucket, partial(self._client, guard=guard), self._today)

    def _client(self, bucket: Bucket, guard: Guard | None = None) -> "S3Client":
        key = (*_identity(bucket), guard)
        with self._lock:
            client = self._clients.get(key)
            if client is None:
                # A session of its own, for making clients is not thread-safe in boto3's common one.
                self._session = self._session or _session()
                client = self._clients[key] = _connect(self._session, bucket, self._patience)
                if guard is not None:
                    pin(client, guard)
            self._clients.move_to_end(key)
            while len(self._clients) > _MOST_CLIENTS:
                self._clients.popitem(last=False)[1].close()
        return client

    def close(self) -> None:
        """
        Close the idle connections of every client.
        """
        with self._lock:
            while self._clients:
                self._clients.popitem()[1].close()


class S3Store:
    """
    One bucket; a `store.Store`. `bucket.bucket` None is the legacy layout: the month stands where the bucket does.
    """

    def __init__(
        self, bucket: Bucket, client: Callable[[Bucket], "S3Client"], today: Callable[[], date]
    ) -> None:
        self._bucket = bucket
        self._client = client
        self._today = today

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None] = _nothing) -> str:
        """
        Store `content` under `key`, streamed from disk, in parts of 8 MiB when it is larger; return a URL for it.

        `check` is called while bytes are sent; what it raises ends the upload.

        Raises:
            DeliveryFailed: the reason, with HTTP status and S3 error code, without the file's name.
        """
        with translated(DeliveryFailed, check):
            name = self._bucket.bucket or f"{self._today():%m-%y}"
            client = self._client(self._bucket)
            _send(client, name, key, content, mime, check)
            return self._link(client, name, key)

    def read(self, url: str, to: Path, max_bytes: int, check: Callable[[], None] = _nothing) -> str | None:
        """
        Write the object that `s3://bucket/key` names into the file `to`; return its MIME type if it has one.

        Raises:
            InputUnavailable: it is not there, may not be read, or is larger than `max_bytes`.
        """
        name, _, key = url.removeprefix("s3://").partition("/")
        if not name or not key:
            raise InputUnavailable("an S3 address has the form s3://bucket/key")
        with translated(InputUnavailable, check):
            client = self._client(self._bucket)
            for attempt in range(_ATTEMPTS):
                check()
                try:
                    return _receive(client, name, key, to, max_bytes, check)
                except broken_streams():
                    if attempt == _ATTEMPTS - 1:
                        raise
        raise AssertionError("the last attempt returned or raised")

    def probe(self, url: str, check: Callable[[], None] = _nothing) -> None:
        """
        Return if the object that an s3 URL names may be read.

        Raises:
            InputUnavailable: it may not, or is not there.
        """
        name, _, key = url.removeprefix("s3://").partition("/")
        with translated(InputUnavailable, check):
            self._client(self._bucket).head_object(Bucket=name, Key=key)

    def _link(self, client: "S3Client", name: str, key: str) -> str:
        if self._bucket.plain and not self._bucket.links:
            return f"s3://{name}/{key}"
        if self._bucket.public_url is not None:
            path = key if self._bucket.bucket else f"{name}/{key}"
            return f"{self._bucket.public_url.rstrip('/')}/{quote(path, safe='/~')}"
        return client.generate_presigned_url(
            "get_object", Params={"Bucket": name, "Key": key}, ExpiresIn=self._bucket.expiry_s
        )


def _endpoint(bucket: Bucket) -> str | None:
    if bucket.endpoint_url is None or bucket.bucket is None:
        return bucket.endpoint_url
    return without_bucket(bucket.endpoint_url, bucket.bucket)


def _style(bucket: Bucket) -> Literal["auto", "path", "virtual"]:
    return bucket.addressing_style if bucket.bucket else "path"


def _region(bucket: Bucket) -> str:
    return bucket.region or region_of(bucket.endpoint_url)


def _identity(bucket: Bucket) -> tuple[Any, ...]:
    token = bucket.session_token.get_secret_value() if bucket.session_token else ""
    secrets = f"{bucket.secret_key.get_secret_value()}\0{token}"
    digest = hashlib.sha256(secrets.encode()).hexdigest()
    patience = (bucket.connect_timeout_s, bucket.attempts)
    return (_endpoint(bucket), bucket.access_key, digest, _region(bucket), _style(bucket), patience)


def _session() -> "Session":
    from boto3.session import Session

    return Session()


def _connect(session: "Session", bucket: Bucket, patience: Patience) -> "S3Client":
    from botocore.config import Config

    token = bucket.session_token
    client = session.client(
        "s3",
        endpoint_url=_endpoint(bucket),
        region_name=_region(bucket),
        # Without keys boto3 looks for those of the machine, as the AWS tools do.
        aws_access_key_id=bucket.access_key or None,
        aws_secret_access_key=bucket.secret_key.get_secret_value() or None,
        aws_session_token=token.get_secret_value() if token else None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": _style(bucket)},
            # GCS, R2 and older MinIO refuse the checksums that boto3 sends since 1.36.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": bucket.attempts or patience.retries},
            connect_timeout=bucket.connect_timeout_s or patience.connect_timeout_s,
            read_timeout=patience.read_timeout_s,
            max_pool_connections=32,
        ),
    )
    if bucket.endpoint_url is not None:
        client.meta.events.register("before-call.s3", _stay)
    return client


def _stay(context: dict[str, Any], **_: Any) -> None:
    """
    Let a request to a given endpoint not be sent to another region of AWS: its server could ask for that without end.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


class _Watched(io.BufferedReader):
    """
    A file that asks before each read whether it may go on.
    """

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path))
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


def _send(
    client: "S3Client", bucket: str, key: str, content: Path | bytes, mime: str, check: Callable[[], None]
) -> None:
    check()
    if isinstance(content, bytes):
        client.put_object(Bucket=bucket, Key=key, Body=content, ContentType=mime)
    elif content.stat().st_size < PART_BYTES:
        with _Watched(content, check) as body:
            client.put_object(Bucket=bucket, Key=key, Body=body, ContentType=mime)
    else:
        parts.send(client, bucket, key, content, mime, check)


def _receive(
    client: "S3Client", bucket: str, key: str, to: Path, max_bytes: int, check: Callable[[], None]
) -> str | None:
    answer = client.get_object(Bucket=bucket, Key=key)
    size = answer.get("ContentLength", 0)  # a server may leave it out
    with closing(answer["Body"]) as body, to.open("wb") as file:
        for chunk in body.iter_chunks(_READ_BYTES):
            check()
            size = max(size, file.tell() + len(chunk))
            if size > max_bytes:
                raise InputUnavailable(f"it has more than {max_bytes} bytes, the most an input may have")
            file.write(chunk)
    return answer.get("ContentType")
