"""
What the worker adds to ComfyUI's boot: from the start of `python handler.py` until it asks for its first job.

In each run ComfyUI's own boot, from its process's start until it first answers, is taken off. On a real ComfyUI where one
is found (COMFYUI_PATH, else comfy-cli's default workspace), on the built-in engine with `--builtin`. Use a quiet machine.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import requests

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.control_plane import ControlPlane  # noqa: E402
from support.lanes import comfy_folder  # noqa: E402
from support.worker_process import WorkerProcess  # noqa: E402

from comfy_worker.comfy import launch  # noqa: E402
from comfy_worker.settings import Settings  # noqa: E402

BUDGET_S, BUDGET_MB = 0.2, 100.0
LIMIT_S = 300.0
STEP_S = 0.002


class Run(NamedTuple):
    """
    Seconds from the worker's start: to ComfyUI's start, to its first answer, to the first take; and the idle memory.
    """

    spawned: float
    answered: float
    taken: float
    idle_mb: float

    @property
    def added(self) -> float:
        """
        What the worker took beside ComfyUI's own boot.
        """
        return self.taken - (self.answered - self.spawned)


def started_at(pid: int) -> float:
    """
    Return when a process began, on the clock of `time.monotonic`; exact to a hundredth of a second.
    """
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.monotonic() - (uptime - since_boot)


def waited(is_so: Callable[[], object]) -> float:
    """
    Wait until something holds; return the time.
    """
    end = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit("it did not start in time")
        time.sleep(STEP_S)
    return time.monotonic()


def answers(url: str) -> bool:
    """
    Return whether ComfyUI answers.
    """
    try:
        return requests.get(f"{url}/prompt", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def once(folder: Path, base: Path) -> Run:
    """
    Start a worker, see its first take, and end it.
    """
    port = launch.free_port()
    own = {"COMFYUI_PATH": str(folder), "COMFY_PORT": str(port), "LOG_LEVEL": "WARNING"}
    with ControlPlane() as plane:
        began = time.monotonic()
        worker = WorkerProcess(base, {**plane.environ(), **own})
        try:
            waited(worker.children)
            comfy = min(child.pid for child in worker.children())
            spawned = started_at(comfy)
            answered = waited(lambda: answers(f"http://127.0.0.1:{port}"))
            taken = waited(lambda: plane.takes)
            time.sleep(1.0)
            status = Path(f"/proc/{worker.pid}/status").read_text()
            idle = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            return Run(spawned - began, answered - began, taken - began, int(idle.split()[1]) * 1024 / 1e6)
        finally:
            worker.close()


def main() -> int:
    """
    Run and print the medians beside the budgets.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--builtin", action="store_true", help="use the built-in engine")
    asked = parser.parse_args()
    given = Path(os.environ["COMFYUI_PATH"]) if os.environ.get("COMFYUI_PATH") else None
    found = None if asked.builtin else launch.installed(Settings(comfyui_path=given))
    runs = []
    with tempfile.TemporaryDirectory(prefix="comfy-coldstart-") as base:
        folder = found or comfy_folder(Path(base) / "ComfyUI")
        for number in range(asked.runs):
            run = once(folder, Path(base) / f"run-{number}")
            runs.append(run)
            print(
                f"ComfyUI began after {run.spawned:.2f} s, answered after {run.answered:.2f} s; first take after "
                f"{run.taken:.2f} s; added {run.added:.2f} s; idle {run.idle_mb:.0f} MB",
                flush=True,
            )
    added = statistics.median(run.added for run in runs)
    idle = statistics.median(run.idle_mb for run in runs)
    print(f"\n{'A real ComfyUI' if found else 'The built-in engine'}, median of {len(runs)}:")
    print(f"added to ComfyUI's boot  {added:.2f} s  (budget {BUDGET_S} s)")
    print(f"idle memory              {idle:.0f} MB (budget {BUDGET_MB:.0f} MB)")
    return 0 if added <= BUDGET_S and idle <= BUDGET_MB else 1


if __name__ == "__main__":
    sys.exit(main())
