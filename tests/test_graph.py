"""
Questions to and edits of a graph: what is a graph at all, which values name files, where its files are saved.
"""

import copy
import json
import math
import posixpath
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pictures import empty_workflow, invert_workflow, node

from comfy_worker import graph
from comfy_worker.errors import JobInvalid, WorkflowInvalid
from comfy_worker.graph import Place

repeatable = settings(deadline=None, derandomize=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
nodes = st.fixed_dictionaries(
    {
        "class_type": texts.filter(bool),
        "inputs": st.dictionaries(texts | st.just("filename_prefix"), values, max_size=4),
    },
    optional={"_meta": st.none() | st.dictionaries(texts, values, max_size=2)},
)
graphs = st.dictionaries(texts, nodes, min_size=1, max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=10,
)
prefixes = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["..", ".", "", "a", "~", "%date%", "/", "\\", "..\\..", " ..", "\x00"]), max_size=6
    ).map("/".join),
)


@repeatable
@given(graphs)
def test_any_graph_is_accepted_as_it_is(workflow: dict[str, Any]) -> None:
    """Whatever has the shape of a graph must be accepted, and handed back untouched."""
    before = copy.deepcopy(workflow)

    assert graph.check_shape(workflow) is workflow
    assert repr(workflow) == repr(before)


@repeatable
@given(anything)
def test_any_value_is_a_graph_or_refused(value: Any) -> None:
    """No value may do anything but be accepted, or be refused with its field and words about it."""
    try:
        accepted = graph.check_shape(value)
    except WorkflowInvalid as error:
        assert error.details["field"].startswith("workflow")
        assert str(error)
    else:
        assert all(set(entry) >= {"class_type", "inputs"} for entry in accepted.values())
        assert uuid.UUID(graph.prompt_id_of("job", accepted, 1))


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (None, "workflow.7"),
        ([], "workflow.7"),
        ("x", "workflow.7"),
        ({}, "workflow.7.class_type"),
        ({"class_type": None, "inputs": {}}, "workflow.7.class_type"),
        ({"class_type": "", "inputs": {}}, "workflow.7.class_type"),
        ({"class_type": ["A"], "inputs": {}}, "workflow.7.class_type"),
        ({"class_type": "A"}, "workflow.7.inputs"),
        ({"class_type": "A", "inputs": []}, "workflow.7.inputs"),
        ({"class_type": "A", "inputs": {}, "_meta": "title"}, "workflow.7._meta"),
        ({"class_type": "A", "inputs": {"a": 2**64}}, "workflow.7"),
        ({"class_type": "A", "inputs": {"a": "\ud800"}}, "workflow.7"),
        ({"class_type": "A\udfff", "inputs": {}}, "workflow.7"),
        ({"class_type": "A", "inputs": {"\ud800": 1}}, "workflow.7"),
        ({"class_type": "A", "inputs": {"a": json.loads("[" * 250 + "]" * 250)}}, "workflow.7"),
    ],
)
def test_node_that_is_none_is_named(entry: Any, field: str) -> None:
    """A node that ComfyUI could not read, or that could not be sent, must be refused with its place."""
    with pytest.raises(WorkflowInvalid) as caught:
        graph.check_shape({"1": node("A"), "7": entry})

    assert caught.value.details["field"] == field
    assert f"'{field}" in str(caught.value)


def test_node_ids_that_are_no_text_are_refused() -> None:
    """Ids from Python code that no JSON has must be refused like all that cannot be sent."""
    with pytest.raises(WorkflowInvalid, match=r"'workflow\.7' cannot be sent"):
        graph.check_shape({7: node("A")})


def test_null_title_and_largest_seed_are_taken() -> None:
    """What ComfyUI takes must be taken: a null `_meta`, a seed of 64 bits, a NaN, ids of any text."""
    graph.check_shape(
        {"a b/c": {"class_type": "A", "inputs": {"seed": 2**64 - 1, "x": math.nan}, "_meta": None}}
    )


@pytest.mark.parametrize(
    "value", [{"nodes": [], "links": []}, {"nodes": [{"id": 1}], "links": {}, "version": 1}]
)
def test_editors_format_gets_the_way_out(value: Any) -> None:
    """A workflow as the editor saves it must be refused with how to export the other format."""
    with pytest.raises(WorkflowInvalid, match=r"Export \(API\)"):
        graph.check_shape(value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "a number"),
        (1.5, "a number"),
        ("", "a string"),
        ([], "a list"),
        ({}, "an object"),
        (b"", "something else"),
    ],
)
def test_kind_of_a_value_is_its_json_name(value: Any, name: str) -> None:
    """A type must be told by the name that JSON has for it."""
    assert graph.kind_of(value) == name


@repeatable
@given(graphs)
def test_replacing_nothing_changes_nothing(workflow: dict[str, Any]) -> None:
    """An edit that changes no text must give an equal graph of the same nodes."""
    copied = graph.replaced(workflow, lambda place: place.value)

    assert all(copied[node_id] is entry for node_id, entry in workflow.items())


@repeatable
@given(graphs, st.data())
def test_replacing_one_text_leaves_everything_else(workflow: dict[str, Any], data: st.DataObject) -> None:
    """An edit of one text must change that text, share every other node, and leave the original alone."""
    places = list(graph.widgets(workflow))
    if not places:
        return
    chosen = data.draw(st.sampled_from(places))
    before = copy.deepcopy(workflow)

    copied = graph.replaced(workflow, lambda place: "NEW!" if place == chosen else place.value)

    assert repr(workflow) == repr(before)
    assert list(copied) == list(workflow)
    for node_id, entry in copied.items():
        if node_id != chosen.node_id:
            assert entry is workflow[node_id]
    inputs = copied[chosen.node_id]["inputs"]
    assert inputs[chosen.input_name] == "NEW!"
    assert list(inputs) == list(workflow[chosen.node_id]["inputs"])
    del inputs[chosen.input_name]
    rest = {key: value for key, value in before[chosen.node_id]["inputs"].items() if key != chosen.input_name}
    assert repr(inputs) == repr(rest)


@repeatable
@given(prefixes)
def test_prefix_never_leaves_the_folder(prefix: str) -> None:
    """Every prefix must be refused, or stay below the folder however a system reads its slashes."""
    workflow = {"1": node("SaveImage", filename_prefix=prefix)}
    try:
        inputs = graph.prefixed(workflow, "cw-1")["1"]["inputs"]
    except JobInvalid as error:
        assert error.details["field"] == "workflow.1.inputs.filename_prefix"
        return
    for path in (inputs["filename_prefix"], inputs["filename_prefix"].replace("\\", "/")):
        assert posixpath.normpath(f"/out/{path}").startswith("/out/cw-1")
        assert posixpath.normpath(path) == "cw-1" or posixpath.normpath(path).startswith("cw-1/")
    assert inputs["filename_prefix"] == f"cw-1/{prefix}"


def test_prefix_is_set_in_front_of_texts_only() -> None:
    """Only a text called `filename_prefix` is a prefix: a link and any other input must stay."""
    workflow = {
        "1": node("SaveImage", filename_prefix=("2", 0), text="filename_prefix"),
        "2": node("PrimitiveString", value="x"),
    }

    assert graph.prefixed(workflow, "cw-1") == workflow


@repeatable
@given(graphs, texts, st.integers(1, 9))
def test_prompt_id_is_canonical_and_stable(workflow: dict[str, Any], job_id: str, attempt: int) -> None:
    """The id of a run must be the UUID that ComfyUI takes, the same for the same run in any order of keys."""
    prompt_id = graph.prompt_id_of(job_id, workflow, attempt)
    reversed_ = dict(
        reversed([(key, dict(reversed(list(value.items())))) for key, value in workflow.items()])
    )

    assert str(uuid.UUID(prompt_id)) == prompt_id
    assert graph.prompt_id_of(job_id, reversed_, attempt) == prompt_id
    assert graph.prompt_id_of(job_id, workflow, attempt + 1) != prompt_id
    assert graph.prompt_id_of(job_id + "x", workflow, attempt) != prompt_id
    assert graph.prompt_id_of(job_id, {**workflow, "new": node("A")}, attempt) != prompt_id
    assert graph.folder_of(prompt_id).removeprefix("cw-").isalnum()


def test_prompt_id_is_the_same_for_ever() -> None:
    """The id of a run must not change between releases: a job that is sent again finds its prompt by it."""
    assert graph.prompt_id_of("job-1", empty_workflow(), 1) == "048a48fe-ba44-5a31-b7b6-d7e3c8637944"


@pytest.mark.parametrize(
    ("value", "remote"),
    [
        ("https://a/b.png", True),
        ("HTTP://a/b.png", True),
        ("s3://b/k", True),
        ("data:image/png;base64,AAAA", True),
        ("see https://a/b.png", False),
        ("https://a/b.png and more", False),
        ("ftp://a/b", False),
        ("httpx", False),
        ("", False),
    ],
)
def test_value_is_remote_only_as_a_whole(value: str, remote: bool) -> None:
    """A URL within a text is a word of it; only a whole value stands for a file."""
    assert graph.is_remote(value) is remote


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("a.png", ("a.png", "")),
        ("a.png [input]", ("a.png", " [input]")),
        ("a.png [output]", ("a.png", " [output]")),
        ("a.png [temp]", ("a.png", " [temp]")),
        ("a.png[input]", ("a.png[input]", "")),
        ("a [input].png", ("a [input].png", "")),
        (" [input]", ("", " [input]")),
    ],
)
def test_annotation_is_split_off(value: str, parts: tuple[str, str]) -> None:
    """ComfyUI's annotation of a name must be told from the name, and only at its end."""
    assert graph.split_annotation(value) == parts


@pytest.mark.parametrize(
    ("info", "named", "prose"),
    [
        ({"input": {"required": {"x": [["a.png"], {"image_upload": True}]}}}, True, False),
        ({"input": {"optional": {"x": ["COMBO", {"video_upload": True}]}}}, True, False),
        ({"input": {"required": {"x": ["STRING", {"multiline": True}]}}}, False, True),
        ({"input": {"required": {"x": ["STRING", {}]}}}, False, False),
        ({"input": {"required": {"y": ["STRING", {"multiline": True}]}}}, False, False),
        ({"input": {"required": {"x": ["STRING"]}}}, False, False),
        ({"input": {"required": {"x": []}, "hidden": None}}, False, False),
        ({"input": None}, False, False),
        ({}, False, False),
    ],
)
def test_kind_of_an_input_is_read_from_its_class(info: Mapping[str, Any], named: bool, prose: bool) -> None:
    """Whether an input names a file or is free text must be read from any form of a class's entry."""
    assert graph.names_a_file("x", info) is named
    assert graph.is_prose("x", info) is prose


def test_nested_texts_are_found_at_any_depth() -> None:
    """A name inside a list or an object must be found, a plain value is not nested."""
    workflow = {
        "1": node("A", plain="no", list=["a", ["b"]], object={"key": {"key": "c"}, "n": 1}, link=("2", 0))
    }

    assert sorted(graph.nested_texts(workflow)) == ["2", "a", "b", "c"]


def test_title_and_socket_savers_are_told() -> None:
    """A person's title and the nodes that save to the websocket must be found, odd metadata ignored."""
    workflow = {
        "1": {**node("SaveImageWebsocket"), "_meta": {"title": "Mine"}},
        "2": {**node("A"), "_meta": {"title": 5}},
        "3": {**node("A"), "_meta": None},
        "4": {**node("A"), "_meta": {"title": ""}},
    }

    assert [graph.title_of(workflow, node_id) for node_id in "12345"] == ["Mine", None, None, None, None]
    assert graph.saves_over_socket(workflow) == {"1"}


def test_places_come_in_order_with_their_paths() -> None:
    """Every text value must be listed once, in the graph's order, with the path that messages name."""
    places = list(graph.widgets(invert_workflow()))

    assert places == [Place("1", "image", "in.png"), Place("3", "filename_prefix", "out")]
    assert [place.field for place in places] == [
        "workflow.1.inputs.image",
        "workflow.3.inputs.filename_prefix",
    ]
