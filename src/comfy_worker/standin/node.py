"""
What a node is to the engine: its inputs and outputs as `/object_info` shows them, and the function that runs it.

The node packs (`nodes_*.py`) fill this in, the engine calls it. No node and no server in here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Folders:
    """
    The four folders of an engine.
    """

    input: Path
    output: Path
    temp: Path
    models: Path


@dataclass(frozen=True, slots=True)
class Input:
    """
    One input of a node.

    `type` is a type name (`INT`, `FLOAT`, `STRING`, `BOOLEAN`, `IMAGE`, `*`, ...), or a tuple of choices, or a function
    of the folders that lists the choices now (files of a folder). `options` are `/object_info`'s (default, min, max,
    step, multiline, image_upload, ...).
    """

    name: str
    type: str | tuple[Any, ...] | Callable[[Folders], Sequence[str]]
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


class Interrupted(Exception):
    """
    The prompt was interrupted; raised out of `Context.progress`.
    """


class Context(Protocol):
    """
    What a running node may ask of the engine.
    """

    node_id: str
    prompt: Mapping[str, Any]
    extra_pnginfo: Mapping[str, Any] | None
    metadata: bool
    folders: Folders

    def progress(self, value: float, maximum: float, preview: bytes | None = None) -> None:
        """
        Report a tick, with a JPEG of the picture so far where there is one. Raises `Interrupted`.
        """

    def sleep(self, seconds: float) -> None:
        """
        Wait, woken early only by the end of the engine.
        """

    def send_image(self, data: bytes, mime: str) -> None:
        """
        Send an encoded image to the client as a binary frame (event 1, or 4 with the feature flag).
        """

    def send_text(self, text: str) -> None:
        """
        Send a text frame (event 3) to every client.
        """


@dataclass(frozen=True, slots=True)
class Blocked:
    """
    A value that stops what depends on it: silently without a message, else with a blocker error.
    """

    message: str | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """
    What a node returns.

    `values`: one per output (a list of values where `output_is_list` says so). `ui`: `{key: [items]}` for the client, None
    when it has none. `expand`: a graph that replaces the node; `values` may then hold links `[node_id, slot]` into it.
    """

    values: tuple[Any, ...] = ()
    ui: Mapping[str, Sequence[Any]] | None = None
    expand: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """
    One node class.

    `run(inputs, context)` gets widget values already converted and linked values as the other node returned them.
    `fingerprint(inputs, folders)` stands for IS_CHANGED: its value goes into the cache key; NaN never hits.
    `check(inputs, folders)` stands for VALIDATE_INPUTS: None, or the text behind `Custom validation failed for node`.
    `v3` shows choices as `["COMBO", {"options": [...]}]`; `intermediate` is `has_intermediate_output`.
    """

    class_type: str
    run: Callable[[Mapping[str, Any], Context], Returned]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] | None = None
    output_is_list: tuple[bool, ...] | None = None
    hidden: Mapping[str, str] = field(default_factory=dict)
    output_node: bool = False
    intermediate: bool = False
    v3: bool = False
    input_is_list: bool = False
    display_name: str | None = None
    category: str = ""
    description: str = ""
    python_module: str = "nodes"
    fingerprint: Callable[[Mapping[str, Any], Folders], Any] | None = None
    check: Callable[[Mapping[str, Any], Folders], str | None] | None = None
