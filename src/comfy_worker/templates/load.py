"""
Where templates come from: folders of YAML with JSON, and of Python. One bad file never stops the others.
"""

import difflib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from comfy_worker.errors import JobInvalid, WorkflowInvalid
from comfy_worker.graph import check_shape
from comfy_worker.templates import code, declared
from comfy_worker.templates.template import Template

logger = logging.getLogger(__name__)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C where PyYAML has it: templates are read while a worker boots."""

MOST_BYTES = 8 << 20
KINDS = (".py", ".yaml", ".yml")
"""In the order in which they are preferred for one name."""

FOREIGN = (".ts", ".js")
NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """
    A file that gave no template, and why. `file` is relative to its folder. A hint is no mistake.
    """

    file: str
    text: str
    is_hint: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True, slots=True)
class Templates:
    """
    Templates by name (the path of the file in its folder without its suffix, `/` between the parts).
    """

    by_name: Mapping[str, Template]
    problems: tuple[Problem, ...] = ()

    @classmethod
    def load(cls, folders: Iterable[Path]) -> "Templates":
        """
        Read folders, with what is in them; where two have the same name, the later folder's template counts.

        A folder that is not there is empty. Python files are run: name only folders of the operator.
        """
        parts = [_come_along(folder) if folder == shipped() else _read(folder) for folder in folders]
        by_name = {name: template for part in parts for name, template in part.by_name.items()}
        return cls(by_name, tuple(problem for part in parts for problem in part.problems))

    def names(self) -> tuple[str, ...]:
        """
        Return the names in order.
        """
        return tuple(sorted(self.by_name))

    def get(self, name: Any, field: str = "template") -> Template:
        """
        Return one template.

        Raises:
            JobInvalid: there is none of that name; the text has the nearest, or all of a few.
        """
        if not isinstance(name, str) or not name:
            raise JobInvalid(f"'{field}' must be the name of a template", field=field)
        if name in self.by_name:
            return self.by_name[name]
        near = difflib.get_close_matches(name, self.by_name, 3, 0.5) or self.names()[:NAMES_SHOWN]
        hint = f"try {', '.join(map(repr, near))}" if near else "this worker has none (WORKFLOW_DIR)"
        raise JobInvalid(f"'{field}': there is no template '{name[:100]}'; {hint}", field=field)

    def log_problems(self) -> None:
        """
        Write a line for every file that gave no template.
        """
        for problem in self.problems:
            logger.log(logging.INFO if problem.is_hint else logging.WARNING, "Template %s", problem)


def shipped() -> Path:
    """
    Return the folder of the templates that come with the worker.
    """
    # pyproject.toml puts them beside this module in a wheel; in a checkout they are at the top.
    here = Path(__file__).resolve().parent
    installed = here / "workflows"
    return installed if installed.is_dir() else here.parents[2] / "workflows"


@cache
def _come_along(folder: Path) -> Templates:
    # They do not change while a process runs.
    return _read(folder)


def _read(folder: Path) -> Templates:
    found: dict[str, Template] = {}
    problems: list[Problem] = []
    for name, files in sorted(_files(folder).items()):
        template = _first(folder, name, files, problems)
        if template is not None:
            found[name] = template
    return Templates(found, tuple(problems))


def _files(folder: Path) -> dict[str, list[Path]]:
    """
    Return the files of a folder and those below it by template name, the preferred kind first.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith((".", "_")) for part in parts) or not path.is_file():
            continue
        if path.suffix in (*KINDS, *FOREIGN, ".json"):
            files.setdefault("/".join(parts).removesuffix(path.suffix), []).append(path)
    order = (*KINDS, ".json", *FOREIGN)
    return {name: sorted(paths, key=lambda path: order.index(path.suffix)) for name, paths in files.items()}


def _first(folder: Path, name: str, files: list[Path], problems: list[Problem]) -> Template | None:
    usable = [path for path in files if path.suffix in KINDS]
    if not usable:
        problems.extend(_left_out(folder, name, files))
        return None
    for other in usable[1:]:
        text = f"is not used: {usable[0].name} has the same name"
        problems.append(Problem(other.relative_to(folder).as_posix(), text))
    shown = usable[0].relative_to(folder).as_posix()
    try:
        if usable[0].suffix == ".py":
            return code.loaded(usable[0], name)
        return _declared(folder, usable[0], name)
    except (ValueError, OSError) as exc:
        problems.append(Problem(shown, _reason(exc)))
    except (Exception, SystemExit) as exc:
        # Whatever a Python file of the operator raises is its own affair.
        logger.exception("The template %s failed.", shown)
        problems.append(Problem(shown, f"it raised {type(exc).__name__}: {exc}"))
    return None


def _reason(exc: Exception) -> str:
    return f"it cannot be read ({exc.strerror})" if isinstance(exc, OSError) else str(exc)


def _left_out(folder: Path, name: str, files: list[Path]) -> Iterator[Problem]:
    for path in files:
        shown = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            text = "a graph without a YAML is no template: `comfy-worker workflow new` writes one"
            if _is_graph(path):
                yield Problem(shown, text, is_hint=True)
        else:
            yield Problem(
                shown,
                f"TypeScript and JavaScript do not run here, so there is no template '{name}': write a YAML for its "
                "graph (`comfy-worker workflow new`) or a Python file",
            )


def _is_graph(path: Path) -> bool:
    try:
        check_shape(read_json(path))
    except (ValueError, OSError, WorkflowInvalid):
        return False
    return True


def _declared(folder: Path, path: Path, name: str) -> Template:
    found = declared.declaration(read_yaml(path))
    if isinstance(found.graph, dict):
        return declared.template_of(name, found, found.graph, path.name)
    beside = path.with_suffix(".json") if found.graph is None else path.parent / found.graph
    if not beside.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"'graph' must name a file inside the folder of the templates, not {found.graph}")
    if not beside.is_file():
        raise ValueError(f"its graph {beside.name} is not there")
    return declared.template_of(name, found, read_json(beside), path.name)


def read_json(path: Path) -> Any:
    """
    Read a JSON file of at most 8 MiB.

    Raises:
        ValueError: it is no JSON, or too large.
        OSError: it cannot be read.
    """
    try:
        return json.loads(_text(path))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except json.JSONDecodeError as exc:
        raise ValueError(f"{path.name} is not JSON: {exc}") from exc


def read_yaml(path: Path) -> Any:
    """
    Read a YAML file of at most 8 MiB.

    Raises:
        ValueError: it is no YAML, or too large.
        OSError: it cannot be read.
    """
    try:
        return yaml.load(_text(path), Loader=LOADER)
    except yaml.YAMLError as exc:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(exc).split())}") from exc


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} is larger than {MOST_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")
