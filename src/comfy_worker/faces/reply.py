"""
The last check of a reply: it can be encoded, it holds no secret, and it fits. Every face seals what it answers.
"""

import math
from typing import Any

import orjson

from comfy_worker.errors import ReplyTooLarge
from comfy_worker.log import MASK

REPLACED = "Some values of the reply could not be encoded as JSON and were replaced: {}."


def sealed(reply: dict[str, Any], limit_bytes: int) -> dict[str, Any]:
    """
    Return a fresh copy of `reply` that is sure to arrive: finite numbers, valid UTF-8, JSON types, within the limit.

    What had to be replaced is named in `errors`.

    Raises:
        ReplyTooLarge: it does not fit.
    """
    changed: list[str] = []
    clean: dict[str, Any] = _clean(reply, "output", changed)
    if changed:
        clean["errors"] = [*clean.get("errors", []), REPLACED.format(", ".join(changed[:10]))]
    size = len(orjson.dumps(clean)) + _blanks(clean)
    if size > limit_bytes:
        raise ReplyTooLarge(
            f"The reply is {size:,} bytes and may be {limit_bytes:,}. Configure object storage (BUCKET_ENDPOINT_URL and "
            "its keys, or the job's `s3Config`), or make the files smaller with `convert_output`.",
            size_bytes=size,
            limit_bytes=limit_bytes,
        )
    return clean


def _blanks(value: Any) -> int:
    """
    Return how many blanks Python's own `json` adds, with which platforms' SDKs encode: after each comma and colon.
    """
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = max(0, len(items) - 1) + (len(items) if isinstance(value, dict) else 0)
    return own + sum(_blanks(item) for item in items if isinstance(item, (dict, list)))


def _clean(value: Any, path: str, changed: list[str]) -> Any:
    if isinstance(value, str):
        return _text(value, path, changed)
    if isinstance(value, dict):
        return {
            _text(str(key), path, changed): _clean(item, f"{path}.{key}", changed)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_clean(item, f"{path}[{index}]", changed) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int)):
        # Integers beyond 64 bits are JSON, and no client of the field reads them.
        fits = value is None or -(2**63) <= value < 2**64
        return value if fits else _text(str(value), path, changed)
    if isinstance(value, float) and math.isfinite(value):
        return value
    changed.append(path)
    return None


def _text(text: str, path: str, changed: list[str]) -> str:
    if text.isascii():  # known without a look: the text of a large file is not copied
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        changed.append(path.encode(errors="replace").decode())
        return text.encode(errors="surrogateescape" if _escaped(text) else "replace").decode(errors="replace")
    return text


def _escaped(text: str) -> bool:
    return all(not 0xD800 <= ord(char) <= 0xDFFF or 0xDC80 <= ord(char) <= 0xDCFF for char in text)


def shown(text: str) -> str:
    """
    Return a text for a caller, without secrets and never empty.
    """
    return MASK.text(text).strip() or "The job failed without a reason."
