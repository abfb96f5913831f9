"""
POST /prompt, as a client of the peer uses it.
"""

import base64
import io

from PIL import Image
from support.pictures import b64, empty_workflow, invert_workflow, png
from support.served import Served


def test_prompt_answers_images_filenames_and_stats(served: Served) -> None:
    """A graph with one save node must give one bare base64 image named after the request."""
    reply = served.post("/prompt", {"id": "req-1", "prompt": empty_workflow(prefix="ComfyUI")})

    body = reply.json()
    assert reply.status_code == 200, body
    assert body["id"] == "req-1"
    assert body["filenames"] == ["req-1_ComfyUI_00001_.png"]
    assert Image.open(io.BytesIO(base64.b64decode(body["images"][0]))).size == (16, 16)
    assert body["prompt"]["2"]["inputs"]["filename_prefix"] == "req-1_ComfyUI"
    assert body["stats"]["comfy_execution"]["end"] >= body["stats"]["comfy_execution"]["start"] > 0
    assert "status" not in body


def test_prompt_stages_bare_base64(served: Served) -> None:
    """A bare base64 value of LoadImage must be staged, and the echo must name the staged file."""
    reply = served.post("/prompt", {"prompt": invert_workflow(b64(png((8, 6), (10, 20, 30))))})

    body = reply.json()
    assert reply.status_code == 200, body
    image = Image.open(io.BytesIO(base64.b64decode(body["images"][0])))
    assert image.convert("RGB").getpixel((0, 0)) == (245, 235, 225)
    assert body["prompt"]["1"]["inputs"]["image"].endswith(".png")
