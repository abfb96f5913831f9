"""
The dry run refuses what ComfyUI refuses, in ComfyUI's words, and accepts what it accepts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import replay

from comfy_worker.comfy.validate import Validation, validate

CLASSES: dict[str, Any] = json.loads((Path(__file__).parent / "object_info.json").read_text())
IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
# Refused before the graph is looked at, or changed before it is: by the server, not by the validation.
OUTSIDE = {"invalid_prompt_id", "no_prompt"}
REPLACED = {"Preview3DAnimation"}


def image(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "EmptyImage", "inputs": {**IMAGE["inputs"], **inputs}}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def save(link: Any = ("1", 0), **inputs: Any) -> dict[str, Any]:
    return node("SaveImage", images=list(link), filename_prefix="x", **inputs)


def problems(found: Validation, node_id: str) -> list[tuple[str, str]]:
    return [(error["type"], error["details"]) for error in found.node_errors[node_id]["errors"]]


def recorded() -> list[Any]:
    """
    Every graph that was posted to ComfyUI 0.27.0 and reached its validation, once each.
    """
    found = {}
    for param in replay.every():
        transcript = param.values[0]
        for position, prompt in enumerate(transcript.prompts):
            kind = prompt.reply.get("error", {}).get("type")
            if transcript.version != "0.27.0" or prompt.status not in (200, 400) or kind in OUTSIDE:
                continue
            if isinstance(prompt.workflow, dict) and not REPLACED & set(classes_of(prompt.workflow)):
                key = json.dumps([prompt.workflow, prompt.targets, prompt.status])
                found.setdefault(key, pytest.param(prompt, id=f"{transcript.name}-{position}"))
    return list(found.values())


def classes_of(workflow: Mapping[str, Any]) -> list[Any]:
    return [sent.get("class_type") for sent in workflow.values() if isinstance(sent, dict)]


def with_checkpoints(prompt: replay.Prompt) -> dict[str, Any]:
    """
    Give the server the checkpoints it had: all it was asked for, unless it said that it has none.
    """
    asked = [
        sent["inputs"]["ckpt_name"]
        for sent in prompt.workflow.values()
        if "ckpt_name" in sent.get("inputs", {})
    ]
    known = [] if "ckpt_name" in json.dumps(prompt.reply) else asked
    loader = {**CLASSES["CheckpointLoaderSimple"], "input": {"required": {"ckpt_name": [known, {}]}}}
    return {**CLASSES, "CheckpointLoaderSimple": loader}


def answered(prompt: replay.Prompt) -> Any:
    """
    Return a check that says of files and values what the server said of them.
    """
    said = json.dumps(prompt.reply)

    def check(class_type: str, inputs: Mapping[str, Any]) -> str | None:
        if class_type in ("LoadImage", "LoadImageMask"):
            text = f"Invalid image file: {inputs['image']}"
            return text if f"image - {text}" in said else None
        if class_type == "TestAsyncValidationError" and inputs["value"] > inputs["max_value"]:
            return f"Async validation failed: {inputs['value']} > {inputs['max_value']}"
        return None

    return check


def normal(error: Any, node_errors: Mapping[str, Any]) -> Any:
    """
    Drop what a Python set, a traceback or a server's order of inputs decides.
    """
    plain = json.loads(json.dumps({"error": error, "node_errors": node_errors}))
    if plain["error"]:
        plain["error"]["details"] = sorted(plain["error"]["details"].split("\n"))
    for found in plain["node_errors"].values():
        found["dependent_outputs"].sort()
        for problem in found["errors"]:
            problem["extra_info"].pop("traceback", None)
        found["errors"].sort(key=json.dumps)
    return plain


@pytest.mark.parametrize("prompt", recorded())
def test_validate_answers_as_comfyui_did(prompt: replay.Prompt) -> None:
    """
    Every recorded graph gets the errors that ComfyUI 0.27.0 gave it, word for word, or none.
    """
    found = validate(
        prompt.workflow, with_checkpoints(prompt), check=answered(prompt), targets=prompt.targets
    )

    said = normal(prompt.reply.get("error"), prompt.reply.get("node_errors", {}))
    assert normal(found.error, found.node_errors) == said
    assert (found.error is None) == (prompt.status == 200)


def test_validate_keeps_the_original_and_converts_the_copy() -> None:
    """
    Text and fractions become what the input takes, in a copy.
    """
    workflow = {"1": image(width="64", height=48.9, batch_size=True), "2": save()}

    found = validate(workflow, CLASSES)

    assert found.error is None
    assert found.workflow["1"]["inputs"] == {"width": 64, "height": 48, "batch_size": 1, "color": 0}
    assert workflow["1"]["inputs"]["width"] == "64"


def test_validate_names_the_outputs_that_are_good() -> None:
    """
    One bad output does not stop the other: it is left out, with its reason.
    """
    found = validate({"1": image(), "5": image(width=0), "2": save(), "3": save(("5", 0))}, CLASSES)

    assert (found.error, found.outputs) == (None, ("2",))
    assert found.node_errors["5"]["dependent_outputs"] == ["3"]


@pytest.mark.parametrize(
    ("value", "details"),
    [
        ("8.0", "width, 8.0, invalid literal for int() with base 10: '8.0'"),
        (
            None,
            "width, None, int() argument must be a string, a bytes-like object or a real number, not 'NoneType'",
        ),
        (float("inf"), "width, inf, cannot convert float infinity to integer"),
        (
            {"__value__": [1]},
            "width, [1], int() argument must be a string, a bytes-like object or a real number, not 'list'",
        ),
    ],
)
def test_validate_refuses_what_is_no_number(value: Any, details: str) -> None:
    """
    A value that cannot be converted is named with Python's own reason, as ComfyUI does.
    """
    found = validate({"1": image(width=value), "2": save()}, CLASSES)

    assert problems(found, "1") == [("invalid_input_type", details)]


@pytest.mark.parametrize(
    ("link", "kind", "details"),
    [
        (["1", 1], "exception_during_validation", "tuple index out of range"),
        (["1", "0"], "exception_during_validation", "tuple indices must be integers or slices, not str"),
        (["9", 0], "exception_during_validation", "'9'"),
        ([1, 0], "exception_during_validation", "1"),
        ([[], 0], "exception_during_validation", "unhashable type: 'list'"),
        (["1"], "bad_linked_input", "images"),
        ([], "bad_linked_input", "images"),
    ],
)
def test_validate_refuses_a_broken_link(link: Any, kind: str, details: str) -> None:
    """
    A link that leads nowhere is an error of the node that has it.
    """
    found = validate({"1": image(), "2": save(link)}, CLASSES)

    assert problems(found, "2") == [(kind, details)]


def test_validate_tells_new_style_classes_by_their_list_of_outputs() -> None:
    """
    A slot beyond the end reads "list" for new-style classes and "tuple" for old ones.
    """
    workflow = {
        "1": node("SolidMask", value=1.0, width=8, height=8),
        "3": node("MaskToImage", mask=["1", 0]),
        "2": save(("3", 7)),
    }

    assert problems(validate(workflow, CLASSES), "2")[0][1] == "list index out of range"


def test_validate_blames_the_inner_node_for_its_own_broken_link() -> None:
    """
    A broken link further up is an error of that node, with the input through which it was reached.
    """
    found = validate({"1": node("ImageInvert", image=["99", 0]), "2": save()}, CLASSES)

    (error,) = found.node_errors["1"]["errors"]
    assert (error["type"], error["details"]) == ("exception_during_inner_validation", "'99'")
    assert error["extra_info"]["linked_node"] == ["1", 0]
    assert found.error is not None
    assert found.error["details"] == ""


@pytest.mark.parametrize("value", ["str", None, 5, {}])
def test_validate_does_not_look_at_values_of_types_without_a_widget(value: Any) -> None:
    """
    ComfyUI takes any value for an IMAGE input; the node will fail, not the validation.
    """
    workflow = {"2": {"class_type": "SaveImage", "inputs": {"images": value, "filename_prefix": "x"}}}

    assert validate(workflow, CLASSES).error is None


@pytest.mark.parametrize(
    ("inputs", "missing"),
    [
        ({}, ["images.image0"]),
        ({"images.image0": ["1", 0]}, []),
        ({"images.image1": ["1", 0]}, ["images.image0"]),
        ({"image0": ["1", 0]}, ["images.image0"]),
        ({"images.image0": ["1", 0], "images.image60": ["99", 0]}, []),
    ],
)
def test_validate_grows_an_input_by_number(inputs: dict[str, Any], missing: list[str]) -> None:
    """
    A growing input needs its first members, takes more up to its maximum and does not look beyond.
    """
    workflow = {"1": image(), "3": node("BatchImagesNode", **inputs), "2": save(("3", 0))}

    found = validate(workflow, CLASSES)

    names = [error["extra_info"]["input_name"] for error in found.node_errors.get("3", {}).get("errors", [])]
    assert names == missing


def test_validate_grows_an_input_by_name() -> None:
    """
    A growing input with names takes those and ignores others.
    """
    text = node("StringFormat", **{"f_string": "{c}", "values.c": ["99", 0], "values.zz": ["98", 0]})

    found = validate({"1": text, "2": node("PreviewAny", source=["1", 0])}, CLASSES)

    assert problems(found, "1") == [("exception_during_inner_validation", "'99'")]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"format": "flac"}, []),
        ({"format": "zz", "format.quality": "zz"}, []),
        ({}, []),
        ({"format": "mp3"}, [("required_input_missing", "quality")]),
        (
            {"format": "mp3", "format.quality": "9"},
            [("value_not_in_list", "format.quality: '9' not in ['V0', '128k', '320k']")],
        ),
    ],
)
def test_validate_opens_the_chosen_option_of_a_dynamic_combo(
    inputs: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """
    The inputs of the chosen option are checked; the choice itself is not, as in ComfyUI.
    """
    workflow = {
        "1": node("EmptyAudio", duration=0.1, sample_rate=44100, channels=2),
        "2": node("SaveAudioAdvanced", audio=["1", 0], filename_prefix="x", **inputs),
    }

    found = validate(workflow, CLASSES)

    assert (problems(found, "2") if found.node_errors else []) == expected


def test_validate_lets_any_type_through_a_switch() -> None:
    """
    An input or output that takes its type from what is linked goes with every type.
    """
    switch = node("ComfySwitchNode", switch=True, on_false=["1", 0], on_true=["1", 0])

    assert validate({"1": image(), "3": switch, "2": save(("3", 0))}, CLASSES).error is None


@pytest.mark.parametrize(
    ("received", "expected", "is_fine"),
    [("FLOAT", "IMAGE,FLOAT", True), ("*", "IMAGE", True), ("IMAGE", "*", True), ("INT", "FLOAT", False)],
)
def test_validate_compares_types_as_lists(received: str, expected: str, is_fine: bool) -> None:
    """
    A comma list takes each of its types, `*` takes and gives everything, and INT is no FLOAT.
    """
    classes = {
        "Give": {"input": {}, "output": [received]},
        "Take": {"input": {"required": {"x": [expected]}}, "output": [], "output_node": True},
    }

    found = validate({"1": node("Give"), "2": node("Take", x=["1", 0])}, classes)

    assert (found.error is None) == is_fine


def test_validate_names_a_cycle_once_per_node() -> None:
    """
    Each node of a cycle has the whole cycle as its error, also when it is reached from two outputs.
    """
    workflow = {
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "3": save(("2", 0)),
        "4": save(("1", 0)),
    }

    found = validate(workflow, CLASSES)

    cycle = [("dependency_cycle", "2 (ImageInvert) -> 1 (ImageInvert) -> 2 (ImageInvert)")]
    assert (problems(found, "1"), problems(found, "2")) == (cycle, cycle)
    assert found.node_errors["1"]["dependent_outputs"] == ["3", "4"]


def test_validate_names_the_first_cycle_of_a_node() -> None:
    """
    A node of a cycle that also needs itself has the cycle that was found first.
    """
    workflow = {
        "1": node("ImageBatch", image1=["2", 0], image2=["1", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "3": save(("1", 0)),
    }

    found = validate(workflow, CLASSES)

    cycle = "1 (ImageBatch) -> 2 (ImageInvert) -> 1 (ImageBatch)"
    assert problems(found, "1") == [("dependency_cycle", cycle)]


def test_validate_passes_over_what_no_output_needs() -> None:
    """
    A node that no output depends on may be wrong; only its class must exist.
    """
    assert validate({"1": image(), "2": save(), "9": node("ImageScale")}, CLASSES).error is None
    found = validate({"1": image(), "2": save(), "9": node("Nope")}, CLASSES).error
    assert found is not None
    assert found["type"] == "missing_node_type"


def test_validate_names_a_missing_class_by_its_title() -> None:
    """
    The title stands in the message, and class and id in the details.
    """
    unknown = {"class_type": "Nope", "inputs": {}, "_meta": {"title": "My node"}}

    found = validate({"9": unknown}, CLASSES).error

    assert found == {
        "type": "missing_node_type",
        "message": "Node 'My node' not found. The custom node may not be installed.",
        "details": "Node ID '#9'",
        "extra_info": {"node_id": "9", "class_type": "Nope", "node_title": "My node"},
    }


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "x",
        {"class_type": [], "inputs": {}},
        {"class_type": "Nope", "_meta": None},
        {"class_type": "EmptyImage", "inputs": []},
        {"class_type": "EmptyImage", "inputs": None},
    ],
)
def test_validate_refuses_what_crashes_comfyui(broken: Any) -> None:
    """
    A node of an impossible shape is refused with a type of its own, so that a server can answer 500 as ComfyUI does.
    """
    found = validate({"1": image(), "2": save(), "9": broken}, CLASSES).error

    assert found is not None
    assert found["type"] == "invalid_prompt"


def test_validate_checks_files_instead_of_the_list() -> None:
    """
    A file that is not listed passes when it exists, and is refused in the words of the check when it does not.
    """
    workflow = {"1": node("LoadImage", image="sub/x.png [output]"), "2": save()}

    assert validate(workflow, CLASSES).error is None
    assert validate(workflow, CLASSES, check=lambda *_: None).error is None
    found = validate(workflow, CLASSES, check=lambda *_: "Invalid image file: sub/x.png")
    assert problems(found, "1") == [("custom_validation_failed", "image - Invalid image file: sub/x.png")]


def test_validate_gives_the_check_converted_values_and_no_links() -> None:
    """
    The check sees what the node would get, and None where that is not known yet.
    """
    seen = []
    workflow = {
        "1": image(width="8"),
        "3": node("ImageScale", image=["1", 0], upscale_method="area", width=4.9, height=4, crop="disabled"),
        "2": save(("3", 0)),
    }

    def check(class_type: str, inputs: Mapping[str, Any]) -> str | None:
        seen.append((class_type, dict(inputs)))
        return None

    validate(workflow, CLASSES, check=check)

    scale = {"image": None, "upscale_method": "area", "width": 4, "height": 4, "crop": "disabled"}
    assert seen[:2] == [("EmptyImage", IMAGE["inputs"]), ("ImageScale", scale)]


def test_validate_says_when_a_checked_file_is_missing() -> None:
    """
    A loader without its file fails in the check, as in ComfyUI, and not as a missing input.
    """
    found = validate({"1": node("LoadImage"), "2": save()}, CLASSES, check=lambda *_: None)

    missing = "LoadImage.VALIDATE_INPUTS() missing 1 required positional argument: 'image'"
    assert problems(found, "1") == [("exception_during_inner_validation", missing)]


@pytest.mark.parametrize(("targets", "outputs"), [(["3"], ("3",)), (["3", "3"], ("3",)), (None, ("2", "3"))])
def test_validate_looks_at_the_targets_only(targets: list[str] | None, outputs: tuple[str, ...]) -> None:
    """
    Output nodes that are not asked for are not run.
    """
    assert validate({"1": image(), "2": save(), "3": save()}, CLASSES, targets=targets).outputs == outputs


def test_validate_takes_a_graph_deeper_than_the_stack() -> None:
    """
    A chain of thousands of nodes is judged like a short one.
    """
    chain = {str(i): node("ImageInvert", image=[str(i - 1), 0]) for i in range(1, 5000)}

    found = validate({"0": image(width=0), **chain, "s": save(("4999", 0))}, CLASSES)

    assert problems(found, "0") == [("value_smaller_than_min", "width")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
IDS = st.sampled_from(["1", "2", "3", "4", "9"])
LINKS = st.tuples(IDS | JSON, st.integers(-2, 3) | JSON).map(list)
NAMES = sorted(
    {name for info in CLASSES.values() for section in info["input"].values() for name in section}
    | {"format.quality", "images.image0", "values.a"}
)
NODES = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(sorted(CLASSES)),
        "inputs": st.dictionaries(st.sampled_from(NAMES), LINKS | JSON, max_size=8),
    }
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_validate_never_raises_for_any_object(workflow: dict[str, Any]) -> None:
    """
    Any JSON object is judged.
    """
    assert validate(workflow, CLASSES).error is not None


@given(st.dictionaries(IDS, NODES | JSON, max_size=5))
def test_validate_never_raises_for_any_graph(workflow: dict[str, Any]) -> None:
    """
    Any graph of known classes is judged, and either some output is good or there is an error.
    """
    found = validate(workflow, CLASSES, check=lambda *_: None)

    assert (found.error is None) == bool(found.outputs)
    assert set(found.workflow) == set(workflow)


@given(JSON, JSON)
def test_validate_never_raises_for_any_class(config: Any, value: Any) -> None:
    """
    A class whose entry makes no sense does not break the judgement of a graph that uses it.
    """
    classes = {"Odd": {"input": {"required": {"x": config}}, "output": config, "output_node": True}}

    assert isinstance(validate({"1": node("Odd", x=value)}, classes), Validation)
