"""
The look at the GPU: each way it can be unusable gets its sentence, a hanging driver too, and nobody waits.
"""

import sys
import threading
import time

import pytest

from comfy_worker import entry
from comfy_worker.comfy import gpu
from comfy_worker.comfy.launch import Launch

GPU = "print('NVIDIA L4, 23034 MiB, 570.124.06')"
FINE = "print(0, 12080)"


def program(text: str) -> tuple[str, ...]:
    """
    Return a command that runs some Python, which stands in for `nvidia-smi` or the driver.
    """
    return (sys.executable, "-I", "-S", "-c", text)


def look(listing: str | None, init: str) -> gpu.Finding:
    """
    Look with programs in place of the real ones; None is a `nvidia-smi` that is not installed.
    """
    missing = ("no-such-program-anywhere",)
    return gpu.at_gpu(program(listing) if listing is not None else missing, program(init), limit_s=5.0)


def test_gpu_that_works_is_named_with_its_driver() -> None:
    """A usable GPU must give no problem, and its name, memory, driver and CUDA version for the log."""
    found = look(GPU, FINE)

    assert found.problem == ""
    assert found.facts == "NVIDIA L4, 23034 MiB, 570.124.06; the driver speaks CUDA 12.8"


def test_missing_nvidia_smi_alone_is_no_problem() -> None:
    """A container without `nvidia-smi` whose driver starts must be fine."""
    assert look(None, FINE).problem == ""


@pytest.mark.parametrize(
    ("listing", "init", "sentence"),
    [
        ("pass", FINE, "nvidia-smi finds no GPU"),
        ("print('Failed to initialize NVML'); raise SystemExit(9)", FINE, "nvidia-smi finds no GPU"),
        (GPU, "print(802, 12080)", "does not start (CUDA error 802, NVIDIA L4"),
        (GPU, "raise SystemExit(1)", "libcuda.so.1) is not in this container"),
    ],
)
def test_unusable_gpu_gets_its_sentence(listing: str, init: str, sentence: str) -> None:
    """Each step that fails must be told by its own words."""
    assert sentence in look(listing, init).problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listing", "init", "sentence"),
    [
        ("import time; time.sleep(60)", FINE, "nvidia-smi does not answer"),
        (GPU, "import time; time.sleep(60)", "hangs at its start"),
    ],
)
def test_hanging_driver_has_a_limit(listing: str, init: str, sentence: str) -> None:
    """A driver that never answers must be given up, and told."""
    found = gpu.at_gpu(program(listing), program(init), limit_s=1.0)

    assert sentence in found.problem


def test_real_look_says_something_on_any_machine() -> None:
    """With the real programs there must be a finding, with or without a GPU."""
    found = gpu.at_gpu()

    assert found.problem or found.facts


def test_nobody_waits_for_the_look() -> None:
    """`start` must return while the look goes on, and `problem` must be empty until it has found one."""
    go = threading.Event()

    def slow() -> gpu.Finding:
        go.wait(20.0)
        return gpu.Finding("The GPU is gone.")

    watch = gpu.Look(slow)
    began = time.monotonic()
    watch.start()
    before, seconds = watch.problem(), time.monotonic() - began
    go.set()
    watch.join(10.0)

    assert seconds < 5.0
    assert (before, watch.problem()) == ("", "The GPU is gone.")


@pytest.mark.parametrize(
    "chosen",
    [
        Launch("running", "http://127.0.0.1:1"),
        Launch("builtin", "http://127.0.0.1:1", ("python", "main.py")),
        Launch("comfyui", "http://127.0.0.1:1", ("python", "main.py", "--cpu")),
    ],
    ids=lambda chosen: chosen.kind,
)
def test_no_look_where_no_gpu_is_wanted(chosen: Launch) -> None:
    """A ComfyUI that runs already, the built-in engine, and one on the CPU must need no look."""
    assert not entry.wants_gpu(chosen)
