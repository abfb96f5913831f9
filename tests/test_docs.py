"""
The documentation keeps its promises: what it shows works, what it lists is complete, what it links to is there.
"""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfy_worker import convert
from comfy_worker.errors import JobInvalid, NodeFailed, every_error
from comfy_worker.faces.runpod import to_failure, to_reply
from comfy_worker.job import Output, Result, Timings
from comfy_worker.parse import KNOWN_KEYS, Rules, parse
from comfy_worker.settings import Settings, fields, names_of
from comfy_worker.templates import Templates, shipped

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
WORKFLOW = {"1": {"class_type": "PreviewAny", "inputs": {"source": "hello"}}}
FOREIGN = re.compile(
    r"/(?:work|home|tmp|Users)/|/root\b|file://|pypi|registry|mirror\.|proxy\.golang|\d+\.\d+\.\d+\.\d+:(?!8188)\d{4}"
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _snippets(path: Path) -> list[str]:
    return re.findall(r"^```json\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _write_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "scripts" / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _job(example: dict[str, Any]) -> tuple[Any, Any]:
    """
    Return the input and the envelope's bucket of an example, which shows a whole job or one field of its input.
    """
    if "input" in example:
        return example["input"], example.get("s3Config")
    return {"workflow": WORKFLOW, **example}, None


@pytest.mark.parametrize("page", ["reference/environment.md", "reference/errors.md", "reference/images.md"])
def test_generated_tables_are_up_to_date(page: str) -> None:
    """
    A table written from the code says what the code says; `scripts/fix` writes it anew.
    """
    written = (DOCS / page).read_text(encoding="utf-8")
    reference = _write_reference()

    assert written == reference.renewed(written, reference.PAGES[page]())


@pytest.mark.parametrize("name", [name for entry in fields(Settings) for name in names_of(entry)])
def test_every_setting_is_documented(name: str) -> None:
    """
    Each name of each setting stands in the table of variables.
    """
    assert f"`{name}`" in (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", every_error())
def test_every_error_code_says_what_to_do(code: str) -> None:
    """
    Each error code has a heading of its own with some advice under it.
    """
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")

    advice = re.search(rf"^### {code}\n\n(.+)$", page, re.MULTILINE)

    assert advice is not None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_json_snippet_parses(page: Path) -> None:
    """
    What a page calls JSON is JSON.
    """
    for snippet in _snippets(page):
        json.loads(snippet)


def test_first_request_of_the_readme_is_accepted() -> None:
    """
    What a newcomer copies first is a valid job.
    """
    request = json.loads(_snippets(ROOT / "README.md")[0])

    job = parse("job-1", request["input"], Rules())

    assert job.inputs[0].url == "https://example.com/face.png"
    assert job.warnings == ()


@pytest.mark.parametrize(
    "page",
    ["reference/request.md", "howto/inputs.md", "howto/storage.md", "howto/templates.md"],
    ids=lambda page: page,
)
def test_every_request_example_is_accepted(page: str) -> None:
    """
    Each example of a request is a valid job, without a key that the worker does not know.
    """
    examples = [json.loads(snippet) for snippet in _snippets(DOCS / page)]
    rules = Rules(templates=Templates.load([shipped()]))

    assert examples
    for example in examples:
        data, bucket = _job(example)
        assert set(data) <= set(KNOWN_KEYS)
        assert parse("job-1", data, rules, s3_config=bucket).warnings == ()


@pytest.mark.parametrize("key", KNOWN_KEYS)
def test_every_field_of_a_request_is_documented(key: str) -> None:
    """
    Each key that `input` may have stands on the page of the request.
    """
    assert f"`{key}`" in (DOCS / "reference" / "request.md").read_text(encoding="utf-8")


def test_every_conversion_option_is_documented() -> None:
    """
    Each option of each format stands on the page of the request, the bounds of a number with it.
    """
    page = (DOCS / "reference" / "request.md").read_text(encoding="utf-8")

    for table in convert.OPTIONS.values():
        for name, option in table.items():
            assert f"`{name}`" in page
            if option.pillow is not None and option.type in {"whole", "number"}:
                assert f"`{name}` {option.low}–{option.high} ({option.default})" in page


def test_every_key_of_a_reply_is_documented() -> None:
    """
    Each key that a success or a failure may have stands on the page of the reply.
    """
    page = (DOCS / "reference" / "reply.md").read_text(encoding="utf-8")
    kinds = ("image", "video", "audio", "file")
    files = tuple(
        Output("1", "other", kind, "a.bin", "", "x/y", 1, "base64", "AA==")
        for kind in kinds  # type: ignore[misc]
    )
    text = Output("1", "text", "text", "", "", "text/plain", 1, "text", "hello")
    result = Result("job-1", "p", (*files, text), ("a warning",), {"1": {}}, Timings())
    failure = NodeFailed("it raised", node_id="1", class_type="A", exception_type="B")
    failure.partial = result

    reply = to_failure(failure)
    keys = {*reply, *reply["files"][0], *reply["timings"], *to_reply(Result("job-1", None, dry_run=True))}

    assert {"videos", "status", "error_code", "mime"} <= keys
    for key in keys:
        assert f"`{key}`" in page


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_inside_the_repository_resolves(page: Path) -> None:
    """
    A link leads to a file that is there, and its fragment to a heading of that file.
    """
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if fragment:
            assert fragment in _anchors(path), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_pages_stay_short(page: Path) -> None:
    """
    A page is read in one sitting: 250 lines, the README 150.
    """
    lines = page.read_text(encoding="utf-8").count("\n")

    assert lines <= (150 if page == ROOT / "README.md" else 250)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_pages_have_one_sentence_per_line(page: Path) -> None:
    """
    A change to a sentence is a change to one line; tables and code are left out.
    """
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "#"))]

    assert [
        line for line in prose if re.search(r"[a-z0-9)`]\. [A-Z`]", re.sub(r"^\s*\d+\. ", "", line))
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_pages_name_no_place_of_a_developer(page: Path) -> None:
    """
    No path of a developer's machine and no package index stands in the documentation.
    """
    assert FOREIGN.search(page.read_text(encoding="utf-8")) is None


def test_every_room_is_in_the_design() -> None:
    """
    Each module and folder of the package stands in the table of rooms.
    """
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "comfy_worker"
    rooms = {path.name for path in package.glob("[a-z]*.py")} | {
        f"{path.parent.name}/" for path in package.glob("*/__init__.py")
    }

    assert {"pipeline.py", "comfy/"} <= rooms
    assert {name for name in rooms if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("record", sorted((DOCS / "adr").glob("*.md")), ids=_name)
def test_every_decision_has_the_four_headings(record: Path) -> None:
    """
    A decision record has Status, Context, Decision and Consequences, and its number in its title.
    """
    text = record.read_text(encoding="utf-8")

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Status", "Context", "Decision", "Consequences"]
    assert text.startswith(f"# {int(record.name[:4])}. ")


# Texts of errors: "…" stands for what differs, in the documentation as in the texts taken from the source.


def _source_trees() -> Iterator[ast.Module]:
    for path in sorted((ROOT / "src" / "comfy_worker").rglob("*.py")):
        if "standin" not in path.parts:
            yield ast.parse(path.read_text(encoding="utf-8"))


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _error_names() -> set[str]:
    # The functions that raise, or make what is raised, and take the text first.
    names = {"_refuse", "_invalid", "_Again", "NotListening", "WorkerError"}
    return names | {error.__name__ for error in every_error().values()}


def _raised(trees: Iterator[ast.Module]) -> set[str]:
    found = set()
    names = _error_names()
    for tree in trees:
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and call.args:
                name = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
                text = _text(call.args[0]) if name in names else ""
                if re.search(r"[a-z]", text):
                    found.add(text)
    return found


def _documented() -> list[str]:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if text != "•"]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("…"))), re.DOTALL)


def test_every_error_text_is_documented() -> None:
    """
    Whatever text an error is raised with, troubleshooting has a line for it.
    """
    patterns = [_pattern(text) for text in _documented()]
    raised = _raised(_source_trees())

    missing = {text for text in raised if not any(pattern.fullmatch(text) for pattern in patterns)}

    assert len(raised) > 50
    assert missing == set()


def test_every_documented_text_is_in_the_code() -> None:
    """
    Troubleshooting explains no text that the worker no longer says.
    """
    said = {_text(node) for tree in _source_trees() for node in ast.walk(tree)}
    said.add((ROOT / "scripts" / "setup").read_text(encoding="utf-8"))

    unsaid = [text for text in _documented() if not any(_is_said(text, source) for source in said)]

    assert unsaid == []


def _is_said(text: str, source: str) -> bool:
    end = 0
    for part in text.split("…"):
        begin = source.find(part, end)
        if begin < 0:
            return False
        end = begin + len(part)
    return True


def test_invalid_job_of_an_example_is_refused() -> None:
    """
    The check of the examples can fail: one with a wrong type is refused.
    """
    data, bucket = _job({"timeout_s": "long"})

    with pytest.raises(JobInvalid):
        parse("job-1", data, Rules(), s3_config=bucket)
