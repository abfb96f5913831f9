"""
Which ComfyUI to use and how to start it: a decision over settings and what is on the disk. Starts nothing itself.
"""

import importlib.util
import logging
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comfy_worker.errors import ConfigInvalid
from comfy_worker.models import volumes
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

NVIDIA_SIGNS = ("/dev/nvidia0", "/dev/nvidiactl")
GPU_SIGNS = (*NVIDIA_SIGNS, "/dev/dxg", "/dev/kfd")
ENGINE_NEEDS = ("aiohttp", "numpy", "av")
PLACES = ("/comfyui", "~/comfy/ComfyUI")
"""Where the images put ComfyUI, and comfy-cli's default workspace."""

NO_COMFYUI = (
    "No ComfyUI was found, so the built-in engine runs the workflow: a small stand-in for trying, without models. For "
    "the real one set COMFYUI_URL to a running ComfyUI or COMFYUI_PATH to its folder, or install it with `comfy install`."
)


@dataclass(frozen=True, slots=True)
class Launch:
    """
    One ComfyUI to use. `command` is empty for one that runs already; the folders are None where they are not known.
    """

    kind: Literal["running", "comfyui", "builtin"]
    url: str
    command: tuple[str, ...] = ()
    folder: Path | None = None
    input: Path | None = None
    output: Path | None = None
    temp: Path | None = None

    @property
    def title(self) -> str:
        """
        What it is, for people.
        """
        names = {"running": f"ComfyUI at {self.url}", "comfyui": f"ComfyUI in {self.folder}"}
        return names.get(self.kind, "the built-in engine")


def choose(config: Settings, scratch: Path, *, builtin: bool) -> Launch:
    """
    Return which ComfyUI to use, in this order: COMFYUI_URL, an installed one, the built-in engine (where allowed).

    Raises:
        ConfigInvalid: there is none.
    """
    if config.comfyui_url is not None:
        return running(config)
    port = config.comfy_port or free_port()
    folder = installed(config)
    if folder is not None:
        return (
            commanded(config, folder, port)
            if config.comfyui_command
            else comfyui(config, folder, port, scratch)
        )
    if config.comfyui_command:
        raise ConfigInvalid(
            [
                "COMFYUI_PATH (or COMFY_HOME) must be set: the command that starts ComfyUI does not tell its folder"
            ]
        )
    if builtin:
        missing = [name for name in ENGINE_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigInvalid(
                [
                    f"COMFYUI_URL or COMFYUI_PATH must be set: no ComfyUI was found, and the built-in engine lacks "
                    f"{', '.join(missing)} (pip install 'comfy-worker[standin]')"
                ]
            )
        logger.warning(NO_COMFYUI)
        return builtin_engine(port, scratch)
    raise ConfigInvalid(["COMFYUI_PATH must be set: no ComfyUI was found at /comfyui or ~/comfy/ComfyUI"])


def running(settings: Settings) -> Launch:
    """
    Return the ComfyUI at COMFYUI_URL.
    """
    return Launch(
        "running", str(settings.comfyui_url), input=settings.comfy_input_dir, output=settings.comfy_output_dir
    )


def installed(settings: Settings) -> Path | None:
    """
    Return the folder of an installed ComfyUI: COMFYUI_PATH, the image's, or comfy-cli's default.

    Raises:
        ConfigInvalid: COMFYUI_PATH is set and is not one.
    """
    if settings.comfyui_path is not None:
        if not (settings.comfyui_path / "main.py").is_file():
            raise ConfigInvalid(["COMFYUI_PATH must be the folder of a ComfyUI, with main.py in it"])
        return settings.comfyui_path.resolve()
    places = (Path(place).expanduser() for place in PLACES)
    return next((place for place in places if (place / "main.py").is_file()), None)


def comfyui(settings: Settings, folder: Path, port: int, scratch: Path) -> Launch:
    """
    Return how to start the ComfyUI in `folder`; its temp folder lies in `scratch`, never shared with another instance.

    ComfyUI wipes its temp folder at start, even when it then finds its port taken (0.27.0).

    Raises:
        ConfigInvalid: COMFY_INPUT_DIR or COMFY_OUTPUT_DIR cannot be made.
    """
    flags = [
        "--listen",
        "0.0.0.0" if settings.serve_api_locally else "127.0.0.1",  # in a container, for one's own browser
        "--port",
        str(port),
        "--disable-auto-launch",
        "--temp-directory",
        str(scratch),
    ]
    known = _known_flags(folder)
    for flag, value in (("--verbose", settings.comfy_log_level), ("--log-stdout", None)):
        if flag in known:
            flags += [flag] if value is None else [flag, value]
    if "--cpu" not in settings.comfyui_args and not has_gpu():
        # On a platform of GPUs that is a broken machine, at home it may be just what there is.
        level = logging.WARNING if settings.runpod_endpoint_id else logging.INFO
        logger.log(level, "No GPU is in sight, so ComfyUI runs on the CPU (--cpu).")
        flags.append("--cpu")
    flags += volumes.flags(settings, folder, scratch)
    flags += _folder_flags(settings)
    return Launch(
        "comfyui",
        f"http://127.0.0.1:{port}",
        (str(python_of(settings, folder)), "main.py", *flags, *settings.comfyui_args),
        folder,
        settings.comfy_input_dir or folder / "input",
        settings.comfy_output_dir or folder / "output",
        scratch / "temp",
    )


def _folder_flags(settings: Settings) -> list[str]:
    flags = []
    for name, flag, path in (
        ("COMFY_INPUT_DIR", "--input-directory", settings.comfy_input_dir),
        ("COMFY_OUTPUT_DIR", "--output-directory", settings.comfy_output_dir),
    ):
        if path is not None:
            try:
                path.mkdir(parents=True, exist_ok=True)  # ComfyUI lists it and does not make it
            except OSError as exc:
                raise ConfigInvalid(
                    [f"{name} must be a folder that can be made and read: {type(exc).__name__}"]
                ) from exc
            flags += [flag, str(path.absolute())]
    return flags


def commanded(settings: Settings, folder: Path, port: int) -> Launch:
    """
    Return how the operator's command starts the ComfyUI in `folder`, in the worker's folder and with comfyui-api's variables.

    Raises:
        ConfigInvalid: there is no such program.
    """
    command = settings.comfyui_command
    if shutil.which(command[0]) is None:
        raise ConfigInvalid(
            [f"COMFYUI_COMMAND (or CMD) must name a program that is there, not {command[0]!r}"]
        )
    variables = (
        "DIRECT_ADDRESS=127.0.0.1",
        f"COMFYUI_PORT_HOST={port}",
        "WEB_ENABLE_AUTH=false",
        "CF_QUICK_TUNNELS=false",
    )
    return Launch(
        "comfyui",
        f"http://127.0.0.1:{port}",
        ("env", f"--chdir={Path.cwd()}", *variables, *command),
        folder,
        settings.comfy_input_dir or folder / "input",
        settings.comfy_output_dir or folder / "output",
        folder / "temp",
    )


def builtin_engine(port: int, scratch: Path, extra: Sequence[str] = ()) -> Launch:
    """
    Return how to start the built-in engine, with all its folders in `scratch`.
    """
    folders = {name: scratch / name for name in ("input", "output")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    flags = ["--listen", "127.0.0.1", "--port", str(port), "--temp-directory", str(scratch)]
    flags += ["--input-directory", str(folders["input"]), "--output-directory", str(folders["output"])]
    return Launch(
        "builtin",
        f"http://127.0.0.1:{port}",
        (sys.executable, "-m", "comfy_worker.standin", *flags, *extra),
        scratch,
        folders["input"],
        folders["output"],
        scratch / "temp",
    )


def python_of(settings: Settings, folder: Path) -> Path:
    """
    Return the interpreter of a ComfyUI: COMFYUI_PYTHON, a virtual environment in or beside its folder, else ours.
    """
    if settings.comfyui_python is not None:
        return settings.comfyui_python
    places = [folder / name / "bin" / "python" for name in (".venv", "venv")]
    places += [folder.parent / ".venv" / "bin" / "python"]
    return next((place for place in places if place.exists()), Path(sys.executable))


def has_gpu(signs: Sequence[str] = GPU_SIGNS) -> bool:
    """
    Return whether a GPU that ComfyUI could use is in sight; without one it only starts with `--cpu`.
    """
    return sys.platform == "darwin" or any(Path(sign).exists() for sign in signs)


def _known_flags(folder: Path) -> str:
    # An unknown flag ends ComfyUI with exit code 2, so ask its own list first.
    try:
        return (folder / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    except OSError:
        return ""


def free_port() -> int:
    """
    Return a port on loopback that nobody listens on now.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
