"""
The types of parameters that are more than a value: seeds that are drawn, and files that become inputs of the job.
"""

import hashlib
import re
import secrets
from typing import Annotated, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from comfy_worker import graph
from comfy_worker.job import InputFile

SEED_MAX = 2**64 - 1
DRAWN_MAX = 2**53 - 1
"""The largest seed that is drawn: every JSON reader, JavaScript's too, gives it back unchanged."""

NAME_LIMIT = 255
_FILE_NAME = re.compile(r"[^\x00-\x1f]*\.[^/\\.\s]{1,12}(?: \[(?:input|output|temp)\])?")


class SeedMark:
    """
    Marks a field whose value is drawn when it is absent.
    """


class FileMark:
    """
    Marks a field that holds a file: a URL, a data URI, base64, or the name of a file that is there already.
    """

    def __init__(self, *, must_be_image: bool) -> None:
        self.must_be_image = must_be_image


def draw(known_as: str | None = None) -> int:
    """
    Return a seed, 0..2^53-1: by chance, or always the same one for a text.
    """
    if known_as is None:
        return secrets.randbelow(DRAWN_MAX + 1)
    digest = hashlib.sha256(known_as.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") & DRAWN_MAX


Seed = Annotated[int, Field(ge=0, le=SEED_MAX, default_factory=draw), SeedMark()]
"""A whole number; drawn when absent, and told to the caller."""

Image = Annotated[str, Field(min_length=1), FileMark(must_be_image=True)]
"""A picture. The workflow's value is the name of the file."""

File = Annotated[str, Field(min_length=1), FileMark(must_be_image=False)]
"""Any other file, such as a video or a sound."""


def mark_of(info: FieldInfo) -> SeedMark | FileMark | None:
    """
    Return the mark of a model's field, None for a plain value.
    """
    # In `Image | None` the mark is on one part of the annotation.
    parts = [part for part in get_args(info.annotation) if hasattr(part, "__metadata__")]
    found = [*info.metadata, *(entry for part in parts for entry in part.__metadata__)]
    return next((mark for mark in found if isinstance(mark, (SeedMark, FileMark))), None)


def input_file(value: str, field: str, mark: FileMark) -> InputFile | None:
    """
    Return the file that a parameter carries, None when it names one that is there already.

    A name has a dot in it, which base64 never has.
    """
    text = value.strip()
    if text[:8].lower().startswith(graph.URL_SCHEMES):
        return InputFile(_name_of(text, field), field, url=text, must_be_image=mark.must_be_image)
    is_data = text[:5].lower() == "data:"
    if not is_data and len(text) <= NAME_LIMIT and _FILE_NAME.fullmatch(text):
        return None
    return InputFile(_name_of(text, field), field, data=text, must_be_image=mark.must_be_image)


def _name_of(content: str, field: str) -> str:
    # Equal for equal contents, so that a job that is sent again is the same job; no prompt is likely to say it.
    digest = hashlib.sha256(content.encode(errors="replace")).hexdigest()
    return f"{field}-{digest[:16]}"
