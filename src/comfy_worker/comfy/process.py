"""
ComfyUI's process: start it, wait until it answers, keep its last lines, start it again, stop it.

One thread owns the process. Whoever waits for a job asks `guard` whether the ComfyUI it began with still lives.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from comfy_worker.comfy import crashes
from comfy_worker.errors import ComfyUnavailable

logger = logging.getLogger(__name__)
comfy_logger = logging.getLogger("comfy_worker.comfyui")

LAST_LINES = 200
STOP_S = 10.0
PR_SET_PDEATHSIG = 1
DIED = "WebSocket communication error: ComfyUI HTTP unreachable during websocket reconnect"
"""What users of RunPod workers know as the news of a ComfyUI that died under a job."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """
    How a dead ComfyUI is started again: `delay_s` later, until it died `limit` times within `window_s`.
    """

    delay_s: float = 5.0
    limit: int = 5
    window_s: float = 60.0


class ComfyProcess:
    """
    One supervised ComfyUI. `start` returns at once, `wait_ready` waits, `stop` ends it and its children.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        url: str,
        *,
        boot_timeout_s: float = 600.0,
        interval_s: float = 0.05,
        restarts: Restarts | None = None,
    ) -> None:
        self._command = list(command)
        self._folder = folder
        self._address = urlsplit(url).netloc
        self._boot_timeout_s = boot_timeout_s
        self._interval_s = interval_s
        self._restarts = restarts or Restarts()
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._deaths: deque[float] = deque()
        self._crash: crashes.Crash | None = None
        self._given_up = False
        self._began = 0.0
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """
        The process id while it lives.
        """
        return self._process.pid if self._process is not None else None

    @property
    def given_up(self) -> bool:
        """
        Whether it will not be started again.
        """
        return self._given_up

    def start(self) -> None:
        """
        Start ComfyUI and the thread that owns it. Idempotent.
        """
        if self._thread is not None:
            return
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._supervise, name="comfy-supervisor", daemon=True)
        self._thread.start()

    def wait_ready(self, answers: Callable[[], bool], check: Callable[[], None] = lambda: None) -> None:
        """
        Return once ComfyUI lives and `answers()`. `check` is called while waiting and may raise.

        Raises:
            ComfyUnavailable: it died for good, or took longer than its boot limit.
        """
        while True:
            check()
            if self._given_up and self._crash is not None:
                raise ComfyUnavailable(f"{self._unreachable()}\n{self._crash.sentence}")
            if self.pid is not None and answers():
                return
            if self._stopping.is_set():
                raise ComfyUnavailable("The worker is shutting down.")
            if time.monotonic() - self._began > self._boot_timeout_s:
                raise ComfyUnavailable(
                    f"{self._unreachable()}\nIt lives and did not answer within {self._boot_timeout_s:g} s "
                    "(COMFY_BOOT_TIMEOUT_S)."
                )
            with self._changed:
                self._changed.wait(self._interval_s)

    def guard(self) -> Callable[[], None]:
        """
        Return a check that raises `ComfyUnavailable` once the present ComfyUI is dead.
        """
        generation = self._generation

        def check() -> None:
            if self._generation != generation or self._process is None:
                sentence = self._crash.sentence if self._crash else "ComfyUI is not running."
                raise ComfyUnavailable(f"{DIED}. {sentence}")

        return check

    def _unreachable(self) -> str:
        return f"ComfyUI server ({self._address}) not reachable after multiple retries."

    def kill(self) -> None:
        """
        End a ComfyUI that is stuck; it is started again like one that died.
        """
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """
        End ComfyUI and its children: SIGTERM, then SIGKILL. Idempotent.
        """
        self._stopping.set()
        self._signal(signal.SIGTERM)
        with self._changed:
            self._changed.notify_all()
            ended = self._changed.wait_for(lambda: self._process is None, STOP_S)
        if not ended:
            self._signal(signal.SIGKILL)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_S)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                logger.debug("ComfyUI ended by itself before it could be signalled.")

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            kills = out_of_memory_kills()
            try:
                process = self._spawn()
            except OSError as exc:
                self._note_death(crashes.Crash(f"ComfyUI could not be started: {exc.strerror}.", False))
                return
            # Its own thread reads: a child of ComfyUI may hold the pipe open after ComfyUI is dead.
            reader = threading.Thread(target=self._read, args=(process,), name="comfy-output", daemon=True)
            reader.start()
            code = process.wait()
            self._end_group(process.pid)
            reader.join(STOP_S)
            if not self._stopping.is_set():
                self._note_death(
                    crashes.classify(code, self._lines, out_of_memory_kills=out_of_memory_kills() - kills)
                )
            with self._changed:
                self._process = None
                self._changed.notify_all()
            if self._given_up:
                return
            self._stopping.wait(self._restarts.delay_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._lines.clear()
        process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent(),
        )
        with self._changed:
            self._process = process
            self._generation += 1
            self._began = time.monotonic()
            self._changed.notify_all()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            return
        with process.stdout as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                if line:
                    self._lines.append(line)
                    comfy_logger.info("%s", line)

    def _end_group(self, pid: int) -> None:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _note_death(self, crash: crashes.Crash) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > self._restarts.window_s:
            self._deaths.popleft()
        self._crash = crash
        if not crash.restart_helps or len(self._deaths) >= self._restarts.limit:
            self._given_up = True
        logger.error("%s%s", crash.sentence, " It is not started again." if self._given_up else "")
        for line in list(self._lines)[-20:]:
            logger.error("ComfyUI said: %s", line)


def die_with_parent() -> Callable[[], None] | None:
    """
    Return what a child runs so that it ends with the thread that started it (Linux only).
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL) and None


def out_of_memory_kills(events: Path = Path("/sys/fs/cgroup/memory.events")) -> int:
    """
    Return how many processes the kernel killed for memory in our own control group; 0 where it cannot be read.
    """
    try:
        rows = dict(line.split() for line in events.read_text().splitlines())
        return int(rows.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
