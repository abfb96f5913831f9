"""
The parameters that are found in a graph without being told: by classes, names of inputs, and links.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pictures import node

from comfy_worker.templates import Templates, guess, shipped
from comfy_worker.templates.declared import declaration, template_of

LOADER = node("CheckpointLoaderSimple", ckpt_name="a.safetensors")
SAMPLER = {
    "model": ("1", 0),
    "seed": 5,
    "steps": 20,
    "cfg": 7.0,
    "sampler_name": "euler",
    "scheduler": "normal",
}


def found(graph: dict[str, Any]) -> dict[str, Any]:
    """
    Return what is found in a graph as `{name: places}`; that it makes a template is checked on the way.
    """
    graph = json.loads(json.dumps(graph))
    declared = guess.declare(graph, "test")
    template_of("test", declaration(declared), graph)
    return {name: entry["bind"] for name, entry in declared["parameters"].items()}


def sampled(**nodes: Any) -> dict[str, Any]:
    """
    Return a graph with a sampler whose sides are nodes p and n.
    """
    sampler = node(
        "KSampler", **SAMPLER, positive=("p", 0), negative=("n", 0), latent_image=("l", 0), denoise=1.0
    )
    latent = node("EmptyLatentImage", width=512, height=768, batch_size=1)
    return {"1": LOADER, "l": latent, **nodes, "s": sampler}


def text(words: str, **inputs: Any) -> dict[str, Any]:
    """
    Return a node that encodes a text.
    """
    return node("CLIPTextEncode", clip=("1", 1), text=words, **inputs)


def test_plain_graph_is_found_whole() -> None:
    """
    Prompts by where they lead, everything else by its name; sizes that differ are two parameters.
    """
    assert found(sampled(n=text("bad"), p=text("good"))) == {
        "prompt": "p.inputs.text",
        "negative_prompt": "n.inputs.text",
        "width": "l.inputs.width",
        "height": "l.inputs.height",
        "seed": "s.inputs.seed",
        "steps": "s.inputs.steps",
        "cfg": "s.inputs.cfg",
        "denoise": "s.inputs.denoise",
        "checkpoint": "1.inputs.ckpt_name",
        "batch_size": "l.inputs.batch_size",
        "sampler": "s.inputs.sampler_name",
        "scheduler": "s.inputs.scheduler",
    }


def test_prompt_is_found_through_nodes_between() -> None:
    """
    Guidance and a ControlNet with both sides do not hide which text is which.
    """
    control = node("ControlNetApplyAdvanced", positive=("a", 0), negative=("b", 0), strength=1.0)
    graph = sampled(
        a=text("good"), b=text("bad"), c=control, g=node("FluxGuidance", conditioning=("c", 0), guidance=3.5)
    )
    graph["s"]["inputs"] |= {"positive": ["g", 0], "negative": ["c", 1]}

    places = found(graph)

    assert (places["prompt"], places["negative_prompt"]) == ("a.inputs.text", "b.inputs.text")
    assert places["guidance"] == "g.inputs.guidance"


def test_values_are_found_in_nodes_that_only_hold_them() -> None:
    """
    A prompt or a seed that comes from a primitive is set there.
    """
    graph = sampled(
        n=text("bad"), p=text("x"), w=node("PrimitiveString", value="good"), i=node("PrimitiveInt", value=7)
    )
    graph["p"]["inputs"]["text"] = ["w", 0]
    graph["s"]["inputs"]["seed"] = ["i", 0]

    places = found(graph)

    assert (places["prompt"], places["seed"]) == ("w.inputs.value", "i.inputs.value")
    assert "text" not in places


def test_zeroed_negative_is_no_second_prompt() -> None:
    """
    Where the negative side is the prompt without meaning, there is one prompt.
    """
    places = found(sampled(p=text("good"), n=node("ConditioningZeroOut", conditioning=("p", 0))))

    assert places["prompt"] == "p.inputs.text"
    assert "negative_prompt" not in places


def test_guider_without_a_negative_side_has_a_prompt() -> None:
    """
    The samplers of many parts are understood too.
    """
    graph = {
        "t": text("good"),
        "g": node("BasicGuider", model=("1", 0), conditioning=("t", 0)),
        "n": node("RandomNoise", noise_seed=3),
        "x": node("SamplerCustomAdvanced", noise=("n", 0), guider=("g", 0)),
        "k": node("KSamplerSelect", sampler_name="euler"),
        "1": LOADER,
    }

    assert found(graph) == {
        "prompt": "t.inputs.text",
        "seed": "n.inputs.noise_seed",
        "checkpoint": "1.inputs.ckpt_name",
        "sampler": "k.inputs.sampler_name",
    }


def test_equal_values_of_one_kind_are_one_parameter() -> None:
    """
    The same prompt for two encoders, and the same size in two nodes, are set together.
    """
    two = node("CLIPTextEncodeSDXL", clip=("1", 1), text_g="good", text_l="good", width=512, height=768)

    places = found(sampled(p=two, n=text("bad")))

    assert places["prompt"] == ["p.inputs.text_g", "p.inputs.text_l"]
    assert places["width"] == ["l.inputs.width", "p.inputs.width"]


def test_two_pictures_and_two_loras_stay_two() -> None:
    """
    Equal file names and strengths are no sign of belonging together.
    """
    graph = {
        "a": node("LoadImage", image="example.png"),
        "b": node("LoadImage", image="example.png"),
        "m": node("LoadImageMask", image="example.png", channel="red"),
        "c": node("LoraLoader", lora_name="x", strength_model=1.0),
        "d": node("LoraLoader", lora_name="x", strength_model=1.0),
        "v": node("LoadVideo", file="a.mp4"),
    }

    assert found(graph) == {
        "image": "a.inputs.image",
        "mask": "m.inputs.image",
        "image_2": "b.inputs.image",
        "lora": "c.inputs.lora_name",
        "lora_strength": "c.inputs.strength_model",
        "lora_2": "d.inputs.lora_name",
        "lora_strength_2": "d.inputs.strength_model",
        "file": "v.inputs.file",
    }


def test_bounds_never_forbid_what_the_graph_says() -> None:
    """
    A graph that is out of the usual range keeps its own value as the default.
    """
    graph = sampled(p=text("good"), n=text("bad"))
    graph["l"]["inputs"] |= {"width": 5001, "height": 12}
    graph["s"]["inputs"]["steps"] = 4000

    parameters = guess.declare(graph, "test")["parameters"]

    assert found(graph)
    assert parameters["width"] == {
        "type": "int", "description": "EmptyLatentImage", "default": 5001, "min": 16, "bind": "l.inputs.width",
    }  # fmt: skip
    assert "min" not in parameters["height"]
    assert "max" not in parameters["steps"]


@pytest.mark.parametrize(
    "name", [name for name, template in Templates.load([shipped()]).by_name.items() if template.graph]
)
def test_shipped_graph_gives_back_its_parameters(name: str) -> None:
    """
    What was declared by hand is found by itself, at the same places.
    """
    template = Templates.load([shipped()]).get(name)
    assert template.graph is not None

    places = found(dict(template.graph))

    assert set(template.model.model_fields) <= set(places)


ids = st.sampled_from(["1", "2", "3"])
values = st.one_of(
    st.text(max_size=4),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.tuples(ids, st.integers(-1, 2)).map(list),
    st.lists(st.none(), max_size=2),
)
names = st.sampled_from([*guess.KNOWN, *guess.TEXTS, *guess.SIDES, "conditioning", "image", "value"])
classes = st.sampled_from(["KSampler", "CLIPTextEncode", "LoadImage", "BasicGuider", "PrimitiveString", "X"])
nodes = st.fixed_dictionaries({"class_type": classes, "inputs": st.dictionaries(names, values, max_size=5)})


@given(st.dictionaries(ids, nodes, min_size=1))
def test_any_graph_gives_a_template(graph: dict[str, Any]) -> None:
    """
    Whatever is linked to whatever, also in circles, what is written can be loaded.
    """
    found(graph)
