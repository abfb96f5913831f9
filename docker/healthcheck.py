"""
The image's HEALTHCHECK: asks the local HTTP server if there is one, else ComfyUI. Standard library only; exits 0 or 1.
"""

import os
import sys
from collections.abc import Mapping
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S = 8.0  # ComfyUI may be silent for most of a second while it frees memory


def address(environ: Mapping[str, str]) -> str:
    """
    Return the URL that answers when the worker is well.
    """
    if environ.get("SERVE_API_LOCALLY") == "true":
        return "http://127.0.0.1:8000/health"
    given = environ.get("COMFYUI_URL") or environ.get("COMFY_HOST")
    if given:
        return f"{given if '://' in given else f'http://{given}'}".rstrip("/") + "/system_stats"
    return f"http://127.0.0.1:{environ.get('COMFY_PORT') or 8188}/system_stats"


def main() -> int:
    """
    Return 0 when it answers.
    """
    try:
        with build_opener(ProxyHandler({})).open(address(os.environ), timeout=TIMEOUT_S):
            return 0
    except OSError as exc:
        print(f"Not healthy: {exc}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
