"""
Artifacts -> Outputs: convert what is to be converted, then base64 or object storage, within the reply's size budget.

Sizes are added up before anything is encoded. A file that cannot be handed over fails the job: no URL is made up, and
no reply is sent that the platform would drop.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import orjson
import pybase64

from comfy_worker import convert, parallel, picture
from comfy_worker.deadline import Deadline
from comfy_worker.errors import DeliveryFailed, ReplyTooLarge, WorkerError
from comfy_worker.job import Artifact, Bucket, Delivery, Output, Target
from comfy_worker.storage import keys
from comfy_worker.storage.store import Store

STAGE = "delivering"
CHUNK_BYTES = 3 * 256 * 1024
"""A multiple of 3, so that the base64 of the chunks is the base64 of the file."""

ENTRY_BYTES = 400
"""What one file costs in a reply beside its data and names."""

URL_BYTES = 1_500
"""A presigned URL with a session token, generously."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """
    The outputs in the order of the artifacts, what did not go as asked, and the milliseconds of converting.
    """

    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    converted_ms: float = field(default=0.0, compare=False)


def deliver(
    job_id: str,
    artifacts: Sequence[Artifact],
    delivery: Delivery,
    deadline: Deadline,
    *,
    store: Callable[[Bucket | Target], Store],
    threads: int,
    base_size: int = 2048,
) -> Delivered:
    """
    Hand the artifacts back as `delivery` says; `base_size` are the bytes of the reply that are not files.

    Raises:
        ReplyTooLarge: the files do not fit into the reply and there is no bucket to put them into.
        DeliveryFailed: a file could not be read or uploaded; `partial` holds the outputs that were handed over.
        JobCancelled, JobTimedOut: the deadline said so.
    """
    began = time.monotonic()
    ready, warnings = prepared(artifacts, delivery, deadline, threads)
    converted_ms = (time.monotonic() - began) * 1000
    bucket: Bucket | Target | None = delivery.bucket or delivery.target
    size = base_size + sum(inline_bytes(artifact) for artifact in ready)
    if bucket is None and delivery.limit_bytes is not None and size > delivery.limit_bytes:
        if delivery.spill is None or not any(
            isinstance(artifact.content, Path | bytes) for artifact in ready
        ):
            raise _too_large(size, delivery.limit_bytes)
        bucket = delivery.spill
        warnings.append(
            f"The files were put into the bucket: as base64 the reply would have {_megabytes(size)}, "
            f"and {_megabytes(delivery.limit_bytes)} is the most it may have"
        )
    if bucket is None:
        outputs = _inline(ready, deadline)
    else:
        outputs = _upload(job_id, ready, bucket, store(bucket), deadline, threads)
        _check_links(outputs, delivery.limit_bytes, base_size)
    return Delivered(tuple(outputs), tuple(warnings), converted_ms)


def base64_of(content: Path | bytes, chunk_bytes: int = CHUNK_BYTES) -> str:
    """
    Return the base64 of a file or of bytes: standard alphabet, padded, one line.

    `chunk_bytes` is a multiple of 3. At most 2.7 times the file is in memory: the text, and the pieces it is put together from.
    """
    if isinstance(content, bytes):
        return pybase64.b64encode_as_string(content)
    pieces = []
    with content.open("rb", buffering=0) as stream:
        while chunk := _full_chunk(stream.read, chunk_bytes):
            pieces.append(pybase64.b64encode_as_string(chunk))
    return "".join(pieces)


def _full_chunk(read: Callable[[int], bytes | None], size: int) -> bytes:
    # An unbuffered read may stop early, and only the last chunk may have a length that 3 does not divide.
    chunk = b""
    while len(chunk) < size and (more := read(size - len(chunk))):
        chunk = chunk + more if chunk else more
    return chunk


def prepared(
    artifacts: Sequence[Artifact], delivery: Delivery, deadline: Deadline, threads: int
) -> tuple[list[Artifact], list[str]]:
    """
    Return the artifacts converted, or freed of their metadata, and what did not go as asked.
    """
    if delivery.conversion is None and not delivery.strip_metadata:
        return list(artifacts), []
    tasks = [partial(_changed, artifact, delivery) for artifact in artifacts]
    warnings = list(convert.unheeded(delivery.conversion)) if delivery.conversion else []
    ready: list[Artifact] = []
    for artifact, changed in zip(
        artifacts, parallel.each(tasks, threads=threads, deadline=deadline, stage=STAGE), strict=True
    ):
        if isinstance(changed, WorkerError):
            what = "converted" if delivery.conversion else "freed of its metadata"
            warnings.append(f"{_name(artifact)} was not {what}: {changed}")
            ready.append(artifact)
        else:
            ready.append(changed)
    return ready, warnings


def _changed(artifact: Artifact, delivery: Delivery) -> Artifact:
    """
    Convert or strip one artifact; what is no image is returned as it is.

    Raises:
        JobFailed: the image could not be read or encoded.
    """
    if artifact.kind != "image" or isinstance(artifact.content, str):
        return artifact
    if delivery.conversion is None:
        if artifact.mime not in picture.STRIPPABLE:
            return artifact
        data = picture.strip(artifact.content)
        return replace(artifact, content=data, size_bytes=len(data))
    new = convert.convert(artifact.content, delivery.conversion)
    return replace(
        artifact,
        content=new.data,
        size_bytes=len(new.data),
        mime=new.mime,
        filename=f"{PurePosixPath(artifact.filename).stem}.{new.extension}",
    )


def inline_bytes(artifact: Artifact) -> int:
    """
    Return the bytes that an artifact takes in a JSON reply when it is not uploaded: never less than it really does.
    """
    names = len(orjson.dumps([artifact.filename, artifact.subfolder, artifact.node_id, artifact.mime]))
    if isinstance(artifact.content, str):
        return ENTRY_BYTES + names + len(orjson.dumps(artifact.content))
    return ENTRY_BYTES + names + 4 * ((artifact.size_bytes + 2) // 3)


def _inline(artifacts: Sequence[Artifact], deadline: Deadline) -> list[Output]:
    outputs: list[Output] = []
    for artifact in artifacts:
        deadline.check(STAGE)
        if isinstance(artifact.content, str):
            outputs.append(output_of(artifact, "text", artifact.content))
            continue
        try:
            outputs.append(output_of(artifact, "base64", base64_of(artifact.content)))
        except OSError as exc:
            error = DeliveryFailed(f"Failed to fetch image data for {_name(artifact)} from /view endpoint.")
            error.partial = tuple(outputs)
            raise error from exc
    return outputs


def _upload(
    job_id: str,
    artifacts: Sequence[Artifact],
    bucket: Bucket | Target,
    store: Store,
    deadline: Deadline,
    threads: int,
) -> list[Output]:
    files = [artifact for artifact in artifacts if not isinstance(artifact.content, str)]
    names = iter(keys.plan(bucket, job_id, files) if isinstance(bucket, Bucket) else keys.names_of(files))
    check = partial(deadline.check, STAGE)
    tasks = [
        partial(
            _handed_over, artifact, "" if isinstance(artifact.content, str) else next(names), store, check
        )
        for artifact in artifacts
    ]
    results = parallel.each(tasks, threads=threads, deadline=deadline, stage=STAGE)
    outputs = [result for result in results if isinstance(result, Output)]
    failures = [
        (artifact, str(result))
        for artifact, result in zip(artifacts, results, strict=True)
        if isinstance(result, WorkerError)
    ]
    if failures:
        raise failed(failures, outputs)
    return outputs


def _handed_over(artifact: Artifact, key: str, store: Store, check: Callable[[], None]) -> Output:
    if isinstance(artifact.content, str):
        return output_of(artifact, "text", artifact.content)
    return output_of(artifact, "s3_url", store.put(key, artifact.content, artifact.mime, check))


def output_of(artifact: Artifact, type_: Literal["base64", "s3_url", "text", "left"], data: str) -> Output:
    """
    Return what the caller gets of an artifact.
    """
    return Output(
        node_id=artifact.node_id,
        key=artifact.key,
        kind=artifact.kind,
        filename=artifact.filename,
        subfolder=artifact.subfolder,
        mime=artifact.mime,
        size_bytes=artifact.size_bytes,
        type=type_,
        data=data,
        folder=artifact.type,
    )


def failed(failures: Sequence[tuple[Artifact, str]], outputs: Sequence[Output]) -> DeliveryFailed:
    """
    Return the error for files that were not handed over, each with its reason; `outputs` were.
    """
    texts = [f"{_name(artifact)}: {reason}" for artifact, reason in failures]
    error = DeliveryFailed(
        f"{len(texts)} of the files could not be handed over. {'; '.join(texts[:5])}",
        failures=[{"filename": artifact.filename, "reason": reason} for artifact, reason in failures],
    )
    error.partial = tuple(outputs)
    return error


def _check_links(outputs: Sequence[Output], limit: int | None, base_size: int) -> None:
    size = base_size + sum(len(orjson.dumps(output.data)) + ENTRY_BYTES for output in outputs)
    if limit is not None and size > limit:
        error = _too_large(size, limit)
        error.partial = tuple(outputs)
        raise error


def _too_large(size: int, limit: int) -> ReplyTooLarge:
    return ReplyTooLarge(
        f"The reply would have {_megabytes(size)} and may have {_megabytes(limit)}. Ways out: have the worker's operator "
        "set BUCKET_ENDPOINT_URL, send your own bucket as `s3Config`, make the files smaller with "
        '`convert_output: {"format": "webp"}` or jpeg, or, on RunPod, use /runsync, which carries twice as much as /run.',
        size_bytes=size,
        limit_bytes=limit,
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _name(artifact: Artifact) -> str:
    return f"{artifact.subfolder}/{artifact.filename}" if artifact.subfolder else artifact.filename
