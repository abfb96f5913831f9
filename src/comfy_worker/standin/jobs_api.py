"""
The Jobs API: /api/jobs and what is below. Shapes, texts and its two wrong answers: ComfyUI 0.27.0.
"""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from comfy_worker.standin.control import drop
from comfy_worker.standin.engine import Engine
from comfy_worker.standin.replies import ENGINE, Crash, as_json

STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
_TEXT_LIMIT = 1024


class BadQuery(ValueError):
    """
    A query or a body that is answered with 400 and this text.
    """


def waiting(item: list[Any], state: str) -> dict[str, Any]:
    """
    Return the job object of a queue item.
    """
    return _present(
        {
            "id": item[1],
            "status": state,
            "priority": item[0],
            "create_time": item[3].get("create_time"),
            "outputs_count": 0,
            "workflow_id": _workflow_id(item[3]),
        }
    )


def ended(entry: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """
    Return the job object of a history entry; `whole` adds what only a request by id shows.
    """
    number, prompt_id, workflow, extra_data, _ = entry["prompt"]
    messages = dict(entry["status"]["messages"])
    last = (
        messages.get("execution_success")
        or messages.get("execution_error")
        or messages.get("execution_interrupted")
    )
    state = "completed" if entry["status"]["status_str"] == "success" else "failed"
    state = "cancelled" if "execution_interrupted" in messages else state
    count, preview = _previews(entry["outputs"])
    job = {
        "id": prompt_id,
        "status": state,
        "priority": number,
        "create_time": extra_data.get("create_time"),
        "execution_start_time": messages.get("execution_start", {}).get("timestamp"),
        "execution_end_time": (last or {}).get("timestamp"),
        "execution_error": messages.get("execution_error") if state == "failed" else None,
        "outputs_count": count,
        "preview_output": preview,
        "workflow_id": _workflow_id(extra_data),
    }
    if whole:
        job["outputs"] = entry["outputs"]
        job["execution_status"] = entry["status"]
        job["workflow"] = {"prompt": workflow, "extra_data": extra_data}
    return _present(job)


def _present(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if value is not None}


def _workflow_id(extra_data: Mapping[str, Any]) -> Any:
    """
    Return `extra_pnginfo.workflow.id`. Where one of them is no object, 0.27.0 fails with a 500.
    """
    info = extra_data.get("extra_pnginfo", {})
    if not isinstance(info, dict):
        raise Crash
    workflow = info.get("workflow", {})
    if not isinstance(workflow, dict):
        raise Crash
    return workflow.get("id")


def _previews(outputs: Mapping[str, Mapping[str, Any]]) -> tuple[int, dict[str, Any] | None]:
    found: list[dict[str, Any]] = []
    for node_id, ui in outputs.items():
        for key, items in ui.items():
            found += [_preview(item, node_id, key) for item in items if _is_shown(item, key)]
    best = [item for item in found if item.get("type") == "output"] or [
        item for item in found if "type" in item
    ]
    return len(found), next(iter(best or found), None)


def _is_shown(item: Any, key: str) -> bool:
    return isinstance(item, dict) or (key == "text" and isinstance(item, str))


def _preview(item: Any, node_id: str, key: str) -> dict[str, Any]:
    if isinstance(item, dict):
        return {**item, "nodeId": node_id, "mediaType": key}
    cut = {"truncated": True} if len(item) > _TEXT_LIMIT else {}
    return {"content": item[:_TEXT_LIMIT], "nodeId": node_id, "mediaType": "text", **cut}


async def get_job(request: web.Request) -> web.Response:
    """
    Answer with one job.
    """
    running, pending, entry = request.app[ENGINE].prompts.look(request.match_info["job_id"])
    if running is not None:
        return as_json(waiting(running.item(), "in_progress"))
    if pending is not None:
        return as_json(waiting(pending.item(), "pending"))
    if entry is not None:
        return as_json(ended(entry, whole=True))
    return as_json({"error": "Job not found"}, status=404)


async def get_jobs(request: web.Request) -> web.Response:
    """
    Answer with the jobs that match the query, a page of them.
    """
    engine: Engine = request.app[ENGINE]
    try:
        states, key, ascending, limit, offset = _query(request.query)
    except BadQuery as exc:
        return as_json({"error": str(exc)}, status=400)
    running, pending = engine.prompts.queue()
    jobs = [waiting(prompt.item(), "in_progress") for prompt in running]
    jobs += [waiting(prompt.item(), "pending") for prompt in pending]
    jobs += [ended(entry, whole=False) for entry in engine.prompts.history().values()]
    wanted = request.query.get("workflow_id")
    jobs = [
        job for job in jobs if job["status"] in states and (not wanted or job.get("workflow_id") == wanted)
    ]
    jobs.sort(key=_duration if key == "execution_duration" else _created, reverse=not ascending)
    page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
    more = offset + len(page) < len(jobs)
    pagination = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": more}
    return as_json({"jobs": page, "pagination": pagination})


def _created(job: Mapping[str, Any]) -> int:
    return int(job.get("create_time", 0))


def _duration(job: Mapping[str, Any]) -> int:
    return int(job.get("execution_end_time", 0)) - int(job.get("execution_start_time", 0))


def _query(query: Mapping[str, str]) -> tuple[list[str], str, bool, int | None, int]:
    states = [state.strip().lower() for state in query.get("status", "").split(",") if state.strip()] or list(
        STATES
    )
    wrong = [state for state in states if state not in STATES]
    if wrong:
        raise BadQuery(f"Invalid status value(s): {', '.join(wrong)}. Valid values: {', '.join(STATES)}")
    key, order = query.get("sort_by", "created_at"), query.get("sort_order", "desc")
    if key not in ("created_at", "execution_duration"):
        raise BadQuery("sort_by must be 'created_at' or 'execution_duration'")
    if order not in ("asc", "desc"):
        raise BadQuery("sort_order must be 'asc' or 'desc'")
    limit = _integer(query, "limit")
    if limit is not None and limit <= 0:
        raise BadQuery("limit must be a positive integer")
    return states, key, order == "asc", limit, max(0, _integer(query, "offset") or 0)


def _integer(query: Mapping[str, str], name: str) -> int | None:
    if name not in query:
        return None
    try:
        return int(query[name])
    except ValueError as exc:
        raise BadQuery(f"{name} must be an integer") from exc


def _cancel(engine: Engine, job_id: str) -> bool:
    return engine.prompts.interrupt_if_running(job_id) or drop(engine, job_id)


async def post_cancel(request: web.Request) -> web.Response:
    """
    Interrupt or remove one job.
    """
    return as_json({"cancelled": _cancel(request.app[ENGINE], request.match_info["job_id"])})


async def post_cancel_many(request: web.Request) -> web.Response:
    """
    Interrupt or remove several jobs; none if one of the ids is no UUID.
    """
    try:
        ids = _ids(await request.read())
    except BadQuery as exc:
        return as_json({"error": str(exc)}, status=400)
    wrong = [str(job_id) for job_id in ids if not _is_uuid(job_id)]
    if wrong:
        return as_json({"error": "job_ids contains invalid id(s)", "invalid_ids": wrong}, status=400)
    return as_json({"cancelled": True in [_cancel(request.app[ENGINE], job_id) for job_id in ids]})


def _ids(raw: bytes) -> list[Any]:
    try:
        body = json.loads(raw)
    except ValueError as exc:
        raise BadQuery("Request body must be valid JSON") from exc
    ids = body.get("job_ids") if isinstance(body, dict) else None
    if not isinstance(ids, list):
        raise BadQuery("job_ids must be a list")
    return ids


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False
