"""
The ComfyUI that a worker uses, whether the worker started it or found it running.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_worker.comfy.client import Client
from comfy_worker.comfy.launch import Launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.errors import ComfyUnavailable


@dataclass(slots=True)
class Engine:
    """
    The ComfyUI that a worker uses, supervised or not.
    """

    launch: Launch
    client: Client
    process: ComfyProcess | None = None
    is_stuck: bool = False
    tries: int = 500
    interval_s: float = 0.05

    def guard(self) -> Callable[[], None]:
        """
        Return a check that raises once the present ComfyUI is dead.
        """
        return self.process.guard() if self.process else lambda: None

    def stuck(self) -> None:
        """
        Kill a supervised ComfyUI that does not let go of a prompt; it is started again. Remember any other.
        """
        if self.process is not None:
            self.process.kill()
        else:
            self.is_stuck = True

    @property
    def failed_packs(self) -> Sequence[str]:
        """
        The custom node packs that a supervised ComfyUI could not import.
        """
        return self.process.failed_packs if self.process is not None else ()

    def wait_ready(self, check: Callable[[], None] = lambda: None) -> None:
        """
        Return once ComfyUI answers.

        Raises:
            ComfyUnavailable: it does not, and will not.
        """
        if self.process is not None:
            self.process.wait_ready(self.client.answers, check)
            return
        for _ in range(self.tries):
            check()
            if self.client.answers():
                return
            time.sleep(self.interval_s)
        raise ComfyUnavailable(
            f"ComfyUI server ({self.client.address}) not reachable after multiple retries."
        )

    @property
    def useless(self) -> bool:
        """
        Whether no job can be served any more by this worker.
        """
        return self.is_stuck or (self.process is not None and self.process.given_up)
