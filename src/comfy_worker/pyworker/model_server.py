"""
The model server (`comfy-worker serve --face vast`) as a child of the PyWorker: started, watched, ended with it.

It is not started again: after the first good answer of `/health` a bad one is the end of this worker for the SDK and the
router. Instead its end is reported, with its own last words as the reason.
"""

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
LAST_LINES = 50
SENTENCES = 4
WORDS_LIMIT = 600
LEVEL = re.compile(r"^.*?\b(ERROR|CRITICAL)\b\s*")
KILL_AFTER_S = 10.0


class ModelServer:
    """
    The child process. Its output is passed on; the last lines are kept for the reason of its end.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        # In a session of its own, so that Ctrl-C reaches the PyWorker only and its jobs are drained first.
        self._process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
        self._reader = threading.Thread(target=self._pass_on, name="model-server-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """
        Its process id.
        """
        return self._process.pid

    def ended(self) -> str | None:
        """
        Return why it ended, as far as it said so; None while it lives.
        """
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(1.0)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        words = last_words(list(self._lines))
        return f"The model server ended {how}{': ' + words if words else ''}"

    def stop(self, grace_s: float) -> None:
        """
        Tell it to stop (SIGTERM), and kill it `grace_s` and 10 s later if it has not.
        """
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                self._process.wait(grace_s + KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                logger.warning("The model server did not stop in time and is killed.")
                self._process.kill()
                self._process.wait(KILL_AFTER_S)
        self._reader.join(1.0)

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace")
                self._lines.append(line.rstrip())
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(line)
                    sys.stderr.flush()


def last_words(lines: Sequence[str]) -> str:
    """
    Return what the last lines that report an error say, else the last line with something in it.
    """
    said = [line.strip() for line in lines if line.strip()]
    errors = [LEVEL.sub("", line) for line in said if LEVEL.search(line)]
    return " ".join(errors[-SENTENCES:] or said[-1:])[:WORDS_LIMIT]


def _end_with_parent() -> Callable[[], None] | None:
    """
    Return what the child runs so that it is told to stop when the PyWorker is killed (Linux only).
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
