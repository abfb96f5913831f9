"""
Puts in place what a variant's manifest asks for beside models: packages, custom nodes, its test job, its licences.

Run once by the build, in the worker's environment: `variant.py NAME`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from comfy_worker.models.manifest import Manifest, shipped, variant

COMFYUI = Path("/comfyui")
PYTHON = COMFYUI / ".venv" / "bin" / "python"
CONSTRAINTS = COMFYUI / "constraints.txt"
TEST_JOB = Path("/test_input.json")
FOLDERS = ("checkpoints", "vae", "unet", "clip", "text_encoders", "diffusion_models", "model_patches")
"""Derived images add files beside these, and they always were there."""


def name_of(requirement: str) -> str:
    """
    Return the name of the package that a requirement or a constraint is about.
    """
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower()


def without(constraints: str, packages: tuple[str, ...]) -> str:
    """
    Return constraints without those for `packages`: what a variant asks for by name is meant.
    """
    own = {name_of(package) for package in packages}
    return "".join(f"{line}\n" for line in constraints.splitlines() if name_of(line) not in own)


def uv(*arguments: str) -> str:
    """
    Run uv for ComfyUI's environment and return what it printed.
    """
    command = ["uv", "pip", arguments[0], "--no-cache", "--python", str(PYTHON), *arguments[1:]]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def add_packages(packages: tuple[str, ...]) -> None:
    """
    Install packages without touching the others that are held, and hold these from now on.
    """
    held = {name_of(line) for line in CONSTRAINTS.read_text().splitlines()} | {name_of(p) for p in packages}
    CONSTRAINTS.write_text(without(CONSTRAINTS.read_text(), packages))
    uv("install", "--link-mode", "copy", "--compile-bytecode", "-c", str(CONSTRAINTS), *packages)
    frozen = uv("freeze", "--exclude-editable").splitlines()
    CONSTRAINTS.write_text("".join(f"{line}\n" for line in frozen if name_of(line) in held and "==" in line))


def add_nodes(manifest: Manifest) -> None:
    """
    Install the custom nodes and start ComfyUI once, to see that it can import them.
    """
    urls = [f"{node.url}@{node.commit}" if node.commit else node.url for node in manifest.nodes]
    subprocess.run(["comfy-node-install", *urls], check=True)
    ran = subprocess.run(
        [PYTHON, "main.py", "--cpu", "--quick-test-for-ci"],
        cwd=COMFYUI,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode or "IMPORT FAILED" in ran.stdout:
        sys.exit(f"ComfyUI cannot load the custom nodes of this variant:\n{ran.stdout[-8000:]}")


def add_test_job(example: Path, to: Path = TEST_JOB) -> None:
    """
    Make the variant's example the image's test job, so that `python handler.py` works in it.
    """
    graph = json.loads(example.read_text())
    job = graph if "input" in graph else {"input": {"workflow": graph}}
    to.write_text(json.dumps(job, indent=2))


def licences(name: str, manifest: Manifest) -> str:
    """
    Return a page that names the licence of everything which the variant adds.
    """
    lines = [f"# What the image `{name}` holds beside comfy-worker (MIT) and ComfyUI (GPL-3.0)", ""]
    lines += [f"- {item.title}: {item.licence or 'see its page'}" for item in manifest.files]
    lines += [f"- {item.title}: {item.licence or 'see its page'}" for item in manifest.snapshots]
    lines += [f"- {node.url}: {node.licence or 'see its page'}" for node in manifest.nodes]
    return "\n".join([*lines, "", *manifest.notes, ""])


def main(name: str) -> None:
    """
    Do all of it for one variant.
    """
    manifest = variant(shipped(), name)
    for folder in FOLDERS:
        (COMFYUI / "models" / folder).mkdir(parents=True, exist_ok=True)
    if manifest.packages:
        add_packages(manifest.packages)
    if manifest.nodes:
        add_nodes(manifest)
    if manifest.example:
        add_test_job(shipped().parent / manifest.example)
    Path("/LICENCES.md").write_text(licences(name, manifest))


if __name__ == "__main__":
    main(sys.argv[1])
