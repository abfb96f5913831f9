"""
How comfyui-api's variables start a worker: how long ComfyUI may boot, which command starts it.
"""

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from support.salad_fixtures import ServeSalad
from support.worker_process import WorkerProcess

from comfy_worker.comfy import launch
from comfy_worker.comfy.launch import free_port
from comfy_worker.errors import ConfigInvalid
from comfy_worker.faces.salad_environ import translated
from comfy_worker.settings import Settings, load


def settings_of(environ: dict[str, str]) -> Settings:
    """
    Return the settings of the Salad face.
    """
    return load(translated(environ))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """
    The folder of a ComfyUI, with a blank in its name.
    """
    folder = tmp_path / "Comfy UI"
    folder.mkdir()
    (folder / "main.py").touch()
    return folder


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 600.0),
        ({"STARTUP_CHECK_INTERVAL_S": "2"}, 600.0),
        ({"STARTUP_CHECK_MAX_TRIES": "20"}, 20.0),
        ({"STARTUP_CHECK_MAX_TRIES": " 30 ", "STARTUP_CHECK_INTERVAL_S": "2"}, 60.0),
        ({"STARTUP_CHECK_MAX_TRIES": "20", "COMFY_BOOT_TIMEOUT_S": "900"}, 900.0),
    ],
)
def test_salad_s76_boot_is_bounded_by_explicit_tries_only(environ: dict[str, str], seconds: float) -> None:
    """ComfyUI may take minutes to boot while it lives, unless STARTUP_CHECK_MAX_TRIES says otherwise."""
    assert settings_of(environ).comfy_boot_timeout_s == seconds


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "9" * 30])
def test_wrong_startup_checks_stop_the_start(text: str) -> None:
    """Both must be whole numbers above zero, and every wrong one is named."""
    with pytest.raises(ConfigInvalid) as caught:
        translated({"STARTUP_CHECK_MAX_TRIES": text, "STARTUP_CHECK_INTERVAL_S": text})

    assert "STARTUP_CHECK_MAX_TRIES" in str(caught.value)
    assert "STARTUP_CHECK_INTERVAL_S" in str(caught.value)


@pytest.mark.slow
def test_salad_s76_boot_that_takes_too_long_ends_the_worker(
    home: Path, tmp_path: Path, serve_salad: ServeSalad
) -> None:
    """With STARTUP_CHECK_MAX_TRIES a ComfyUI that never answers is given up, and the worker ends."""
    hangs = f"{shlex.quote(sys.executable)} -c 'import time; time.sleep(60)'"
    config = settings_of({"CMD": hangs, "COMFY_HOME": str(home), "STARTUP_CHECK_MAX_TRIES": "1"})
    chosen = launch.choose(replace(config, comfy_port=free_port()), tmp_path, builtin=False)

    served = serve_salad(chosen, comfy_boot_timeout_s=config.comfy_boot_timeout_s)

    end = time.monotonic() + 30
    while not served.server.failed:
        assert time.monotonic() < end, "it was not given up"
        time.sleep(0.02)


def test_salad_s80_cmd_is_split_as_a_shell_does(home: Path, tmp_path: Path) -> None:
    """Quotes keep blanks together, and the command gets the peer's variables."""
    program = tmp_path / "my program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    config = settings_of({"CMD": f"'{program}'  --title \"two words\" a\\ b", "COMFY_HOME": str(home)})

    chosen = launch.choose(config, tmp_path, builtin=False)

    assert chosen.command[-4:] == (str(program), "--title", "two words", "a b")
    assert {"COMFYUI_PORT_HOST=8188", "DIRECT_ADDRESS=127.0.0.1"} <= set(chosen.command)
    assert {"WEB_ENABLE_AUTH=false", "CF_QUICK_TUNNELS=false"} <= set(chosen.command)
    assert (chosen.folder, chosen.input, chosen.url) == (home, home / "input", "http://127.0.0.1:8188")


@pytest.mark.slow
def test_salad_s80_cmd_starts_comfyui(home: Path) -> None:
    """A command with quotes and blanks is run, watched, and ended with the worker."""
    port = free_port()
    inner = (
        f'cd "{home}" && exec {shlex.quote(sys.executable)} -m comfy_worker.standin --port $COMFYUI_PORT_HOST'
    )
    for name in ("input", "output"):
        (home / name).mkdir()
        inner += f" --{name}-directory {shlex.quote(str(home / name))}"
    environ = {
        "CMD": f"sh -c {shlex.quote(inner)}",
        "COMFY_HOME": str(home),
        "COMFYUI_PORT_HOST": str(free_port()),
    }
    arguments = ["serve", "--face", "salad", "--host", "127.0.0.1", "--port", str(port)]
    process = WorkerProcess(home.parent, environ, *arguments, program=("-m", "comfy_worker"))
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ready", process)
        body: dict[str, Any] = {
            "prompt": {
                "1": {
                    "class_type": "EmptyImage",
                    "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
                },
                "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "cmd"}},
            }
        }
        reply = requests.post(f"http://127.0.0.1:{port}/prompt", json=body, timeout=30)
        assert reply.status_code == 200, reply.text
        process.tell()
        assert process.wait() == 0, process.text
        assert not process.leftovers()
    finally:
        process.close()


def wait_until_ready(url: str, process: WorkerProcess) -> None:
    """
    Wait until a probe says 200.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if requests.get(url, timeout=2).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.05)
    raise AssertionError(process.text)


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"CMD": "there-is-no-such-program --x"}, "COMFYUI_COMMAND"),
        ({"CMD": "python 'main.py"}, "COMFYUI_COMMAND"),
    ],
)
def test_cmd_that_cannot_run_stops_the_start(
    environ: dict[str, str], names: str, home: Path, tmp_path: Path
) -> None:
    """A program that is not there, and a quote that does not end, are said at the start."""
    with pytest.raises(ConfigInvalid, match=names):
        launch.choose(settings_of({**environ, "COMFY_HOME": str(home)}), tmp_path, builtin=False)


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"CMD": ""}, "http://127.0.0.1:8188"),
        ({"CMD": " ", "DIRECT_ADDRESS": "comfy.lan", "COMFYUI_PORT_HOST": "8199"}, "http://comfy.lan:8199"),
        ({"CMD": "", "COMFYUI_URL": "http://other:1"}, "http://other:1"),
        ({"CMD": "", "COMFY_HOST": "other:2"}, "http://other:2"),
        ({}, None),
    ],
)
def test_empty_cmd_is_a_comfyui_of_somebody_else(environ: dict[str, str], url: str | None) -> None:
    """An empty CMD says that ComfyUI is started elsewhere."""
    assert settings_of(environ).comfyui_url == url
