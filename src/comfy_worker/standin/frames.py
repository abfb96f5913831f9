"""
The binary frames of the socket: u32 event type, then a payload, all big-endian. Layout: ComfyUI 0.27.0.
"""

import json
from collections.abc import Mapping
from typing import Any

_IMAGE_TYPES = {"image/jpeg": 1, "image/png": 2}


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def picture(data: bytes, mime: str) -> bytes:
    """
    Return an encoded image as event 1: u32 image type (1 JPEG, 2 PNG), then the image.
    """
    return _u32(1) + _u32(_IMAGE_TYPES[mime]) + data


def picture_with_metadata(data: bytes, mime: str, metadata: Mapping[str, Any]) -> bytes:
    """
    Return an encoded image as event 4: u32 length of the JSON, the JSON, then the image.
    """
    head = json.dumps({**metadata, "image_type": mime}).encode()
    return _u32(4) + _u32(len(head)) + head + data


def text(node_id: str, message: str) -> bytes:
    """
    Return a text as event 3: u32 length of the node id, the id, then the text.
    """
    name = node_id.encode()
    return _u32(3) + _u32(len(name)) + name + message.encode()


def mime_of(data: bytes) -> str:
    """
    Tell PNG from JPEG by the first byte.
    """
    return "image/png" if data[:1] == b"\x89" else "image/jpeg"
