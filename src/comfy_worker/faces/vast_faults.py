"""
Faults of the GPU that no further job survives: what their texts say, and the latch that `/health` reads.
"""

import logging
from dataclasses import dataclass

from comfy_worker.errors import ComfyUnavailable, JobCancelled, JobInvalid, WorkerBusy, WorkerError

logger = logging.getLogger(__name__)

BROKEN = (
    "unspecified launch failure",
    "device-side assert triggered",
    "illegal memory access",
    "triton error [cuda]",
    "cuda runtime error",
    "misaligned address",
    "invalid device function",
    "invalid configuration argument",
)
"""What CUDA says when its context is lost; ComfyUI answers, and every job fails."""


@dataclass(slots=True)
class Faults:
    """
    Hears how jobs end. `threshold` jobs in a row that found no ComfyUI are a fault too. Once set, `reason` stays.
    """

    threshold: int = 3
    reason: str | None = None
    _in_a_row: int = 0

    def note(self, error: WorkerError | None) -> None:
        """
        Note the end of a job; None is a success.
        """
        if isinstance(error, ComfyUnavailable):
            self._in_a_row += 1
            if self._in_a_row >= self.threshold:
                self._latch(f"{self._in_a_row} jobs in a row found no ComfyUI")
            return
        if not isinstance(error, (JobCancelled, JobInvalid, WorkerBusy)):
            self._in_a_row = 0
        text = str(error).lower() if error is not None else ""
        found = next((words for words in BROKEN if words in text), None)
        if found is not None:
            self._latch(f"the GPU reported '{found}'")

    def _latch(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            logger.error("BACKEND_UNRECOVERABLE %s; replace this worker", reason)
