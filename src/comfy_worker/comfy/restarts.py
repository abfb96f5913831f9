"""
When a dead ComfyUI is started again, and when no more: counts deaths, starts nothing.
"""

from dataclasses import dataclass

LONGEST_DELAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """
    How a dead ComfyUI is started again: `delay_s` later, twice as long after each further rapid death in a row.

    A death is rapid when ComfyUI had lived for less than `window_s`, or not answered within its boot limit. After `limit`
    rapid ones in a row it is given up: counted like this, a growing delay cannot hide them, nor a slow boot.
    """

    delay_s: float = 5.0
    limit: int = 5
    window_s: float = 60.0


class Deaths:
    """
    The deaths of one ComfyUI after the other.
    """

    def __init__(self, restarts: Restarts, boot_timeout_s: float) -> None:
        self._restarts = restarts
        self._boot_timeout_s = boot_timeout_s
        self._rapid = 0

    def add(self, lived_s: float, *, answered: bool) -> None:
        """
        Count one.
        """
        window_s = self._restarts.window_s
        least_s = window_s if answered else max(window_s, self._boot_timeout_s)
        self._rapid = self._rapid + 1 if lived_s < least_s else 1

    @property
    def are_too_many(self) -> bool:
        """
        Whether it is of no use to start it again.
        """
        return self._rapid >= self._restarts.limit

    @property
    def delay_s(self) -> float:
        """
        How long to wait before the next start.
        """
        delay_s = self._restarts.delay_s
        return min(delay_s * 2.0 ** max(0, min(self._rapid, 32) - 1), max(delay_s, LONGEST_DELAY_S))
