"""
The last seconds of a worker under the runpod SDK: told to stop, it takes no more jobs, ends those it has, and leaves.

The SDK (1.12.0 as observed) stops taking jobs at SIGTERM and lets the running ones finish, however long they take; then
it waits, up to 90 s, for polls that are still open, and loses a job that comes in on one. So this stands in front of its
handler: the running jobs have a bound, and the polls are closed as soon as nothing runs.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

START_S = 1.0
POST_S = 10.0
PAUSE_S = 0.02


class Left(SystemExit):
    """
    Ends the SDK's event loop. Raised inside it, never inside a task.
    """


class Drain:
    """
    What SIGTERM and SIGINT do. `taken` gives the ids of the jobs that the SDK has; `cancel` ends those that still run.
    """

    def __init__(
        self, grace_s: float, cancel: Callable[[], object], taken: Callable[[], Collection[str]]
    ) -> None:
        self._grace_s = grace_s
        self._cancel = cancel
        self._taken = taken
        self._begun: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._former: dict[int, Any] = {}
        self._is_told = False
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """
        Stand in front of the SDK's handlers. Called by the SDK inside its loop, where they are set. Idempotent.
        """
        if self._loop is not None:
            return
        import asyncio  # only here: what is imported before ComfyUI starts is added to its boot

        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._told)

    def begins(self, job_id: str) -> None:
        """
        Note that a job is being worked on. Others that the SDK has then will not be run any more.
        """
        self._begun = {job_id} | (self._begun & set(self._taken()))

    def leave(self) -> None:
        """
        End the SDK's loop, and its open polls with it, unless a job runs. Callable from any thread.
        """
        if self._loop is not None and not self._taken():
            self._end()

    def _told(self, number: int, frame: Any) -> None:
        # In the middle of anything: only what is safe there. The rest is done by the loop.
        if self._is_told or self._loop is None or self._loop.is_closed():
            return
        self._is_told = True
        former = self._former[number]
        if callable(former):
            former(number, frame)
        self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        logger.info("The worker was told to stop (%s).", signal.Signals(number).name)
        if not self._taken():
            _leave()
        self._thread = threading.Thread(target=self._wait, name="drain", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        began = time.monotonic()
        if not self._over(began, began + self._grace_s):
            logger.warning("The running jobs were not over within SHUTDOWN_GRACE_S (%g s).", self._grace_s)
            self._cancel()
            self._over(began, time.monotonic() + POST_S)
        self._end()

    def _over(self, began: float, end: float) -> bool:
        """
        Wait until no job runs; False when some still does at `end`.
        """
        while self._running(time.monotonic() - began):
            if time.monotonic() >= end:
                return False
            time.sleep(PAUSE_S)
        return True

    def _running(self, seconds: float) -> bool:
        # A job that was taken just before may still be on its way to the handler; a later one never gets there.
        taken = set(self._taken())
        return bool(taken if seconds < START_S else taken & self._begun)

    def _end(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_leave)


def _leave() -> None:
    raise Left(0)
