"""
The programs inside the images that are Python: what a variant adds, and what the health check asks.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from comfy_worker.models import manifest

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def program(name: str) -> ModuleType:
    """
    Return a program of docker/ as a module; nothing runs.
    """
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packages_that_a_variant_names_are_not_held_back() -> None:
    """
    A variant may ask for another transformers; torch and the rest stay as they are.
    """
    held = "numpy==2.4.6\ntorch==2.11.0\ntransformers==5.24.0\n"

    assert program("variant").without(held, ("transformers>=4.47.0,<5.0.0", "bitsandbytes>=0.48.2")) == (
        "numpy==2.4.6\ntorch==2.11.0\n"
    )


@pytest.mark.parametrize(
    "requirement", ["Torch==2.11.0+cpu", "torch", "torch>=2", "torch[x]>=2", " torch ~= 2.1"]
)
def test_name_of_a_requirement_is_its_package(requirement: str) -> None:
    """
    Versions, extras and markers are no part of the name.
    """
    assert program("variant").name_of(requirement) == "torch"


@pytest.mark.parametrize("name", sorted(manifest.variants(manifest.shipped())))
def test_licences_name_everything_that_is_added(name: str) -> None:
    """
    Each file, repository and node pack of a variant stands on the page, with a licence that its manifest knows.
    """
    found = manifest.variant(manifest.shipped(), name)
    page = program("variant").licences(name, found)

    for item in (*found.files, *found.snapshots):
        assert f"{item.title}: {item.licence}" in page
        assert item.licence
    for node in found.nodes:
        assert f"{node.url}: {node.licence}" in page


def test_test_job_of_an_image_is_its_example(tmp_path: Path) -> None:
    """
    A graph becomes a whole job, and a job stays as it is.
    """
    variant = program("variant")
    written = tmp_path / "test_input.json"
    example = tmp_path / "example.json"

    for content in ({"1": {"class_type": "X"}}, {"input": {"workflow": {"1": {"class_type": "X"}}}}):
        example.write_text(json.dumps(content))
        variant.add_test_job(example, written)
        assert json.loads(written.read_text()) == {"input": {"workflow": {"1": {"class_type": "X"}}}}


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "http://127.0.0.1:8188/system_stats"),
        ({"COMFY_PORT": "8199"}, "http://127.0.0.1:8199/system_stats"),
        ({"COMFY_HOST": "10.0.0.5:8188"}, "http://10.0.0.5:8188/system_stats"),
        ({"COMFYUI_URL": "https://comfy.example/"}, "https://comfy.example/system_stats"),
        ({"SERVE_API_LOCALLY": "true", "COMFY_PORT": "1"}, "http://127.0.0.1:8000/health"),
    ],
)
def test_health_check_asks_what_serves(environ: dict[str, str], address: str) -> None:
    """
    The worker's own server where there is one, else the ComfyUI it uses.
    """
    assert program("healthcheck").address(environ) == address
