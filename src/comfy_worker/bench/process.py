"""
What a process has used, from Linux' `/proc`: processor seconds, memory now and at its highest.
"""

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ENDED_S = 40.0
SETTLE_S = 0.03


class Used:
    """
    The use of one process. `mark` begins to look for a new highest memory.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._files = Path(f"/proc/{pid}")

    def cpu_s(self) -> float:
        """
        Return the processor seconds it has used so far, all its threads together.
        """
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def mark(self) -> float:
        """
        Forget the highest memory so far; return the megabytes it holds now.
        """
        # Elsewhere than on Linux, or where it is not allowed, the highest is that of its whole life.
        with contextlib.suppress(OSError):
            (self._files / "clear_refs").write_text("5")
        return float(self._process.memory_info().rss) / 1e6

    def peak_mb(self) -> float:
        """
        Return the most megabytes it held since `mark`.
        """
        try:
            lines = (self._files / "status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            return float(self._process.memory_info().rss) / 1e6


class Program:
    """
    A worker as a process of its own, with nothing but `environ` in its environment, and a folder for what it leaves. `log` has what it said.
    """

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="comfy-worker-bench-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                arguments,
                env={**environ, "TMPDIR": self._folder.name},
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.used = Used(self.popen.pid)

    @property
    def log(self) -> str:
        """
        What it has printed so far.
        """
        return self._log.read_text(errors="replace")

    def rest(self) -> None:
        """
        Stop it where it is, so that it takes no time from others that are measured. `go` lets it go on.
        """
        self.popen.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        """
        Let it go on, and wait a moment, in which it does what has come up meanwhile.
        """
        self.popen.send_signal(signal.SIGCONT)
        time.sleep(SETTLE_S)

    def close(self) -> None:
        """
        End it by its id, and wait.
        """
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(ENDED_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(ENDED_S)
        self._folder.cleanup()
