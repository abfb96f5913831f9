"""
The manifest of SaladTechnologies/comfyui-api 1.18.0: which models it asks for, and where they go. Of the rest only that it is there.

`{"models": {"before_start": [{"url", "local_path"}], "after_start": [...]}, "apt": [], "pip": [], "custom_nodes": []}`
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from comfy_worker.deadline import Deadline
from comfy_worker.errors import ConfigInvalid
from comfy_worker.models.download import Habits
from comfy_worker.models.fetching import downloader_of
from comfy_worker.models.manifest import Web
from comfy_worker.models.plan import Item
from comfy_worker.settings import Settings

MOST_BYTES = 1 << 20
INSTALLED = ("apt", "pip", "custom_nodes")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=False)


class _Model(_Part):
    url: Web
    local_path: str


class _Models(_Part):
    before_start: tuple[_Model, ...] | None = None
    after_start: tuple[_Model, ...] | None = None


class _Manifest(_Part):
    apt: tuple[str, ...] | None = None
    pip: tuple[str, ...] | None = None
    custom_nodes: tuple[str, ...] | None = None
    models: _Models | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    The files to have before a worker is ready, and those to have some time after.
    """

    before: tuple[Item, ...] = ()
    after: tuple[Item, ...] = ()


def wanted(config: Settings, home: Path | None) -> Wanted:
    """
    Return what MANIFEST or MANIFEST_JSON asks for; nothing without them. Relative paths lie in `home`, ComfyUI's folder.

    Raises:
        ConfigInvalid: it cannot be read, is wrong, or asks for something to be installed.
    """
    if config.manifest is None:
        return Wanted()
    found = _checked(_loaded(config.manifest))
    problems = [
        f"MANIFEST must have no {name!r}: nothing is installed at the start, so build it into the image"
        for name in INSTALLED
        if getattr(found, name)
    ]
    if problems:
        raise ConfigInvalid(problems)
    models = found.models or _Models()
    before, after = (_items(part or (), home) for part in (models.before_start, models.after_start))
    places = [item.to for item in (*before, *after)]
    twice = {str(place) for place in places if places.count(place) > 1}
    if twice:
        raise ConfigInvalid([f"MANIFEST has two things for {', '.join(sorted(twice))}"])
    return Wanted(before, after)


def fetch(config: Settings, items: Sequence[Item], deadline: Deadline) -> None:
    """
    Have the items on the disk, several at once; one that is there is not fetched.

    Raises:
        ModelUnavailable: some could not be had; the text has a line for each.
        JobCancelled: the deadline was cancelled.
    """
    if items:
        downloader_of(config, items, Habits(threads=config.models_threads)).fetch(items, deadline)


def _loaded(given: str) -> Any:
    if given.lstrip().startswith("{"):
        try:
            return json.loads(given)
        except ValueError as exc:
            raise ConfigInvalid([f"Failed to parse MANIFEST_JSON: {exc}"]) from exc
    path = Path(given)
    if path.suffix.lower() not in {".json", ".yaml", ".yml"}:
        raise ConfigInvalid(["Manifest file must be in JSON or YAML format."])
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MOST_BYTES)
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as exc:
        raise ConfigInvalid([f"Manifest file not found at path: {given}"]) from exc
    except (ValueError, RecursionError, yaml.YAMLError) as exc:
        raise ConfigInvalid(["Invalid manifest file format."]) from exc


def _checked(raw: Any) -> _Manifest:
    try:
        return _Manifest.model_validate({} if raw is None else raw)
    except ValidationError as exc:
        problems = [
            f"MANIFEST: {'.'.join(str(part) for part in error['loc']) or 'it'}: {error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors(include_input=False, include_url=False)
        ]
        raise ConfigInvalid(problems) from exc


def _items(models: Sequence[_Model], home: Path | None) -> tuple[Item, ...]:
    return tuple(Item(_title(model.url), model.url, _place(model.local_path, home)) for model in models)


def _title(url: str) -> str:
    return url.partition("?")[0].partition("://")[2]


def _place(text: str, home: Path | None) -> Path:
    path = Path(text)
    if not path.name or ".." in path.parts or "\0" in text or text.endswith("/"):
        raise ConfigInvalid([f"MANIFEST: local_path must be the path of a file without .., not {text!r}"])
    if path.is_absolute():
        return path
    if home is None:
        raise ConfigInvalid([f"COMFY_HOME must be set: MANIFEST has the relative local_path {text!r}"])
    return home / path
