"""
How the model server's replies go back to the caller: status, body and headers as they are.

In place of the SDK's own way, which leaves the connection to the model server open when the reader of a stream goes (so the
job runs on), drops the headers of what is streamed, and passes on `Content-Encoding` with a body it has decoded (1.9.1).
"""

import asyncio
import json
import logging
from typing import Any

import aiohttp
from aiohttp import web

logger = logging.getLogger(__name__)

STREAM = "text/event-stream"
DROPPED = (
    "Content-Length",
    "Content-Type",
    "Content-Encoding",
    "Transfer-Encoding",
    "Connection",
    "Keep-Alive",
)
"""What is said of one connection, or of the bytes before they were decoded."""


async def passed_on(request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
    """
    Return the caller's reply; the model server's connection is closed in every case.
    """
    try:
        headers = reply.headers.copy()
        for name in DROPPED:
            headers.popall(name, None)
        if reply.content_type == STREAM:
            return await _streamed(request, reply, headers)
        kind = reply.headers.get("Content-Type")
        if kind is not None:
            headers["Content-Type"] = kind
        return web.Response(body=await reply.read(), status=reply.status, headers=headers)
    finally:
        reply.close()


async def _streamed(request: web.Request, reply: aiohttp.ClientResponse, headers: Any) -> web.StreamResponse:
    out = web.StreamResponse(status=reply.status, headers=headers)
    out.content_type = STREAM
    await out.prepare(request)
    try:
        async for chunk in reply.content.iter_any():
            await _write(out, chunk)
    except aiohttp.ClientError as exc:
        # Half a stream is on its way: a status can no longer say it.
        logger.warning("The model server broke off a stream: %s", type(exc).__name__)
        event = {"status": "error", "message": "Stream error: the model server broke the connection"}
        await _write(out, b"\n\ndata: " + json.dumps(event).encode() + b"\n\n")
    await out.write_eof()
    return out


async def _write(out: web.StreamResponse, data: bytes) -> None:
    try:
        await out.write(data)
    except ConnectionError:
        # The caller left: for the SDK that is a cancelled request, not an error of ours.
        raise asyncio.CancelledError from None
