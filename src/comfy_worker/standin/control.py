"""
Queue, history, interrupt, free. Shapes and empty answers: ComfyUI 0.27.0.
"""

import json
from typing import Any

from aiohttp import web

from comfy_worker.standin import faults
from comfy_worker.standin.engine import Engine
from comfy_worker.standin.outbox import status
from comfy_worker.standin.replies import ENGINE, Crash, as_json, empty, field, read_json


async def get_queue(request: web.Request) -> web.Response:
    """
    Answer with the running and the pending prompts.
    """
    engine: Engine = request.app[ENGINE]
    running, pending = engine.prompts.queue()
    shown = engine.settings.old
    return as_json(
        {
            "queue_running": [prompt.item(shown) for prompt in running],
            "queue_pending": [prompt.item(shown) for prompt in pending],
        }
    )


async def post_queue(request: web.Request) -> web.Response:
    """
    Clear the queue, or delete pending prompts.
    """
    engine: Engine = request.app[ENGINE]
    body = await read_json(request)
    if field(body, "clear"):
        engine.prompts.clear()
        engine.tell_status()
    for prompt_id in field(body, "delete", ()):
        drop(engine, prompt_id)
    return empty()


def drop(engine: Engine, prompt_id: str) -> bool:
    """
    Remove a pending prompt and say so to everybody; tell whether there was one.
    """
    messages = engine.prompts.drop(prompt_id)
    for _ in range(messages):
        engine.tell_status()
    return messages > 0


async def get_prompt(request: web.Request) -> web.Response:
    """
    Answer with the number of prompts that are pending or running.
    """
    return as_json(status(request.app[ENGINE].prompts.remaining)["status"])


async def get_history(request: web.Request) -> web.Response:
    """
    Answer with the history, all of it or a window.
    """
    engine: Engine = request.app[ENGINE]
    entries = list(engine.prompts.history().items())
    most, offset = _int(request, "max_items"), _int(request, "offset")
    if most is not None and offset is None:
        offset = max(0, len(entries) - most)
    start = max(0, offset or 0)
    return as_json(dict(entries[start : None if most is None else start + most]))


def _int(request: web.Request, name: str) -> int | None:
    value = request.query.get(name)
    if not value:
        return None
    try:
        return int(value)
    except ValueError as exc:
        raise Crash from exc


async def get_history_entry(request: web.Request) -> web.Response:
    """
    Answer with the entry of one prompt, `{}` where there is none.
    """
    prompt_id = request.match_info["prompt_id"]
    _, _, found = request.app[ENGINE].prompts.look(prompt_id)
    return as_json({} if found is None else {prompt_id: found})


async def post_history(request: web.Request) -> web.Response:
    """
    Delete history entries, or all of them.
    """
    engine: Engine = request.app[ENGINE]
    body = await read_json(request)
    if field(body, "clear"):
        engine.prompts.forget(None)
    engine.prompts.forget(field(body, "delete", ()))
    return empty()


async def post_interrupt(request: web.Request) -> web.Response:
    """
    Interrupt what runs, or only a certain prompt.
    """
    try:
        body: Any = json.loads(await request.read())
    except ValueError:
        body = {}
    wanted = body.get("prompt_id") if isinstance(body, dict) else None
    request.app[ENGINE].prompts.interrupt_if_running(wanted or None)
    return empty()


async def post_free(request: web.Request) -> web.Response:
    """
    Drop the node cache before the next prompt; there are no models to unload.
    """
    if field(await read_json(request), "free_memory"):
        request.app[ENGINE].free()
    return empty()


async def get_faults(request: web.Request) -> web.Response:
    """
    Answer with the faults of the engine.
    """
    return as_json(request.app[ENGINE].faults.values)


async def post_faults(request: web.Request) -> web.Response:
    """
    Replace the faults of the engine.
    """
    engine: Engine = request.app[ENGINE]
    try:
        given = faults.checked(await read_json(request))
    except faults.UnknownFault as exc:
        return as_json({"error": str(exc)}, status=400)
    engine.faults.set({name: value for name, value in given.items() if name != "hang"})
    engine.hang(float(given.get("hang", 0)))
    return as_json(engine.faults.values)
