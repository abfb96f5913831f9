"""
What will happen, by the seed alone: the kind and the faults of each job, and the weather that they all meet. Pure.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "plain", "url", "url_flaky", "url_gone", "url_truncated", "url_slow", "stored", "store_flaky", "store_refused",
    "store_reset", "store_slow", "url_half", "hook", "hook_flaky", "hook_reset", "raises", "unknown_node", "invalid", "slow", "cancelled", "too_late", "twice", "result_refused",
]  # fmt: skip

KINDS: Mapping[Kind, int] = {
    "plain": 24,
    "url": 8,
    "url_flaky": 6,
    "url_gone": 3,
    "url_truncated": 3,
    "url_slow": 3,
    "stored": 8,
    "store_flaky": 5,
    "store_refused": 3,
    "store_reset": 4,
    "store_slow": 2,
    "url_half": 2,
    "hook": 4,
    "hook_flaky": 3,
    "hook_reset": 2,
    "raises": 5,
    "unknown_node": 3,
    "invalid": 3,
    "slow": 2,
    "cancelled": 5,
    "too_late": 3,
    "twice": 3,
    "result_refused": 3,
}
"""How many of a hundred jobs are of each kind."""

LOST = frozenset({"prompt_lost", "comfy_unavailable"})
AWAY = frozenset({"comfy_unavailable", "prompt_lost", "job_failed", "delivery_failed"})


@dataclass(frozen=True)
class Weather:
    """
    What everybody meets for a while: faults of the engine, a kill, a clock that jumps, a disk that takes no file.

    `codes` are the reasons that a job may end with because of it.
    """

    name: str
    faults: Mapping[str, Any] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    kills: bool = False
    full_disk: bool = False


WEATHERS: tuple[tuple[Weather, int], ...] = (
    (Weather("fair"), 8),
    (Weather("messages lost", {"lose": ["execution_success", "null_event", "executed"]}), 3),
    (Weather("all messages lost", {"lose": ["executing", "progress", "progress_state", "execution_start", "execution_success", "null_event", "executed"]}), 2),
    (Weather("messages doubled", {"duplicate": ["executing", "executed", "execution_success", "null_event", "progress_state"]}), 3),
    (Weather("messages late", {"delay_ms": {"execution_success": 150, "null_event": 150}}), 3),
    (Weather("history late", {"history_delay_ms": [100, 500]}), 3),
    (Weather("sockets cut", {"close_socket_after_frame": 3}), 3),
    (Weather("sockets closed", {"close_socket_after_frame": 5, "close_frame": True}), 2),
    (Weather("no sockets", {"refuse_socket": True}), 2),
    (Weather("history fails", {"http_500_on": {"/history": 4}}, AWAY), 2),
    (Weather("queue fails", {"http_500_on": {"/queue": 4}}, AWAY), 2),
    (Weather("prompts refused", {"post_status": 500}, AWAY | {"workflow_invalid"}), 2),
    (Weather("prompts doubted", {"queued_but_500": True}, AWAY), 2),
    (Weather("prompts forgotten", {"lost_but_200": True}, LOST), 2),
    (Weather("stalls", {"gc_stall_ms": 300}), 2),
    (Weather("ComfyUI killed", {}, AWAY, kills=True), 3),
    (Weather("ComfyUI dies at a node", {"die_at_node": "2"}, AWAY), 1),
    (Weather("outputs vanish", {"delete_outputs_after_run": True}, frozenset({"delivery_failed"})), 2),
    (Weather("disk full", {}, frozenset({"job_failed", "disk_full", "input_unavailable"}), full_disk=True), 2),
)  # fmt: skip


@dataclass(frozen=True)
class Fate:
    """
    One job: its number is its colour. `delay_s` is when its caller takes it back, where the kind says so.
    """

    number: int
    kind: Kind
    delay_s: float = 0.0


def fate_of(seed: int, number: int) -> Fate:
    """
    Return what job `number` of a run is.
    """
    chooser = random.Random(f"{seed} job {number}")
    kind = chooser.choices(list(KINDS), list(KINDS.values()))[0]
    return Fate(number, kind, round(chooser.uniform(0.0, 0.4), 3))


def weather_of(seed: int, epoch: int) -> Weather:
    """
    Return the weather of one epoch of a run; the first is fair. Every round of epochs has every weather, each by its share.
    """
    if epoch == 0:
        return WEATHERS[0][0]
    deck = [weather for weather, share in WEATHERS for _ in range(share)]
    number, place = divmod(epoch - 1, len(deck))
    random.Random(f"{seed} weather {number}").shuffle(deck)
    return deck[place]
