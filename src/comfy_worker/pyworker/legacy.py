"""
What the clients of Vast's `comfyui` template of 2024 send, and the checks of it.

Source: vast-ai/pyworker 910f6f2, workers/comfyui.
"""

from collections.abc import Callable
from typing import Any

from comfy_worker.pyworker.sdk import Sdk

Payload = dict[str, Any]
Parser = Callable[[Payload], Payload]

PROMPT = "/prompt"
CUSTOM = ("/custom-workflow", "/custom_workflow")
"""The code and its client have a hyphen, the documentation an underscore."""

MISSING = "missing parameter"


def parser(sdk: Sdk, problems_of: Callable[[Payload], dict[str, str]]) -> Parser:
    """
    Return a request parser that refuses with every problem at once; the SDK answers 422 `{"payload": {name: problem}}`.
    """

    def parse(payload: Payload) -> Payload:
        problems = problems_of(payload)
        if problems:
            raise sdk.JsonDataException(problems)
        return payload

    return parse


def prompt_problems(payload: Payload) -> dict[str, str]:
    """
    Return what is wrong with a payload of `/prompt`. `steps` may be absent, as the documentation says.
    """
    problems = {name: MISSING for name in ("prompt", "width", "height", "seed") if name not in payload}
    if not isinstance(payload.get("prompt", ""), str):
        problems["prompt"] = "must be a string"
    for name in ("width", "height", "steps", "seed"):
        value = payload.get(name, 1)
        # JavaScript clients send 1024.0 for 1024.
        if isinstance(value, bool) or not (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        ):
            problems[name] = "must be a whole number"
    return problems


def custom_problems(payload: Payload) -> dict[str, str]:
    """
    Return what is wrong with a payload of `/custom-workflow`.
    """
    problems = {}
    for name in ("custom_fields", "workflow"):
        if name not in payload:
            problems[name] = MISSING
        elif not isinstance(payload[name], dict):
            problems[name] = "must be an object"
    return problems
