"""
What the operating system is asked for around a child process: its end with ours, its port.
"""

import ctypes
import errno
import signal
import socket
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def is_taken(address: str) -> bool:
    """
    Return whether somebody listens at `host:port` of this machine.
    """
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as exc:
            return exc.errno == errno.EADDRINUSE
    return False


def die_with_parent() -> Callable[[], None] | None:
    """
    Return what a child runs so that it ends with the thread that started it (Linux only).
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL) and None
