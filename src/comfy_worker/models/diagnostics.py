"""
What lies on the volumes beside what ComfyUI says it sees, as lines for the log (NETWORK_VOLUME_DEBUG).

Names of files and folders only: no environment, no setting.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from comfy_worker.models.volumes import FOLDERS, Section, roots, sections
from comfy_worker.settings import Settings

MOST_FILES = 2000
SHOWN = 20

Names = Callable[[str], Sequence[str]]
"""category -> the names ComfyUI lists, `GET /models/<category>`; empty for one it does not know."""


def report(config: Settings, comfyui: Path | None, names: Names) -> Iterator[str]:
    """
    Yield the lines of the report.
    """
    volumes = roots(config.volume_roots)
    for path in config.volume_roots:
        yield f"Volume {path}: {'there' if path.is_dir() else 'not there'}."
    for section in sections(config, volumes, comfyui):
        yield from _section(section, names)
    if not volumes:
        yield "No volume is attached: ComfyUI has the models of its own folder only."


def _section(section: Section, names: Names) -> Iterator[str]:
    if not section.models.is_dir():
        yield f"{section.models} is not there: put models into {section.models}/checkpoints, {section.models}/loras and so on."
        return
    empty = True
    for category, folders in FOLDERS.items():
        if folders == (".",):
            continue
        files = [name for folder in folders for name in _files(section.models / folder)]
        if files:
            empty = False
            yield _line(section, category, files, frozenset(names(category)))
    if empty:
        yield f"{section.models} has no file in any folder that ComfyUI reads."


def _line(section: Section, category: str, files: Sequence[str], listed: frozenset[str]) -> str:
    unseen = [name for name in files if name not in listed]
    text = f"{section.models}: {category}: {len(files)} files, {len(files) - len(unseen)} of them seen by ComfyUI"
    if unseen:
        more = f" and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
        return f"{text}; not seen: {', '.join(unseen[:SHOWN])}{more}."
    return f"{text}."


def _files(folder: Path) -> list[str]:
    found: list[str] = []
    for place, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names if name[0] != "."]
        if len(found) >= MOST_FILES:
            break
    return found[:MOST_FILES]
