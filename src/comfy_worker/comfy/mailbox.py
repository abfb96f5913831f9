"""
The messages of one prompt on their way from the websocket's thread to the job's. Putting never blocks.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

from comfy_worker.comfy import messages
from comfy_worker.comfy.messages import Message

PICTURE_LIMIT = 200
"""Previews that may wait; what a job returns is never counted."""


@dataclass(frozen=True, slots=True)
class SocketLost:
    """
    Tells a job that messages may be missing from here on.
    """


Mail = Message | SocketLost


class Mailbox:
    """
    The messages of one prompt, in order. `put` never blocks; previews are dropped first, text never.
    """

    def __init__(self, keep_pictures_of: frozenset[str] = frozenset()) -> None:
        self._keep = keep_pictures_of
        self._mail: deque[tuple[float, Mail]] = deque()
        self._pictures = 0
        self._bell = threading.Condition()
        self._woken = False

    def put(self, mail: Mail) -> None:
        """
        Add a message and wake the reader.
        """
        with self._bell:
            if self._may_drop(mail):
                if self._pictures >= PICTURE_LIMIT:
                    return
                self._pictures += 1
            self._mail.append((time.monotonic(), mail))
            self._bell.notify()

    def wake(self) -> None:
        """
        End a `get` early, now or when it next begins.
        """
        with self._bell:
            self._woken = True
            self._bell.notify()

    def get(self, timeout_s: float) -> tuple[float, Mail] | None:
        """
        Return the next message and when it arrived (monotonic seconds); None after `timeout_s` or a `wake`.
        """
        with self._bell:
            self._bell.wait_for(lambda: self._mail or self._woken, timeout_s)
            self._woken = False
            if not self._mail:
                return None
            at, mail = self._mail.popleft()
            if self._may_drop(mail):
                self._pictures -= 1
            return at, mail

    def _may_drop(self, mail: Mail) -> bool:
        # A picture that does not say whose it is may be a result.
        return (
            isinstance(mail, messages.Picture) and mail.node_id is not None and mail.node_id not in self._keep
        )
