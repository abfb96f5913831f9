"""
What ComfyUI prints -> log lines with a level: lines of ComfyUI 0.27.0 and 0.3.64 as they came.
"""

import logging

import pytest

from comfy_worker.comfy import output

TRACEBACK = b"""\
\x1b[1m\x1b[31m[ERROR]\x1b[0m Traceback (most recent call last):
  File "/comfyui/execution.py", line 542, in execute
    output_data = await get_output_data(prompt_id)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
safetensors._safetensors_rust.SafetensorError: Error while deserializing header: header too large
what a custom node prints
"""
OLDER = b"""\
Traceback (most recent call last):
  File "/comfyui/nodes.py", line 2131, in load_custom_node
    module_spec.loader.exec_module(module)
ModuleNotFoundError: No module named 'no_such_package'

Cannot import /comfyui/custom_nodes/Pack module for custom nodes: No module named 'no_such_package'
"""


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"\x1b[32m[INFO]\x1b[0m Device: cpu\n", (logging.INFO, "Device: cpu")),
        (b"\x1b[1m\x1b[33m[WARNING]\x1b[0m Cannot import x\n", (logging.WARNING, "Cannot import x")),
        (b"\x1b[1m\x1b[31m[ERROR]\x1b[0m Port 1 is in use\n", (logging.ERROR, "Port 1 is in use")),
        (b"[DEBUG] lowvram: loaded module\n", (logging.DEBUG, "lowvram: loaded module")),
        (
            b"\x1b[32m[INFO]\x1b[0m \x1b[32mPrompt executed in 0.02 seconds\x1b[0m\n",
            (logging.INFO, "Prompt executed in 0.02 seconds"),
        ),
        (b"pytorch version: 2.13.0\n", (logging.INFO, "pytorch version: 2.13.0")),
        (b"\x1b[32m[INFO]\x1b[0m \n", None),
        (b"\n", None),
        (
            b"  5%|#    | 1/20 [00:01<]\r100%|#####| 20/20 [00:20<]\r\n",
            (logging.INFO, "100%|#####| 20/20 [00:20<]"),
        ),
        (b"broken \xff\xfe and \x07bell\n", (logging.INFO, "broken \ufffd\ufffd and bell")),
    ],
)
def test_line_gets_its_level_and_loses_its_colours(raw: bytes, found: tuple[int, str] | None) -> None:
    """A line must carry the level that ComfyUI gave it, and neither colours nor what a terminal would overwrite."""
    assert output.Reader().read(raw) == found


@pytest.mark.parametrize(("printed", "errors"), [(TRACEBACK, 5), (OLDER, 4)])
def test_traceback_is_an_error_to_its_last_line(printed: bytes, errors: int) -> None:
    """Every line of a traceback must be an error, and what comes after it must not."""
    reader = output.Reader()

    levels = [
        found[0] for raw in printed.splitlines(keepends=True) if (found := reader.read(raw)) is not None
    ]

    assert levels == [logging.ERROR] * errors + [logging.INFO]


def test_endless_line_is_cut() -> None:
    """A line that never ends must not fill the memory."""
    found = output.Reader().read(b"x" * 100_000)

    assert found is not None
    assert len(found[1]) == output.LONGEST + 1


@pytest.mark.parametrize(
    ("line", "pack"),
    [
        ("   0.0 seconds (IMPORT FAILED): /comfyui/custom_nodes/BrokenPack", "BrokenPack"),
        ("   1.2 seconds (IMPORT FAILED): C:\\comfy\\custom_nodes\\single_file.py", "single_file"),
        ("   0.0 seconds: /comfyui/custom_nodes/websocket_image_save.py", None),
    ],
)
def test_pack_that_failed_is_named(line: str, pack: str | None) -> None:
    """A pack that ComfyUI could not import must be known by its name, without the path."""
    assert output.failed_import(line) == pack
