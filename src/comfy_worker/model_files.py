"""
ComfyUI's folders of models, where files of the cache are linked into place.

A link is made by us or replaced by us; a file that somebody put there is never touched.
"""

import os
import re
import unicodedata
import uuid
from pathlib import Path, PurePosixPath

from comfy_worker.errors import JobFailed, JobInvalid

BAD_CHARS = re.compile(r'[\x00-\x1f\x7f/\\:<>"|?*]')
DEVICES = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)
NAME_BYTES = 255
BAD_NAME = "Invalid download filename: expected a single file name"


def checked_name(name: str) -> str:
    """
    Return the name when it is that of one file, as given and in its compatible form.

    Raises:
        JobInvalid: it is not.
    """
    for text in (name, unicodedata.normalize("NFKC", name)):
        bad = (
            not text.strip()
            or len(text.encode(errors="replace")) > NAME_BYTES
            or BAD_CHARS.search(text)
            or text.endswith((".", " "))
            or DEVICES.fullmatch(text)
            or any(0xD800 <= ord(char) <= 0xDFFF for char in text)
        )
        if bad:
            raise JobInvalid(BAD_NAME, field="filename")
    return name


class ModelFiles:
    """
    The tree below MODEL_DIR: one folder per type of model. `root` need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def types(self) -> tuple[str, ...]:
        """
        Return the types that have a folder, in order.
        """
        try:
            return tuple(sorted(path.name for path in self._root.iterdir() if path.is_dir()))
        except OSError:
            return ()

    def names(self, type_: str) -> list[str]:
        """
        Return the files of one type, in order; ComfyUI's own place holders are left out.
        """
        folder = self._root / type_
        try:
            found = [path for path in folder.rglob("*") if path.is_file()]
        except OSError:
            return []
        names = (path.relative_to(folder).as_posix() for path in found)
        return sorted(name for name in names if not re.fullmatch(r"put_.*_here", PurePosixPath(name).name))

    def link(self, type_: str, name: str, target: Path) -> Path:
        """
        Make `name` in the folder of a type lead to `target`; a link that we made before is replaced at once.

        Raises:
            JobInvalid: there is a file of that name.
            JobFailed: the link cannot be made.
        """
        place = self._root / type_ / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists() and not place.is_symlink():
                raise JobInvalid(
                    "Download destination already exists: a file of this name is not a download",
                    field="filename",
                )
            fresh = place.with_name(f".{uuid.uuid4().hex}.link")
            fresh.symlink_to(target.absolute())
            os.replace(fresh, place)
        except OSError as exc:
            raise JobFailed("The model could not be linked into MODEL_DIR: it cannot be written to.") from exc
        return place

    def drop_links_to(self, target: Path) -> None:
        """
        Remove the links that lead to a file which is about to go.
        """
        for folder in self.types():
            for path in (self._root / folder).glob("*"):
                if path.is_symlink() and path.readlink() == target.absolute():
                    path.unlink(missing_ok=True)
