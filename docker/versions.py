"""
Prints what an image holds as JSON, run by ComfyUI's Python at the end of the build; fails when torch is for another CUDA.

Usage: versions.py 12.8|cpu
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import version

import torch

COMFYUI = "/comfyui"


def main(wanted: str) -> int:
    """
    Print the versions; return 1 when torch's CUDA is not `wanted`.
    """
    cuda = torch.version.cuda
    if (cuda or "cpu") != wanted:
        print(f"torch {torch.__version__} is built for {cuda or 'cpu'}, wanted {wanted}", file=sys.stderr)
        return 1
    scope: dict[str, str] = {}
    with open(f"{COMFYUI}/comfyui_version.py", encoding="utf-8") as file:
        exec(file.read(), scope)
    commit = subprocess.run(
        ["git", "-C", COMFYUI, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print(
        json.dumps(
            {
                "comfyui": scope["__version__"],
                "comfyui_commit": commit,
                "comfyui_manager": version("comfyui-manager"),
                "torch": torch.__version__,
                "cuda": cuda,
                "python": platform.python_version(),
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
