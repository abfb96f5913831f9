"""
`comfy-worker workflow`: what a person sees, and the files that are written.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from comfy_worker.standin.thread import EngineThread
from comfy_worker.templates import Templates, shipped
from comfy_worker.workflow_command import app

GRAPH = json.loads((shipped() / "sd15" / "text-to-image.json").read_text())


def call(*arguments: object) -> Result:
    """
    Run the command with these words.
    """
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """
    A graph as the editor exports it.
    """
    path = tmp_path / "my.graph.json"
    path.write_text(json.dumps(GRAPH))
    return path


def test_new_writes_a_template_beside_the_graph(graph: Path) -> None:
    """
    The YAML is loaded as it is, and holds what there is to set.
    """
    result = call("new", graph)

    template = Templates.load([graph.parent]).get("my.graph")
    assert result.exit_code == 0
    assert {"prompt", "negative_prompt", "seed", "width", "steps"} <= set(template.model.model_fields)
    assert "prompt" in result.output


@pytest.mark.parametrize(
    "wrapped", [{"input": {"workflow": GRAPH}}, {"prompt": GRAPH, "client_id": "x"}, {"prompt": {"class_type": "A", "inputs": {}}}]
)  # fmt: skip
def test_new_finds_the_graph_in_a_request(tmp_path: Path, wrapped: object) -> None:
    """
    A job, and a body for ComfyUI, hold a graph; a node that is called prompt is none.
    """
    path = tmp_path / "request.json"
    path.write_text(json.dumps(wrapped))

    result = call("new", path, "-o", tmp_path / "made" / "sd1.5")

    assert result.exit_code == 0, result.output
    assert Templates.load([tmp_path / "made"]).names() == ("sd1.5",)


def test_new_overwrites_nothing_unasked(graph: Path) -> None:
    """
    Hours of editing are not lost to a second call.
    """
    written = graph.with_suffix(".yaml")
    written.write_text("summary: mine\n")

    refused = call("new", graph)

    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert written.read_text() == "summary: mine\n"
    assert call("new", graph, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ('{"nodes": [], "links": []}', "Export (API)"), ("[]", "must be an object"), (None, "cannot be read")],
)  # fmt: skip
def test_new_says_why_not(tmp_path: Path, text: str | None, said: str) -> None:
    """
    What is no graph in API format is refused with the way out, and nothing is written.
    """
    path = tmp_path / "graph.json"
    if text is not None:
        path.write_text(text)

    result = call("new", path)

    assert (result.exit_code, said in result.output) == (2, True)
    assert not path.with_suffix(".yaml").exists()


def test_list_and_show_tell_of_a_template() -> None:
    """
    A name leads to its parameters, with bounds and defaults.
    """
    listed = call("list")
    shown = call("show", "sd15/text-to-image")

    assert "sd15/text-to-image" in listed.output
    assert "integer, from 64, to 2048, in steps of 8" in shown.output
    assert json.loads(call("show", "sd15/text-to-image", "--schema").output)["required"] == ["prompt"]
    assert call("show", "sd15/text2image").exit_code == 2


def test_check_finds_the_broken_one(graph: Path) -> None:
    """
    A good folder passes, and one bad file is named and fails the check.
    """
    call("new", graph)
    good = call("check", "--dir", graph.parent)
    (graph.parent / "bad.yaml").write_text("sumary: x\n")
    bad = call("check", "--dir", graph.parent)

    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "1 templates, 0 problems" in good.output
    assert "bad.yaml: 'template.sumary'" in bad.output


def test_check_asks_a_comfyui(graph: Path, engine: EngineThread) -> None:
    """
    With an address, the graphs are held against the nodes that are really there.
    """
    call("new", graph)

    result = call("check", "--dir", graph.parent, "--url", engine.url)

    assert result.exit_code == 1
    assert "my.graph: Node 'Checkpoint' not found" in result.output


@pytest.mark.parametrize("url", ["ftp://x", "http://127.0.0.1:1"])
def test_check_says_that_nobody_answers(graph: Path, url: str) -> None:
    """
    An address that is none, or where nothing listens, ends the check with a sentence.
    """
    result = call("check", "--dir", graph.parent, "--url", url)

    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output
    assert result.output.strip()


def test_wrong_folder_is_told() -> None:
    """
    A folder that is not there is a slip of the pen.
    """
    assert call("list", "--dir", "nowhere").exit_code == 2
