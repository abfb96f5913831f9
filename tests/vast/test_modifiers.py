"""
The graphs behind Vast's modifiers and COMFY_MODEL: nodes, links, defaults and where each parameter goes.
"""

from typing import Any

import pytest

from comfy_worker.errors import WorkerError
from comfy_worker.templates import Templates, shipped

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"


@pytest.fixture(scope="module")
def templates() -> Templates:
    """
    The templates that come along.
    """
    return Templates.load([shipped()])


def test_text_to_image_has_the_documented_nodes(templates: Templates) -> None:
    """Without parameters the graph must have the modifier's nodes, links and defaults."""
    graph = dict(templates.by_name["Text2Image"].build({"seed": 5}, "p").workflow)

    assert graph["3"]["inputs"] == {
        "seed": 5,
        "steps": 20,
        "cfg": 8,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    assert graph["4"]["inputs"] == {"ckpt_name": CHECKPOINT}
    assert graph["5"]["inputs"] == {"width": 512, "height": 512, "batch_size": 1}
    assert [graph[node]["inputs"] for node in "67"] == [{"text": "", "clip": ["4", 1]}] * 2
    assert graph["8"]["inputs"] == {"samples": ["3", 0], "vae": ["4", 2]}
    assert graph["9"]["inputs"] == {"filename_prefix": "image", "images": ["8", 0]}
    assert {node: graph[node]["class_type"] for node in graph} == {
        "3": "KSampler",
        "4": "CheckpointLoaderSimple",
        "5": "EmptyLatentImage",
        "6": "CLIPTextEncode",
        "7": "CLIPTextEncode",
        "8": "VAEDecode",
        "9": "SaveImage",
    }


def test_image_to_image_has_the_documented_nodes(templates: Templates) -> None:
    """The graph must have the modifier's nodes and its other sampler and denoise."""
    given = {"seed": 5, "input_image": "face.png", "prompt": "a", "negative_prompt": "b"}
    graph = dict(templates.by_name["Image2Image"].build(given, "p").workflow)

    assert graph["3"]["inputs"] == {
        "seed": 5,
        "steps": 20,
        "cfg": 8,
        "sampler_name": "dpmpp_2m",
        "scheduler": "normal",
        "denoise": pytest.approx(0.87),
        "model": ["14", 0],
        "latent_image": ["12", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
    }
    assert graph["12"]["inputs"] == {"pixels": ["10", 0], "vae": ["14", 2]}
    assert graph["14"]["inputs"] == {"ckpt_name": CHECKPOINT}
    assert (graph["6"]["inputs"]["text"], graph["7"]["inputs"]["text"]) == ("a", "b")
    assert graph["8"]["inputs"] == {"samples": ["3", 0], "vae": ["14", 2]}
    assert set(graph) == {"3", "6", "7", "8", "9", "10", "12", "14"}


@pytest.mark.parametrize("name", ["Text2Image", "Image2Image"])
@pytest.mark.parametrize("word", ["cfg", "cfg_scale"])
def test_cfg_has_two_words(templates: Templates, name: str, word: str) -> None:
    """`cfg` and `cfg_scale` must both reach the sampler."""
    graph = templates.by_name[name].build({word: 4.5, "input_image": "x.png"}, "p").workflow

    assert graph["3"]["inputs"]["cfg"] == 4.5


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_seeds_of_every_client_are_taken(templates: Templates, seed: int) -> None:
    """Seeds up to the benchmark's largest must go to the sampler as they are."""
    graph = templates.by_name["Text2Image"].build({"seed": seed}, "p").workflow

    assert graph["3"]["inputs"]["seed"] == seed


def test_unknown_key_is_a_warning_and_a_wrong_value_an_error(templates: Templates) -> None:
    """A key that the modifier lacks must be named and ignored; a value of a wrong kind must be refused by its name."""
    assert any(
        "stepps" in text for text in templates.by_name["Text2Image"].build({"stepps": 3}, "p").warnings
    )
    with pytest.raises(WorkerError, match="steps"):
        templates.by_name["Text2Image"].build({"steps": "many"}, "p")


BOUND = {
    "flux": {
        "prompt": ("6", "text"),
        "steps": ("17", "steps"),
        "seed": ("25", "noise_seed"),
        "width": ("5", "width"),
    },
    "sd3": {
        "prompt": ("6", "text"),
        "steps": ("271", "steps"),
        "seed": ("271", "seed"),
        "width": ("135", "width"),
    },
}
LINKS = {
    "flux": {
        ("13", "noise"): ["25", 0], ("13", "guider"): ["22", 0], ("13", "sampler"): ["16", 0],
        ("13", "sigmas"): ["17", 0], ("13", "latent_image"): ["5", 0], ("17", "model"): ["12", 0],
        ("22", "model"): ["12", 0], ("22", "conditioning"): ["6", 0], ("6", "clip"): ["11", 0],
        ("8", "samples"): ["13", 0], ("8", "vae"): ["10", 0], ("9", "images"): ["8", 0],
    },
    "sd3": {
        ("6", "clip"): ["252", 1], ("71", "clip"): ["252", 1], ("13", "model"): ["252", 0],
        ("67", "conditioning"): ["71", 0], ("68", "conditioning"): ["67", 0], ("70", "conditioning"): ["71", 0],
        ("69", "conditioning_1"): ["68", 0], ("69", "conditioning_2"): ["70", 0], ("271", "model"): ["13", 0],
        ("271", "positive"): ["6", 0], ("271", "negative"): ["69", 0], ("271", "latent_image"): ["135", 0],
        ("231", "samples"): ["271", 0], ("231", "vae"): ["252", 2], ("233", "images"): ["231", 0],
    },
}  # fmt: skip


@pytest.mark.parametrize("model", sorted(BOUND))
def test_former_models_bind_their_five_parameters(templates: Templates, model: str) -> None:
    """Each parameter must reach its node as a value of its kind, any text as it is, and the links must be the known ones."""
    text = 'a "quoted" {{PROMPT}}\nfox'
    given: dict[str, Any] = {"prompt": text, "width": 768, "height": 512, "steps": 9, "seed": 2**63 - 1}

    graph = templates.by_name[model].build(given, "payload").workflow

    for name, (node, key) in BOUND[model].items():
        assert graph[node]["inputs"][key] == given[name]
    for (node, key), link in LINKS[model].items():
        assert graph[node]["inputs"][key] == link
    assert {node for node, _ in LINKS[model]} <= set(graph)


@pytest.mark.parametrize(("model", "node"), [("flux", "17"), ("sd3", "271")])
def test_former_models_take_28_steps(templates: Templates, model: str, node: str) -> None:
    """Without `steps` the documented 28 must be taken."""
    given = {"prompt": "x", "width": 64, "height": 64, "seed": 1}

    assert templates.by_name[model].build(given, "payload").workflow[node]["inputs"]["steps"] == 28
