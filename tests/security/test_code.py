"""
Nothing that comes from outside becomes code: no unsafe reader in the source, no shell, Python templates of the operator only.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.every_face import Entrance
from support.pictures import b64, invert_workflow, png

import comfy_worker
from comfy_worker.settings import Settings
from comfy_worker.templates import Templates

SOURCE = Path(comfy_worker.__file__).parent
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
UNSAFE_MODULES = frozenset(
    {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "shelve",
        "marshal",
        "torch",
        "joblib",
        "xmlrpc",
        "telnetlib",
    }
)
XML = frozenset({"xml", "lxml", "defusedxml"})
UNSAFE_CALLS = frozenset({"eval", "exec", "compile", "__import__"})
# What runs code of the operator, by intent: templates that are Python files, and the Vast repository's worker.py.
MAY_RUN = {"templates/code.py", "pyworker/launch.py"}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """
    Yield every call in the source: its file, itself, and what is called, with its dots.
    """
    for name, tree in TREES.items():
        for found in ast.walk(tree):
            if isinstance(found, ast.Call):
                yield name, found, ast.unparse(found.func)


def test_no_module_that_reads_code_is_imported() -> None:
    """Pickle and its kind, torch (whose `load` is one) and XML must not be imported anywhere."""
    imported: set[tuple[str, str]] = set()
    for name, tree in TREES.items():
        for found in ast.walk(tree):
            if isinstance(found, ast.Import):
                imported |= {(name, alias.name.partition(".")[0]) for alias in found.names}
            elif isinstance(found, ast.ImportFrom):
                imported.add((name, (found.module or "").partition(".")[0]))

    assert not [row for row in imported if row[1] in UNSAFE_MODULES | XML]


def test_nothing_is_evaluated() -> None:
    """`eval`, `exec` and their kind must not be called but for the operator's templates."""
    assert {name for name, _, called in calls() if called in UNSAFE_CALLS} <= MAY_RUN
    assert {name for name, _, called in calls() if called.endswith("exec_module")} <= MAY_RUN


def test_no_shell_is_used() -> None:
    """Processes must be started from lists, without a shell."""
    for name, call, called in calls():
        assert called not in {
            "os.system",
            "os.popen",
            "subprocess.getoutput",
            "asyncio.create_subprocess_shell",
        }, name
        assert not [key for key in call.keywords if key.arg == "shell"], name


def test_yaml_is_read_by_the_safe_loader() -> None:
    """Every `yaml.load` must name a safe loader, and there must be one at least."""
    loaders = [
        ast.unparse(next(key.value for key in call.keywords if key.arg == "Loader"))
        for _, call, called in calls()
        if called in {"yaml.load", "yaml.load_all"}
    ]
    unsafe = [called for _, _, called in calls() if called in {"yaml.unsafe_load", "yaml.full_load"}]

    assert loaders
    assert set(loaders) <= {"LOADER", "yaml.SafeLoader", "yaml.CSafeLoader"}
    assert unsafe == []


@pytest.mark.parametrize(
    "text",
    [
        "graph: !!python/object/apply:os.mkdir ['{}']",
        "!!python/object/new:os.mkdir ['{}']",
        "title: !!python/name:os.system",
        "title: !!python/module:os",
        "? !!python/object/apply:os.mkdir ['{}']\n: x",
    ],
)
def test_tags_of_yaml_run_nothing(tmp_path: Path, text: str) -> None:
    """A template's YAML with a tag that makes objects must be a problem, and make nothing."""
    made = tmp_path / "made"
    (tmp_path / "t.yaml").write_text(text.replace("{}", str(made)))

    found = Templates.load([tmp_path])

    assert not found.by_name
    assert found.problems
    assert not made.exists()


def test_python_runs_from_the_folder_of_the_operator_only(
    entrance: Entrance, engine: object, tmp_path: Path
) -> None:
    """Python that a job brings as an input must not be run, whatever name and folder it has."""
    made = tmp_path / "made"
    code = b64(f"import os\nos.mkdir({str(made)!r})\n".encode())
    names = ["evil.py", "workflows/evil.py", "sitecustomize.py", "conftest.py", "comfy_worker.py"]

    entrance.send(
        invert_workflow(f"data:image/png;base64,{b64(png((2, 2), (1, 2, 3)))}"),
        "code",
        files=[{"name": name, "data": code} for name in names],
    )
    Templates.load([Path(os.devnull)])

    assert not made.exists()


def test_template_folder_is_the_operators() -> None:
    """The folder of templates must come from a setting, and no folder that jobs write to may be its default."""
    assert Settings().workflow_dir is None or not str(Settings().workflow_dir).startswith(("input", "/tmp"))
