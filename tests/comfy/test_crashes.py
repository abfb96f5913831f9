"""
ComfyUI's last lines and exit status -> a sentence: each excerpt is a real one, and none is judged without evidence.
"""

import pytest

from comfy_worker.comfy import crashes

OUT_OF_MEMORY = """\
!!! Exception during processing !!! Allocation on device
Traceback (most recent call last):
  File "/comfyui/execution.py", line 518, in execute
    output_data, output_ui = await get_output_data(prompt_id, unique_id, obj)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.64 GiB
Got an OOM, unloading all loaded models.
"""
NO_CUDA_BUILD = """\
  File "/comfyui/comfy/model_management.py", line 176, in get_torch_device
    return torch.device(torch.cuda.current_device())
AssertionError: Torch not compiled with CUDA enabled
"""
NO_DRIVER = """\
  File "/venv/lib/python3.12/site-packages/torch/cuda/__init__.py", line 412, in _lazy_init
    torch._C._cuda_init()
RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver
"""
NO_GPU = "RuntimeError: No CUDA GPUs are available\n"
OLD_DRIVER = "RuntimeError: The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver\n"
NEW_GPU = "RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
OLD_TOOLCHAIN = "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.\n"
PORT_TAKEN = """\
[INFO] Starting server

[ERROR] Port 8188 is already in use on address 127.0.0.1. Please close the other application or use a different port with --port.
"""
PORT_TAKEN_OLDER = """\
  File "/usr/lib/python3.12/asyncio/base_events.py", line 1584, in create_server
OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8188): [errno 98] address already in use
"""
DISK_FULL = 'OSError: [Errno 28] No space left on device: "/comfyui/user/comfyui.db"\n'
BAD_ARGUMENT = "usage: main.py [-h] [--listen [IP]]\nmain.py: error: unrecognized arguments: --lowvramm\n"
CLASHING_ARGUMENTS = "main.py: error: argument --cpu: not allowed with argument --lowvram\n"
NO_PACKAGE = """\
  File "/comfyui/main.py", line 9, in <module>
    import yaml
ModuleNotFoundError: No module named 'yaml'
"""
WRONG_PACKAGE = (
    "ImportError: cannot import name 'x' from 'transformers' (/venv/lib/transformers/__init__.py)\n"
)
NO_MAIN = "/usr/bin/python3: can't open file '/comfy/main.py': [Errno 2] No such file or directory\n"
UNKNOWN = "Segmentation fault is not what this line says\nbye\n"

SURVIVED_IMPORT = """\
Traceback (most recent call last):
  File "/comfyui/nodes.py", line 2304, in load_custom_node
    module_spec.loader.exec_module(module)
  File "/comfyui/custom_nodes/BrokenPack/__init__.py", line 1, in <module>
    import no_such_package_here
ModuleNotFoundError: No module named 'no_such_package_here'

Cannot import /comfyui/custom_nodes/BrokenPack module for custom nodes: No module named 'no_such_package_here'
"""
FATAL_IMPORT = """\
Traceback (most recent call last):
  File "/comfyui/main.py", line 12, in <module>
    execute_prestartup_script()
  File "/comfyui/custom_nodes/EagerPack/prestartup_script.py", line 3, in <module>
    import no_such_package_here
ModuleNotFoundError: No module named 'no_such_package_here'
"""
FATAL_PACK = """\
Traceback (most recent call last):
  File "/comfyui/main.py", line 300, in start_comfyui
    nodes.init_extra_nodes()
  File "/comfyui/custom_nodes/WildPack/nodes/wild.py", line 9, in patch
    raise RuntimeError("not with this version")
RuntimeError: not with this version
"""

EXCERPTS = [
    pytest.param(OUT_OF_MEMORY, "ran out of GPU memory", True, id="out-of-memory"),
    pytest.param(NO_CUDA_BUILD, "found no GPU that it can use", False, id="no-cuda-build"),
    pytest.param(NO_DRIVER, "found no GPU that it can use", False, id="no-driver"),
    pytest.param(NO_GPU, "COMFYUI_ARGS=--cpu", False, id="no-gpu"),
    pytest.param(OLD_DRIVER, "driver of this machine is too old", False, id="old-driver"),
    pytest.param(NEW_GPU, "or the GPU too new", False, id="new-gpu"),
    pytest.param(OLD_TOOLCHAIN, "another CUDA version", False, id="old-toolchain"),
    pytest.param(PORT_TAKEN, "Set COMFY_PORT to a free one", False, id="port-taken"),
    pytest.param(PORT_TAKEN_OLDER, "Set COMFY_PORT to a free one", False, id="port-taken-older"),
    pytest.param(DISK_FULL, "The disk is full", False, id="disk-full"),
    pytest.param(BAD_ARGUMENT, "Check COMFYUI_ARGS", False, id="bad-argument"),
    pytest.param(CLASHING_ARGUMENTS, "Check COMFYUI_ARGS", False, id="clashing-arguments"),
    pytest.param(NO_PACKAGE, "lacks a package", False, id="no-package"),
    pytest.param(WRONG_PACKAGE, "lacks a package", False, id="wrong-package"),
    pytest.param(NO_MAIN, "COMFYUI_PATH must be the folder with `main.py`", False, id="no-main"),
]


@pytest.mark.parametrize(("excerpt", "sentence", "helps"), EXCERPTS)
def test_known_end_gets_a_sentence_with_the_way_out(excerpt: str, sentence: str, helps: bool) -> None:
    """What ComfyUI said last must become what to do about it, with the exit code, and without a path."""
    crash = crashes.classify(1, excerpt.splitlines())

    assert sentence in crash.sentence
    assert crash.sentence.endswith("(exit code 1)")
    assert crash.restart_helps is helps
    assert "/" not in crash.sentence.replace("COMFYUI_PATH", "")


def test_every_rule_has_an_excerpt() -> None:
    """No rule may be without a line that it was made for."""
    texts = [str(excerpt.values[0]) for excerpt in EXCERPTS]

    assert all(any(rule.pattern.search(text) for text in texts) for rule in crashes.RULES)


def test_last_line_wins_over_earlier_trouble() -> None:
    """Of several known lines the last must count: the earlier one was survived."""
    crash = crashes.classify(1, (OUT_OF_MEMORY + DISK_FULL).splitlines())

    assert "disk is full" in crash.sentence


@pytest.mark.parametrize(
    ("excerpt", "sentence", "helps"),
    [
        (FATAL_IMPORT, "The custom node pack EagerPack needs a package that ComfyUI's Python lacks", False),
        (FATAL_PACK, "The custom node pack WildPack ended ComfyUI with an error of its own", True),
    ],
)
def test_pack_that_ended_comfyui_is_named(excerpt: str, sentence: str, helps: bool) -> None:
    """A custom node pack in the traceback that ended ComfyUI must be named, with what to do about it."""
    crash = crashes.classify(1, excerpt.splitlines())

    assert crash.sentence.startswith(sentence)
    assert "remove it. (exit code 1)" in crash.sentence
    assert crash.restart_helps is helps


@pytest.mark.parametrize(
    "survived",
    [SURVIVED_IMPORT, OUT_OF_MEMORY + "Prompt executed in 3.10 seconds\n"],
    ids=["import", "prompt"],
)
def test_trouble_that_comfyui_survived_is_not_blamed(survived: str) -> None:
    """A pack that could not be imported, and a prompt that failed, must not explain an end that came later."""
    crash = crashes.classify(1, [*survived.splitlines(), "Starting server", "bye"])

    assert crash.sentence.startswith("ComfyUI ended unexpectedly (exit code 1).")


def test_gpu_that_is_known_to_be_broken_is_told_with_what_it_explains() -> None:
    """What the look at the GPU found must stand behind a failure of the GPU and an unknown one, and nowhere else."""
    found = "The driver does not start."

    assert found in crashes.classify(1, NO_GPU.splitlines(), gpu=found).sentence
    assert found in crashes.classify(1, UNKNOWN.splitlines(), gpu=found).sentence
    assert found not in crashes.classify(1, DISK_FULL.splitlines(), gpu=found).sentence


def test_end_without_an_error_has_its_own_sentence() -> None:
    """A ComfyUI that ended well, unasked, must be told to have done so."""
    crash = crashes.classify(0, [])

    assert crash.sentence == "ComfyUI ended by itself, without an error (exit code 0)."


def test_unknown_end_is_told_as_it_is() -> None:
    """Without a known line there must be no verdict but the exit code."""
    crash = crashes.classify(3, UNKNOWN.splitlines())

    assert (
        crash.sentence == "ComfyUI ended unexpectedly (exit code 3). Its last lines are in the worker's log."
    )
    assert crash.restart_helps


@pytest.mark.parametrize("exit_code", [0, -9, -11])
def test_signal_or_clean_end_is_not_blamed_on_old_lines(exit_code: int) -> None:
    """A process that was killed, or ended well, must not be said to have ended by what it printed before."""
    crash = crashes.classify(exit_code, OUT_OF_MEMORY.splitlines())

    assert crash.sentence.startswith("ComfyUI ended ")
    assert "memory" not in crash.sentence
    assert crash.restart_helps


def test_kill_for_memory_needs_the_kernels_count() -> None:
    """A SIGKILL must be called lack of RAM only when the kernel counted one in our own group."""
    killed = crashes.classify(-9, [], out_of_memory_kills=1)
    other = crashes.classify(-9, [], out_of_memory_kills=0)
    unrelated = crashes.classify(-11, [], out_of_memory_kills=1)

    assert "memory (RAM) was full" in killed.sentence
    assert "RAM" not in other.sentence
    assert "RAM" not in unrelated.sentence


@pytest.mark.parametrize(
    ("exit_code", "text"),
    [
        (0, "exit code 0"),
        (137, "exit code 137"),
        (-9, "signal SIGKILL"),
        (-11, "signal SIGSEGV"),
        (-200, "signal 200"),
    ],
)
def test_exit_is_told_by_name(exit_code: int, text: str) -> None:
    """A signal must be told by its name, a code by its number."""
    assert crashes.exit_text(exit_code) == text
