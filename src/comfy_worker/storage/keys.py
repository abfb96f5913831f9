"""
What objects are called: pure, the same for every store that has keys.
"""

import uuid
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from comfy_worker.job import Artifact, Bucket


class Named(Protocol):
    """
    A file that ComfyUI made, by its name: an artifact or an output.
    """

    @property
    def filename(self) -> str:
        """
        The last part of its name.
        """

    @property
    def subfolder(self) -> str:
        """
        The folder it was saved in, empty for none.
        """


def names_of(files: Sequence[Named]) -> list[str]:
    """
    Return what files are called among themselves: the file's name, with its folder where an earlier one has the same.
    """
    names: list[str] = []
    for file in files:
        name, number = file.filename, 1
        if name in names and file.subfolder:
            name = f"{file.subfolder}/{name}"
        while name in names:
            number += 1
            name = f"{number}_{file.filename}"
        names.append(name)
    return names


def plan(
    bucket: Bucket,
    job_id: str,
    artifacts: Sequence[Artifact],
    random_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> list[str]:
    """
    Return one key per artifact, in order, no two alike.

    A plain bucket: `<prefix><name>`, both as they are. With a bucket name: `[<prefix>/]<job_id>/[<subfolder>/]<file name>`, where the second file of a name gets its node's
    id in front. Without one, the legacy layout: `<job_id>/<8 hex digits><extension>`.
    """
    if bucket.plain:
        return [f"{bucket.prefix}{name}" for name in names_of(artifacts)]
    if bucket.bucket is None:
        return [
            f"{_path(job_id) or 'job'}/{random_id()[:8]}{_suffix(artifact.filename)}"
            for artifact in artifacts
        ]
    keys: list[str] = []
    folder = "/".join(part for part in (_path(bucket.prefix), _path(job_id) or "job") if part)
    for artifact in artifacts:
        keys.append(_free(folder, artifact, frozenset(keys)))
    return keys


def _free(folder: str, artifact: Artifact, taken: frozenset[str]) -> str:
    name = _path(artifact.filename).replace("/", "_") or "file"
    parent = "/".join(part for part in (folder, _path(artifact.subfolder)) if part)
    named = f"{_path(artifact.node_id).replace('/', '_')}_{name}"
    if f"{parent}/{name}" not in taken:
        return f"{parent}/{name}"
    number = 1
    while (key := f"{parent}/{named if number == 1 else f'{number}_{named}'}") in taken:
        number += 1
    return key


def _path(text: str) -> str:
    """
    Return `text` as a relative path that no reader of keys can take for another folder.
    """
    clean = "".join("_" if letter == "\\" or not letter.isprintable() else letter for letter in text)
    return "/".join(part for part in clean.split("/") if part not in {"", ".", ".."})


def _suffix(filename: str) -> str:
    return PurePosixPath(_path(filename)).suffix or ".png"
