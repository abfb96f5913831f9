"""
`python -m comfy_worker.standin`: the built-in engine as a process, started with ComfyUI's own flags and a few of its own.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_worker.standin import faults
from comfy_worker.standin.engine import Engine
from comfy_worker.standin.node import Folders
from comfy_worker.standin.server import Server, nodes_for
from comfy_worker.standin.settings import ENGINE_NAME, VERSIONS, Settings, folders_in

_ORPHAN_S = 1.0
_IGNORED_SWITCHES = """
    --cpu --disable-auto-launch --auto-launch --disable-api-nodes --disable-all-custom-nodes --log-stdout --multi-user
    --disable-smart-memory --high-ram --lowvram --novram --normalvram --highvram --gpu-only --dont-print-server --fast-disk
    --disable-dynamic-vram --enable-dynamic-vram --disable-xformers --use-pytorch-cross-attention --force-fp16 --fast
    --enable-manager --deterministic --windows-standalone-build --quick-test-for-ci
"""
_IGNORED_VALUES = """
    --user-directory --database-url --preview-size --reserve-vram --vram-headroom --front-end-version --front-end-root
    --cuda-device --default-device --feature-flag
"""


def _faults(text: str) -> dict[str, Any]:
    try:
        return faults.checked(json.loads(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def parser() -> argparse.ArgumentParser:
    """
    Return the parser of the command line. What a ComfyUI flag would do to a GPU is taken and ignored.
    """
    flags = argparse.ArgumentParser(
        prog="python -m comfy_worker.standin",
        description=f"{ENGINE_NAME}: speaks ComfyUI's protocol and runs nodes that need no model.",
        epilog=faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--listen", nargs="?", const="0.0.0.0", default="127.0.0.1", metavar="IP")
    flags.add_argument("--port", type=int, default=8188)
    for name in ("base", "input", "output", "temp", "models"):
        flags.add_argument(f"--{name}-directory", type=Path, default=None, metavar="DIR")
    flags.add_argument("--max-upload-size", type=float, default=100, metavar="MB")
    flags.add_argument("--preview-method", choices=("none", "auto", "latent2rgb", "taesd"), default="none")
    flags.add_argument("--disable-metadata", action="store_true")
    flags.add_argument("--enable-cors-header", nargs="?", const="*", default=None, metavar="ORIGIN")
    flags.add_argument("--verbose", nargs="?", const="DEBUG", default="INFO", metavar="LEVEL")
    cache = flags.add_mutually_exclusive_group()
    cache.add_argument("--cache-classic", action="store_true")
    cache.add_argument("--cache-none", action="store_true")
    cache.add_argument("--cache-lru", type=int, default=0, metavar="N")
    cache.add_argument("--cache-ram", nargs="*", type=float, default=None, metavar="GB")
    _add_ignored(flags)
    own = flags.add_argument_group("only of this engine")
    own.add_argument("--version-profile", choices=tuple(VERSIONS), default="0.27")
    own.add_argument("--faults", type=_faults, default={}, metavar="JSON", help="see below")
    own.add_argument("--seed", type=int, default=None)
    own.add_argument("--start-delay", type=float, default=0.0, metavar="S")
    own.add_argument(
        "--test-nodes", action="store_true", help="also know the nodes that fail and wait on demand"
    )
    return flags


def _add_ignored(flags: argparse.ArgumentParser) -> None:
    for name in _IGNORED_SWITCHES.split():
        flags.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name in _IGNORED_VALUES.split():
        flags.add_argument(name, action="append", help=argparse.SUPPRESS)
    flags.add_argument("--extra-model-paths-config", nargs="+", action="append", help=argparse.SUPPRESS)
    flags.add_argument("--whitelist-custom-nodes", nargs="+", action="append", help=argparse.SUPPRESS)


def settings_from(argv: Sequence[str]) -> Settings:
    """
    Return the settings that a command line asks for; a wrong one ends the process with code 2, as ComfyUI does.
    """
    given = parser().parse_args(argv)
    known = folders_in(given.base_directory or Path.cwd())
    temp = given.temp_directory / "temp" if given.temp_directory else known.temp
    cache = (
        "classic"
        if given.cache_classic
        else "none"
        if given.cache_none
        else "lru"
        if given.cache_lru
        else "default"
    )
    return Settings(
        folders=Folders(
            given.input_directory or known.input,
            given.output_directory or known.output,
            temp,
            given.models_directory or known.models,
        ),
        host=given.listen.split(",")[0],
        port=given.port,
        max_upload_mb=given.max_upload_size,
        preview_method=given.preview_method,
        metadata=not given.disable_metadata,
        cache=cache,
        cache_size=given.cache_lru,
        cors=given.enable_cors_header,
        profile=given.version_profile,
        seed=given.seed,
        start_delay_s=given.start_delay,
        test_nodes=given.test_nodes,
        faults=given.faults,
        argv=("main.py", *argv),
    )


def die(how: Mapping[str, Any]) -> None:
    """
    End this process at once, by a signal or with an exit code.
    """
    if "exit_code" in how:
        os._exit(int(how["exit_code"]))
    os.kill(os.getpid(), int(how.get("signal", signal.SIGKILL)))


async def serve(settings: Settings, parent: int) -> int:
    """
    Run an engine until a signal, or until the process `parent` that started it is gone; return the exit code.
    """
    server = Server(Engine(settings, nodes_for(settings), die))
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    try:
        await server.start()
    except OSError as exc:
        logging.error("The port cannot be opened: %s", exc.strerror)
        await server.stop()
        return 1
    logging.info("%s listens on http://%s:%d", ENGINE_NAME, settings.host, server.port)
    while not end.is_set() and os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(end.wait(), _ORPHAN_S)
    await server.stop()
    return 0


def main(argv: Sequence[str]) -> int:
    """
    Start an engine as the command line asks.
    """
    parent = os.getppid()
    settings = settings_from(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.info("This is the %s.", ENGINE_NAME)
    # The loop and the thread that runs prompts take turns; the default of 5 ms would show in every message.
    sys.setswitchinterval(0.0005)
    return asyncio.run(serve(settings, parent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
