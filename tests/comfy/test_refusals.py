"""
A refused workflow comes back as sentences: the first words that clients know, and then what to change.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import replay

from comfy_worker.comfy.refusals import describe, refusal
from comfy_worker.errors import ComfyUnavailable, WorkflowInvalid

CLASSES: dict[str, Any] = json.loads((Path(__file__).parent / "object_info.json").read_text())
NODE = {"class_type": "KSampler", "inputs": {"seed": 1}, "_meta": {"title": "Sample it"}}
NO_MODELS = "\n\nNo checkpoint models appear to be available. Please check your model installation."


def known(class_type: str) -> Mapping[str, Any]:
    return CLASSES.get(class_type, {})


def body(error: Any = None, node_errors: Any = None) -> bytes:
    failed = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
    return json.dumps({"error": error or failed, "node_errors": node_errors or {}}).encode()


def node_error(kind: str, details: str = "", class_type: str = "KSampler", /, **extra: Any) -> dict[str, Any]:
    error = {"type": kind, "message": "Message", "details": details, "extra_info": extra}
    return {"errors": [error], "dependent_outputs": ["9"], "class_type": class_type}


def line(kind: str, details: str = "", **extra: Any) -> str:
    (found,) = describe({"3": node_error(kind, details, **extra)}, {"3": NODE}, known)
    return found.removeprefix('Node 3 (KSampler "Sample it"): ')


def rejected() -> list[Any]:
    return [
        pytest.param(prompt, id=f"{transcript.version}-{transcript.name}-{position}")
        for transcript in (param.values[0] for param in replay.every())
        for position, prompt in enumerate(transcript.prompts)
        if prompt.status == 400
    ]


@pytest.mark.parametrize("prompt", rejected())
def test_refusal_keeps_the_contract_for_every_recorded_reply(prompt: replay.Prompt) -> None:
    """
    The first line has ComfyUI's words and each problem its bullet; no traceback and no path of the server comes along.
    """
    error = refusal(400, json.dumps(prompt.reply).encode(), prompt.workflow or {}, known)

    first, *bullets = str(error).split("\n\n")[0].split("\n")
    failed = prompt.reply["error"]["type"] == "prompt_outputs_failed_validation"
    assert first.startswith("Workflow validation failed" if failed else prompt.reply["error"]["message"])
    problems = [node_id for node_id, found in prompt.reply["node_errors"].items() for _ in found["errors"]]
    assert len(bullets) == len(problems)
    assert all(
        text.startswith(f"• Node {node_id} (") for text, node_id in zip(bullets, problems, strict=True)
    )
    assert error.details.get("node_errors", {}).keys() == prompt.reply["node_errors"].keys()
    assert "traceback" not in json.dumps(error.details)
    assert "/comfyui" not in str(error) + json.dumps(error.details)


def test_refusal_puts_one_bullet_per_problem() -> None:
    """
    Two problems of one node are two lines, each with class, title, input, value and what is allowed.
    """
    limits = ["INT", {"min": 1, "max": 10000}]
    found = node_error(
        "value_smaller_than_min", "steps", input_name="steps", input_config=limits, received_value=0
    )
    found["errors"] += node_error("required_input_missing", "model", input_name="model")["errors"]

    error = refusal(400, body(node_errors={"3": found}), {"3": NODE})

    assert str(error) == (
        "Workflow validation failed:\n"
        '• Node 3 (KSampler "Sample it"): steps: got 0, it must be from 1 to 10000.\n'
        '• Node 3 (KSampler "Sample it"): model: required input is missing.'
    )
    assert error.details["field"] == "workflow"


@pytest.mark.parametrize(
    ("kind", "details", "extra", "text"),
    [
        (
            "value_bigger_than_max",
            "cfg",
            {"input_name": "cfg", "input_config": ["FLOAT", {"max": 100.0}], "received_value": 101.0},
            "cfg: got 101.0, it must be at most 100.0.",
        ),
        (
            "invalid_input_type",
            "steps, x, invalid literal",
            {"input_name": "steps", "input_config": ["INT", {}], "received_value": "x"},
            "steps: got 'x', it must be a whole number.",
        ),
        (
            "return_type_mismatch",
            "model, received_type(VAE) mismatch input_type(MODEL)",
            {
                "input_name": "model",
                "input_config": ["MODEL", {}],
                "received_type": "VAE",
                "linked_node": ["4", 2],
            },
            "model: output 2 of node 4 is VAE, and this input takes MODEL.",
        ),
        (
            "bad_linked_input",
            "model",
            {"input_name": "model", "input_config": ["MODEL", {}], "received_value": ["4"]},
            "model: ['4'] is no link; a link is [node id, output number].",
        ),
        (
            "custom_validation_failed",
            "image - Invalid image file: x.png",
            {"input_name": "image"},
            "image: Invalid image file: x.png",
        ),
        (
            "dependency_cycle",
            "1 (A) -> 1 (A)",
            {"node_id": "1", "cycle_nodes": ["1"]},
            "the nodes depend on each other: 1 (A) -> 1 (A).",
        ),
        ("brand_new_problem", "seed", {"input_name": "seed"}, "seed: Message: seed"),
    ],
)
def test_describe_says_what_to_change(kind: str, details: str, extra: dict[str, Any], text: str) -> None:
    """
    Each kind of problem has its sentence, and a kind that is not known yet has ComfyUI's.
    """
    assert line(kind, details, **extra) == text


def test_describe_offers_the_nearest_choices() -> None:
    """
    A misspelled choice gets the names that were probably meant, and the first of all that are allowed.
    """
    options = ["models/a/Flux-dev.safetensors", "sd15.safetensors", "sdxl.safetensors"]

    text = line(
        "value_not_in_list", input_name="x", input_config=[options, {}], received_value="flux-dev.safetensors"
    )

    assert text.startswith(
        "x: 'flux-dev.safetensors' is not in list. Did you mean 'models/a/Flux-dev.safetensors'"
    )
    assert text.endswith("Allowed: 'models/a/Flux-dev.safetensors', 'sd15.safetensors', 'sdxl.safetensors'.")


def test_describe_asks_for_the_choices_that_comfyui_left_out() -> None:
    """
    With more than 20 choices ComfyUI sends none; they are looked up, and only some of them are shown.
    """
    text = line(
        "value_not_in_list", input_name="sampler_name", input_config=None, received_value="euler_ancestrall"
    )

    assert "Did you mean 'euler_ancestral'" in text
    assert text.endswith(", … (44 in all).")


def test_describe_goes_without_choices_when_comfyui_cannot_be_asked() -> None:
    """
    A ComfyUI that does not answer the second question does not hide the answer to the first.
    """

    def dead(class_type: str) -> Mapping[str, Any]:
        raise ComfyUnavailable(f"no answer for {class_type}")

    found = node_error("value_not_in_list", input_name="scheduler", input_config=None, received_value="x")

    assert describe({"3": found}, {}, dead) == ["Node 3 (KSampler): scheduler: 'x' is not in list."]


def test_describe_finds_the_link_that_leads_nowhere() -> None:
    """
    A KeyError of ComfyUI is the link to a node that is not there.
    """
    node = {"class_type": "SaveImage", "inputs": {"images": ["99", 0]}}
    found = node_error("exception_during_validation", "'99'", "SaveImage", exception_type="KeyError")

    assert describe({"2": found}, {"2": node}) == [
        "Node 2 (SaveImage): images: it links to node '99', which is not in the workflow."
    ]


def test_describe_shortens_what_is_long() -> None:
    """
    A huge value does not make a huge sentence.
    """
    config = ["INT", {"min": 1, "max": 2}]

    text = line("value_bigger_than_max", input_name="x", input_config=config, received_value="9" * 10_000)

    assert len(text) < 200


@pytest.mark.parametrize(
    ("names", "end"),
    [(["a.ckpt", "b.ckpt"], "\n\nAvailable checkpoint models: a.ckpt, b.ckpt"), ([], NO_MODELS)],
)
def test_refusal_lists_the_checkpoints(names: list[str], end: str) -> None:
    """
    A missing checkpoint is followed by those there are, in the words that clients know.
    """
    found = node_error(
        "value_not_in_list",
        f"ckpt_name: 'x' not in {names}",
        "CheckpointLoaderSimple",
        input_name="ckpt_name",
        input_config=[names, {}],
        received_value="x",
    )

    text = str(refusal(400, body(node_errors={"4": found}), {}))

    assert text.startswith(
        "Workflow validation failed:\n• Node 4 (CheckpointLoaderSimple): ckpt_name: 'x' is not in list."
    )
    assert text.endswith(end)


@pytest.mark.parametrize(
    ("error", "prefix"),
    [
        ({"type": "invalid_prompt", "message": "Bad prompt"}, "Bad prompt"),
        ({"type": "prompt_outputs_failed_validation", "message": "x"}, "Workflow validation failed"),
        ("just a text", "just a text"),
        ({}, "Workflow validation failed"),
        ({"type": "x", "message": "It ends here."}, "It ends here"),
    ],
)
def test_refusal_shows_the_reply_when_no_node_is_named(error: Any, prefix: str) -> None:
    """
    Without node errors the first line is the message, followed by the raw reply.
    """
    raw = json.dumps({"error": error, "node_errors": {}}).encode()

    assert str(refusal(400, raw, {})) == f"{prefix}. Raw response: {raw.decode()}"


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b"", b"\xff", b"[" * 5000])
def test_refusal_shows_a_reply_that_is_no_object(raw: bytes) -> None:
    """
    A 400 of somebody else, a proxy for one, is shown as it came, shortened.
    """
    text = str(refusal(400, raw, {}))

    assert text.startswith("ComfyUI validation failed (could not parse error response): ")
    assert len(text) < 2100


@pytest.mark.parametrize("names", [["a.ckpt"], []])
def test_refusal_reads_the_flat_shape(names: list[str]) -> None:
    """
    A reply whose top level is the error gets the hint about models.
    """
    raw = {"type": "prompt_outputs_failed_validation", "message": "It failed"}
    loader = {"input": {"required": {"ckpt_name": [names, {}]}}}

    text = str(refusal(400, raw, {}, lambda _: loader))

    hint = "It failed\n\nThis usually means a required model or parameter is not available.\n"
    assert text == hint + ("Available checkpoint models: a.ckpt" if names else NO_MODELS.strip())


def test_refusal_names_another_status() -> None:
    """
    What is no 400 is told by its number.
    """
    assert str(refusal(404, b"", {})) == "Error queuing workflow: ComfyUI answered 404: "


def test_refusal_reads_infinity() -> None:
    """
    Python writes Infinity into JSON; the reply is read all the same and the details stay valid JSON.
    """
    found = node_error(
        "value_bigger_than_max",
        input_name="fps",
        input_config=["FLOAT", {"max": 1}],
        received_value=float("inf"),
    )

    error = refusal(400, body(node_errors={"3": found}), {})

    assert "• Node 3 (KSampler): fps: got None, it must be at most 1." in str(error)
    json.dumps(error.details, allow_nan=False)


def test_refusal_cuts_a_value_that_is_nested_deeply() -> None:
    """
    ComfyUI sends back what it got; a value nested a thousand times is cut instead of overflowing the stack.
    """
    raw = body(node_errors={"3": node_error("bad_linked_input", input_name="model", received_value="HERE")})
    raw = raw.replace(b'"HERE"', b"[" * 900 + b"]" * 900)

    error = refusal(400, raw, {})

    assert "• Node 3 (KSampler): model: " in str(error)
    assert len(json.dumps(error.details)) < 1000


def test_refusal_drops_paths_of_the_server_and_keeps_those_of_the_caller() -> None:
    """
    A path that the caller sent may come back; any other loses its folders, in the text and in the details.
    """
    node = {"class_type": "LoadImage", "inputs": {"image": "/data/output/mine.png"}}
    details = (
        "image - Invalid image file: /data/output/mine.png (in /srv/app/input/theirs.png, C:\\app\\in\\x.png)"
    )
    found = node_error("custom_validation_failed", details, "LoadImage", input_name="image")
    found["errors"][0]["extra_info"]["traceback"] = ["/srv/app/nodes.py"]

    error = refusal(400, body(node_errors={"1": found}), {"1": node})

    shown = "image: Invalid image file: /data/output/mine.png (in theirs.png, x.png)"
    assert str(error).endswith(shown)
    assert "/srv" not in json.dumps(error.details)
    assert "traceback" not in json.dumps(error.details)


def test_refusal_takes_the_result_of_a_dry_run() -> None:
    """
    An object that never was JSON is described like one, with numbers that no JSON reader keeps.
    """
    config = ["INT", {"min": 0, "max": 18446744073709551615}]
    found = node_error("value_bigger_than_max", input_name="seed", input_config=config, received_value=2**64)

    error = refusal(400, {"error": None, "node_errors": {"3": found}}, {})

    assert "seed: got 18446744073709551616, it must be from 0 to 18446744073709551615." in str(error)


KEYS = st.sampled_from(["errors", "type", "message", "details", "extra_info", "input_name", "input_config"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
KINDS = st.sampled_from(
    ["value_not_in_list", "return_type_mismatch", "value_smaller_than_min", "dependency_cycle"]
)


@given(
    st.fixed_dictionaries({"error": JSON, "node_errors": st.dictionaries(st.text(max_size=2), JSON)}), JSON
)
def test_refusal_never_raises_for_any_reply(reply: dict[str, Any], node: Any) -> None:
    """
    Any reply and any node give an error with a text.
    """
    assert str(refusal(400, reply, {"1": node, "": node}, known))


@given(KINDS, st.dictionaries(KEYS, JSON), JSON)
def test_describe_never_raises_for_any_problem(kind: str, extra: dict[str, Any], value: Any) -> None:
    """
    A known kind of problem with any fields has its line.
    """
    found = node_error(kind, "x", **{**extra, "received_value": value})

    assert len(describe({"3": found}, {"3": NODE}, known)) == 1


def test_refusal_is_a_422_about_the_workflow() -> None:
    """
    The caller has to change the job, so nobody retries it.
    """
    error = refusal(400, body(), {})

    assert isinstance(error, WorkflowInvalid)
    assert (error.http_status, error.retryable, error.details["field"]) == (422, False, "workflow")
