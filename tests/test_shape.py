"""
The shape of the code: modules and functions stay small, every module says what belongs in it, one version number.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import comfy_worker

ROOT = Path(__file__).resolve().parent.parent
SOURCE = [ROOT / "handler.py", *sorted((ROOT / "src").rglob("*.py"))]
OTHERS = [*sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
MODULE_LINES = 300
FUNCTION_LINES = 50

# Module or module:function -> the lines it may have, and why.
EXEMPT: dict[str, tuple[int, str]] = {}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _limit(name: str, usual: int) -> int:
    return EXEMPT[name][0] if name in EXEMPT else usual


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """
    Return the lines of a function without its docstring.
    """
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("module", SOURCE, ids=_name)
def test_modules_stay_small(module: Path) -> None:
    """
    A module has fewer than 300 lines, or a line with a reason in `EXEMPT`.
    """
    assert len(module.read_text(encoding="utf-8").splitlines()) < _limit(_name(module), MODULE_LINES)


@pytest.mark.parametrize("module", SOURCE, ids=_name)
def test_functions_stay_small(module: Path) -> None:
    """
    A function has fewer than 50 lines beside its docstring, or a line with a reason in `EXEMPT`.
    """
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{_name(module)}:{node.name}"
            assert _lines(node) < _limit(name, FUNCTION_LINES), name


@pytest.mark.parametrize("module", [*SOURCE, *OTHERS], ids=_name)
def test_modules_say_what_belongs_in_them(module: Path) -> None:
    """
    Each module begins with a docstring.
    """
    assert ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", EXEMPT)
def test_exemptions_are_needed(name: str) -> None:
    """
    An exemption names something that is there and is larger than the usual limit; else it is removed.
    """
    path, _, function = name.partition(":")
    text = (ROOT / path).read_text(encoding="utf-8")
    sizes = {
        node.name: _lines(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    }

    if function:
        assert sizes[function] >= FUNCTION_LINES
    else:
        assert len(text.splitlines()) >= MODULE_LINES


def test_version_is_one_number() -> None:
    """
    The package, the project file and the newest release in the changelog have the same version.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)

    assert headings[0] == "Unreleased"
    assert comfy_worker.__version__ == project == headings[1]


def test_entry_imports_nothing_heavy() -> None:
    """
    What is imported before ComfyUI is started is time that ComfyUI could have booted in.
    """
    heavy = "{'requests', 'boto3', 'PIL', 'websocket', 'runpod', 'asyncio'}"
    program = f"import handler, sys; print(sorted({heavy} & set(sys.modules)))"

    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
