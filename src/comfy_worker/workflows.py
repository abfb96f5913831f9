"""
What `comfy-worker workflow` does: write, list, show and check templates, for a person at a terminal.

Only `check` with an address speaks to a ComfyUI.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer
import yaml

from comfy_worker import graph, settings
from comfy_worker.comfy import refusals
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.validate import validate
from comfy_worker.errors import ConfigInvalid, WorkerError
from comfy_worker.job import Workflow
from comfy_worker.settings_parsers import address
from comfy_worker.templates import Template, Templates, guess, load, shipped
from comfy_worker.templates.declared import declaration, template_of

HEAD = """\
# A template: what a caller may set in {graph}, and where it goes.
# Written by `comfy-worker workflow new` as a proposal: rename, remove and bound parameters as you like, then try it with
# `comfy-worker workflow check`. Without `default` the value in the graph is the default.
"""
BOUNDS = {"minimum": "from", "maximum": "to", "multipleOf": "in steps of", "maxLength": "longest"}
SUFFIXES = frozenset({".json", ".yaml", ".yml"})


def new(workflow: Path, output: Path | None, *, force: bool) -> None:
    """
    Write the YAML of a template for a graph, and the graph beside it where it is not there yet.
    """
    raw = _graph_of(workflow)
    target = output or workflow
    if target.suffix in SUFFIXES:
        target = target.with_suffix("")
    written, beside = target.with_name(f"{target.name}.yaml"), target.with_name(f"{target.name}.json")
    is_same = beside.resolve() == workflow.resolve()
    for path in (written, *(() if is_same else (beside,))):
        if path.exists() and not force:
            fail(f"{path} exists; --force overwrites it", 2)
    declared = guess.declare(raw, target.name)
    template = template_of(target.name, declaration(declared), raw)
    text = yaml.safe_dump(declared, sort_keys=False, allow_unicode=True, width=110)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(HEAD.format(graph=beside.name) + text, encoding="utf-8")
        if not is_same:
            beside.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as exc:
        fail(f"{exc.filename} cannot be written: {exc.strerror}", 2)
    typer.echo(f"{written}: {len(declared['parameters'])} parameters")
    _show_parameters(template)


def list_all(found: Templates) -> None:
    """
    Print a line for each template.
    """
    for name in found.names():
        typer.echo(f"{name:<32} {found.get(name).summary}".rstrip())
    _tell_problems(found)


def show(found: Templates, name: str, *, as_schema: bool) -> None:
    """
    Print one template, or the JSON schema of its parameters.
    """
    try:
        template = found.get(name)
    except WorkerError as exc:
        fail(str(exc), 2)
    if as_schema:
        typer.echo(json.dumps(template.schema(), indent=2, ensure_ascii=False))
        return
    typer.echo(f"{template.name}: {template.summary}")
    if template.description:
        typer.echo(template.description)
    _show_parameters(template)


def check(found: Templates, url: str) -> None:
    """
    Print what is wrong with the templates, and what the ComfyUI at `url` (none: empty) would refuse of their graphs.
    """
    refused = _refused(found, url) if url else []
    for line in refused:
        typer.echo(line, err=True)
    _tell_problems(found)
    wrong = len(refused) + sum(not problem.is_hint for problem in found.problems)
    typer.echo(f"{len(found.names())} templates, {wrong} problems")
    if wrong:
        raise typer.Exit(1)


def templates_of(environ: Mapping[str, str], folder: Path | None) -> Templates:
    """
    Return the templates of a folder, or all that a worker with these variables would serve.
    """
    if folder is not None:
        if not folder.is_dir():
            fail(f"{folder} is not a folder", 2)
        return Templates.load([folder])
    try:
        config = settings.load(environ)
    except ConfigInvalid as exc:
        fail(str(exc), 2)
    return Templates.load([shipped(), config.workflow_dir])


def fail(message: str, code: int) -> NoReturn:
    """
    Say why, and end the program.
    """
    typer.secho(message, fg="red", err=True)
    raise typer.Exit(code)


def _graph_of(path: Path) -> Any:
    """
    Return the graph of a file: a bare one, or the one in a job for RunPod or in a body of POST /prompt.
    """
    try:
        raw = load.read_json(path)
    except OSError as exc:
        fail(f"{path} cannot be read: {exc.strerror}", 2)
    except ValueError as exc:
        fail(f"{path} cannot be read: {exc}", 2)
    for keys in (("input", "workflow"), ("prompt",)):
        inner = raw
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and "class_type" not in inner:
            raw = inner
            break
    try:
        return graph.check_shape(raw)
    except WorkerError as exc:
        fail(f"{path}: {exc}", 2)


def _tell_problems(found: Templates) -> None:
    for problem in found.problems:
        typer.echo(str(problem), err=True)


def _refused(found: Templates, url: str) -> list[str]:
    try:
        client = Client(address(url))
    except ValueError as exc:
        fail(f"--url must be {exc}", 2)
    try:
        classes = client.object_info()
    except WorkerError as exc:
        fail(str(exc), 1)
    finally:
        client.close()
    return [
        f"{name}: {text}"
        for name in found.names()
        if (workflow := found.get(name).graph) is not None
        for text in _problems(workflow, classes)
    ]


def _problems(workflow: Workflow, classes: Mapping[str, Any]) -> list[str]:
    verdict = validate(workflow, classes)
    if verdict.node_errors or verdict.error is None:
        return list(refusals.describe(verdict.node_errors, workflow))
    return [str(verdict.error["message"])]


def _show_parameters(template: Template) -> None:
    schema = template.schema()
    required = schema.get("required", [])
    for name, entry in schema.get("properties", {}).items():
        kind = (
            "one of " + ", ".join(map(str, entry["enum"]))
            if "enum" in entry
            else str(entry.get("type", "any"))
        )
        facts = [kind, *(f"{word} {entry[key]}" for key, word in BOUNDS.items() if key in entry)]
        default = json.dumps(entry["default"], ensure_ascii=False) if "default" in entry else "drawn"
        typer.echo(f"  {name:<20} {', '.join(facts):<40} {'required' if name in required else default}")
