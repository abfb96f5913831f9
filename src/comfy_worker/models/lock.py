"""
One writer per target: of two workers on one volume, one fetches a file and the other takes what is there then.

A lock file lies beside the target while it is fetched. Two things guard it. The kernel's lock on it holds between
processes that share a kernel, and ends with its process. Not every network volume passes that lock on, so the holder
also writes its name into the file and touches it every few seconds; who waits counts it as left behind when it was not
touched for `STALE_S` of the waiter's own clock (the clocks of two hosts are never compared). What was left behind keeps
its partial file, and the next holder goes on from there.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

STALE_S = 120.0
BEATS = 24
"""Signs of life of a holder within the time after which it counts as gone."""

POLL_S = 0.5

Tick = Callable[[float], None]
"""Sleep that many seconds, or raise because time is over."""


class LockLost(Exception):
    """
    Somebody else holds the target now.
    """


class Hold:
    """
    A target that is ours. `validator` is what the server called the partial file's content, kept for the next holder.
    """

    def __init__(
        self, path: Path, handle: int, owner: str, state: dict[str, str], beat_s: float = STALE_S / BEATS
    ) -> None:
        self._path = path
        self._handle = handle
        self._owner = owner
        self._beat_s = beat_s
        self.validator = state.get("validator", "")
        self._beaten = time.monotonic()
        self._write(owner)

    def beat(self) -> None:
        """
        Say that we are alive; cheap, to be called often.

        Raises:
            LockLost: another host counted us as dead.
        """
        now = time.monotonic()
        if now - self._beaten < self._beat_s:
            return
        self._beaten = now
        if _state(self._handle).get("owner") != self._owner:
            raise LockLost
        os.utime(self._handle)

    def remember(self, validator: str) -> None:
        """
        Note what identifies the content of the partial file.
        """
        if validator != self.validator:
            self.validator = validator
            self._write(self._owner)

    def release(self, *, keep: bool) -> None:
        """
        Let go; `keep` leaves the note about the partial file.
        """
        if _state(self._handle).get("owner") == self._owner:
            if keep:
                self._write("")
            else:
                # While it is locked: who waits for this very file sees that its name has gone, and opens a new one.
                self._path.unlink(missing_ok=True)
        os.close(self._handle)

    def _write(self, owner: str) -> None:
        text = json.dumps({"owner": owner, "host": socket.gethostname(), "validator": self.validator})
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)


@contextlib.contextmanager
def held(target: Path, part: Path, tick: Tick, stale_s: float = STALE_S) -> Iterator[Hold]:
    """
    Hold a target while the block runs; wait for whoever holds it before. `part` is its partial file.
    """
    path = target.with_name(f".{target.name}.lock")
    owner = secrets.token_hex(8)
    watch = _Watch(stale_s)
    while (hold := _taken(path, owner, watch)) is None:
        if watch.is_new:
            logger.info("Waiting for %s: another worker fetches it.", target.name)
        tick(POLL_S)
    try:
        yield hold
    finally:
        hold.release(keep=part.exists())


class _Watch:
    """
    What a waiter has seen of a lock file, and since when it has been so.
    """

    def __init__(self, stale_s: float) -> None:
        self.stale_s = stale_s
        self._seen: tuple[int, str] | None = None
        self._since = 0.0
        self._looks = 0

    @property
    def is_new(self) -> bool:
        return self._looks == 1

    def waited(self) -> None:
        self._looks += 1

    def is_stale(self, stamp: tuple[int, str]) -> bool:
        if stamp != self._seen:
            self._seen, self._since = stamp, time.monotonic()
        return time.monotonic() - self._since >= self.stale_s


def _taken(path: Path, owner: str, watch: _Watch) -> Hold | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locks = _locked(handle)
        state = _state(handle)
        if locks is not False and _is_at(path, handle) and not _alive(handle, state, locks, watch):
            hold = Hold(path, handle, owner, state, watch.stale_s / BEATS)
            handle = -1
            return hold
        watch.waited()
        return None
    finally:
        if handle >= 0:
            os.close(handle)


def _locked(handle: int) -> bool | None:
    # None: this file system has no such locks.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _alive(handle: int, state: dict[str, str], locks: bool | None, watch: _Watch) -> bool:
    holder = state.get("owner", "")
    if not holder or (locks and state.get("host") == socket.gethostname()):
        return False  # nobody, or one of this machine that has ended: the kernel would have kept its lock
    return not watch.is_stale((os.fstat(handle).st_mtime_ns, holder))


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _state(handle: int) -> dict[str, str]:
    try:
        found = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
