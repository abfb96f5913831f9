"""
The RunPod face: one job of RunPod's queue in, the value of `output` out. Shapes and texts that its users know.

Source: worker-comfyui 5.8.5 and the runpod SDK 1.12.0 as observed from outside.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from comfy_worker import log
from comfy_worker.errors import (
    DeliveryFailed,
    NodeFailed,
    NothingProduced,
    OutOfMemory,
    ReplyTooLarge,
    WorkerError,
)
from comfy_worker.faces.reply import sealed, shown
from comfy_worker.faces.runpod_progress import Poster, Progress
from comfy_worker.job import Event, Job, Observer, Output, Result, ignore
from comfy_worker.parse import UNNAMED_JOB, Rules, parse
from comfy_worker.parse_bucket import secrets_of
from comfy_worker.pool import Ticket

logger = logging.getLogger(__name__)

CANCEL_WAIT_S = 60.0
GROUPS = {"video": "videos", "audio": "audio", "text": "text"}
LEGACY_FAILED = "Job processing failed"
LEFT_OUT = "The files that were finished do not fit into the reply and were left out."
TEXT_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class RunpodFace:
    """
    Turns RunPod jobs into pipeline jobs and results into replies.

    `submit` is the pool's; `refresh` is asked after each job whether this worker must be recycled.
    """

    submit: Callable[[Job, Observer], Ticket]
    rules: Rules
    limits: tuple[int, int]
    poster: Poster | None = None
    refresh: Callable[[], bool] = lambda: False
    _told: set[str] = field(default_factory=set)

    async def handle(self, raw: Mapping[str, Any], observe: Observer = ignore) -> dict[str, Any]:
        """
        Run one job `{"id": str, "input": {...}, "s3Config"?: {...}}` and return RunPod's `output`.

        A failure is a dict with a truthy `error`, which the SDK turns into FAILED; nothing is raised but a real cancel.
        """
        job_id = str(raw.get("id") or UNNAMED_JOB).encode(errors="replace").decode()
        limit = self.limits[job_id.startswith("sync-")]
        token = log.current_job.set(job_id)
        try:
            with log.MASK.during(secrets_of(raw.get("input"), raw)):
                reply = await self._reply(job_id, raw, limit, observe)
        finally:
            log.current_job.reset(token)
        if self.refresh():
            reply["refresh_worker"] = True
        return reply

    async def _reply(
        self, job_id: str, raw: Mapping[str, Any], limit: int, observe: Observer
    ) -> dict[str, Any]:
        try:
            try:
                return sealed(await self._answer(job_id, raw, limit, observe), limit)
            except WorkerError as exc:
                return sealed_failure(exc, limit)
        except Exception:
            logger.exception("The job ended by a fault of the worker.")
            text = "An unexpected error occurred: the worker failed on this job; its log has the reason."
            return {"error": text, "error_code": WorkerError.code, "retryable": False}

    async def _answer(
        self, job_id: str, raw: Mapping[str, Any], limit: int, observe: Observer
    ) -> dict[str, Any]:
        rules = replace(self.rules, limit_bytes=limit)
        job = parse(job_id, raw.get("input"), rules, s3_config=raw.get("s3Config"))
        reply = await self._ran(job, observe)
        if job.params is not None:
            reply["params"] = log.MASK.value(dict(job.params))
        return reply

    async def _ran(self, job: Job, observe: Observer) -> dict[str, Any]:
        job_id = job.id
        # A second delivery of an id that runs sends no progress: it could overtake the result of the first.
        if self.poster is None or job_id in self._told:
            return to_reply(await finished(self.submit(job, observe)))
        progress = Progress(self.poster.of(job_id))

        def tell(event: Event) -> None:
            observe(event)
            progress(event)

        self._told.add(job_id)
        try:
            return to_reply(await finished(self.submit(job, tell), progress.stop))
        finally:
            try:
                await asyncio.to_thread(progress.close)
            finally:
                self._told.discard(job_id)


def _nothing() -> None:
    pass


async def finished(ticket: Ticket, cancelled: Callable[[], None] = _nothing) -> Result:
    """
    Wait for a run. A cancel is passed on to it and waited for, so that the GPU is free when it is raised again.

    `cancelled` is called at once when that happens; it must return at once too.

    A cancel that nobody asked this task for is a fault of inner code, and would lose the job if it were raised.
    """
    waiting = asyncio.wrap_future(ticket.future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        cancelled()
        ticket.cancel()
        await asyncio.wait([waiting], timeout=CANCEL_WAIT_S)
        if waiting.done() and not waiting.cancelled():
            waiting.exception()  # seen: nobody else will ask for it
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 0:
            raise
        raise WorkerError("The job was cut off inside the worker.") from None


def to_reply(result: Result) -> dict[str, Any]:
    """
    Return the value of `output` of a job that succeeded.
    """
    reply: dict[str, Any] = {
        "images": [_entry(output) for output in result.outputs if output.key == "images"]
    }
    for output in result.outputs:
        if output.key != "images":
            reply.setdefault(GROUPS.get(output.kind, "files"), []).append(_entry(output))
    if result.dry_run:
        reply["status"] = "valid"
    elif not result.outputs:
        reply["status"] = "success_no_images"
    if result.warnings:
        reply["errors"] = [shown(text) for text in result.warnings]
    if result.node_errors:
        reply["node_errors"] = log.MASK.value(dict(result.node_errors))
    reply["prompt_id"] = result.prompt_id
    reply["timings"] = _timings(result)
    return reply


def _entry(output: Output) -> dict[str, Any]:
    if output.kind == "text":
        return {"node_id": output.node_id, "text": log.MASK.secrets(output.data)}
    return {
        "filename": output.filename,
        "type": output.type,
        "data": output.data,
        "mime": output.mime,
        "size_bytes": output.size_bytes,
        "node_id": output.node_id,
        "subfolder": output.subfolder,
    }


def _timings(result: Result) -> dict[str, Any]:
    times = result.timings
    return {
        "staged": times.staged,
        "queued": times.queued,
        "executed": times.executed,
        "nodes": dict(times.nodes),
        "delivered": times.delivered,
        "total": times.total,
    }


def to_failure(exc: WorkerError) -> dict[str, Any]:
    """
    Return the failure RunPod users know: `error` is a text, and the facts stand beside it.
    """
    facts = dict(exc.details)
    text = str(exc)
    reply: dict[str, Any] = to_reply(exc.partial) if isinstance(exc.partial, Result) else {}
    if isinstance(exc, (NodeFailed, OutOfMemory, NothingProduced, DeliveryFailed)) and not reply.get(
        "images"
    ):
        facts["details"], text = [*_details(exc), *facts.get("details", [])], LEGACY_FAILED
    reply.pop("status", None)
    reply |= {"error": shown(text), "error_code": exc.code, "retryable": exc.retryable}
    reply.update(log.MASK.value(facts))
    return reply


def _details(exc: WorkerError) -> list[str]:
    failures = exc.details.get("failures", ())
    return [f"Error uploading {item['filename']} to S3: {item['reason']}" for item in failures] or [str(exc)]


def sealed_failure(exc: WorkerError, limit: int) -> dict[str, Any]:
    """
    Return the failure as it is sent: without the finished files, and with shortened texts, where it does not fit.
    """
    reply = to_failure(exc)
    try:
        return sealed(reply, limit)
    except ReplyTooLarge:
        kept = {key: reply[key] for key in ("error", "error_code", "retryable")}
        kept["error"] = kept["error"][:TEXT_LIMIT]
        if isinstance(reply.get("details"), list):
            kept["details"] = [str(text)[: TEXT_LIMIT // 4] for text in reply["details"][:3]]
        if isinstance(exc.partial, Result) and exc.partial.outputs:
            kept["errors"] = [LEFT_OUT]
        return sealed(kept, limit)
