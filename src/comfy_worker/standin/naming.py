"""
Where files lie and what they are called: annotated names, prefixes with variables, counters, temp names.

Follows ComfyUI 0.27.0 as observed. Nothing is read or written here but folder listings.
"""

import os
import re
import secrets
import string
import time
from dataclasses import dataclass
from pathlib import Path

from comfy_worker.standin.node import Folders

_KINDS = ("output", "input", "temp")


@dataclass(frozen=True, slots=True)
class Target:
    """
    Where the files of one save go: `folder` on disk, `subfolder` and `stem` on the wire, the first free `counter`.
    """

    folder: Path
    subfolder: str
    stem: str
    counter: int

    def name(self, index: int, extension: str, tail: str = "_") -> str:
        """
        Return the file name of picture `index` of a batch; audio files have an empty `tail`.
        """
        stem = self.stem.replace("%batch_num%", str(index))
        return f"{stem}_{self.counter + index:05}{tail}.{extension}"

    def literal_name(self, extension: str) -> str:
        """
        Return the name of a file that is not one of a batch: `%batch_num%` stays as it is.
        """
        return f"{self.stem}_{self.counter:05}_.{extension}"


def annotated(name: str, folders: Folders, default: str = "input") -> tuple[Path, Path]:
    """
    Return the folder that `name` speaks of and the file in it; `a.png [temp]` lies in the temp folder.
    """
    # Whatever stands before the bracket goes with it, as with ComfyUI, which expects a space there.
    found = next((kind for kind in _KINDS if name.endswith(f"[{kind}]")), None)
    bare, kind = (name[: -len(f" [{found}]")], found) if found else (name, default)
    folder = {"input": folders.input, "output": folders.output, "temp": folders.temp}[kind]
    return folder, folder / bare


def exists_inside(name: str, folders: Folders) -> bool:
    """
    Say whether `name` is a file or folder whose resolved place, symbolic links followed, is inside its folder.
    """
    folder, path = annotated(name, folders)
    path = Path(os.path.abspath(path))
    try:
        return path.resolve().is_relative_to(folder.resolve()) and os.path.exists(path)
    except (OSError, ValueError):
        return False


def target(prefix: str, root: Path, width: int = 0, height: int = 0) -> Target:
    """
    Make the folder that `prefix` asks for under `root` and return where the next file goes.

    Raises:
        Exception: the folder is not inside `root`; bare, since clients see the type's name.
    """
    path = os.path.normpath(_expanded(prefix, width, height))
    subfolder, stem = os.path.split(path)
    base = os.path.abspath(root)
    folder = os.path.abspath(os.path.join(base, subfolder))
    common = os.path.commonpath((base, folder))
    if common != base:
        raise Exception(_outside(folder, base, common))
    os.makedirs(folder, exist_ok=True)
    return Target(Path(folder), subfolder, stem, _next_counter(folder, stem))


def temp_prefix(stem: str = "ComfyUI") -> str:
    """
    Return a prefix for files of the temp folder: `<stem>_temp_<five letters>`.
    """
    return f"{stem}_temp_" + "".join(secrets.choice(string.ascii_lowercase) for _ in range(5))


def _expanded(prefix: str, width: int, height: int) -> str:
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    values = {
        "width": str(width),
        "height": str(height),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def _next_counter(folder: str, stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"_(\d+)(?:[_.].*)?", re.DOTALL)
    found = (pattern.fullmatch(name) for name in os.listdir(folder) if name.startswith(stem))
    return max((int(match[1]) for match in found if match), default=0) + 1


def _outside(folder: str, base: str, common: str) -> str:
    # Word for word what ComfyUI sends: clients tell this failure from others by its text.
    facts = f"\n full_output_folder: {folder}\n         output_dir: {base}\n         commonpath: {common}"
    return f"**** ERROR: Saving image outside the output folder is not allowed.{facts}"
