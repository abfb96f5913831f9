"""
Workflows that keep an engine busy or fail, and a look at what it does now.
"""

import json
from pathlib import Path
from typing import Any

import requests

from comfy_worker.standin.thread import EngineThread
from support.pictures import node


def comfy_folder(folder: Path, *flags: str) -> Path:
    """
    Make a folder that starts like a ComfyUI's: its `main.py` is the built-in engine with its test nodes.
    """
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(
        "import sys\n"
        "from comfy_worker.standin.__main__ import main\n"
        f"sys.exit(main([*sys.argv[1:], '--test-nodes', *{list(flags)!r}]))\n"
    )
    return folder


def sleeping(label: str, seconds: float = 60.0, steps: int = 6000) -> dict[str, Any]:
    """
    Return a workflow that waits, with a tick every few milliseconds, and then saves a picture; `label` is unique.
    """
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=255),
        "2": node("StandinSleep", seconds=seconds, steps=steps, any=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix=label),
    }


def failing(label: str) -> dict[str, Any]:
    """
    Return a workflow whose second node raises.
    """
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("StandinRaise", message=f"no luck with {label}", any=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix=label),
    }


def big(megabytes: float) -> dict[str, Any]:
    """
    Return a workflow that makes one file of random bytes.
    """
    return {
        "1": node("StandinBigFile", megabytes=megabytes, key="images", extension="png", filename_prefix="big")
    }


def queue_of(engine: EngineThread) -> tuple[str, str]:
    """
    Return what an engine runs and what waits there, as JSON text to look labels up in.
    """
    body = requests.get(f"{engine.url}/queue", timeout=10).json()
    return json.dumps(body["queue_running"]), json.dumps(body["queue_pending"])


def runs(engine: EngineThread, label: str) -> bool:
    """
    Return whether the engine runs the workflow with this label now.
    """
    return label in queue_of(engine)[0]


def waits(engine: EngineThread, label: str) -> bool:
    """
    Return whether the workflow with this label waits in the engine's queue.
    """
    return label in queue_of(engine)[1]
