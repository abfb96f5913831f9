"""
Named workflows: /workflow/... and its older spelling, with the envelope of the peer.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from support.http_desk import HttpDesk
from support.pictures import b64, empty_workflow, invert_workflow, png
from support.salad_fixtures import ServeSalad
from support.served import Served

YAML = """
summary: One colour
description: A picture of one colour.
parameters:
  size: {type: int, default: 16, min: 8, max: 64, bind: [1.inputs.width, 1.inputs.height], description: The side}
  colour: {type: int, required: true, bind: 1.inputs.color}
"""
INVERT = """
summary: Invert
parameters:
  image: {type: image, required: true, bind: 1.inputs.image}
"""
PYTHON = '''
"""Breaks on demand."""
from pydantic import BaseModel

class Parameters(BaseModel):
    why: str

def build(params):
    raise ValueError(params.why)
'''


@pytest.fixture
def workflows(serve_salad: ServeSalad, tmp_path: Path) -> Served:
    """
    The face with three workflows and a broken one.
    """
    folder = tmp_path / "workflows"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "colour.yaml").write_text(YAML)
    (folder / "deep" / "colour.json").write_text(json.dumps(empty_workflow()))
    (folder / "invert.yaml").write_text(INVERT)
    (folder / "invert.json").write_text(json.dumps(invert_workflow()))
    (folder / "breaks.py").write_text(PYTHON)
    (folder / "broken.yaml").write_text("parameters: [")
    (folder / "old.ts").write_text("export default {}")
    return serve_salad(workflow_dir=folder)


@pytest.mark.parametrize("prefix", ["/workflow", "/workflows"])
def test_named_workflow_runs_with_its_defaults(workflows: Served, prefix: str) -> None:
    """Both prefixes run the graph, and the reply has `input` with its defaults."""
    reply = workflows.post(f"{prefix}/deep/colour", {"id": "n", "input": {"colour": 255, "unknown": 1}})

    body = reply.json()
    assert reply.status_code == 200, body
    assert body["input"] == {"size": 16, "colour": 255}
    assert body["filenames"] == ["n_out_00001_.png"]
    assert body["prompt"]["1"]["inputs"]["color"] == 255


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "location"),
    [
        ({}, "input"),
        ({"input": {}}, "input.colour"),
        ({"input": {"colour": 1, "size": 4}}, "input.size"),
        ({"input": 1}, "input"),
    ],
)
def test_wrong_parameters_are_refused(workflows: Served, given: Any, location: str) -> None:
    """A missing or wrong parameter is a 400 with its path, as the peer's schema says it."""
    reply = workflows.post("/workflow/deep/colour", given)

    body = reply.json()
    assert (reply.status_code, body["code"], body["error"]) == (400, "FST_ERR_VALIDATION", "Bad Request")
    assert body["location"] == location
    assert body["message"].startswith(f"body/{location.replace('.', '/')} ")


def test_generator_that_fails_is_a_400(workflows: Served) -> None:
    """What a Python file raises is told, and nothing runs."""
    reply = workflows.post("/workflow/breaks", {"input": {"why": "no such style"}})

    assert reply.status_code == 400
    assert reply.json()["error"].startswith("Failed to generate workflow prompt: no such style")
    assert reply.json()["location"] == "input"


def test_images_of_parameters_are_staged_with_credentials(workflows: Served, desk: HttpDesk) -> None:
    """A parameter that is a picture takes base64 and URLs, and the request's credentials."""
    url = desk.put("/w.png", png((4, 4), (1, 1, 1)))
    auth = {"type": "bearer", "token": "token-of-a-workflow"}
    credentials = [{"url_pattern": "**", "auth": auth}]

    by_url = workflows.post("/workflow/invert", {"input": {"image": url}, "credentials": credentials})
    by_text = workflows.post("/workflow/invert", {"input": {"image": b64(png((4, 4), (2, 2, 2)))}})

    assert (by_url.status_code, by_text.status_code) == (200, 200), by_url.text + by_text.text
    assert desk.seen[-1].headers["authorization"] == "Bearer token-of-a-workflow"


def test_workflow_is_asynchronous_with_a_webhook(workflows: Served, desk: HttpDesk) -> None:
    """The envelope is that of /prompt: a webhook makes a 202."""
    body = {"id": "wf", "input": {"colour": 3}, "webhook_v2": desk.url}

    reply = workflows.post("/workflow/deep/colour", body)

    assert reply.status_code == 202
    assert reply.json()["input"] == {"size": 16, "colour": 3}
    assert desk.wait(1)[0].json()["id"] == "wf"


def test_salad_s83_workflow_runs_once_through_the_pipeline(workflows: Served) -> None:
    """A named workflow does not call the server's own port: one request is logged, and one job is counted."""
    before = workflows.get("/metrics").text

    workflows.post("/workflow/deep/colour", {"input": {"colour": 4}})

    def jobs(text: str) -> float:
        rows = [line for line in text.splitlines() if line.startswith("comfy_worker_jobs_total")]
        return sum(float(line.rpartition(" ")[2]) for line in rows)

    assert jobs(workflows.get("/metrics").text) - jobs(before) == 1


def test_salad_s84_broken_file_is_isolated(workflows: Served) -> None:
    """A file that cannot be read takes no other route away, and TypeScript is told to be missing."""
    assert workflows.post("/workflow/deep/colour", {"input": {"colour": 5}}).status_code == 200
    assert workflows.post("/workflow/broken", {"input": {}}).status_code == 404
    problems = [str(problem) for problem in workflows.worker.templates.problems]  # type: ignore[attr-defined]
    assert any(text.startswith("broken.yaml") for text in problems)
    assert any(text.startswith("old.ts") for text in problems)


def test_workflows_are_documented_with_their_fields(workflows: Served) -> None:
    """/docs shows each workflow with its own parameters; the older prefix is not listed."""
    document = workflows.get("/docs/json").json()

    operation = document["paths"]["/workflow/deep/colour"]["post"]
    given = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["input"]
    assert operation["summary"] == "One colour"
    assert given["required"] == ["colour"]
    assert given["properties"]["size"]["minimum"] == 8
    assert not [path for path in document["paths"] if path.startswith("/workflows")]
    assert {"200", "202", "400"} <= set(operation["responses"])
