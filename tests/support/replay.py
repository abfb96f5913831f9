"""
The recorded conversations with real ComfyUI servers, as the modules under test read them.

One file of `transcripts/<version>/` per behaviour: what was posted, what was answered, what the websocket said and what
the history held. Tests only; see `transcripts/README.md` for what a file holds.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from comfy_worker.comfy import messages

ROOT = Path(__file__).parents[1] / "transcripts"
VERSIONS = ("0.3.64", "0.27.0")
PAYLOAD_LIMIT = 1000


@dataclass(frozen=True)
class Prompt:
    """
    One POST /prompt: the graph, the status of the answer, its id, its errors, and how the history ended it.
    """

    workflow: Any
    status: int | None
    prompt_id: str | None
    reply: dict[str, Any]
    targets: list[str] | None
    entry: dict[str, Any] | None


@dataclass(frozen=True)
class Transcript:
    """
    One recorded case; `frames` are the parsed messages of our socket and when they came.
    """

    version: str
    name: str
    prompts: tuple[Prompt, ...]
    frames: tuple[tuple[float, messages.Message], ...]
    jobs: dict[str, Any]

    @property
    def case(self) -> str:
        """
        Return the first part of the name, by which the case is cited.
        """
        return self.name.split("_")[0]


@cache
def load(version: str, name: str) -> Transcript:
    """
    Read one transcript.
    """
    data = json.loads((ROOT / version / f"{name}.json").read_text())
    prompts = tuple(
        Prompt(
            workflow=sent.get("workflow"),
            status=sent["status"],
            prompt_id=sent.get("prompt_id"),
            reply=sent.get("reply", {}),
            targets=sent.get("targets"),
            entry=data["history"].get(sent.get("prompt_id")),
        )
        for sent in data["prompts"]
    )
    said = [*data["ws"], *data.get("ws2", [])]
    frames = tuple((item["t"], _parse(item)) for item in said if "close" not in item)
    return Transcript(version, name, prompts, frames, data.get("jobs", {}))


def every() -> list[Any]:
    """
    Return all transcripts as parameters, named by version and case.
    """
    return [
        pytest.param(load(version, path.stem), id=f"{version}-{path.stem}")
        for version in VERSIONS
        for path in sorted((ROOT / version).glob("*.json"))
    ]


def _parse(item: dict[str, Any]) -> messages.Message:
    if "json" in item:
        return messages.parse_text(json.dumps(item["json"]))
    return messages.parse_binary(binary(item["binary"]))


def binary(described: dict[str, Any]) -> bytes:
    """
    Rebuild a binary frame from its description; the picture itself is zeros, at most 1 kB of them.
    """
    event = described["event_type"]
    head = event.to_bytes(4)
    picture = bytes(min(described.get("payload_length") or 0, PAYLOAD_LIMIT))
    if event == 1:
        return head + described["image_type"].to_bytes(4) + picture
    first = described["node_id"] if event == 3 else json.dumps(described["metadata"])
    rest = described["text"].encode() if event == 3 else picture
    return head + len(first.encode()).to_bytes(4) + first.encode() + rest
