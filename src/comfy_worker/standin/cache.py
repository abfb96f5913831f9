"""
What the engine keeps of nodes that ran, and for how long. Keys are made of content: other node ids hit all the same.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_worker.standin.node import Folders, Node

_never_twice = itertools.count()


@dataclass(frozen=True, slots=True)
class Done:
    """
    What a node left: per output a list of values, what it showed (None: nothing), and its names in history's `meta`.
    """

    values: tuple[list[Any], ...]
    ui: dict[str, list[Any]] | None
    meta: dict[str, Any]


class Cache:
    """
    The results kept between prompts.

    `default`: those of the previous prompt, dropped once a node of another one has run. `classic`: dropped when another
    prompt starts. `lru`: the newest `size`. `none`: nothing. Source: ComfyUI 0.27.0.
    """

    def __init__(self, policy: str, size: int) -> None:
        self._policy = policy
        self._size = size
        self._kept: dict[str, Done] = {}

    def get(self, key: str) -> Done | None:
        """
        Return what is kept under a key.
        """
        done = self._kept.get(key)
        if done is not None and self._policy == "lru":
            self._kept[key] = self._kept.pop(key)
        return done

    def put(self, key: str, done: Done) -> None:
        """
        Keep a result.
        """
        if self._policy != "none":
            self._kept[key] = done
        if self._policy == "lru":
            while len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]

    def started(self, keys: Iterable[str]) -> None:
        """
        Take note that a prompt with these keys starts.
        """
        if self._policy == "classic":
            self._keep_only(keys)

    def ran(self, keys: Iterable[str]) -> None:
        """
        Take note that a node of a prompt with these keys has run.
        """
        if self._policy == "default":
            self._keep_only(keys)

    def _keep_only(self, keys: Iterable[str]) -> None:
        wanted = set(keys)
        if not self._kept.keys() <= wanted:
            self._kept = {key: done for key, done in self._kept.items() if key in wanted}

    def clear(self) -> None:
        """
        Drop everything.
        """
        self._kept.clear()


def is_link(value: Any) -> bool:
    """
    Tell whether a value is a link, `[node id, slot]`.
    """
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], int | float)


def links(inputs: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """
    Return the inputs that are links, as `(node id, slot)`.
    """
    return {name: (value[0], int(value[1])) for name, value in inputs.items() if is_link(value)}


def keys_of(workflow: Mapping[str, Any], nodes: Mapping[str, Node], folders: Folders) -> dict[str, str]:
    """
    Return the cache key of every node of a workflow; nodes in a cycle or with a broken link get one that never hits.
    """
    found: dict[str, str] = {}
    for start in workflow:
        _add_keys(start, workflow, nodes, folders, found)
    return found


def _add_keys(
    start: str,
    workflow: Mapping[str, Any],
    nodes: Mapping[str, Node],
    folders: Folders,
    found: dict[str, str],
) -> None:
    path, seen = [start], {start}
    while path:
        node_id = path[-1]
        inputs = workflow[node_id].get("inputs") or {}
        missing = [
            target for target, _ in links(inputs).values() if target in workflow and target not in found
        ]
        fresh = [target for target in missing if target not in seen]
        if fresh:
            path.append(fresh[0])
            seen.add(fresh[0])
        else:
            path.pop()
            if node_id not in found:
                found[node_id] = _key(node_id, workflow[node_id]["class_type"], inputs, nodes, folders, found)


def _key(
    node_id: str,
    class_type: str,
    inputs: Mapping[str, Any],
    nodes: Mapping[str, Node],
    folders: Folders,
    found: Mapping[str, str],
) -> str:
    node = nodes[class_type]
    linked = links(inputs)
    parts: list[Any] = [class_type, _fingerprint(node, inputs, linked, folders)]
    if "UNIQUE_ID" in node.hidden.values():
        parts.append(node_id)
    for name, value in sorted(inputs.items()):
        if name in linked:
            target, slot = linked[name]
            value = [found.get(target) or f"never {next(_never_twice)}", slot]
        parts.append([name, value])
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()


def _fingerprint(node: Node, inputs: Mapping[str, Any], linked: Mapping[str, Any], folders: Folders) -> str:
    if node.fingerprint is None:
        return ""
    try:
        value = node.fingerprint({name: inputs[name] for name in inputs if name not in linked}, folders)
    except (OSError, KeyError, ValueError, TypeError, AttributeError):
        value = math.nan
    return f"never {next(_never_twice)}" if isinstance(value, float) and math.isnan(value) else repr(value)
