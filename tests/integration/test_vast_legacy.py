"""
The former template of Vast.ai on both engines, and with a sampler on a real ComfyUI.
"""

import base64
import json
from pathlib import Path

import pytest
from integration.conftest import CHECKPOINT, Comfy, ksampler_workflow
from support.pictures import empty_workflow
from support.vast_fixtures import serving


def test_custom_workflow_answers_in_both_shapes(comfy: Comfy, tmp_path: Path) -> None:
    """A graph must come back as a data URI and as ComfyUI's own reply, from either engine."""
    served = serving(comfy.launch, tmp_path)
    try:
        payload = {"custom_fields": {"steps": 1}, "workflow": empty_workflow(0x336699)}
        reply = served.post("/custom_workflow/", {"auth_data": {"cost": 100}, "payload": payload})
    finally:
        served.close()

    assert reply.status_code == 200, reply.text
    assert reply.json()["images"][0].startswith("data:image/png;base64,")
    (files,) = reply.json()["outputs"].values()
    assert files["images"][0]["type"] == "output"


@pytest.mark.slow
def test_template_of_the_operator_draws_a_prompt(real_comfy: Comfy, tmp_path: Path) -> None:
    """COMFY_MODEL may name a template of one's own: `/prompt` must sample with it, whatever stands in the prompt."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    graph = ksampler_workflow(1)
    kinds = {found["class_type"]: node for node, found in graph.items()}
    sampler, size = kinds["KSampler"], kinds["EmptyLatentImage"]
    text = graph[sampler]["inputs"]["positive"][0]
    (folder / "tiny.json").write_text(json.dumps(graph))
    (folder / "tiny.yaml").write_text(
        "parameters:\n"
        f"  prompt: {{type: str, bind: {text}.inputs.text}}\n"
        f"  width: {{type: int, bind: {size}.inputs.width}}\n"
        f"  height: {{type: int, bind: {size}.inputs.height}}\n"
        f"  steps: {{type: int, bind: {sampler}.inputs.steps}}\n"
        f"  seed: {{type: seed, bind: {sampler}.inputs.seed}}\n"
    )
    served = serving(real_comfy.launch, tmp_path, comfy_model="tiny", workflow_dir=folder)
    try:
        payload = {"prompt": 'a "fox"\nin {{PROMPT}}', "width": 64, "height": 72, "steps": 2, "seed": 3}
        reply = served.post("/prompt/", {"payload": payload})
    finally:
        served.close()

    assert CHECKPOINT in json.dumps(graph)
    assert reply.status_code == 200, reply.text
    assert base64.b64decode(reply.json()["images"][0].partition(",")[2])[16:24] == bytes(
        [0, 0, 0, 64, 0, 0, 0, 72]
    )
