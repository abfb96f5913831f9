"""
Templates: parameters checked and bound, files and seeds told apart, folders read whatever is in them.
"""

import base64
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import pictures

from comfy_worker.errors import JobInvalid
from comfy_worker.parse import UNNAMED_JOB, Rules, parse
from comfy_worker.templates import Built, Template, Templates, shipped
from comfy_worker.templates.declared import declaration, template_of

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2:7": {
        "class_type": "Sampler",
        "inputs": {"seed": 5, "steps": 20, "cfg": 7.5, "mode.width": 64, "image": ["1", 0]},
    },
    "3": {"class_type": "Text", "inputs": {"text": "hello", "flag": True, "kind": "soft"}},
}
PARAMETERS: dict[str, Any] = {
    "steps": {"type": "int", "min": 1, "max": 50, "step": 2, "bind": "2:7.inputs.steps"},
    "cfg": {"type": "float", "min": 0, "max": 30, "bind": ["2:7.inputs.cfg"]},
    "width": {"type": "int", "default": 128, "bind": "2:7.inputs.mode.width"},
    "text": {"type": "str", "required": True, "max": 10, "bind": "3.inputs.text"},
    "flag": {"type": "bool", "bind": "3.inputs.flag"},
    "kind": {"type": "enum", "choices": ["soft", "hard", 3], "bind": "3.inputs.kind"},
    "image": {"type": "image", "bind": "1.inputs.image"},
    "seed": {"type": "seed", "bind": "2:7.inputs.seed"},
}
PICTURE = base64.b64encode(pictures.png((2, 2), (1, 2, 3))).decode()


def template(**changes: Any) -> Template:
    """
    Return the template of this module, with these parameters changed or (None) left out.
    """
    parameters = {name: {**PARAMETERS.get(name, {}), **change} for name, change in changes.items() if change}
    kept = {name: value for name, value in PARAMETERS.items() if name not in changes}
    return template_of("test", declaration({"parameters": kept | parameters}), GRAPH)


def built(**params: Any) -> Built:
    """
    Build the template of this module with a text and these parameters.
    """
    return template().build({"text": "hi", **params})


def refusal(**params: Any) -> JobInvalid:
    """
    Return what the parameters are refused with.
    """
    with pytest.raises(JobInvalid) as caught:
        built(**params)
    return caught.value


def write(
    folder: Path, name: str, parameters: dict[str, Any] | str | None = None, graph: Any = GRAPH
) -> None:
    """
    Write a template as an operator would.
    """
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = parameters if isinstance(parameters, str) else json.dumps({"parameters": parameters or {}})
    path.write_text(text)
    if graph is not None:
        path.with_suffix(".json").write_text(json.dumps(graph))


def test_build_puts_every_parameter_at_its_place() -> None:
    """
    Each value stands where it is bound, also under an id with a colon and an input with a dot; the rest is as it was.
    """
    result = built(steps=4, cfg=2, width=256, flag=False, kind=3, image="a.png", seed=9)

    assert result.workflow == {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2:7": {
            "class_type": "Sampler",
            "inputs": {"seed": 9, "steps": 4, "cfg": 2, "mode.width": 256, "image": ["1", 0]},
        },
        "3": {"class_type": "Text", "inputs": {"text": "hi", "flag": False, "kind": 3}},
    }
    assert GRAPH["3"]["inputs"]["text"] == "hello"  # type: ignore[index]


def test_absent_parameters_take_their_default_or_the_value_of_the_graph() -> None:
    """
    `default` counts where there is one, else what the graph says; a null is absent.
    """
    result = built(cfg=None)

    assert {**result.params, "seed": 0} == {
        "steps": 20, "cfg": 7.5, "width": 128, "text": "hi", "flag": True, "kind": "soft", "image": "example.png",
        "seed": 0,
    }  # fmt: skip


def test_one_parameter_sets_several_places() -> None:
    """
    A list of places gets one value.
    """
    both = template(cfg=None, steps={"bind": ["2:7.inputs.steps", "2:7.inputs.cfg"]})

    inputs = both.build({"text": "", "steps": 6}).workflow["2:7"]["inputs"]

    assert (inputs["steps"], inputs["cfg"]) == (6, 6)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"steps": 0}, "'params.steps' must be at least 1, not 0"),
        ({"steps": 52}, "'params.steps' must be at most 50, not 52"),
        ({"steps": 3}, "'params.steps' must be a multiple of 2, not 3"),
        ({"steps": 2.5}, "'params.steps' must be a whole number, not 2.5"),
        ({"steps": "4"}, "'params.steps' must be a whole number, not \"4\""),
        ({"steps": True}, "'params.steps' must be a whole number, not a boolean"),
        ({"steps": 10**30}, f"'params.steps' must be at most 50, not {10**30}"),
        ({"cfg": "x"}, "'params.cfg' must be a number, not \"x\""),
        ({"cfg": float("nan")}, "'params.cfg' must be a finite number, not nan"),
        ({"cfg": [1]}, "'params.cfg' must be a number, not a list"),
        ({"text": 5}, "'params.text' must be a string, not 5"),
        ({"text": "eleven char"}, "'params.text' must have at most 10 characters, not \"eleven char\""),
        ({"flag": 1}, "'params.flag' must be true or false, not 1"),
        ({"kind": "wet"}, "'params.kind' must be 'soft', 'hard' or 3, not \"wet\""),
        ({"image": ""}, "'params.image' must not be empty"),
        ({"image": {"url": "x"}}, "'params.image' must be a string, not an object"),
        ({"seed": -1}, "'params.seed' must be at least 0, not -1"),
        ({"seed": 2**64}, f"'params.seed' must be at most {2**64 - 1}, not {2**64}"),
    ],
)  # fmt: skip
def test_wrong_parameter_is_refused_with_its_bound_and_value(params: dict[str, Any], text: str) -> None:
    """
    The refusal names the field, what it may be, and what it was.
    """
    error = refusal(**params)

    assert str(error) == text
    assert error.details["field"] == text.split("'")[1]


def test_field_of_a_face_stands_before_the_name() -> None:
    """
    A face that calls its parameters otherwise is quoted with its own word.
    """
    with pytest.raises(JobInvalid, match=r"'input\.text' is required"):
        template().build({}, "input")


def test_long_text_is_not_quoted() -> None:
    """
    A refusal does not repeat a prompt of a page.
    """
    assert str(refusal(text="x" * 5000)).endswith("not a string of 5,000 characters")


def test_whole_number_written_as_a_fraction_is_taken() -> None:
    """
    512.0 is 512: some JSON writers know one kind of number.
    """
    width = built(width=512.0).workflow["2:7"]["inputs"]["mode.width"]

    assert (width, type(width)) == (512, int)


def test_unknown_parameter_is_ignored_with_a_warning() -> None:
    """
    A slip of the pen is told, and fails nothing.
    """
    assert built(stepz=3).warnings == (
        "Unknown parameter 'params.stepz' was ignored; template 'test' does not have it.",
    )


def test_absent_seed_is_drawn_and_told() -> None:
    """
    Two builds draw two seeds, and each is in the workflow and in the echo.
    """
    results = [built() for _ in range(5)]

    seeds = [result.workflow["2:7"]["inputs"]["seed"] for result in results]
    assert len(set(seeds)) == 5
    assert [result.echo["seed"] for result in results] == seeds
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_seed_of_a_known_job_is_always_the_same() -> None:
    """
    A platform that delivers a job twice gets the same workflow twice, and another job another seed.
    """
    first, again, other = (
        template().build({"text": "hi"}, seed_of=job) for job in ("job-1", "job-1", "job-2")
    )

    assert first.workflow == again.workflow
    assert first.params["seed"] != other.params["seed"]


def test_seed_with_a_default_is_not_drawn() -> None:
    """
    An author may fix the seed.
    """
    assert template(seed={"default": 42}).build({"text": ""}).params["seed"] == 42


@pytest.mark.parametrize(
    ("value", "url", "data"),
    [
        (PICTURE, None, PICTURE),
        (f"data:image/png;base64,{PICTURE}", None, f"data:image/png;base64,{PICTURE}"),
        ("https://example.com/a.png?x=1", "https://example.com/a.png?x=1", None),
        (" s3://bucket/a.png", "s3://bucket/a.png", None),
    ],
)
def test_image_that_is_sent_becomes_an_input(value: str, url: str | None, data: str | None) -> None:
    """
    A URL, a data URI and base64 are files of the job, and the workflow names them.
    """
    result = built(image=value)

    [file] = result.inputs
    assert (file.url, file.data, file.field, file.must_be_image) == (url, data, "params.image", True)
    assert result.workflow["1"]["inputs"]["image"] == file.name
    assert result.params["image"] == value


@pytest.mark.parametrize("name", ["a.png", "faces/a b.webp", "a.png [input]", "x.y.jpeg"])
def test_image_that_is_a_name_stays_a_name(name: str) -> None:
    """
    A file that came with the job, or is in ComfyUI's folder, is meant by its name.
    """
    result = built(image=name)

    assert (result.inputs, result.workflow["1"]["inputs"]["image"]) == ((), name)


def test_file_need_not_be_a_picture() -> None:
    """
    The type `file` takes videos and sounds.
    """
    result = template(image={"type": "file"}).build({"text": "", "image": "data:video/mp4;base64,AAAA"})

    assert not result.inputs[0].must_be_image


def test_echo_leaves_inline_files_out() -> None:
    """
    What was sent as base64 is not sent back, a URL is.
    """
    assert "image" not in built(image=PICTURE).echo
    assert built(image="https://example.com/a.png").echo["image"] == "https://example.com/a.png"


def test_schema_says_what_an_author_declared() -> None:
    """
    Bounds, choices and defaults stand in the JSON schema, and only what is required is.
    """
    schema = template().schema()

    assert schema["required"] == ["text"]
    assert schema["properties"]["steps"] == {
        "title": "Steps", "type": "integer", "minimum": 1, "maximum": 50, "multipleOf": 2, "default": 20,
        "description": "",
    }  # fmt: skip
    assert schema["properties"]["kind"]["enum"] == ["soft", "hard", 3]
    assert "default" not in schema["properties"]["seed"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": {"bind": "9.inputs.steps"}}, "the graph has no node '9'"),
        ({"steps": {"bind": "2:7.inputs.stepz"}}, "node '2:7' (Sampler) has no input 'stepz' in the graph"),
        ({"steps": {"bind": "2:7.steps"}}, "must be '<node id>.inputs.<input>'"),
        ({"steps": {"bind": "2:7.inputs.image"}}, "is a link to node '1', not a value"),
        ({"steps": {"bind": "2:7.inputs.cfg", "default": 2}}, "is bound to both 'cfg' and 'steps'"),
        ({"steps": {"min": 30}}, "parameter 'steps': the graph's own value"),
        ({"steps": {"default": 52}}, "'default' must be at most 50, not 52"),
        ({"steps": {"min": 60}}, "'min' is larger than 'max'"),
        ({"steps": {"type": "number"}}, "'template.parameters.steps.type' must be 'int', 'float'"),
        ({"steps": {"bound": 3}}, "'template.parameters.steps.bound'"),
        ({"steps": {"step": 0}}, "must be greater than 0"),
        ({"flag": {"min": 0}}, "'min' means nothing for the type bool"),
        ({"flag": {"choices": [True]}}, "'choices' belongs to the type enum"),
        ({"kind": {"choices": []}}, "'choices' belongs to the type enum"),
        ({"text": {"default": "x"}}, "'default' means nothing for a required parameter"),
        ({"bad name": {"type": "int", "bind": "2:7.inputs.steps"}}, "bad name"),
    ],
)
def test_mistake_of_an_author_is_found_when_it_is_read(changes: dict[str, Any], problem: str) -> None:
    """
    A template that could never work is refused before a job meets it, with the place named.
    """
    with pytest.raises(ValueError) as caught:
        template(**changes)

    assert problem in str(caught.value)


PLAIN = template()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(PARAMETERS)) | st.text(max_size=8), json_values, max_size=6))
def test_any_parameters_are_built_or_refused(params: dict[str, Any]) -> None:
    """
    Whatever JSON a caller sends, there is a graph within the bounds, or a refusal that names the field.
    """
    try:
        result = PLAIN.build(params)
    except JobInvalid as error:
        assert str(error.details["field"]).startswith(("params", "workflow"))
        return
    assert 1 <= result.workflow["2:7"]["inputs"]["steps"] <= 50
    assert 0 <= result.workflow["2:7"]["inputs"]["seed"] < 2**64


def test_folders_are_read_with_what_is_in_them(tmp_path: Path) -> None:
    """
    The path in the folder is the name; hidden files are no templates.
    """
    for name in ("a", "deep/er/b", "_c", ".d", "deep/.e/f"):
        write(tmp_path, name)

    found = Templates.load([tmp_path, tmp_path / "nowhere"])

    assert (found.names(), found.problems) == (("a", "deep/er/b"), ())


def test_later_folder_wins(tmp_path: Path) -> None:
    """
    An operator's template replaces the one that comes along.
    """
    write(tmp_path / "first", "a", "summary: one\n")
    write(tmp_path / "second", "a", "summary: two\n")

    assert Templates.load([tmp_path / "first", tmp_path / "second"]).get("a").summary == "two"


@pytest.mark.parametrize(
    ("name", "text", "graph", "problem"),
    [
        ("bad.yaml", "parameters: [", GRAPH, "bad.yaml is not YAML"),
        ("bad.yaml", "- 1", GRAPH, "must be an object"),
        ("bad.yaml", "sumary: x", GRAPH, "template.sumary"),
        ("bad.yaml", "summary: x", None, "its graph bad.json is not there"),
        ("bad.yaml", "summary: x", {"nodes": [], "links": []}, "editor's format"),
        ("bad.yaml", "graph: ../outside.json", GRAPH, "inside the folder"),
        ("bad.yaml", "!!python/object/apply:os.system ['true']", GRAPH, "not YAML"),
        ("bad.py", "this is no Python", None, "it raised SyntaxError"),
        ("bad.py", "import nowhere_to_be_found", None, "it raised ModuleNotFoundError"),
        ("bad.py", "raise SystemExit(3)", None, "it raised SystemExit"),
        ("bad.py", "x = 1", None, "must define a pydantic model 'Parameters'"),
        ("bad.ts", "export default {}", None, "do not run here"),
    ],
)
def test_bad_file_stops_no_other(tmp_path: Path, name: str, text: str, graph: Any, problem: str) -> None:
    """
    What is wrong with one file is told with its name, and the others are there.
    """
    write(tmp_path, "good")
    (tmp_path / name).write_text(text)
    if graph is not None:
        (tmp_path / "bad.json").write_text(json.dumps(graph))

    found = Templates.load([tmp_path])

    assert found.names() == ("good",)
    [told] = found.problems
    assert told.file == name
    assert problem in told.text
    assert str(tmp_path) not in str(told)


def test_graph_without_a_yaml_is_a_hint(tmp_path: Path) -> None:
    """
    People keep graphs beside their templates: that is no mistake.
    """
    (tmp_path / "a.json").write_text(json.dumps(GRAPH))
    (tmp_path / "b.json").write_text('{"some": "thing"}')

    [hint] = Templates.load([tmp_path]).problems

    assert (hint.file, hint.is_hint) == ("a.json", True)


def test_graph_may_stand_in_the_yaml_or_in_another_file(tmp_path: Path) -> None:
    """
    `graph` holds the graph itself or names a file.
    """
    write(tmp_path, "inline", json.dumps({"graph": GRAPH}), graph=None)
    write(tmp_path, "named", "graph: inner/graph.json", graph=None)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "graph.json").write_text(json.dumps(GRAPH))

    found = Templates.load([tmp_path])

    assert found.get("inline").graph == found.get("named").graph == GRAPH


PYTHON = textwrap.dedent(
    '''
    """
    Says things.

    More about it.
    """

    from pydantic import BaseModel, Field

    from comfy_worker.templates import Image, Seed


    class Parameters(BaseModel):
        times: int = Field(2, ge=1, le=3)
        picture: Image | None = None
        seed: Seed


    def build(params):
        if params.times == 3:
            raise ValueError("three is too many")
        if params.times == 1:
            raise KeyError("secret place")
        return {"1": {"class_type": "Say", "inputs": {"seed": params.seed, "image": params.picture, "n": params.times}}}
    '''
)


@pytest.fixture
def code(tmp_path: Path) -> Template:
    """
    A template written in Python.
    """
    (tmp_path / "say.py").write_text(PYTHON)
    return Templates.load([tmp_path]).get("say")


def test_python_template_is_a_template(code: Template) -> None:
    """
    Seeds are drawn and files become inputs there too.
    """
    result = code.build({"picture": PICTURE}, seed_of="job")

    [file] = result.inputs
    assert result.workflow["1"]["inputs"] == {"seed": result.params["seed"], "image": file.name, "n": 2}
    assert (code.summary, code.description, code.graph) == ("Says things.", "More about it.", None)
    assert "seed" not in code.schema().get("required", [])


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"times": 4}, "'params.times' must be at most 3, not 4"),
        ({"times": 3}, "Failed to generate workflow prompt: three is too many"),
        (
            {"times": 1},
            "Failed to generate workflow prompt: template 'say' failed; the worker's log has the reason",
        ),
    ],
)
def test_python_template_refuses(code: Template, params: dict[str, Any], text: str) -> None:
    """
    Its bounds and its own ValueErrors are told; what it did not mean to raise is not.
    """
    with pytest.raises(JobInvalid) as caught:
        code.build(params)

    assert str(caught.value) == text


def test_python_wins_over_yaml_and_the_clash_is_told(tmp_path: Path) -> None:
    """
    Of two files with one name one counts, and nobody has to guess which.
    """
    (tmp_path / "say.py").write_text(PYTHON)
    write(tmp_path, "say")

    found = Templates.load([tmp_path])

    assert found.get("say").source == "say.py"
    assert [str(problem) for problem in found.problems] == ["say.yaml: is not used: say.py has the same name"]


def test_shipped_templates_are_all_there() -> None:
    """
    Text to image and image to image for five families, Vast's modifiers and models, and nothing to complain about.
    """
    found = Templates.load([shipped()])

    kinds = ("image-to-image", "text-to-image")
    families = ("flux", "sd15", "sd3", "sdxl", "z-image")
    vast = ("Image2Image", "Text2Image", "flux", "sd3")
    assert found.names() == tuple(
        sorted([*vast, *(f"{family}/{kind}" for family in families for kind in kinds)])
    )
    assert found.problems == ()


@pytest.mark.parametrize("name", Templates.load([shipped()]).names())
def test_shipped_template_documents_every_parameter(name: str) -> None:
    """
    Each has a sentence, and what a caller will not know has a default.
    """
    schema = Templates.load([shipped()]).get(name).schema()

    assert all(entry["description"] for entry in schema["properties"].values())
    assert set(schema.get("required", ())) <= {"prompt", "image", "input_image"}


def test_job_with_a_template_is_parsed() -> None:
    """
    A job holds the workflow, the picture and the parameters to be told; its own pictures come too.
    """
    rules = Rules(templates=Templates.load([shipped()]))
    data = {
        "template": "sd15/image-to-image",
        "params": {"prompt": "a cat", "image": PICTURE},
        "images": [{"name": "other.png", "image": PICTURE}],
    }

    job = parse("job-1", data, rules)

    assert [file.field for file in job.inputs] == ["images[0].image", "params.image"]
    assert job.workflow["5"]["inputs"]["text"] == "a cat"
    assert job.params is not None
    assert job.params["seed"] == job.workflow["11"]["inputs"]["seed"]
    assert job == parse("job-1", data, rules)


def test_job_without_an_id_draws_anew() -> None:
    """
    Whoever tries a template at a terminal gets another picture each time.
    """
    rules = Rules(templates=Templates.load([shipped()]))
    jobs = [
        parse(UNNAMED_JOB, {"template": "sd15/text-to-image", "params": {"prompt": ""}}, rules)
        for _ in range(3)
    ]

    assert len({job.workflow["11"]["inputs"]["seed"] for job in jobs}) == 3


def test_examples_of_the_documentation_are_templates(tmp_path: Path) -> None:
    """
    The YAML and the Python of the page are read without a complaint.
    """
    page = (Path(__file__).parent.parent / "docs" / "howto" / "templates.md").read_text(encoding="utf-8")
    [yaml_text] = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    [python_text] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = {"3": "seed", "5": "width", "6": "text", "9": "style", "10": "image", "12": "width"}
    values = {"seed": 1, "width": 8, "text": "", "style": "soft", "image": "a.png"}
    graph = {key: {"class_type": "A", "inputs": {name: values[name]}} for key, name in names.items()}
    (tmp_path / "portrait.json").write_text(json.dumps(graph))
    (tmp_path / "portrait.yaml").write_text(yaml_text)
    (tmp_path / "large.py").write_text(python_text)

    found = Templates.load([tmp_path])

    assert (found.names(), found.problems) == (("large", "portrait"), ())
    assert found.get("large").build({"face": PICTURE}).inputs
    assert found.get("portrait").build({"prompt": "x", "face": PICTURE}).workflow["12"]["inputs"] == {
        "width": 768
    }


def test_worker_without_templates_says_so() -> None:
    """
    Where there is none, no name is proposed.
    """
    with pytest.raises(JobInvalid, match=r"no template 'a'; this worker has none \(WORKFLOW_DIR\)"):
        Templates({}).get("a")


def test_parameters_without_a_template_are_told() -> None:
    """
    Whoever sends parameters beside a workflow learns that nothing reads them.
    """
    job = parse("job-1", {"workflow": GRAPH, "params": {"width": 5}}, Rules())

    assert (job.warnings, job.params) == (("'params' was ignored: it belongs to a 'template'.",), None)
