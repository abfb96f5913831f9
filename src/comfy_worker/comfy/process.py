"""
ComfyUI's process: start it, wait until it answers, log its lines and keep the last, start it again, stop it.

One thread owns the process. Whoever waits for a job asks `guard` whether the ComfyUI it began with still lives.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from comfy_worker import machine
from comfy_worker.comfy import crashes, output
from comfy_worker.comfy.child import die_with_parent, is_taken
from comfy_worker.comfy.restarts import Deaths, Restarts
from comfy_worker.errors import ComfyUnavailable

logger = logging.getLogger(__name__)
comfy_logger = logging.getLogger("comfy_worker.comfyui")

LAST_LINES = 200
STOP_S = 5.0
LAST_WORDS_S = 1.0
PORT_S = 3.0
"""How long a port may still be held by a ComfyUI that is on its way out."""
READ_BYTES = 1 << 16
DIED = "WebSocket communication error: ComfyUI HTTP unreachable during websocket reconnect"
"""What users of RunPod workers know as the news of a ComfyUI that died under a job."""


class ComfyProcess:
    """
    One supervised ComfyUI. `start` returns at once, `wait_ready` waits, `stop` ends it and its children.

    `gpu` says what is wrong with the GPU, as far as is known, and `oom_kills` how often the kernel killed for memory so far;
    both are asked when ComfyUI has died. `on_given_up` is called,
    by the thread that owns the process, when it will not be started again.
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
        gpu: Callable[[], str] = str,
        oom_kills: Callable[[], int] = machine.oom_kills,
    ) -> None:
        self._command = list(command)
        self._folder = folder
        self._address = urlsplit(url).netloc
        self._boot_timeout_s = boot_timeout_s
        self._interval_s = interval_s
        self._gpu = gpu
        self._oom_kills = oom_kills
        self.on_given_up: Callable[[], None] = lambda: None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._deaths = Deaths(restarts or Restarts(), boot_timeout_s)
        self._answered = False
        self._failed_packs: list[str] = []
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
    def starts(self) -> int:
        """
        How often it was started.
        """
        return self._generation

    @property
    def given_up(self) -> bool:
        """
        Whether it will not be started again.
        """
        return self._given_up

    @property
    def failed_packs(self) -> Sequence[str]:
        """
        The custom node packs that the present ComfyUI could not import.
        """
        return tuple(self._failed_packs)

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
                self._answered = True
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
            kills = self._oom_kills()
            # Whoever answers there in its place would be taken for it.
            if not self._port_gets_free():
                self._note_death(crashes.Crash(crashes.PORT_TAKEN.sentence, False))
                return
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
            reader.join(LAST_WORDS_S)
            if not self._stopping.is_set():
                kills = self._oom_kills() - kills
                self._note_death(
                    crashes.classify(code, self._lines, out_of_memory_kills=kills, gpu=self._gpu())
                )
            with self._changed:
                self._process = None
                self._changed.notify_all()
            if self._given_up:
                return
            self._stopping.wait(self._deaths.delay_s)

    def _port_gets_free(self) -> bool:
        end = time.monotonic() + PORT_S
        while is_taken(self._address) and not self._stopping.is_set():
            if time.monotonic() >= end:
                return False
            self._stopping.wait(PORT_S / 20)
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._lines.clear()
        self._failed_packs.clear()
        self._answered = False
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
            self._log(stream)

    def _log(self, stream: IO[bytes]) -> None:
        reader = output.Reader()
        while raw := stream.readline(READ_BYTES):
            found = reader.read(raw)
            if found is None:
                continue
            level, text = found
            self._lines.append(text)
            comfy_logger.log(level, "%s", text)
            pack = output.failed_import(text)
            if pack is not None:
                self._failed_packs.append(pack)
                logger.warning(
                    "The custom node pack %s could not be imported, so its nodes are missing; the reason is above.",
                    pack,
                )

    def _end_group(self, pid: int) -> None:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _note_death(self, crash: crashes.Crash) -> None:
        self._deaths.add(time.monotonic() - self._began, answered=self._answered)
        self._crash = crash
        given_up = not crash.restart_helps or self._deaths.are_too_many
        logger.error("%s%s", crash.sentence, " It is not started again." if given_up else "")
        for line in list(self._lines)[-20:]:
            logger.error("ComfyUI said: %s", line)
        self._given_up = given_up
        if given_up:
            self.on_given_up()
