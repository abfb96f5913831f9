"""
How long the stages of one job took.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from comfy_worker.job import Timings

Stage = Literal["staged", "queued", "executed", "delivered", "converted"]


@dataclass(slots=True)
class Stopwatch:
    """
    Milliseconds of each stage, summed over attempts.
    """

    began: float = field(default_factory=time.monotonic)
    spent: dict[Stage, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """
        Add the time of the block to `stage`.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, began)

    def add(self, stage: Stage, began: float) -> None:
        """
        Add the time since `began` to `stage`.
        """
        self.spent[stage] = self.spent.get(stage, 0.0) + (time.monotonic() - began) * 1000

    def timings(self, nodes: Mapping[str, float]) -> Timings:
        """
        Return the figures so far; `nodes` are the milliseconds of each node.
        """
        rounded = {stage: round(spent, 3) for stage, spent in self.spent.items()}
        total = round((time.monotonic() - self.began) * 1000, 3)
        return Timings(**rounded, total=total, nodes={name: round(spent, 3) for name, spent in nodes.items()})
