"""
Take one prompt back and see it gone: dequeue it or interrupt it, always by its id, until ComfyUI is rid of it.
"""

import logging
import time
from collections.abc import Callable

from comfy_worker.comfy.client import Client
from comfy_worker.errors import ComfyUnavailable

logger = logging.getLogger(__name__)

PAUSES_S = (0.05, 0.1, 0.25, 0.5, 1.0)


def cancel(
    client: Client, prompt_id: str, grace_s: float, *, clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:  # fmt: skip
    """
    Return True once ComfyUI neither runs nor queues the prompt, False when it still does after `grace_s`.

    An interrupt is noticed at the next node start or progress tick, so a long node may outlast the grace. Never raises.
    """
    end, gone = clock() + grace_s, 0
    for attempt in range(1_000_000):
        try:
            if client.cancel(prompt_id) is None:
                client.dequeue(prompt_id)
                client.interrupt(prompt_id)
            where = client.whereabouts(prompt_id)
        except ComfyUnavailable as exc:
            logger.warning("ComfyUI did not answer while a prompt was cancelled: %s", exc)
            where = None
        if where == "ended":
            return True
        gone = gone + 1 if where == "unknown" else 0
        if gone >= 2:
            return True
        if clock() >= end:
            return False
        sleep(min(PAUSES_S[min(attempt, len(PAUSES_S) - 1)], max(0.0, end - clock())))
    return False
