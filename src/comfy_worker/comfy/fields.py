"""
Foreign JSON: parse it as its writer wrote it, and read one field of it or refuse it with an exception of `WRONG`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import orjson

# What a field that is missing or of the wrong type raises, here or on the way to it.
WRONG = (KeyError, TypeError, ValueError, OverflowError)


def parse(raw: bytes | str) -> Any:
    """
    Parse JSON that Python's own `json` may have written: NaN and Infinity become None, half a surrogate pair `?`.

    Source: ComfyUI 0.27.0 writes NaN into history for a FLOAT input "nan", and the reply to a float infinity holds one.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        text = raw if isinstance(raw, str) else raw.decode(errors="replace")
    try:
        loose = json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
    except RecursionError as exc:
        raise ValueError("The JSON is nested too deeply.") from exc
    return orjson.loads(loose.encode(errors="replace"))


def mapping(value: Any) -> Mapping[str, Any]:
    """
    Return a JSON object.
    """
    if not isinstance(value, dict):
        raise TypeError
    return value


def text(value: Any) -> str:
    """
    Return a string.
    """
    if not isinstance(value, str):
        raise TypeError
    return value


def optional_text(value: Any) -> str | None:
    """
    Return a string or None.
    """
    return None if value is None else text(value)


def texts(value: Any) -> tuple[str, ...]:
    """
    Return a list of strings as a tuple.
    """
    if not isinstance(value, list):
        raise TypeError
    return tuple([text(item) for item in value])


def number(value: Any) -> float:
    """
    Return a finite number.
    """
    number = float(value) if isinstance(value, int | float) else math.nan
    if not math.isfinite(number):
        raise ValueError
    return number
