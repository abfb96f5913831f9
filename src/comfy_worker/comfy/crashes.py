"""
ComfyUI's last lines and exit status -> one sentence the operator can act on. Pure.

No verdict without evidence: what no rule knows is told as the exit status it is.
"""

import re
import signal
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SURVIVED = re.compile(r"Cannot import .* module for custom nodes|Prompt executed in ")
"""After such a line ComfyUI goes on: what stands before it did not end it."""
PACK = re.compile(r'File "[^"]*custom_nodes[/\\]([^/\\"]+)')
TRACEBACK = "Traceback (most recent call last):"


class Rule(NamedTuple):
    """
    A pattern in ComfyUI's output and what it means.
    """

    pattern: re.Pattern[str]
    sentence: str
    restart_helps: bool
    about_gpu: bool = False


NO_PACKAGE = Rule(
    re.compile(r"ModuleNotFoundError: No module named|ImportError: cannot import name"),
    "ComfyUI's Python lacks a package that ComfyUI needs. Install its requirements into that environment, or set "
    "COMFYUI_PYTHON to the right one.",
    False,
)
PORT_TAKEN = Rule(
    re.compile(r"address already in use|port \d+ is already in use|only one usage of each socket", re.I),
    "The port of ComfyUI is taken by another program. Set COMFY_PORT to a free one, or 0.",
    False,
)
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
        about_gpu=True,
    ),
    Rule(
        re.compile(
            r"driver on your system is too old|no kernel image is available|unsupported toolchain", re.I
        ),
        "The GPU driver of this machine is too old, or the GPU too new, for ComfyUI's CUDA version. Choose a host that "
        "fits, or an image with another CUDA version.",
        False,
        about_gpu=True,
    ),
    PORT_TAKEN,
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
    NO_PACKAGE,
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


def classify(exit_code: int, lines: Iterable[str], *, out_of_memory_kills: int = 0, gpu: str = "") -> Crash:
    """
    Judge the end of ComfyUI's process.

    `exit_code` is negative for a signal; `lines` are its last lines; `out_of_memory_kills` is how many processes the
    kernel killed for memory in our own control group since the process began; `gpu` is what is wrong with the GPU.
    """
    how = exit_text(exit_code)
    if exit_code == -signal.SIGKILL and out_of_memory_kills > 0:
        text = "The system killed ComfyUI because the machine's memory (RAM) was full."
        return Crash(f"{text} Use a worker with more memory or a smaller model.", True)
    if exit_code == 0:
        return Crash(f"ComfyUI ended by itself, without an error ({how}).", True)
    # A process that ended by a signal did not end by what it printed before.
    crash = _told(_since_survived(lines), how, gpu) if exit_code > 0 else None
    return crash or Crash(
        f"ComfyUI ended unexpectedly ({how}). Its last lines are in the worker's log.{_and(gpu)}", True
    )


def _told(lines: Sequence[str], how: str, gpu: str) -> Crash | None:
    found = next((rule for line in reversed(lines) for rule in RULES if rule.pattern.search(line)), None)
    pack = _pack_in_last_traceback(lines)
    if pack is not None and found in {None, NO_PACKAGE}:
        text = f"The custom node pack {pack} ended ComfyUI with an error of its own"
        if found is NO_PACKAGE:
            text = (
                f"The custom node pack {pack} needs a package that ComfyUI's Python lacks, and ComfyUI ended"
            )
        return Crash(f"{text}. Install its requirements, update it, or remove it. ({how})", found is None)
    if found is None:
        return None
    return Crash(f"{found.sentence}{_and(gpu if found.about_gpu else '')} ({how})", found.restart_helps)


def _since_survived(lines: Iterable[str]) -> list[str]:
    left: list[str] = []
    for line in lines:
        left = [] if SURVIVED.search(line) else [*left, line]
    return left


def _pack_in_last_traceback(lines: Sequence[str]) -> str | None:
    begins = [number for number, line in enumerate(lines) if line.strip() == TRACEBACK]
    names = [match[1] for line in lines[begins[-1] :] if (match := PACK.search(line))] if begins else []
    return names[-1].removesuffix(".py") if names else None


def _and(text: str) -> str:
    return f" {text}" if text else ""


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
