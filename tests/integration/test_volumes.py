"""
Volumes and fetched models on a real ComfyUI: it reads every folder of the map, and runs a job on what was just fetched.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import WorkerFactory
from integration.conftest import CHECKPOINT, REAL_PATH, Comfy, ksampler_workflow
from support import random_checkpoint
from support.model_host import Entry, ModelHost

from comfy_worker.comfy import launch
from comfy_worker.comfy.client import Client
from comfy_worker.models import diagnostics, fetching, manifest
from comfy_worker.models.volumes import FOLDERS
from comfy_worker.settings import Settings
from comfy_worker.wiring import Worker

NOT_MODELS = {"custom_nodes"}
OTHER_FILES = {"configs", "diffusers"}
"""Categories of yaml files, and of whole folders."""


def test_map_has_every_category_of_comfyui(real_comfy: Comfy) -> None:
    """
    Each category of the running ComfyUI is in the map, with every folder it has of its own.
    """
    found = requests.get(f"{real_comfy.launch.url}/api/experiment/models", timeout=30).json()

    folders = {
        entry["name"]: {Path(folder).name for folder in entry["folders"] if "models" in Path(folder).parts}
        for entry in found
    }

    assert len(folders) > 15
    assert set(folders) - NOT_MODELS <= set(FOLDERS)
    for category, names in folders.items():
        assert names <= set(FOLDERS[category])


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """
    A volume with a file in each folder that ComfyUI reads.
    """
    for folders in FOLDERS.values():
        for folder in folders:
            if folder != ".":
                place = tmp_path / "volume" / "models" / folder / "sub"
                place.mkdir(parents=True, exist_ok=True)
                # Classifiers are files whose names have no ending (0.27.0).
                ending = "" if folder == "classifiers" else ".safetensors"
                (place / f"{folder.replace('/', '-')}{ending}").write_bytes(b"")
    return tmp_path / "volume"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ModelHost]:
    """
    A host with a checkpoint of random weights.
    """
    random_checkpoint.write(tmp_path / "weights")
    with ModelHost() as running:
        running.files["/weights"] = Entry((tmp_path / "weights").read_bytes())
        yield running


@pytest.fixture
def supplied(
    real_comfy: Comfy, volume: Path, host: ModelHost, tmp_path: Path, make_worker: WorkerFactory
) -> tuple[Worker, Settings]:
    """
    A worker on a ComfyUI of its own, whose volume is given the checkpoint while it boots.
    """
    body = host.files["/weights"].body
    config = Settings(
        comfyui_path=Path(REAL_PATH) if REAL_PATH else None,
        volume_roots=(volume,),
        models_manifest=(
            f'files = [{{url = "{host.url}/weights", dest = "checkpoints/fetched/{CHECKPOINT}", '
            f'size = {len(body)}, sha256 = "{hashlib.sha256(body).hexdigest()}"}}]'
        ),
    )
    folder = launch.installed(config)
    assert folder is not None
    scratch = tmp_path / "scratch"
    for name in ("input", "output"):
        (scratch / name).mkdir(parents=True)
    chosen = launch.comfyui(config, folder, launch.free_port(), scratch)
    own = ("--input-directory", str(scratch / "input"), "--output-directory", str(scratch / "output"))
    chosen = replace(
        chosen, command=(*chosen.command, *own), input=scratch / "input", output=scratch / "output"
    )
    worker = make_worker(chosen, volume_roots=(volume,))
    fetching.at_start(config, folder)
    worker.engine.wait_ready()
    return worker, config


@pytest.mark.slow
def test_job_runs_on_a_model_that_was_fetched_while_comfyui_booted(
    supplied: tuple[Worker, Settings], volume: Path
) -> None:
    """
    ComfyUI sees every file of the volume without a restart, the report agrees, and a picture comes of the model.
    """
    worker, config = supplied
    models = worker.engine.client.models
    workflow = ksampler_workflow(steps=1)
    workflow["1"]["inputs"]["ckpt_name"] = f"fetched/{CHECKPOINT}"

    seen = {
        category: {name for name in models(category) if name.startswith("sub/")}
        for category, folders in FOLDERS.items()
        if folders != (".",) and category not in OTHER_FILES
    }
    report = list(diagnostics.report(config, worker.engine.launch.folder, models))
    reply: dict[str, Any] = asyncio.run(
        worker.face.handle({"id": "fetched", "input": {"workflow": workflow}})
    )

    assert {category for category, names in seen.items() if len(names) < len(FOLDERS[category])} == set()
    assert f"{volume / 'models'}: loras: 1 files, 1 of them seen by ComfyUI." in report
    assert reply["images"][0]["filename"].startswith("sampled")


@pytest.mark.parametrize("name", sorted(manifest.variants(manifest.shipped())))
def test_example_of_a_variant_fits_comfyui(real_comfy: Comfy, name: str) -> None:
    """
    Each node of an example is one of ComfyUI's, has all inputs it must have and no other, and links of the right types;
    only the names of models may be unknown where no model is.
    """
    example = manifest.variant(manifest.shipped(), name).example
    graph = json.loads((manifest.shipped().parent / str(example)).read_text(encoding="utf-8"))
    client = Client(real_comfy.launch.url)
    try:
        known = {node["class_type"]: client.object_info(node["class_type"]) for node in graph.values()}
    finally:
        client.close()
    known = {class_type: entry for class_type, entry in known.items() if entry}
    if not name.startswith("hunyuan"):  # whose nodes are those of a pack
        assert set(known) == {node["class_type"] for node in graph.values()}

    for node in graph.values():
        if node["class_type"] not in known:
            continue
        kinds = known[node["class_type"]]["input"]
        required, all_of_them = (
            kinds.get("required", {}),
            kinds.get("required", {}) | kinds.get("optional", {}),
        )
        assert set(required) <= set(node["inputs"]) <= set(all_of_them)
        for field, value in node["inputs"].items():
            kind = all_of_them[field][0]
            source = known.get(graph[value[0]]["class_type"]) if isinstance(value, list) else None
            if source is not None:
                assert source["output"][value[1]] == kind
            elif isinstance(kind, list) and not str(value).endswith(".safetensors"):
                assert value in kind
