"""
Bodies of replies as bytes: small ones at once, those with large files piece by piece, so that nothing else has to wait.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import orjson
from starlette.responses import Response, StreamingResponse

from comfy_worker.faces.reply import sealed

MEDIA_TYPE = "application/json; charset=utf-8"
NO_LIMIT = 1 << 62
PIECE_CHARS = 256 << 10
LARGE_CHARS = 1 << 20
"""What a text must have to be taken for the base64 of a file: it then needs no escape."""


def encoded(body: Mapping[str, Any]) -> bytes:
    """
    Return a body as JSON, whatever is in it.
    """
    try:
        return orjson.dumps(body)
    except TypeError:
        # Half a surrogate pair in a name, or a number that is no JSON.
        return orjson.dumps(sealed(dict(body), NO_LIMIT))


def response(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """
    Return the response of a body. Call it on a thread: what is in the body besides large files is encoded at once.
    """
    images = body.get("images")
    if not isinstance(images, list) or all(len(image) < LARGE_CHARS for image in images):
        return Response(encoded(body), status, dict(headers), MEDIA_TYPE)
    head = encoded({**{name: value for name, value in body.items() if name != "images"}, "images": []})[:-2]
    sizes = [len(image) + 2 if len(image) >= LARGE_CHARS else len(orjson.dumps(image)) for image in images]
    length = len(head) + sum(sizes) + len(images) - 1 + 2
    return StreamingResponse(
        _sent(_pieces(head, images)), status, {**headers, "content-length": str(length)}, MEDIA_TYPE
    )


def _pieces(head: bytes, images: list[str]) -> Iterator[bytes]:
    yield head
    for number, image in enumerate(images):
        if number:
            yield b","
        if len(image) < LARGE_CHARS:
            yield orjson.dumps(image)
            continue
        yield b'"'
        for start in range(0, len(image), PIECE_CHARS):
            yield image[start : start + PIECE_CHARS].encode("ascii")
        yield b'"'
    yield b"]}"


async def _sent(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)
