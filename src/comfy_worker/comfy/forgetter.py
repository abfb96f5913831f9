"""
Deletes what ComfyUI's history says of prompts that are over, behind the jobs: several at once, while the next one runs.

An entry names a job's files, and takes ComfyUI's time to delete, which no caller should wait for.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from comfy_worker.errors import ComfyUnavailable

logger = logging.getLogger(__name__)

PAUSE_S = 0.05
"""How long the first of several waits for the others."""
JOIN_S = 5.0
SETTLE_S = 60.0


class Forgetter:
    """
    `forget` takes a prompt on and returns at once; `settle` waits until the entry of one is gone. Thread-safe.

    `delete` deletes the entries of these prompts, and may raise `ComfyUnavailable`: then they stay, and the log says so.
    """

    def __init__(self, delete: Callable[[Sequence[str]], None], *, pause_s: float = PAUSE_S) -> None:
        self._delete = delete
        self._pause_s = pause_s
        self._lock = threading.Condition()
        self._waiting: deque[str] = deque()
        self._under_way: frozenset[str] = frozenset()
        self._is_hurried = self._is_closed = False
        self._thread: threading.Thread | None = None

    def forget(self, prompt_id: str) -> None:
        """
        Have the entry of a prompt deleted soon.
        """
        with self._lock:
            if self._is_closed:
                return
            self._waiting.append(prompt_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="forgetter", daemon=True)
                self._thread.start()
            if len(self._waiting) == 1:
                self._lock.notify_all()

    def settle(self, prompt_id: str) -> None:
        """
        Return once the entry of a prompt does not wait to be deleted any more: one that is about to run again under this id
        must not be taken for what it was before, nor lose its new entry. Waits as long as `delete` takes, a minute at most.
        """
        with self._lock:
            if prompt_id in self._waiting or prompt_id in self._under_way:
                self._is_hurried = True
                self._lock.notify_all()
                self._lock.wait_for(
                    lambda: prompt_id not in self._waiting and prompt_id not in self._under_way, SETTLE_S
                )

    def close(self) -> None:
        """
        Delete what waits, and end. Idempotent.
        """
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _work(self) -> None:
        while prompt_ids := self._next():
            try:
                self._delete(prompt_ids)
            except ComfyUnavailable as exc:
                logger.debug("History entries could not be deleted: %s", exc)
            finally:
                with self._lock:
                    self._under_way = frozenset()
                    self._lock.notify_all()

    def _next(self) -> Sequence[str]:
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._is_closed)
            self._lock.wait_for(lambda: self._is_hurried or self._is_closed, self._pause_s)
            prompt_ids = tuple(self._waiting)
            self._waiting.clear()
            self._under_way = frozenset(prompt_ids)
            self._is_hurried = False
            return prompt_ids
