"""
How much work a request is, in the unit that the benchmark measures: the one sum that admission and scaling go by.

Without the legacy mode every job counts 100. With it the legacy formula counts, and a job whose size is not known counts
as the benchmark's: 1024 x 1024 pixels in 28 steps. One unit per worker, since admission divides by the benchmark's score.

    A(w, h, s) = (85 + ceil(w / 512) * ceil(h / 512) * 175) * (0.61 * s + 6.57)
    workload   = T * 200 * A(w, h, s) / A(1024, 1024, 28)        T = 23 (flux), 6 (sd3)

Source: Vast's `comfyui` worker of 2024.
"""

import math
from collections.abc import Mapping
from typing import Any

PLAIN = 100.0
SIDE, STEPS = 1024, 28
WEIGHTS = {"flux": 23.0, "sd3": 6.0}
OWN_WEIGHT = 6.0
"""For a COMFY_MODEL of the operator's own: any number does, benchmark and requests share it."""


def unit(legacy_model: str | None) -> float:
    """
    Return what a job counts whose size is not known.
    """
    return PLAIN if legacy_model is None else sized(legacy_model, {})


def sized(legacy_model: str | None, fields: Any) -> float:
    """
    Return what a legacy job counts by its `width`, `height` and `steps`; what is absent or no number takes the default.
    """
    if legacy_model is None:
        return PLAIN
    given: Mapping[str, Any] = fields if isinstance(fields, Mapping) else {}
    width, height = _number(given.get("width"), SIDE), _number(given.get("height"), SIDE)
    steps = _number(given.get("steps"), STEPS)
    weight = WEIGHTS.get(legacy_model, OWN_WEIGHT)
    return weight * 200.0 * _cost(width, height, steps) / _cost(SIDE, SIDE, STEPS)


def _cost(width: float, height: float, steps: float) -> float:
    tiles = math.ceil(width / 512) * math.ceil(height / 512)
    return (85 + tiles * 175) * (0.61 * steps + 6.57)


def _number(value: Any, default: int) -> float:
    if isinstance(value, bool):
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    # Larger ones would make the sum of all load infinite, and this worker look busy for ever.
    return min(max(number, 1.0), 1e6) if math.isfinite(number) else default
