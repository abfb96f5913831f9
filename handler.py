"""
RunPod's entry: start ComfyUI first, then import the SDK, then serve jobs.

`python handler.py` on RunPod serves the queue; elsewhere it runs `test_input.json` (or `--test_input JSON`) once, and
`--rp_serve_api` (or `SERVE_API_LOCALLY=true`) serves RunPod's HTTP API. `from handler import handler; await handler(job)`
works in any process: nothing happens at import, the worker is wired at first use.
"""

import os
import sys
from typing import Any

from comfy_worker import entry, serve


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """
    Run one job `{"id": str, "input": {...}}` and return RunPod's `output`; a failure is a dict with `error`.
    """
    return await entry.shared(os.environ).face.handle(job)


if __name__ == "__main__":
    sys.exit(serve.handler(os.environ, sys.argv[1:]))
