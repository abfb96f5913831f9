"""
The engines that the integration tests run on: the built-in one, and a real ComfyUI where one is found.

A real one is looked for at COMFYUI_PATH, else in comfy-cli's default workspace. It is started with folders of its own
and a checkpoint of random weights, and ended by its process id.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_COMFYUI, WorkerFactory, launch_of
from support import random_checkpoint

from comfy_worker.comfy import launch
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.launch import Launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.settings import Settings
from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker

CHECKPOINT = "tiny-random.safetensors"
REAL_PATH = os.environ.get("COMFYUI_PATH")  # before the environment is cleaned


def pytest_itemcollected(item: pytest.Item) -> None:
    """
    Count every test that needs a real ComfyUI as slow.
    """
    if "real_comfy" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Comfy:
    """
    A ComfyUI under test: `real` or the built-in engine.
    """

    launch: Launch
    real: bool
    version: str


def real_launch(base: Path) -> Launch:
    """
    Describe how to start a real ComfyUI with all its folders in `base`; the test is skipped, loudly, where there is none.
    """
    config = Settings(comfyui_path=Path(REAL_PATH) if REAL_PATH else None)
    folder = launch.installed(config)
    if folder is None:
        pytest.skip(NO_COMFYUI)
    for name in ("input", "output", "models/checkpoints"):
        (base / name).mkdir(parents=True)
    random_checkpoint.write(base / "models" / "checkpoints" / CHECKPOINT)
    (base / "paths.yaml").write_text(f"test:\n  base_path: {base / 'models'}\n  checkpoints: checkpoints\n")
    chosen = launch.comfyui(config, folder, launch.free_port(), base)
    own = ["--input-directory", str(base / "input"), "--output-directory", str(base / "output")]
    command = (
        *chosen.command,
        *own,
        "--extra-model-paths-config",
        str(base / "paths.yaml"),
        "--preview-method",
        "auto",
    )
    return replace(chosen, command=command, input=base / "input", output=base / "output")


@pytest.fixture(scope="session")
def real_comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """
    A real ComfyUI, started once; skipped where there is none.
    """
    chosen = real_launch(tmp_path_factory.mktemp("comfyui"))
    assert chosen.folder is not None
    client = Client(chosen.url)
    process = ComfyProcess(chosen.command, chosen.folder, chosen.url, boot_timeout_s=120)
    process.start()
    try:
        process.wait_ready(client.answers)
        version = str(client.system_stats()["system"]["comfyui_version"])
        yield Comfy(replace(chosen, kind="running", command=()), True, version)
    finally:
        process.stop()
        client.close()


@pytest.fixture(params=["builtin", pytest.param("real", marks=pytest.mark.slow)])
def comfy(request: pytest.FixtureRequest, engine: EngineThread) -> Comfy:
    """
    Each test on both engines.
    """
    if request.param == "builtin":
        return Comfy(launch_of(engine), False, "0.27.0")
    found: Comfy = request.getfixturevalue("real_comfy")
    return found


@pytest.fixture
def comfyui_url(real_comfy: Comfy) -> str:
    """
    The base URL of a real ComfyUI.
    """
    return real_comfy.launch.url


@pytest.fixture
def engine_url(engine: EngineThread) -> str:
    """
    The base URL of the built-in engine.
    """
    return engine.url


@pytest.fixture(params=["disk", "http"])
def any_worker(request: pytest.FixtureRequest, comfy: Comfy, make_worker: WorkerFactory) -> Worker:
    """
    A worker on each engine, by each way of moving files.
    """
    chosen = comfy.launch
    if request.param == "http":
        chosen = replace(chosen, input=None, output=None, temp=None)
    return make_worker(chosen)


@pytest.fixture
def comfy_worker(comfy: Comfy, make_worker: WorkerFactory) -> Worker:
    """
    A worker on each engine, with a shared disk.
    """
    return make_worker(comfy.launch)


def ksampler_workflow(seed: int = 1, steps: int = 2, size: int = 64) -> dict[str, Any]:
    """
    Return the smallest text-to-image workflow on the random checkpoint.
    """
    from support.pictures import node

    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", text="a red cube", clip=("1", 1)),
        "3": node("CLIPTextEncode", text="blurry", clip=("1", 1)),
        "4": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "5": node(
            "KSampler",
            model=("1", 0),
            seed=seed,
            steps=steps,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            positive=("2", 0),
            negative=("3", 0),
            latent_image=("4", 0),
            denoise=1.0,
        ),
        "6": node("VAEDecode", samples=("5", 0), vae=("1", 2)),
        "7": node("SaveImage", images=("6", 0), filename_prefix="sampled"),
    }
