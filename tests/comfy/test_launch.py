"""
Which ComfyUI is used and with which command: decided from settings and from what is on the disk.
"""

import sys
from pathlib import Path

import pytest

from comfy_worker import settings
from comfy_worker.comfy import launch
from comfy_worker.errors import ConfigInvalid
from comfy_worker.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """
    Something that looks like an installed ComfyUI.
    """
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").write_text('parser.add_argument("--verbose")\n')
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A home folder without a ComfyUI.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_running_comfyui_is_used_as_it_is() -> None:
    """A ComfyUI at an address must not be started, and its folders be known only when they are given."""
    plain = launch.running(settings.load({"COMFYUI_URL": "gpu:8188"}))
    shared = launch.running(
        settings.load({"COMFYUI_URL": "gpu:8188", "COMFY_INPUT_DIR": "/in", "COMFY_OUTPUT_DIR": "/out"})
    )

    assert (plain.kind, plain.url, plain.command) == ("running", "http://gpu:8188", ())
    assert (plain.input, plain.output, plain.title) == (None, None, "ComfyUI at http://gpu:8188")
    assert (shared.input, shared.output, shared.temp) == (Path("/in"), Path("/out"), None)


def test_given_folder_must_be_a_comfyui(folder: Path, tmp_path: Path) -> None:
    """COMFYUI_PATH must be taken when `main.py` is in it, and stop the worker when not."""
    assert launch.installed(Settings(comfyui_path=folder)) == folder.resolve()
    with pytest.raises(ConfigInvalid, match="COMFYUI_PATH must be the folder of a ComfyUI"):
        launch.installed(Settings(comfyui_path=tmp_path))


def test_default_workspace_of_comfy_cli_is_found(home: Path) -> None:
    """Without COMFYUI_PATH the default place of comfy-cli must be looked into, and nothing found be None."""
    if Path("/comfyui/main.py").exists():
        pytest.skip("this machine is an image of the worker")
    assert launch.installed(Settings()) is None

    place = home / "comfy" / "ComfyUI"
    place.mkdir(parents=True)
    (place / "main.py").touch()

    assert launch.installed(Settings()) == place


def test_given_folders_are_made_and_told_to_comfyui(folder: Path, tmp_path: Path) -> None:
    """COMFY_INPUT_DIR and COMFY_OUTPUT_DIR must be where a ComfyUI of ours reads and writes, and be made before it lists them."""
    given = {"COMFY_INPUT_DIR": str(tmp_path / "a" / "in"), "COMFY_OUTPUT_DIR": str(tmp_path / "a" / "out")}

    chosen = launch.comfyui(settings.load(given), folder, 8199, tmp_path / "scratch")

    command = list(chosen.command)
    assert (chosen.input, chosen.output) == (tmp_path / "a" / "in", tmp_path / "a" / "out")
    assert command[command.index("--input-directory") + 1] == given["COMFY_INPUT_DIR"]
    assert command[command.index("--output-directory") + 1] == given["COMFY_OUTPUT_DIR"]
    assert (tmp_path / "a" / "in").is_dir()
    assert (tmp_path / "a" / "out").is_dir()


def test_folder_that_cannot_be_made_is_named(folder: Path, tmp_path: Path) -> None:
    """A folder for ComfyUI that is a file must stop the worker with the name of the setting."""
    (tmp_path / "file").touch()
    given = {"COMFY_INPUT_DIR": str(tmp_path / "in"), "COMFY_OUTPUT_DIR": str(tmp_path / "file" / "out")}

    with pytest.raises(ConfigInvalid, match="COMFY_OUTPUT_DIR must be a folder that can be made"):
        launch.comfyui(settings.load(given), folder, 8199, tmp_path / "scratch")


def test_command_has_own_port_temp_and_known_flags(folder: Path, tmp_path: Path) -> None:
    """The command must bind loopback, use a temp folder of its own, and have only flags this ComfyUI knows."""
    config = Settings(comfyui_args=("--cpu", "--fast"), comfy_log_level="WARNING", comfyui_python=Path("/py"))

    chosen = launch.comfyui(config, folder, 8199, tmp_path / "scratch")

    command = list(chosen.command)
    assert command[:2] == ["/py", "main.py"]
    assert command[command.index("--listen") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "8199"
    assert command[command.index("--temp-directory") + 1] == str(tmp_path / "scratch")
    assert command[command.index("--verbose") + 1] == "WARNING"
    assert "--log-stdout" not in command
    assert command[-2:] == ["--cpu", "--fast"]
    assert command.count("--cpu") == 1
    assert (chosen.url, chosen.folder) == ("http://127.0.0.1:8199", folder)
    assert (chosen.input, chosen.output) == (folder / "input", folder / "output")
    assert chosen.temp == tmp_path / "scratch" / "temp"


def test_comfyui_is_reachable_when_the_api_is_served_locally(folder: Path, tmp_path: Path) -> None:
    """Who serves the API from a container opens ComfyUI's own page too; the worker still speaks to it on loopback."""
    chosen = launch.comfyui(Settings(serve_api_locally=True), folder, 8199, tmp_path / "scratch")

    assert chosen.command[chosen.command.index("--listen") + 1] == "0.0.0.0"
    assert chosen.url == "http://127.0.0.1:8199"


def test_unreadable_flags_are_left_out(folder: Path, tmp_path: Path) -> None:
    """A ComfyUI whose flags cannot be read must be started without the optional ones."""
    (folder / "comfy" / "cli_args.py").unlink()

    assert "--verbose" not in launch.comfyui(Settings(), folder, 1, tmp_path).command


def test_cpu_is_asked_for_without_a_gpu(folder: Path, tmp_path: Path) -> None:
    """Without a GPU in sight ComfyUI must be started with `--cpu`, once."""
    command = launch.comfyui(Settings(), folder, 1, tmp_path).command

    assert command.count("--cpu") == (0 if launch.has_gpu() else 1)


@pytest.mark.skipif(sys.platform == "darwin", reason="every Mac counts as one with a GPU")
def test_gpu_is_seen_by_its_device(tmp_path: Path) -> None:
    """Any of the device files must count as a GPU."""
    (tmp_path / "nvidia0").touch()

    assert launch.has_gpu((str(tmp_path / "missing"), str(tmp_path / "nvidia0")))
    assert not launch.has_gpu((str(tmp_path / "missing"),))


@pytest.mark.parametrize("place", [".venv", "venv", "../.venv"])
def test_python_of_comfyui_is_found_beside_it(folder: Path, place: str) -> None:
    """A virtual environment in or beside ComfyUI's folder must be preferred to the worker's own Python."""
    assert launch.python_of(Settings(), folder) == Path(sys.executable)

    python = folder / place / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    assert launch.python_of(Settings(), folder).samefile(python)


def test_builtin_engine_has_all_its_folders_in_scratch(tmp_path: Path) -> None:
    """The built-in engine must be started with this Python and keep to one folder."""
    chosen = launch.builtin_engine(8199, tmp_path, ("--faults", "{}"))

    assert chosen.command[:3] == (sys.executable, "-m", "comfy_worker.standin")
    assert chosen.command[-2:] == ("--faults", "{}")
    assert all(
        place is not None and place.is_relative_to(tmp_path)
        for place in (chosen.input, chosen.output, chosen.temp)
    )
    assert chosen.title == "the built-in engine"


def test_order_of_choice(folder: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An address must win over a folder, a folder over the built-in engine, and on a platform there is no engine."""
    both = Settings(comfyui_url="http://gpu:1", comfyui_path=folder)

    assert launch.choose(both, tmp_path, builtin=True).kind == "running"
    assert launch.choose(Settings(comfyui_path=folder), tmp_path, builtin=True).kind == "comfyui"
    if Path("/comfyui/main.py").exists():
        pytest.skip("this machine is an image of the worker")
    assert launch.choose(Settings(), tmp_path, builtin=True).kind == "builtin"
    with pytest.raises(ConfigInvalid, match="COMFYUI_PATH must be set"):
        launch.choose(Settings(), tmp_path, builtin=False)
