"""
One value of one input: converted, and held against its limits and choices, in the words of ComfyUI 0.27.0.

Links between nodes are in `validate.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from comfy_worker.comfy.signature import Declared

Problem = dict[str, Any]

LONG_LIST = 20
CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
# What looking up nodes, slots and values can raise; ComfyUI turns each into an error of the node.
LOOKUP_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, RecursionError)


def problem(kind: str, message: str, details: str = "", **extra: Any) -> Problem:
    """
    Return an error object as ComfyUI writes it: `{"type", "message", "details", "extra_info"}`.
    """
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def convert(wanted: Declared, values: dict[str, Any]) -> list[Problem]:
    """
    Convert the value of `wanted` in place and return what is wrong with it.
    """
    value = values[wanted.name]
    if isinstance(value, dict) and "__value__" in value:
        # How an editor tells a list that is a value from a list that is a link.
        value = values[wanted.name] = value["__value__"]
    extra = {"input_name": wanted.name, "input_config": wanted.config, "received_value": value}
    conversion = CONVERSIONS.get(wanted.type) if isinstance(wanted.type, str) else None
    if conversion is not None:
        try:
            value = values[wanted.name] = extra["received_value"] = conversion(value)
        except LOOKUP_ERRORS as exc:
            message = f"Failed to convert an input value to a {wanted.type} value"
            details = f"{wanted.name}, {value}, {exc}"
            return [problem("invalid_input_type", message, details, **extra, exception_message=str(exc))]
    return _outside(wanted, value, extra) or _unlisted(wanted, value, extra)


def _outside(wanted: Declared, value: Any, extra: Mapping[str, Any]) -> list[Problem]:
    if not isinstance(value, int | float):
        return []
    least, most = wanted.options.get("min"), wanted.options.get("max")
    if isinstance(least, int | float) and value < least:
        message = f"Value {value} smaller than min of {least}"
        return [problem("value_smaller_than_min", message, wanted.name, **extra)]
    if isinstance(most, int | float) and value > most:
        message = f"Value {value} bigger than max of {most}"
        return [problem("value_bigger_than_max", message, wanted.name, **extra)]
    return []


def _unlisted(wanted: Declared, value: Any, extra: Mapping[str, Any]) -> list[Problem]:
    choices = wanted.choices
    if choices is None or wanted.is_file or value in choices:
        return []
    shown = f"{list(choices)}"
    if len(choices) > LONG_LIST:
        shown = f"(list of length {len(choices)})"
        extra = {**extra, "input_config": None}
    return [
        problem("value_not_in_list", "Value not in list", f"{wanted.name}: {value!r} not in {shown}", **extra)
    ]
