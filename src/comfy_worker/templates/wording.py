"""
What pydantic found wrong with parameters, said as every refusal here: the field, the bound, the value.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from comfy_worker import graph
from comfy_worker.errors import JobInvalid

MOST = 10
LONGEST = 60

WANTED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda bound: f"must be at least {bound['ge']}",
    "greater_than": lambda bound: f"must be greater than {bound['gt']}",
    "less_than_equal": lambda bound: f"must be at most {bound['le']}",
    "less_than": lambda bound: f"must be less than {bound['lt']}",
    "multiple_of": lambda bound: f"must be a multiple of {bound['multiple_of']}",
    "literal_error": lambda bound: f"must be {bound['expected']}",
    "enum": lambda bound: f"must be {bound['expected']}",
    "string_too_long": lambda bound: f"must have at most {bound['max_length']} characters",
    "string_too_short": lambda bound: f"must have at least {bound['min_length']} characters",
    "string_pattern_mismatch": lambda bound: f"must match {bound['pattern']}",
    "finite_number": lambda _: "must be a finite number",
}
"""For the value of a field that has the right type."""

TYPES: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


def refusal(exc: ValidationError, field: str) -> JobInvalid:
    """
    Return the refusal of parameters that stand in `field`; its text is about the first, `details` names up to ten.
    """
    errors = exc.errors(include_url=False)[:MOST]
    texts = [sentence(error, field) for error in errors]
    facts: dict[str, Any] = {"field": _path(errors[0], field)}
    if len(texts) > 1:
        facts["details"] = texts
    return JobInvalid(texts[0], **facts)


def sentence(error: Mapping[str, Any], field: str) -> str:
    """
    Return one error of pydantic 2 as a sentence about the field.
    """
    kind, value, path = error["type"], error.get("input"), _path(error, field)
    if kind == "missing":
        return f"'{path}' is required"
    if kind == "string_too_short" and not value:
        return f"'{path}' must not be empty"
    if kind in TYPES:
        return f"'{path}' must be {TYPES[kind]}, not {_told(value)}"
    wanted = WANTED.get(kind)
    if wanted is None:
        return f"'{path}': {error['msg']}"
    return f"'{path}' {wanted(error.get('ctx', {}))}, not {_told(value)}"


def _path(error: Mapping[str, Any], field: str) -> str:
    return ".".join([field, *map(str, error["loc"])])


def _told(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value) if len(value) <= LONGEST else f"a string of {len(value):,} characters"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)[:LONGEST]
    return graph.kind_of(value)
