"""
A look at the GPU while ComfyUI boots: is one there, and does its driver answer. Nobody waits for it.

Each step is a program of its own with a time limit, since a broken driver may hang whoever asks it. No torch. Whether
ComfyUI itself can use the GPU is for ComfyUI to say (`/system_stats`).
"""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

LIST = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
INIT = (
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import ctypes as c\n"
    "cuda, version = c.CDLL('libcuda.so.1'), c.c_int()\n"
    "code = cuda.cuInit(0)\n"
    "cuda.cuDriverGetVersion(c.byref(version))\n"
    "print(code, version.value)\n",
)
LIMIT_S = 5.0
UNUSABLE = "this machine's GPU is not usable, so let the platform give you another"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What one look found: `problem` is a sentence, or empty; `facts` are for the log.
    """

    problem: str
    facts: str = ""


class Look:
    """
    One look, in a thread of its own from `start` on; `problem` is what it found so far.
    """

    def __init__(self, look: Callable[[], Finding] | None = None) -> None:
        self._look = look or at_gpu
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._run, name="gpu-check", daemon=True)

    def start(self) -> None:
        """
        Begin, and return at once.
        """
        self._thread.start()

    def problem(self) -> str:
        """
        Return the sentence that says what is wrong, empty when nothing is known to be.
        """
        return self._finding.problem if self._finding is not None else ""

    def join(self, timeout_s: float) -> None:
        """
        Wait for its end.
        """
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._finding = self._look()
        if self._finding.problem:
            logger.warning("%s", self._finding.problem)
        else:
            logger.info("GPU: %s", self._finding.facts)


def at_gpu(listing: Sequence[str] = LIST, init: Sequence[str] = INIT, limit_s: float = LIMIT_S) -> Finding:
    """
    Ask `nvidia-smi` for the GPUs and the CUDA driver for its start; each may take `limit_s`.

    A container may lack `nvidia-smi` and have a GPU all the same, so its absence alone is no problem.
    """
    listed = _output(listing, limit_s)
    gpus = "; ".join(line.strip() for line in (listed.text or "").splitlines() if line.strip())
    if listed.hangs:
        return Finding(f"nvidia-smi does not answer: {UNUSABLE}.")
    if listed.ran and (listed.code or not gpus):
        return Finding(f"nvidia-smi finds no GPU: {UNUSABLE}.", gpus)
    started = _output(init, limit_s)
    if started.hangs:
        return Finding(f"The GPU's driver hangs at its start ({gpus or 'unknown GPU'}): {UNUSABLE}.", gpus)
    code, _, version = started.text.strip().partition(" ")
    if started.code or not code.isdecimal():
        return Finding("The CUDA driver library (libcuda.so.1) is not in this container.", gpus)
    if code != "0":
        return Finding(
            f"The GPU's driver does not start (CUDA error {code}, {gpus or 'unknown GPU'}): {UNUSABLE}.", gpus
        )
    return Finding("", f"{gpus or 'unknown'}; the driver speaks CUDA {_cuda(version)}")


def _cuda(version: str) -> str:
    # 12080 is 12.8.
    return f"{int(version) // 1000}.{int(version) % 1000 // 10}" if version.isdecimal() else "?"


@dataclass(frozen=True, slots=True)
class _Ran:
    ran: bool = False
    hangs: bool = False
    code: int = 0
    text: str = ""


def _output(command: Sequence[str], limit_s: float) -> _Ran:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return _Ran(ran=True, hangs=True)
    except OSError:
        return _Ran()
    return _Ran(ran=True, code=done.returncode, text=done.stdout)
