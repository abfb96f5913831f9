"""
The body of a request of the Vast face: JSON, out of its envelope, held against a model. Pure.

The refusals are FastAPI's, as clients of the wrapper see them, without what was sent, which may hold secrets.
"""

import json
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from comfy_worker.errors import JobInvalid

Model = TypeVar("Model", bound=BaseModel)


class Misfit(JobInvalid):
    """
    The body does not fit its schema; `details["detail"]` is FastAPI's list: `type`, `loc`, `msg`.
    """


def decoded(body: bytes) -> Any:
    """
    Return the JSON of a body.

    Raises:
        Misfit: it is not JSON; the place is the offset of the first wrong letter.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        place = _offset(body)
    raise misfit([{"type": "json_invalid", "loc": ["body", place], "msg": "JSON decode error"}])


def _offset(body: bytes) -> int:
    try:
        json.loads(body)
    except json.JSONDecodeError as exc:
        return exc.pos
    except (ValueError, RecursionError):
        return 0
    return 0


def misfit(detail: list[dict[str, Any]]) -> Misfit:
    """
    Return the refusal of a body.
    """
    first = detail[0]
    place = ".".join(str(part) for part in first["loc"])
    return Misfit(f"'{place}': {first['msg']}", field=place, detail=detail)


def checked(model: type[Model], raw: Any) -> Model:
    """
    Return a body as the model of its route.

    Raises:
        Misfit: it does not fit. What was sent, which may hold secrets, is not repeated.
    """
    try:
        return model.model_validate(raw, from_attributes=True)
    except ValidationError as exc:
        found = exc.errors(include_url=False, include_input=False, include_context=False)
        detail = [{"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"]} for item in found]
        raise misfit(detail) from None


def unwrapped(raw: Any) -> Any:
    """
    Return the payload of a PyWorker's envelope, for tests without one; any other body as it is.
    """
    if isinstance(raw, dict) and "input" not in raw and isinstance(raw.get("payload"), dict):
        return raw["payload"]
    return raw


def unwrapped_id(raw: Any) -> Any:
    """
    Return the body of `/result` and `/cancel`, out of a PyWorker's envelope where it is in one.
    """
    if isinstance(raw, dict) and "request_id" not in raw and isinstance(raw.get("payload"), dict):
        return raw["payload"]
    return raw
