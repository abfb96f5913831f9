"""
One problem of ComfyUI's `node_errors` -> one sentence: which input, what it got, what it takes.

The whole answer to a refused workflow is in `refusals.py`.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from comfy_worker.comfy import signature

Choices = Callable[[str], Mapping[str, Any]]
"""Returns the `/object_info` entry of a class, an empty one when there is none."""

SHOWN = 10
VALUE_LIMIT = 100
LINE_LIMIT = 1000
ABSOLUTE_PATH = re.compile(
    r"""(?<![\w.:/\\])(?:/(?:[^/\s'"<>|:;,()]+/)+|[A-Za-z]:\\(?:[^\\\s'"<>|:;,()]+\\)+)[^/\\\s'"<>|:;,()]*"""
)
NOUNS = {"INT": "a whole number", "FLOAT": "a number"}


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One error of one node, in the fields that ComfyUI 0.27.0 gives it; `inputs` is the node's own, None without any.

    `wanted` is the type of the input (or its list of choices, or None) and `limits` its options; `extra` is the rest.
    """

    kind: str
    message: str
    details: str
    name: str | None
    value: Any
    wanted: Any
    limits: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] | None = None
    options: Sequence[str] = ()

    def sentence(self) -> str:
        """
        Say what is wrong with which input, without the node.
        """
        text = WORDINGS.get(self.kind, _as_written)(self)
        return shorten(
            f"{self.name}: {text}" if self.name and self.kind not in ABOUT_THE_NODE else text, LINE_LIMIT
        )


def read(
    error: Mapping[str, Any], node: Mapping[str, Any], class_type: Any, choices: Choices | None
) -> Problem:
    """
    Read one error object, `{"type", "message", "details", "extra_info"}`, of a node as it was sent.

    ComfyUI leaves the list of choices out when it has more than 20 entries; then `choices` is asked.
    """
    extra, inputs = _mapping(error.get("extra_info")), node.get("inputs")
    config, name = extra.get("input_config"), extra.get("input_name")
    wanted, limits, *_ = [*(config if isinstance(config, list) else []), None, None]
    is_choice = error.get("type") == "value_not_in_list"
    info = {"input": {"required": {name: config}}} if config and isinstance(name, str) else None
    if info is None and is_choice and choices is not None and isinstance(class_type, str):
        info = dict(choices(class_type))
    return Problem(
        kind=str(error.get("type")),
        message=str(error.get("message") or "ComfyUI refused it without a reason"),
        details=str(error.get("details") or ""),
        name=name if isinstance(name, str) else None,
        value=extra.get("received_value"),
        wanted=wanted,
        limits=_mapping(limits),
        extra=extra,
        inputs=inputs if isinstance(inputs, Mapping) else None,
        options=options_of(info, name) if info and is_choice else (),
    )


def options_of(info: Mapping[str, Any], name: Any) -> list[str]:
    """
    Return the choices of one input of a class, [] when it is no combo.
    """
    for declared in signature.declared_inputs(info, {}):
        if declared.name == name and declared.choices is not None:
            return [str(choice) for choice in declared.choices]
    return []


def nearest(value: Any, options: Sequence[str]) -> list[str]:
    """
    Return up to three options that were probably meant: the same file elsewhere, then what is spelled alike.
    """
    wanted = str(value)
    same = [option for option in options if _file_name(option).lower() == _file_name(wanted).lower()]
    return list(dict.fromkeys([*same, *difflib.get_close_matches(wanted, options, n=3)]))[:3]


def without_paths(text: str, given: str = "") -> str:
    """
    Cut absolute paths down to their last part, except those that occur in `given`, the caller's own words.
    """
    return ABSOLUTE_PATH.sub(lambda found: found[0] if found[0] in given else _file_name(found[0]), text)


def shorten(text: str, limit: int) -> str:
    """
    Return at most `limit` characters of a text, and show where it was cut.
    """
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _not_in_list(problem: Problem) -> str:
    text = f"{_shown(problem.value)} is not in list."
    if near := nearest(problem.value, problem.options):
        text += f" Did you mean {' or '.join(_shown(option) for option in near)}?"
    if problem.options:
        count = len(problem.options)
        more = f", … ({count} in all)" if count > SHOWN else ""
        return f"{text} Allowed: {', '.join(_shown(option) for option in problem.options[:SHOWN])}{more}."
    return (
        f"{text} There is nothing to choose from: no such file is installed."
        if problem.wanted == []
        else text
    )


def _out_of_range(problem: Problem) -> str:
    low, high = problem.limits.get("min"), problem.limits.get("max")
    text = f"it must be from {low} to {high}"
    if low is None or high is None:
        text = f"it must be at least {low}" if high is None else f"it must be at most {high}"
    return f"got {_shown(problem.value)}, {text}."


def _mismatch(problem: Problem) -> str:
    link = problem.extra.get("linked_node")
    source = (
        f"output {link[1]} of node {link[0]}" if isinstance(link, list) and len(link) == 2 else "its link"
    )
    wanted = "one of a list" if isinstance(problem.wanted, list) else problem.wanted
    return f"{source} is {problem.extra.get('received_type')}, and this input takes {wanted}."


def _unreadable(problem: Problem) -> str:
    if problem.inputs is None:
        return "it has no inputs object."
    kind = problem.extra.get("exception_type")
    for name, value in problem.inputs.items():
        if (
            isinstance(value, list)
            and len(value) == 2
            and kind == "KeyError"
            and repr(value[0]) == problem.details
        ):
            hint = "" if isinstance(value[0], str) else "; a node id is a string"
            return f"{name}: it links to node {problem.details}, which is not in the workflow{hint}."
    return f"ComfyUI cannot read its inputs ({kind}: {problem.details}). A link is [node id, output number]."


def _as_written(problem: Problem) -> str:
    return ": ".join(text for text in (problem.message, problem.details) if text)


def _no_link(problem: Problem) -> str:
    return f"{_shown(problem.value)} is no link; a link is [node id, output number]."


def _no_number(problem: Problem) -> str:
    return f"got {_shown(problem.value)}, it must be {NOUNS.get(str(problem.wanted), problem.wanted)}."


WORDINGS: Mapping[str, Callable[[Problem], str]] = {
    "required_input_missing": lambda _: "required input is missing.",
    "bad_linked_input": _no_link,
    "return_type_mismatch": _mismatch,
    "invalid_input_type": _no_number,
    "value_smaller_than_min": _out_of_range,
    "value_bigger_than_max": _out_of_range,
    "value_not_in_list": _not_in_list,
    "custom_validation_failed": lambda problem: problem.details.removeprefix(f"{problem.name} - "),
    "dependency_cycle": lambda problem: f"the nodes depend on each other: {problem.details}.",
    "exception_during_validation": _unreadable,
    "exception_during_inner_validation": _unreadable,
}
ABOUT_THE_NODE = frozenset({"exception_during_inner_validation"})


def _file_name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def _shown(value: Any) -> str:
    try:
        return shorten(repr(value), VALUE_LIMIT)
    except RecursionError:
        return "…"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
