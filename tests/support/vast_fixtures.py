"""
The Vast face behind a real server, and what tests ask of it.
"""

import base64
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from comfy_worker import entry, wiring
from comfy_worker.comfy.launch import Launch
from comfy_worker.faces import vast
from comfy_worker.settings import Settings
from support.served import Served

ServeVast = Callable[..., Served]


def serving(launch: Launch, folder: Path, *, wait: bool = True, **fields: Any) -> Served:
    """
    Serve the face over a worker of its own, and wait until it is ready; closing it ends the worker too.
    """
    quick = {"comfy_restart_delay": 0.1, "websocket_reconnect_delay_s": 0.1, "cancel_grace_s": 10.0}
    usual = {
        "worker_concurrency": 3,
        "allow_private_urls": True,
        "shutdown_grace_s": 0.5,
        "workflow_dir": folder / "workflows",
    }
    config = replace(Settings(), **{**quick, **usual, **fields})  # type: ignore[arg-type]
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-test-"))
    worker = wiring.build(config, launch, scratch, entry.process_of(config, launch)).start()
    served = Served(vast.app_of(worker))
    served.worker = worker  # type: ignore[attr-defined]
    if wait:
        until(lambda: served.get("/health").status_code == 200, 60.0)
    return served


def until(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """
    Wait until `check()` holds; return what it returned.
    """
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def generate(served: Served, workflow: dict[str, Any] | None = None, **fields: Any) -> requests.Response:
    """
    Run a job through `/generate/sync`.
    """
    return served.post("/generate/sync", {"input": asked(workflow, **fields)})


def asked(workflow: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """
    Return the `input` of a request.
    """
    return {**({"workflow_json": workflow} if workflow is not None else {}), **fields}


def started(served: Served, request_id: str, workflow: dict[str, Any], **fields: Any) -> None:
    """
    Take a job on through `/generate`.
    """
    reply = served.post("/generate", {"input": asked(workflow, request_id=request_id, **fields)})
    assert reply.status_code == 202, reply.text


def ended(served: Served, request_id: str, seconds: float = 30.0) -> requests.Response:
    """
    Wait for the end of a job, and return its last `/result`.
    """

    def over() -> list[requests.Response]:
        reply = served.get(f"/result/{request_id}")
        # In a list, for a response with a status of 4xx is false.
        return [reply] if reply.json()["status"] in {"completed", "failed", "cancelled"} else []

    found: list[requests.Response] = until(over, seconds)
    return found[0]


def colour_of(item: dict[str, Any]) -> int:
    """
    Return the colour of the first pixel of an output's `data`.
    """
    with Image.open(io.BytesIO(base64.b64decode(item["data"]))) as image:
        red, green, blue = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red) << 16 | int(green) << 8 | int(blue)
