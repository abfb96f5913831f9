"""
The files that a job brings as text: base64, or a data URI.
"""

import base64
import binascii
import re

import pybase64

from comfy_worker.errors import InputUnavailable
from comfy_worker.job import InputFile

WHITESPACE = {ord(char): None for char in " \t\r\n\f\v"}
LONGEST_NAME = 200
HEAD_CHARS = 88  # of base64: more than the 64 bytes that `kinds` looks at


def decoded(file: InputFile, max_bytes: int) -> bytes:
    """
    Return the bytes of a file that came as text.

    Raises:
        InputUnavailable: it is no base64, is empty, or has more than `max_bytes`.
    """
    name = shown(file)
    text = file.data or ""
    if text[:5].lower() == "data:" or "," in text[:256]:
        text = text.partition(",")[2]
    if len(text) * 3 // 4 > max_bytes + 4:
        raise InputUnavailable(
            f"Error uploading {name}: '{file.field}' is larger than {max_bytes:,} bytes (INPUT_MAX_MB)"
        )
    try:
        data = _bytes_of(text)
    except (binascii.Error, ValueError) as exc:
        hint = " (send base64, a data URI, or an http, https or s3 URL)"
        raise InputUnavailable(f"Error decoding base64 for {name}: {exc}{hint}") from exc
    if not data:
        raise InputUnavailable(f"Error decoding base64 for {name}: '{file.field}' is empty")
    return data


def _bytes_of(text: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        # With line breaks in it, which is right as well, or wrong; the standard library says how.
        return base64.b64decode(text.translate(WHITESPACE), validate=True)


def head_of(text: str) -> bytes | None:
    """
    Return the first bytes of base64 text (or of a data URI), None when it is not base64.
    """
    if text[:5].lower() == "data:":
        text = text[:4096].partition(",")[2] or text.partition(",")[2][:HEAD_CHARS]
    letters = re.sub(r"\s", "", text[: HEAD_CHARS * 2])[:HEAD_CHARS]
    if not letters:
        return None
    try:
        return base64.b64decode(letters[: len(letters) // 4 * 4] or letters, validate=True)
    except (binascii.Error, ValueError):
        return None


def shown(file: InputFile) -> str:
    """
    Return a file's name for a message; a long one, which may be the file itself, is its field.
    """
    return file.name if len(file.name) <= LONGEST_NAME else file.field
