"""
The routes of Vast.ai's former template: payloads, refusals, both known shapes of a reply, and COMFY_MODEL.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.pictures import empty_workflow, node
from support.served import Served
from support.vast_fixtures import ServeVast

from comfy_worker.errors import ConfigInvalid

ECHO = {
    "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    "3": node("SaveImage", images=["2", 0], filename_prefix="echo"),
    "4": node("PreviewAny", source="x"),
}
ECHO_PARAMETERS = """
parameters:
  prompt: {type: str, required: true, bind: 4.inputs.source}
  width: {type: int, bind: 2.inputs.width}
  height: {type: int, bind: 2.inputs.height}
  steps: {type: int, default: 28, bind: 2.inputs.batch_size}
  seed: {type: seed, bind: 2.inputs.color}
"""
PROMPT = {"prompt": "a fox", "width": 16, "height": 24, "steps": 2, "seed": 0x102030}


@pytest.fixture
def legacy(serve_vast: ServeVast, tmp_path: Path) -> Served:
    """
    The face with a template that draws the seed as a colour, as many pictures as it has steps.
    """
    folder = tmp_path / "workflows"
    folder.mkdir()
    (folder / "echo.json").write_text(json.dumps(ECHO))
    (folder / "echo.yaml").write_text(ECHO_PARAMETERS)
    return serve_vast(comfy_model="echo", workflow_dir=folder)


def picture(uri: str) -> Image.Image:
    """
    Return the picture of a data URI.
    """
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@pytest.mark.parametrize("route", ["/prompt", "/prompt/"])
@pytest.mark.parametrize("wraps", [False, True], ids=["bare", "envelope"])
def test_prompt_answers_in_both_known_shapes(legacy: Served, route: str, wraps: bool) -> None:
    """The reply must hold data URIs in order, ComfyUI's own reply, and the keys of a Result."""
    envelope = {"auth_data": {"cost": 100, "reqnum": 1}, "payload": {**PROMPT, "other": "ignored"}}

    reply = legacy.post(route, envelope if wraps else PROMPT)

    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert [picture(uri).size for uri in body["images"]] == [(16, 24)] * 2
    assert picture(body["images"][0]).getpixel((0, 0)) == (0x10, 0x20, 0x30)
    names = [item["filename"] for item in body["outputs"]["3"]["images"]]
    assert len(names) == 2
    assert body["outputs"]["3"]["images"][0] == {"filename": names[0], "subfolder": "", "type": "output"}
    assert [item["filename"] for item in body["output"]] == names
    assert body["prompt_id"]
    assert isinstance(body["number"], int)
    assert (body["node_errors"], body["status"]) == ({}, "completed")
    assert body["timings"]["total_ms"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("route", [f"/custom{mark}workflow{end}" for mark in "-_" for end in ("", "/")])
def test_custom_workflow_runs_a_graph_under_every_spelling(legacy: Served, route: str) -> None:
    """A graph must run as it is, with a random number where it asks for one."""
    graph = empty_workflow(0xFF8000)
    graph["9"] = node("PreviewAny", source="number __RANDOM_INT__")

    reply = legacy.post(route, {"payload": {"custom_fields": {"steps": 4}, "workflow": graph}})

    assert reply.status_code == 200, reply.text
    assert picture(reply.json()["images"][0]).getpixel((0, 0)) == (0xFF, 0x80, 0)


def test_steps_may_be_left_out(legacy: Served) -> None:
    """Without `steps` the documented 28 must be taken."""
    given = {name: value for name, value in PROMPT.items() if name != "steps"}

    reply = legacy.post("/prompt", given)

    assert reply.status_code == 200, reply.text
    assert len(reply.json()["images"]) == 28


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "payload", "expected"),
    [
        ("/prompt", {"prompt": "x", "width": 8, "height": 8}, {"seed": "missing parameter"}),
        (
            "/prompt",
            {"steps": 28},
            dict.fromkeys(("prompt", "width", "height", "seed"), "missing parameter"),
        ),
        ("/custom_workflow", {}, dict.fromkeys(("custom_fields", "workflow"), "missing parameter")),
        ("/prompt", {**PROMPT, "width": "wide"}, {"width": "must be a whole number"}),
        (
            "/prompt",
            {**PROMPT, "seed": True, "steps": 2.5},
            dict.fromkeys(("seed", "steps"), "must be a whole number"),
        ),
        ("/prompt", {**PROMPT, "prompt": 7}, {"prompt": "must be a text"}),
        ("/prompt", {**PROMPT, "height": None}, {"height": "must be a whole number"}),
        (
            "/custom-workflow",
            {"custom_fields": {}, "workflow": "{}"},
            {"workflow": "must be an object in ComfyUI's API format"},
        ),
    ],
)
def test_payload_that_lacks_something_is_told_at_once(
    legacy: Served, route: str, payload: dict[str, Any], expected: dict[str, str]
) -> None:
    """All that is missing, or all that is wrong, must be in one 422, by name."""
    reply = legacy.post(route, {"payload": payload})

    assert (reply.status_code, reply.json()) == (422, {"payload": expected})


def test_failure_keeps_the_known_text_and_the_reason(legacy: Served) -> None:
    """A graph that cannot run must be a 422 with the peer's text, and our reason with node and class."""
    graph = {"7": node("NoSuchNode"), "8": node("SaveImage", images=["7", 0], filename_prefix="x")}

    reply = legacy.post("/custom-workflow", {"custom_fields": {}, "workflow": graph})

    assert reply.status_code == 422
    body = reply.json()
    assert (body["error"], body["status"]) == ("there was an error in the workflow", "failed")
    assert "NoSuchNode" in body["detail"]


def test_graph_without_pictures_is_told_as_before(legacy: Served) -> None:
    """A graph that makes no file must be the 422 that clients know."""
    graph = {"1": node("PreviewAny", source="words only")}

    reply = legacy.post("/custom-workflow", {"custom_fields": {}, "workflow": graph})

    assert reply.status_code == 422
    assert reply.json()["error"] == "workflow did not produce any images"
    assert reply.json()["prompt_id"]


def test_ping_and_the_missing_model(serve_vast: ServeVast) -> None:
    """`/ping` must answer; `/prompt` without COMFY_MODEL must name the setting and the two models."""
    served = serve_vast()

    assert served.get("/ping").text == "pong"
    reply = served.post("/prompt", PROMPT)
    assert reply.status_code == 422
    assert "COMFY_MODEL to flux or sd3" in reply.json()["detail"]


@pytest.mark.parametrize(
    "fields",
    [{"vast_backend": "comfyui"}, {"comfy_model": "sd9"}, {"comfy_model": "sd9", "vast_backend": "comfyui"}],
)
def test_unknown_model_stops_the_start(serve_vast: ServeVast, fields: dict[str, str]) -> None:
    """BACKEND=comfyui without a model, and a model that is none, must end the start with both names."""
    with pytest.raises(ConfigInvalid, match="flux or sd3"):
        serve_vast(**fields)


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_models_of_the_template_come_along(serve_vast: ServeVast, model: str) -> None:
    """Both models must be there without any template of the operator; here only their files, or nodes, are missing."""
    reply = serve_vast(comfy_model=model).post("/prompt", PROMPT)

    assert reply.status_code == 422, reply.text
    assert reply.json()["error"] == "there was an error in the workflow"
    assert reply.json()["detail"]
