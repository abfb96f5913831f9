"""
Progress of jobs for whoever watches: `GET /jobs/{id}/events`, server-sent events of the latest state.

A slow watcher misses steps and never the end; it holds nothing up.
"""

import asyncio
import base64
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from comfy_worker.errors import WorkerError
from comfy_worker.faces.http_problem import problem_of
from comfy_worker.job import Event, Preview
from comfy_worker.log import MASK

REMEMBERED = 1000
"""Ended jobs whose end can still be asked for."""

QUEUE_LOOK_S = 1.0
KEEP_ALIVE_S = 15.0
PACE_S = 0.1


@dataclass(slots=True)
class Watched:
    """
    The latest state of one job. `runs` counts who runs it; with none left it has ended, and `end` says how.
    """

    latest: Event | None = None
    preview: Preview | None = None
    runs: int = 0
    end: dict[str, Any] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_told: bool = False


@dataclass(slots=True)
class Telling:
    """
    The observer of one run. `end` is what its watchers are told at last, `{"status": ...}`, unless an error says it.
    """

    _observe: Callable[[Watched, Event], None]
    _entry: Watched
    end: dict[str, Any] = field(default_factory=lambda: {"status": "completed"})

    def __call__(self, event: Event) -> None:
        """
        Tell one event; runs on the job's thread.
        """
        self._observe(self._entry, event)


class EventHub:
    """
    The states of all jobs of a process. `position` is the pool's. All but the observers runs on the event loop.
    """

    def __init__(self, position: Callable[[str], int | None]) -> None:
        self._position = position
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: OrderedDict[str, Watched] = OrderedDict()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        Use this event loop from now on.
        """
        self._loop = loop

    @contextlib.contextmanager
    def of(self, job_id: str) -> Iterator[Telling]:
        """
        Yield the observer of one run of a job; leaving the block, by a return or an error, is its end.
        """
        entry = self._jobs.get(job_id)
        if entry is None or entry.end is not None:
            entry = self._jobs[job_id] = Watched()
        entry.runs += 1
        telling = Telling(self._observe, entry)
        try:
            yield telling
        except BaseException as exc:
            telling.end = _failure(exc)
            raise
        finally:
            entry.runs -= 1
            if entry.runs == 0:
                entry.end, entry.latest, entry.preview = telling.end, None, None
                _ring(entry)
                self._forget()

    def _observe(self, entry: Watched, event: Event) -> None:
        if event.preview is not None:
            entry.preview = event.preview
        entry.latest = event
        if self._loop is not None and not entry.is_told:
            entry.is_told = True  # many steps, one ring
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever watched
                self._loop.call_soon_threadsafe(_ring, entry)

    def _forget(self) -> None:
        ended = [job_id for job_id, entry in self._jobs.items() if entry.end is not None]
        for job_id in ended[: max(0, len(ended) - REMEMBERED)]:
            del self._jobs[job_id]

    def knows(self, job_id: str) -> bool:
        """
        Tell whether there is anything to follow.
        """
        return job_id in self._jobs

    async def follow(
        self, job_id: str, *, previews: bool = False
    ) -> AsyncIterator[tuple[str, dict[str, Any]] | None]:
        """
        Yield `("progress", {...})` at each change and at last `("end", {...})`; None where a connection would go idle.

        With `previews` also `("preview", {...})`, the latest picture of the running node as base64.
        """
        entry, last, seen = self._jobs[job_id], None, None
        while entry.end is None:
            changed, state = entry.changed, self._state(job_id, entry)
            if state != last:
                last = state
                yield "progress", state
                await asyncio.sleep(PACE_S)
            if previews and entry.preview is not seen and entry.preview is not None:
                seen = entry.preview
                yield "preview", _picture(entry.latest, seen)
                await asyncio.sleep(PACE_S)
            try:
                wait_s = QUEUE_LOOK_S if state["stage"] == "waiting" else KEEP_ALIVE_S
                await asyncio.wait_for(changed.wait(), wait_s)
            except TimeoutError:
                yield None
        yield "end", entry.end

    def _state(self, job_id: str, entry: Watched) -> dict[str, Any]:
        event = entry.latest
        if event is None:
            return {"stage": "waiting", "percent": 0.0, "position": self._position(job_id)}
        return {
            "stage": event.kind,
            "percent": round(event.percent, 1),
            "node": event.node_id,
            "class_type": event.class_type,
            "title": event.title,
            "value": event.value,
            "max": event.max,
        }


def _picture(event: Event | None, preview: Preview) -> dict[str, Any]:
    mime, data = preview
    text = base64.b64encode(data).decode("ascii")
    return {"node": event.node_id if event is not None else None, "mime": mime, "data": text}


def _ring(entry: Watched) -> None:
    entry.is_told = False
    entry.changed.set()
    entry.changed = asyncio.Event()


def _failure(exc: BaseException) -> dict[str, Any]:
    if not isinstance(exc, WorkerError) and not isinstance(exc, Exception):
        return {"status": "failed", "error": "The job was cancelled.", "error_code": "job_cancelled"}
    problem = problem_of(exc)
    return {"status": "failed", "error": problem.message, "error_code": problem.code}


def events_router() -> APIRouter:
    """
    Return the route `/jobs/{job_id}/events`.
    """
    router = APIRouter(tags=["jobs"])

    @router.get(
        "/jobs/{job_id}/events",
        summary="Follow a job",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {}},
                "description": "`progress` (and `preview`) events, then one `end`.",
            },
            404: {"description": "No such job, or it ended long ago."},
        },
    )
    async def events(request: Request, job_id: str, previews: bool = False) -> StreamingResponse:
        """
        Send the stage, the node and the percentage of a job as server-sent events, until it ends.

        With `previews=true` also pictures of what the node is at, as base64, where ComfyUI makes them.
        """
        hub: EventHub = request.app.state.service.events
        if not hub.knows(job_id):
            raise HTTPException(404, "There is no such job, or it ended long ago.")
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(
            _lines(hub, job_id, previews), media_type="text/event-stream", headers=headers
        )

    return router


async def _lines(hub: EventHub, job_id: str, previews: bool) -> AsyncIterator[bytes]:
    async for item in hub.follow(job_id, previews=previews):
        if item is None:
            yield b": still here\n\n"
        else:
            kind, state = item
            shown = state if kind == "preview" else MASK.value(state)
            yield b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(shown))
