"""
The connections of a whole fetch, of which each is let go of as soon as its request is over.

A `Line` keeps a handle on every connection until it is closed, so one line for hundreds of files would run out of them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from comfy_worker.fetch_guard import Guard, Line


class Lines:
    """
    One `Line` per request. `cut` ends them all, and those still to come. Thread-safe.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self._open: set[Line] = set()
        self._is_cut = False

    @contextmanager
    def one(self) -> Iterator[Line]:
        """
        Give a line for one request and close it afterwards.
        """
        line = Line(self._guard)
        with self._lock:
            self._open.add(line)
            cut = self._is_cut
        if cut:
            line.cut()
        try:
            yield line
        finally:
            with self._lock:
                self._open.discard(line)
            line.close()

    def cut(self) -> None:
        """
        End every connection now.
        """
        with self._lock:
            self._is_cut = True
            lines = list(self._open)
        for line in lines:
            line.cut()
