"""
RunPod's webhook: the state of an ended job, posted to the address that the job named.

As the platform does: 200 is what it wants, else two more tries, 10 s apart. The address is guarded like that of an input.
"""

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor

import requests

from comfy_worker.errors import InputUnavailable
from comfy_worker.fetch_guard import Guard, Line, PinnedAdapter, checked
from comfy_worker.log import MASK

logger = logging.getLogger(__name__)

TRIES = 3
PAUSE_S = 10.0
TIMEOUT_S = (5.0, 10.0)
THREADS = 4
MOST_PENDING = 200


class Webhooks:
    """
    Sends states in the background. `close` gives up what is not sent yet.
    """

    def __init__(self, guard: Guard, *, pause_s: float = PAUSE_S) -> None:
        self._guard = guard
        self._pause_s = pause_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="runpod-webhook")
        self._pending: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    @property
    def pending(self) -> int:
        """
        How many are not sent yet.
        """
        return len(self._pending)

    def send(self, url: str, body: bytes) -> None:
        """
        Post `body` in the background.
        """
        if len(self._pending) >= MOST_PENDING:
            logger.warning("A webhook was not sent: %d others wait already.", MOST_PENDING)
            return
        task = asyncio.create_task(self._deliver(url, body))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def close(self, timeout_s: float) -> None:
        """
        Make the next try of what is not sent yet the last one, at once, and give up what outlasts the bound.
        """
        self._closing.set()
        pending = set(self._pending)
        if pending:
            await asyncio.wait(pending, timeout=timeout_s)
        for task in pending:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _deliver(self, url: str, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        for number in range(TRIES):
            if number:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._pause_s)
            is_last = number == TRIES - 1 or self._closing.is_set()
            reason = await loop.run_in_executor(self._threads, self._post, url, body)
            if reason is None:
                return
            logger.warning(
                "Webhook %s, try %d%s: %s.",
                MASK.text(url),
                number + 1,
                ", the last" if is_last else "",
                MASK.text(reason),
            )
            if is_last:
                return

    def _post(self, url: str, body: bytes) -> str | None:
        """
        Return why it was not taken, None when it was.
        """
        line = Line(self._guard)
        try:
            with requests.Session() as session:
                session.trust_env = False
                session.mount("http://", PinnedAdapter(line))
                session.mount("https://", PinnedAdapter(line))
                with session.post(
                    checked(url),
                    data=body,
                    headers={"content-type": "application/json"},
                    timeout=TIMEOUT_S,
                    allow_redirects=False,
                    stream=True,  # what it answers is not read
                ) as response:
                    return None if response.status_code == 200 else f"it answered {response.status_code}"
        except InputUnavailable as exc:
            return str(exc)
        except (requests.RequestException, OSError, ValueError) as exc:
            return type(exc).__name__
        finally:
            line.close()
