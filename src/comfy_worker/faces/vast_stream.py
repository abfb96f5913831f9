"""
`/generate/stream` of the Vast face: the progress of a request as server-sent events, and its result as the last one.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from comfy_worker.faces import vast_reply
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.faces.vast_run import VastFace
from comfy_worker.log import MASK

PING_S = 15.0
LOOK_S = 0.5
PACE_S = 0.1
WAIT_S = {"preprocess": 30, "generation": 120, "postprocess": 20}
"""Seconds that clients are told to expect per place in a queue, as the wrapper has them."""

NAMES = {"preprocess": "preprocessing", "generation": "generation", "postprocess": "postprocessing"}
HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}


class Followed(StreamingResponse):
    """
    The stream of a request. Its end lets the request go, unless that is detached, however early the client left.
    """

    def __init__(self, face: VastFace, entry: Entry, *, includes: bool) -> None:
        lines = events(face, entry, includes=includes)
        super().__init__(lines, media_type="text/event-stream", headers=HEADERS)
        self._face, self._entry = face, entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Send it.
        """
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._entry.is_over and not self._entry.order.is_detached:
                self._face.leave(self._entry)


async def events(face: VastFace, entry: Entry, *, includes: bool) -> AsyncIterator[bytes]:
    """
    Yield the lines of the stream.
    """
    yield _line(_first(entry))
    async for state in _states(face, entry):
        yield b": ping\n\n" if state is None else _line(state)
    result = await asyncio.to_thread(vast_reply.result_of, entry, includes=includes)
    last = {
        "request_id": entry.order.id,
        "status": "final_result",
        "result": result,
        "elapsed_time": _elapsed(entry),
    }
    yield await asyncio.to_thread(_line, last)
    face.desk.slim(entry)


async def _states(face: VastFace, entry: Entry) -> AsyncIterator[dict[str, Any] | None]:
    """
    Yield the state at each change, and None where the connection would go idle, until the request is over.
    """
    loop = asyncio.get_running_loop()
    last: tuple[Any, ...] = ()
    sent = loop.time()
    while not entry.is_over:
        changed, state = entry.changed, _state(face, entry)
        seen = (state["status"], state["message"], state["queue_position"], state["progress"])
        if seen != last:
            last, sent = seen, loop.time()
            yield state
            await asyncio.sleep(PACE_S)
        elif loop.time() - sent >= PING_S:
            sent = loop.time()
            yield None
        try:
            # The place in the queue changes without a word of this request.
            await asyncio.wait_for(changed.wait(), LOOK_S)
        except TimeoutError:
            continue


def _first(entry: Entry) -> dict[str, Any]:
    return {
        "request_id": entry.order.id,
        "status": "queued",
        "message": "Request queued",
        "timestamp": _now(),
    }


def _state(face: VastFace, entry: Entry) -> dict[str, Any]:
    position, size = face.desk.position(entry)
    return {
        "request_id": entry.order.id,
        "status": entry.status,
        "message": entry.message,
        "timestamp": _now(),
        "elapsed_time": _elapsed(entry),
        "queue_info": vast_reply.queue_info(face.desk.stages()),
        "queue_position": {
            "current_queue": NAMES.get(entry.stage, "processing") if position else "processing",
            "position": position,
            "queue_size": size,
            "estimated_wait_time": position * WAIT_S.get(entry.stage, 0),
        },
        "progress": round(entry.percent / 100, 3),
        "node": entry.node,
    }


def _elapsed(entry: Entry) -> float:
    return round(entry.elapsed_s(), 1)


def _now() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat()


def _line(body: dict[str, Any]) -> bytes:
    shown = body if "result" in body else MASK.value(body)
    return b"data: %s\n\n" % orjson.dumps(shown, option=orjson.OPT_NON_STR_KEYS)
