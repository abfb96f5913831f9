"""
ComfyUI's last lines and exit status -> one sentence the operator can act on. Pure.

No verdict without evidence: what no rule knows is told as the exit status it is.
"""

import re
import signal
from collections.abc import Iterable
from typing import NamedTuple


class Rule(NamedTuple):
    """
    A pattern in ComfyUI's output and what it means.
    """

    pattern: re.Pattern[str]
    sentence: str
    restart_helps: bool


RULES = (
    Rule(
        re.compile(r"OutOfMemoryError|CUDA out of memory|HIP out of memory"),
        "ComfyUI ran out of GPU memory. Use a GPU with more memory, a smaller or more quantized model, or add "
        "`--lowvram` to COMFYUI_ARGS.",
        True,
    ),
    Rule(
        re.compile(r"Torch not compiled with CUDA|No CUDA GPUs are available|Found no NVIDIA driver"),
        "ComfyUI found no GPU that it can use. Run it on a GPU machine with a driver, or set COMFYUI_ARGS=--cpu.",
        False,
    ),
    Rule(
        re.compile(
            r"driver on your system is too old|no kernel image is available|unsupported toolchain", re.I
        ),
        "The GPU driver of this machine is too old, or the GPU too new, for ComfyUI's CUDA version. Choose a host that "
        "fits, or an image with another CUDA version.",
        False,
    ),
    Rule(
        re.compile(r"address already in use|port \d+ is already in use|only one usage of each socket", re.I),
        "The port of ComfyUI is taken by another program. Set COMFY_PORT to a free one, or 0.",
        False,
    ),
    Rule(
        re.compile(r"No space left on device|disk quota exceeded", re.I),
        "The disk is full. Give the worker a larger container disk, or remove files from its volume.",
        False,
    ),
    Rule(
        re.compile(r"error: unrecognized arguments:|error: argument .+: not allowed with"),
        "ComfyUI refused an argument. Check COMFYUI_ARGS against `python main.py --help` of this ComfyUI.",
        False,
    ),
    Rule(
        re.compile(r"ModuleNotFoundError: No module named|ImportError: cannot import name"),
        "ComfyUI's Python lacks a package that ComfyUI needs. Install its requirements into that environment, or set "
        "COMFYUI_PYTHON to the right one.",
        False,
    ),
    Rule(
        re.compile(r"can't open file .*main\.py|No such file or directory: .*python"),
        "ComfyUI was not found. COMFYUI_PATH must be the folder with `main.py`, COMFYUI_PYTHON its interpreter.",
        False,
    ),
)


class Crash(NamedTuple):
    """
    What happened, in one sentence, and whether starting again can help.
    """

    sentence: str
    restart_helps: bool


def classify(exit_code: int, lines: Iterable[str], *, out_of_memory_kills: int = 0) -> Crash:
    """
    Judge the end of ComfyUI's process.

    `exit_code` is negative for a signal; `lines` are its last lines; `out_of_memory_kills` is how many processes the
    kernel killed for memory in our own control group since the process began.
    """
    how = exit_text(exit_code)
    if exit_code == -signal.SIGKILL and out_of_memory_kills > 0:
        text = "The system killed ComfyUI because the machine's memory (RAM) was full."
        return Crash(f"{text} Use a worker with more memory or a smaller model.", True)
    # A process that ended by a signal, or well, did not end by what it printed before.
    if exit_code > 0:
        for line in reversed(list(lines)):
            for rule in RULES:
                if rule.pattern.search(line):
                    return Crash(f"{rule.sentence} ({how})", rule.restart_helps)
    return Crash(f"ComfyUI ended unexpectedly ({how}). Its last lines are in the worker's log.", True)


def exit_text(exit_code: int) -> str:
    """
    Return `exit code 1` or `signal SIGKILL`.
    """
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"
