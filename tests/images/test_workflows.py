"""
The automation in .github: least permissions, nothing unpinned, no input pasted into a shell, lists in step.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
SECRETS = {"DOCKERHUB_USERNAME", "DOCKERHUB_TOKEN", "HUGGINGFACE_ACCESS_TOKEN"}
VARIABLES = {"DOCKERHUB_REPO", "DOCKERHUB_IMG", "LARGE_RUNNER"}


def _name(path: Path) -> str:
    return path.name


def read(path: Path) -> dict[Any, Any]:
    """
    Return a workflow; its `on` is under True, which is how YAML 1.1 reads that word.
    """
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def test_the_workflows_are_there() -> None:
    """
    Tests, one target, all targets, release and prune.
    """
    assert {"test.yml", "build.yml", "build-all.yml", "release.yml", "prune.yml"} <= {
        path.name for path in WORKFLOWS
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=_name)
def test_permissions_start_from_none(path: Path) -> None:
    """
    A workflow may do nothing, each of its jobs what it names; only the release writes.
    """
    found = read(path)

    assert found["permissions"] == {}
    for job in found["jobs"].values():
        assert set(job["permissions"].items()) <= {("contents", "read"), ("contents", "write")}
        assert job["permissions"].get("contents") != "write" or path.name == "release.yml"
        assert "uses" in job or job["timeout-minutes"] <= 350
    assert "concurrency" in found or list(found[True]) == ["workflow_call"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=_name)
def test_actions_are_pinned_by_hash(path: Path) -> None:
    """
    An action of others is one commit, with its version beside it; a checkout leaves no credentials.
    """
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)( # v[\d.]+)?$", text, re.MULTILINE)

    assert len(used) == text.count("uses:")
    for action, version in used:
        assert action.startswith("./.github/") or (re.search(r"@[0-9a-f]{40}$", action) and version), action
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


@pytest.mark.parametrize("path", WORKFLOWS, ids=_name)
def test_no_expression_stands_in_a_shell(path: Path) -> None:
    """
    Inputs and names of branches reach a shell as variables: pasted, they would be code.
    """
    for job in read(path)["jobs"].values():
        for step in job.get("steps", ()):
            assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=_name)
def test_secrets_and_variables_are_the_documented_ones(path: Path) -> None:
    """
    A workflow asks for no secret or variable that docs/howto/ci.md does not explain.
    """
    text = path.read_text(encoding="utf-8")
    page = (ROOT / "docs" / "howto" / "ci.md").read_text(encoding="utf-8")
    named = set(re.findall(r"secrets\.(\w+)", text)) | set(re.findall(r"vars\.(\w+)", text))

    assert named <= SECRETS | VARIABLES
    assert all(f"`{name}`" in page for name in named)


def test_choice_of_targets_is_the_bake_file_s() -> None:
    """
    The list one chooses from holds every target, in the order of the rows.
    """
    rows = re.findall(r'\{ name = "([^"]+)"', (ROOT / "docker-bake.hcl").read_text(encoding="utf-8"))
    inputs = read(FOLDER / "build.yml")[True]["workflow_dispatch"]["inputs"]

    assert inputs["target"]["options"] == [row.replace(".", "-") for row in rows]
    assert inputs["target"]["default"] == "base"


def test_scripts_that_workflows_call_are_there() -> None:
    """
    A step that calls a script of ours names one that exists and may be run.
    """
    called = {
        name
        for path in WORKFLOWS
        for name in re.findall(r"\bscripts/[\w.-]+", path.read_text(encoding="utf-8"))
    }

    assert called
    for name in called:
        assert (ROOT / name).is_file(), name
        assert name.endswith(".py") or (ROOT / name).stat().st_mode & 0o100, name


def test_matrix_sends_large_targets_to_the_large_runner() -> None:
    """
    A target without room on a hosted runner goes to the large one, or is left out where there is none.
    """
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from bake_matrix import matrix
    finally:
        sys.path.remove(str(ROOT / "scripts"))

    assert matrix(["a", "b"], ["a"], "big")["include"][1] == {"target": "b", "runner": "big"}
    assert [row["target"] for row in matrix(["a", "b"], ["a"], "")["include"]] == ["a"]
