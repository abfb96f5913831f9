"""
`python handler.py` as a process of its own: started with a clean environment, ended by its id, its children with it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.control_plane import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
KEPT = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")


class Child(NamedTuple):
    """
    A process that cannot be mixed up with a later one of the same id: `began` is the clock tick of its start.
    """

    pid: int
    began: str


class WorkerProcess:
    """
    A worker. `folder` becomes its working folder, its home and the parent of its temporary files; `lines` is what it
    printed so far, on both streams.
    """

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        *arguments: str,
        program: Sequence[str] = (str(ROOT / "handler.py"),),
        python: str = sys.executable,
    ) -> None:
        self.folder = folder
        self.temp = folder / "tmp"
        self.cwd = folder / "cwd"
        for path in (self.temp, self.cwd):
            path.mkdir(parents=True, exist_ok=True)
        own = {name: os.environ[name] for name in KEPT if name in os.environ}
        own |= {"HOME": str(folder), "TMPDIR": str(self.temp), "PYTHONUNBUFFERED": "1"}
        self.lines: list[str] = []
        self._known: set[Child] = set()
        self._process = subprocess.Popen(
            [python, *program, *arguments],
            cwd=self.cwd,
            env={**own, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, name="worker-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """
        Its process id.
        """
        return self._process.pid

    @property
    def text(self) -> str:
        """
        Everything it printed so far.
        """
        return "\n".join(self.lines)

    @property
    def records(self) -> list[dict[str, Any]]:
        """
        The lines that are JSON objects.
        """
        decoder, found = json.JSONDecoder(), []
        for line in list(self.lines):
            while line.startswith("{"):  # two processes may print at once, before either ends its line
                record, end = decoder.raw_decode(line)
                found.append(record)
                line = line[end:]
        return found

    def children(self) -> set[Child]:
        """
        Return its living children, and theirs.
        """
        found = descendants(self.pid)
        self._known |= found
        return found

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """
        Send a signal to the worker itself; what its children are is noted first.
        """
        self.children()
        self._process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """
        Wait for its end and return its exit code.
        """
        while True:
            try:
                code = self._process.wait(min(timeout_s, 0.1))
                break
            except subprocess.TimeoutExpired:
                self.children()
                timeout_s -= 0.1
                if timeout_s <= 0:
                    raise
        self._reader.join(5.0)
        return code

    def leftovers(self) -> set[Child]:
        """
        Return the children that were seen once and still live.
        """
        return {child for child in self._known if is_alive(child)}

    def close(self) -> None:
        """
        End it, and its children by their ids, whatever state they are in.
        """
        if self._process.poll() is None:
            self.tell()
            try:
                self.wait(10.0)
            except subprocess.TimeoutExpired:
                self.tell(signal.SIGKILL)
                self._process.wait(5.0)
        for child in self.leftovers():
            os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: not self.leftovers(), 5.0)
        self._reader.join(5.0)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())


def descendants(pid: int) -> set[Child]:
    """
    Return all living processes below `pid`.
    """
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        row = _stat(int(path.name))
        if row is not None:
            parents[Child(int(path.name), row[19])] = int(row[1])
    found: set[Child] = set()
    fresh = {pid}
    while fresh:
        below = {child for child, parent in parents.items() if parent in fresh} - found
        found |= below
        fresh = {child.pid for child in below}
    return found


def is_alive(child: Child) -> bool:
    """
    Return whether the process lives; one that ended and was not waited for does not.
    """
    row = _stat(child.pid)
    return row is not None and row[19] == child.began


def _stat(pid: int) -> list[str] | None:
    try:
        row = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if row[0] == "Z" else row
