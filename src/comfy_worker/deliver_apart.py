"""
Each file for itself: in the bucket, as base64 beside it, or left where ComfyUI put it. See `job.Apart`.

A file that one of two ways has lost is still handed over, with a note; one that every way has lost fails the job.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from comfy_worker import deliver, parallel
from comfy_worker.deadline import Deadline
from comfy_worker.deliver import STAGE, Delivered
from comfy_worker.errors import DeliveryFailed, WorkerError
from comfy_worker.job import Apart, Artifact, Bucket, Delivery, Output, Target
from comfy_worker.storage import keys
from comfy_worker.storage.store import Store

StoreOf = Callable[[Bucket | Target], Store]


def hand_over(
    job_id: str,
    artifacts: Sequence[Artifact],
    delivery: Delivery,
    deadline: Deadline,
    *,
    store: StoreOf,
    threads: int,
) -> Delivered:
    """
    Hand the artifacts back as `delivery` says, apart or all in one way.

    Raises:
        WorkerError: as `deliver.deliver`.
    """
    if delivery.apart is None:
        return deliver.deliver(job_id, artifacts, delivery, deadline, store=store, threads=threads)
    began = time.monotonic()
    ready, warnings = deliver.prepared(artifacts, delivery, deadline, threads)
    converted_ms = (time.monotonic() - began) * 1000
    files = [artifact for artifact in ready if not isinstance(artifact.content, str)]
    urls = _stored(job_id, files, delivery.bucket, store, deadline, threads)
    outputs: list[Output] = []
    failures: list[tuple[Artifact, str]] = []
    for artifact in ready:
        deadline.check(STAGE)
        if isinstance(artifact.content, str):
            outputs.append(deliver.output_of(artifact, "text", artifact.content))
            continue
        output = _output(artifact, urls.get(id(artifact)), delivery.apart)
        if output.type == "left" and output.upload_error is not None:
            failures.append((artifact, output.upload_error))
        elif output.upload_error is not None:
            warnings.append(f"{artifact.filename} was not stored: {output.upload_error}")
        outputs.append(output)
    if failures:
        raise deliver.failed(failures, [item for item in outputs if item.type != "left"])
    return Delivered(tuple(outputs), tuple(warnings), converted_ms)


def _stored(
    job_id: str,
    files: Sequence[Artifact],
    bucket: Bucket | None,
    store: StoreOf,
    deadline: Deadline,
    threads: int,
) -> dict[int, str | WorkerError]:
    if bucket is None or not files:
        return {}
    open_store, check = store(bucket), partial(deadline.check, STAGE)
    tasks = [
        partial(_put, open_store, key, artifact, check)
        for key, artifact in zip(keys.plan(bucket, job_id, files), files, strict=True)
    ]
    results = parallel.each(tasks, threads=threads, deadline=deadline, stage=STAGE)
    return {id(artifact): result for artifact, result in zip(files, results, strict=True)}


def _put(store: Store, key: str, artifact: Artifact, check: Callable[[], None]) -> str:
    if isinstance(artifact.content, str):
        return artifact.content
    return store.put(key, artifact.content, artifact.mime, check)


def _output(artifact: Artifact, stored: str | WorkerError | None, apart: Apart) -> Output:
    """
    Return what is handed back of one file: `type` is the best way that worked, `left` when none did or none was asked.
    """
    content = artifact.content
    inline, problem = _inlined(artifact, apart.inline_bytes)
    upload_error = str(stored) if isinstance(stored, WorkerError) else None
    if isinstance(stored, str):
        output = deliver.output_of(artifact, "s3_url", stored)
    elif inline is not None:
        output = deliver.output_of(artifact, "base64", inline)
    else:
        output = deliver.output_of(artifact, "left", "")
    return replace(
        output,
        inline=inline,
        inline_error=problem,
        upload_error=upload_error,
        path=content if isinstance(content, Path) else None,
    )


def _inlined(artifact: Artifact, most: int) -> tuple[str | None, str | None]:
    content = artifact.content
    if most <= 0 or isinstance(content, str):
        return None, None
    if artifact.size_bytes > most:
        return None, f"file size {artifact.size_bytes} exceeds OUTPUT_BASE64_MAX_BYTES ({most}); not inlined"
    try:
        return deliver.base64_of(content), None
    except OSError as exc:
        raise DeliveryFailed(f"{artifact.filename} can no longer be read.") from exc
