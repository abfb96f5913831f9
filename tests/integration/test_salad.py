"""
What clients of the Salad face do, end to end, on the built-in engine and on a real ComfyUI.
"""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import CHECKPOINT, Comfy, ksampler_workflow
from PIL import Image
from standardwebhooks.webhooks import Webhook
from support.http_desk import HttpDesk
from support.pictures import b64, empty_workflow, invert_workflow, node, png
from support.salad_fixtures import BUCKET, WEBHOOK_SECRET, S3Server, ServeSalad, desk, s3_server, serve_salad
from support.served import Served

__all__ = ["desk", "s3_server", "serve_salad"]

PICTURE = png((16, 12), (10, 20, 30))


@pytest.fixture
def salad(comfy: Comfy, serve_salad: ServeSalad, s3_server: S3Server) -> Served:
    """
    The face on each engine, with keys for the S3 server.
    """
    return serve_salad(comfy.launch, **s3_server.settings())


def pixel(body: dict[str, Any], index: int = 0) -> tuple[int, int, int]:
    """
    Return the first pixel of an image of a reply.
    """
    image = Image.open(io.BytesIO(base64.b64decode(body["images"][index]))).convert("RGB")
    red, green, blue = image.tobytes()[:3]
    return red, green, blue


def posted(salad: Served, prompt: dict[str, Any], status: int = 200, **fields: Any) -> dict[str, Any]:
    """
    Post a graph; return the body of the answer.
    """
    reply = salad.post("/prompt", {"prompt": prompt, **fields})
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_text_to_image_as_base64(salad: Served) -> None:
    """One picture, named after request and prefix, and a graph that was queued under that name."""
    body = posted(salad, empty_workflow(0xFF8000, prefix="ComfyUI"), id="t2i")

    assert body["filenames"] == ["t2i_ComfyUI_00001_.png"]
    assert pixel(body) == (255, 128, 0)
    assert body["prompt"]["2"]["inputs"]["filename_prefix"] == "t2i_ComfyUI"
    assert body["stats"]["comfy_execution"]["duration"] >= 0


def test_several_images_in_order(salad: Served) -> None:
    """Batches of several nodes come in the order of the graph."""
    prompt = empty_workflow(1, prefix="b")
    prompt["1"]["inputs"]["batch_size"] = 3
    prompt["4"] = node("SaveImage", images=("1", 0), filename_prefix="a")

    body = posted(salad, prompt, id="multi")

    assert body["filenames"] == [f"multi_{name}_{n:05}_.png" for name in "ba" for n in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["base64", "data-uri", "http", "s3"])
def test_image_to_image_from_every_source(
    salad: Served, desk: HttpDesk, s3_server: S3Server, source: str
) -> None:
    """The same picture arrives from wherever it is sent."""
    values = {
        "base64": b64(PICTURE),
        "data-uri": f"data:image/png;base64,{b64(PICTURE)}",
        "http": desk.put("/in.png", PICTURE),
        "s3": s3_server.put("in/picture.png", PICTURE),
    }

    body = posted(salad, invert_workflow(values[source]))

    assert pixel(body) == (245, 235, 225)
    assert body["prompt"]["1"]["inputs"]["image"].startswith("cw-")


@pytest.mark.parametrize("format_", ["jpeg", "webp"])
def test_conversion(salad: Served, format_: str) -> None:
    """The picture is of the format that was asked for."""
    body = posted(salad, empty_workflow(2), id="conv", convert_output={"format": format_})

    assert body["filenames"] == [f"conv_out_00001_.{format_}"]
    assert Image.open(io.BytesIO(base64.b64decode(body["images"][0]))).format == format_.upper()


def test_both_webhooks(salad: Served, desk: HttpDesk) -> None:
    """v1 and v2 are told, and v2's signature is right."""
    accepted = posted(
        salad, empty_workflow(3), 202, id="hooks", webhook=f"{desk.url}/v1", webhook_v2=f"{desk.url}/v2"
    )

    hooks = {hook.path: hook for hook in desk.wait(2)}
    second = Webhook(WEBHOOK_SECRET).verify(hooks["/v2"].body, hooks["/v2"].headers)
    assert accepted["status"] == "ok"
    assert hooks["/v1"].json()["event"] == "output.complete"
    assert second["type"] == "prompt.complete"
    assert second["images"] == [hooks["/v1"].json()["image"]]


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True])
def test_storage(salad: Served, desk: HttpDesk, s3_server: S3Server, is_async: bool) -> None:
    """s3 and http_upload store the files, at once or later."""
    blocks = {
        "s3": {"bucket": BUCKET, "prefix": f"it-{is_async}/", "async": is_async},
        "http_upload": {"url_prefix": f"{desk.url}/up", "async": is_async},
    }
    for name, block in blocks.items():
        body = posted(salad, empty_workflow(4), 202 if is_async else 200, id=f"st-{name}", **{name: block})
        assert ("images" in body) is not is_async

    [put] = desk.wait(1, "PUT")
    assert put.path == "/up/st-http_upload_out_00001_.png"
    end = time.monotonic() + 20
    while True:
        with s3_server.client() as client:
            if client.list_objects_v2(Bucket=BUCKET, Prefix=f"it-{is_async}/").get("KeyCount"):
                break
        assert time.monotonic() < end
        time.sleep(0.05)
    assert s3_server.get(f"it-{is_async}/st-s3_out_00001_.png")[1] == "image/png"


def test_named_workflow(comfy: Comfy, serve_salad: ServeSalad, tmp_path: Path) -> None:
    """A workflow of the operator's folder runs by its route."""
    folder = tmp_path / "flows"
    folder.mkdir()
    (folder / "invert.yaml").write_text(
        "parameters:\n  image: {type: image, required: true, bind: 1.inputs.image}\n"
    )
    (folder / "invert.json").write_text(json.dumps(invert_workflow()))
    salad = serve_salad(comfy.launch, workflow_dir=folder)

    reply = salad.post("/workflow/invert", {"input": {"image": b64(PICTURE)}})

    assert reply.status_code == 200, reply.text
    assert pixel(reply.json()) == (245, 235, 225)


def test_system_events(comfy: Comfy, serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """ComfyUI's own messages arrive under the request's id, in order."""
    salad = serve_salad(
        comfy.launch,
        system_webhook_url=f"{desk.url}/sys",
        system_webhook_events=frozenset({"execution_start", "executed", "execution_success"}),
    )
    end = time.monotonic() + 20
    while salad.get("/health").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.05)

    posted(salad, empty_workflow(5), id="sys")

    hooks = [Webhook(WEBHOOK_SECRET).verify(hook.body, hook.headers) for hook in desk.wait(3)]
    assert [hook["event"] for hook in hooks] == [
        "comfy.execution_start",
        "comfy.executed",
        "comfy.execution_success",
    ]
    assert {hook["data"]["data"]["prompt_id"] for hook in hooks} == {"sys"}


def test_rejected_graph_and_failing_input(salad: Served, desk: HttpDesk) -> None:
    """What ComfyUI refuses, and what cannot be fetched, is told with the node."""
    wrong = empty_workflow(6)
    wrong["1"]["inputs"]["width"] = 0

    refused = posted(salad, wrong, 400)
    missing = posted(salad, invert_workflow(f"{desk.url}/none.png"), 400)

    assert refused["error"].startswith("Failed to queue prompt: ")
    assert refused["location"] == "prompt.1"
    assert missing["location"] == "prompt.1.inputs.image"


@pytest.mark.slow
def test_checkpoint_of_a_url_really_samples(
    real_comfy: Comfy, serve_salad: ServeSalad, desk: HttpDesk
) -> None:
    """On a real ComfyUI, a checkpoint named by URL is fetched, linked and sampled with; /download does the same."""
    assert real_comfy.launch.input is not None
    models = real_comfy.launch.input.parent / "models"
    url = desk.put("/by-url.safetensors", (models / "checkpoints" / CHECKPOINT).read_bytes())
    salad = serve_salad(real_comfy.launch, model_dir=models)
    prompt = ksampler_workflow(seed=77)
    prompt["1"]["inputs"]["ckpt_name"] = url

    body = posted(salad, prompt, id="ckpt")
    fetched = salad.post(
        "/download", {"url": url, "model_type": "checkpoints", "filename": "again.safetensors", "wait": True}
    )

    name = body["prompt"]["1"]["inputs"]["ckpt_name"]
    assert body["filenames"] == ["ckpt_sampled_00001_.png"]
    assert (models / "checkpoints" / name).is_symlink()
    assert fetched.status_code == 200, fetched.text
    assert {name, "again.safetensors", CHECKPOINT} <= set(salad.get("/models").json()["checkpoints"])
    (models / "checkpoints" / name).unlink()
    (models / "checkpoints" / "again.safetensors").unlink()
