"""
Templates on real nodes: each shipped graph is one that ComfyUI takes, and the SD3 ones are really run.
"""

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory
from integration.conftest import CHECKPOINT, Comfy
from PIL import Image
from support import pictures

from comfy_worker.comfy.client import Client
from comfy_worker.comfy.validate import validate
from comfy_worker.templates import Templates, shipped
from comfy_worker.wiring import Worker

MODELS = {
    ("CheckpointLoaderSimple", "ckpt_name"),
    ("UNETLoader", "unet_name"),
    ("DualCLIPLoader", "clip_name1"),
    ("DualCLIPLoader", "clip_name2"),
    ("CLIPLoader", "clip_name"),
    ("VAELoader", "vae_name"),
    ("LoadImage", "image"),
}
"""Lists of files, which a machine without the models does not have."""


@pytest.fixture(scope="session")
def classes(real_comfy: Comfy) -> dict[str, Any]:
    """
    What a real ComfyUI says of its nodes.
    """
    client = Client(real_comfy.launch.url)
    try:
        return client.object_info()
    finally:
        client.close()


@pytest.mark.parametrize("name", Templates.load([shipped()]).names())
def test_shipped_template_is_a_graph_that_comfyui_takes(name: str, classes: dict[str, Any]) -> None:
    """
    Every class, link, value and choice of the graph is right by ComfyUI's own description of its nodes.
    """
    template = Templates.load([shipped()]).get(name)
    given = {
        key: value
        for key, value in (("prompt", "a cat"), ("image", "a.png"), ("input_image", "a.png"))
        if key in template.model.model_fields
    }
    workflow = template.build(given).workflow
    known = {**classes}
    for class_type, input_name in MODELS & {
        (node["class_type"], key) for node in workflow.values() for key in node["inputs"]
    }:
        values = [
            node["inputs"].get(input_name) for node in workflow.values() if node["class_type"] == class_type
        ]
        required = known[class_type]["input"]["required"]
        entry = {**known[class_type]["input"], "required": {**required, input_name: [values]}}
        known[class_type] = {**known[class_type], "input": entry}

    verdict = validate(workflow, known)

    assert (verdict.error, verdict.node_errors) == (None, {})
    savers = [node_id for node_id, node in workflow.items() if node["class_type"] == "SaveImage"]
    assert list(verdict.outputs) == savers


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text-to-image", "image-to-image"])
def test_sd3_template_really_runs(kind: str, real_comfy: Comfy, make_worker: WorkerFactory) -> None:
    """
    A job of a template and a few parameters gives a picture, and tells the seed that makes it again.
    """
    worker = make_worker(real_comfy.launch)
    params: dict[str, Any] = {"prompt": "a red cube", "checkpoint": CHECKPOINT, "steps": 2}
    if kind == "text-to-image":
        params |= {"width": 96, "height": 64}
    else:
        picture = base64.b64encode(pictures.png((60, 40), (200, 30, 30))).decode()
        params |= {"image": picture, "megapixels": 0.05, "denoise": 0.5}

    job = {"input": {"template": f"sd3/{kind}", "params": params}}
    reply = asyncio.run(worker.face.handle({"id": f"sd3-{kind}", **job}))
    job["input"]["params"] = {**params, "seed": reply.get("params", {}).get("seed")}  # type: ignore[index]
    again = asyncio.run(worker.face.handle({"id": f"sd3-{kind}-again", **job}))

    assert "error" not in reply
    [first], [second] = reply["images"], again["images"]
    size = Image.open(io.BytesIO(base64.b64decode(first["data"]))).size
    # ComfyUI 0.3.64 knows no `resolution_steps`, and leaves the sides at multiples of 8.
    assert size in ({(96, 64)} if kind == "text-to-image" else {(288, 192), (280, 184)})
    assert _pixels(first) == _pixels(second)
    assert reply["params"]["steps"] == 2
    assert "image" not in reply["params"]


def _pixels(entry: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(entry["data"]))).tobytes()


INVERT = {
    "1": pictures.node("LoadImage", image="example.png"),
    "2": pictures.node("ImageInvert", image=("1", 0)),
    "3": pictures.node(
        "ImageScale", image=("2", 0), upscale_method="nearest-exact", width=8, height=8, crop="disabled"
    ),
    "4": pictures.node("SaveImage", images=("3", 0), filename_prefix="inverted"),
}
PARAMETERS = {
    "picture": {"type": "image", "required": True, "bind": "1.inputs.image"},
    "width": {"type": "int", "min": 1, "max": 64, "bind": "3.inputs.width"},
    "height": {"type": "int", "min": 1, "max": 64, "bind": "3.inputs.height"},
}


@pytest.fixture
def operators(comfy: Comfy, make_worker: WorkerFactory, tmp_path: Path) -> Worker:
    """
    A worker on each engine with a template of its operator.
    """
    (tmp_path / "invert.json").write_text(json.dumps(INVERT))
    (tmp_path / "invert.yaml").write_text(json.dumps({"parameters": PARAMETERS}))
    return make_worker(comfy.launch, workflow_dir=tmp_path)


def _replied(worker: Worker, job_id: str, data: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run(worker.face.handle({"id": job_id, "input": data}))


@pytest.mark.parametrize("way", ["base64", "data URI", "file of the job"])
def test_picture_of_a_parameter_reaches_the_workflow(way: str, operators: Worker) -> None:
    """
    However the picture comes, the workflow reads it, and the reply tells the parameters without it.
    """
    picture = base64.b64encode(pictures.png((2, 2), (255, 0, 0))).decode()
    data: dict[str, Any] = {"template": "invert", "params": {"picture": picture, "width": 4}}
    if way == "data URI":
        data["params"]["picture"] = f"data:image/png;base64,{picture}"
    elif way == "file of the job":
        data["params"]["picture"] = "face.png"
        data["images"] = [{"name": "face.png", "image": picture}]

    reply = _replied(operators, f"invert-{way}", data)

    assert "error" not in reply
    image = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["data"])))
    assert (image.size, image.getpixel((0, 0))) == ((4, 8), (0, 255, 255))
    told = {"width": 4, "height": 8, **({"picture": "face.png"} if way == "file of the job" else {})}
    assert reply["params"] == told


def test_url_of_a_parameter_is_told_without_its_query(operators: Worker) -> None:
    """
    A URL that is not fetched is told by its parameter, and its signature nowhere.
    """
    url = "http://127.0.0.1:1/a.png?signature=hidden"

    reply = _replied(operators, "invert-url", {"template": "invert", "params": {"picture": url}})

    assert (reply["error_code"], reply["field"]) == ("input_unavailable", "params.picture")
    assert "hidden" not in json.dumps(reply)
