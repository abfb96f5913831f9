"""
What makes a recorded conversation with ComfyUI and one with the engine comparable: ids, times, counters, paths, tracebacks.

The cases in `conformance/` were recorded from ComfyUI 0.27.0 and are stored in the form that `Plain` gives them.
"""

import json
import re
from collections.abc import Callable
from typing import Any

TIMES = frozenset(
    (
        "timestamp",
        "create_time",
        "execution_start_time",
        "execution_end_time",
        "ram_total",
        "ram_free",
        "vram_total",
        "vram_free",
        "torch_vram_total",
        "torch_vram_free",
        "modified",
        "created",
        "size",
    )
)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HEX = re.compile(r"\b[0-9a-f]{32}\b")
_TEMP = re.compile(r"_temp_[a-z]{5}_")
_HOUR = re.compile(r"%_\d\d_(?=\d{5}_)")
_OUTSIDE = re.compile(r"(full_output_folder|commonpath): .*")
_TOTAL = re.compile(r"^(bytes \d+-\d+)/\d+$")
_COUNTER = re.compile(r"^(.*?_)(\d{5})(_?\.\w+)$")


class Plain:
    """
    The comparable form of everything seen in one case. One instance per case and side: it numbers the ids it meets.
    """

    def __init__(self, base: str = "") -> None:
        self._base = base
        self._ids: dict[str, str] = {}
        self._first: dict[str, int] = {}
        self._special: dict[str, Callable[[Any], Any]] = {
            "traceback": lambda value: "lines" if value else "none",
            "executed": sorted,
            "current_outputs": sorted,
            "current_inputs": sorted,
            "input_config": lambda value: value[0] if isinstance(value, list) else value,
            "number": _number,
            "value": lambda value: _amount(value) if isinstance(value, float) else value,
            "max": lambda value: _amount(value) if isinstance(value, float) else value,
            "priority": _number,
            "sid": lambda _value: "sid",
            "prompt": self._prompt,
            "errors": lambda value: sorted((self.value(row) for row in value), key=canonical),
            "details": lambda value: (
                "\n".join(sorted(self.text(value).split("\n"))) if isinstance(value, str) else value
            ),
            "extra_info": self._extra_info,
        }

    def text(self, value: str) -> str:
        """
        Return a string with ids numbered, the base folder as /data, temp letters and counters made relative.
        """
        if self._base:
            value = value.replace(self._base, "/data")
        value = _TOTAL.sub(r"\1/all", value)
        value = _HOUR.sub("%_hour_", _OUTSIDE.sub(r"\1: outside", value))
        value = _UUID.sub(
            lambda found: self._ids.setdefault(found.group(), f"id-{len(self._ids) + 1}"), value
        )
        value = _TEMP.sub("_temp_xxxxx_", _HEX.sub("hex", value))
        match = _COUNTER.match(value)
        if match is None or "temp" in value:
            return re.sub(r"(temp_xxxxx_)\d{5}", r"\1n", value)
        first = self._first.setdefault(match.group(1), int(match.group(2)))
        return f"{match.group(1)}{int(match.group(2)) - first + 1}{match.group(3)}"

    def value(self, value: Any, key: str = "") -> Any:
        """
        Return any JSON value in comparable form.
        """
        if key in TIMES:
            return "time"
        if key in self._special:
            return self._special[key](value)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(item, name) for name, item in value.items()}
        return value

    def _extra_info(self, value: dict[str, Any]) -> dict[str, Any]:
        return {name: self.value(item, name) for name, item in value.items() if name != "traceback"}

    def _prompt(self, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 5:
            return [_number(value[0]), *(self.value(item) for item in value[1:4]), sorted(value[4])]
        return self.value(value)

    def message(self, message: dict[str, Any]) -> str:
        """
        Return a text message of the socket as one line.
        """
        kind, data = message["type"], message["data"]
        if kind == "progress_state":
            return "progress_state " + " ".join(_progress(name, row) for name, row in data["nodes"].items())
        return f"{kind} {canonical(self.value(data))}"


def _number(value: float) -> float | str:
    return value if isinstance(value, float) else "back" if value >= 0 else "front"


def _progress(name: str, row: dict[str, Any]) -> str:
    line = f"{name}:{_amount(row['value'])}/{_amount(row['max'])}:{row['state']}"
    own = (
        row["display_node_id"] == row["real_node_id"] == row["node_id"] == name
        and row["parent_node_id"] is None
    )
    return line if own else f"{line}({row['display_node_id']},{row['parent_node_id']},{row['real_node_id']})"


def _amount(value: float) -> str:
    if isinstance(value, int) or value in (0.0, 1.0):
        return str(value)
    return "float"


def canonical(value: Any) -> str:
    """
    Return JSON with sorted keys.
    """
    return json.dumps(value, sort_keys=True)


def binary(frame: bytes) -> str:
    """
    Return a binary frame as one line: its event and what is in its head.
    """
    event = int.from_bytes(frame[:4], "big")
    second = int.from_bytes(frame[4:8], "big")
    if event == 1:
        return f"binary 1 type {second} magic {frame[8:12].hex()}"
    head = frame[8 : 8 + second].decode()
    if event == 3:
        return f"binary 3 node {head} text {frame[8 + second :].decode()!r}"
    return f"binary {event} magic {frame[8 + second : 12 + second].hex()}"
