"""
What a manifest says: models to fetch and, for an image, what is built around them. Pure: text in, a checked object out.

The fields are explained in docs/howto/add-a-variant.md.
"""

import re
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from comfy_worker.errors import ConfigInvalid

COMMIT = re.compile(r"[0-9a-f]{40}")
SUFFIX = ".toml"


def inside(text: str) -> str:
    """
    Return a relative path that stays where it is put.

    Raises:
        ValueError: it does not.
    """
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or "\\" in text or not text.isprintable():
        raise ValueError("must be a path inside the models folder, with / and without ..")
    return str(path)


def _web(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@:]+(:\d{1,5})?/\S*", text):
        raise ValueError("must be an http(s) URL with a path and without a user")
    return text


def _repo(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise ValueError("must be owner/name")
    return text


Inside = Annotated[str, AfterValidator(inside)]
Web = Annotated[str, AfterValidator(_web)]
Repo = Annotated[str, AfterValidator(_repo)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Bytes = Annotated[int, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class File(_Strict):
    """
    One file: `path` in a Hugging Face `repo`, or a `url`. `dest` is below the models folder.

    `size` is exact; `about` is rounded and serves only for totals. `weak` marks a checksum that one source alone states.
    """

    repo: Repo | None = None
    revision: str = "main"
    path: Inside | None = None
    url: Web | None = None
    dest: Inside
    size: Bytes | None = None
    about: Bytes | None = None
    sha256: Sha256 | None = None
    weak: bool = False
    gated: bool = False
    licence: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "File":
        if (self.url is None) == (self.repo is None or self.path is None):
            raise ValueError("needs repo and path, or url, and not both")
        return self

    @property
    def title(self) -> str:
        """
        What it is, for messages: repository and path, or the host and the name. No query.
        """
        if self.url is None:
            return f"{self.repo}/{self.path}"
        return self.url.partition("?")[0].partition("://")[2]

    @property
    def bytes(self) -> int:
        """
        Its size as far as it is known, 0 when it is not.
        """
        return self.size or self.about or 0


class Snapshot(_Strict):
    """
    Every file of a Hugging Face repository, into the folder `dest`; `links` are further names beside it.
    """

    repo: Repo
    revision: str = "main"
    dest: Inside
    links: tuple[Inside, ...] = ()
    about: Bytes | None = None
    gated: bool = False
    licence: str = ""

    @property
    def title(self) -> str:
        """
        What it is, for messages.
        """
        return self.repo

    @property
    def is_pinned(self) -> bool:
        """
        Whether the revision is a commit, whose files never change.
        """
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def bytes(self) -> int:
        """
        Its size as far as it is known, 0 when it is not.
        """
        return self.about or 0


class Node(_Strict):
    """
    A custom node pack: a git repository, and the commit that is installed.
    """

    url: Web
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    licence: str = ""


class Gpu(_Strict):
    """
    Hints for an endpoint: memory of the GPU, RunPod's GPU pools, room on the container's disk.
    """

    vram_gb: int | None = None
    pools: tuple[str, ...] = ()
    disk_gb: int | None = None


class Manifest(_Strict):
    """
    A whole manifest. Only `files` and `snapshots` matter to the fetcher; the rest describes an image variant.

    `token`: nothing in it is marked as gated, and a Hugging Face token is of use all the same.
    """

    title: str = ""
    publish: bool = False
    example: Inside | None = None
    notes: tuple[str, ...] = ()
    token: bool = False
    gpu: Gpu = Gpu()
    files: tuple[File, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    nodes: tuple[Node, ...] = ()
    packages: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Manifest":
        links = [link for snapshot in self.snapshots for link in snapshot.links]
        names = [*(file.dest for file in self.files), *(item.dest for item in self.snapshots), *links]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"has two things for {', '.join(sorted(twice))}")
        return self

    @property
    def gated(self) -> bool:
        """
        Whether something in it needs a token.
        """
        return any(file.gated for file in self.files) or any(item.gated for item in self.snapshots)

    @property
    def wants_token(self) -> bool:
        """
        Whether a build is given a Hugging Face token.
        """
        return self.token or self.gated

    @property
    def bytes(self) -> int:
        """
        Size of all models as far as it is known.
        """
        return sum(file.bytes for file in self.files) + sum(item.bytes for item in self.snapshots)


def parse(text: str, source: str) -> Manifest:
    """
    Read TOML; `source` is what messages call it.

    Raises:
        ConfigInvalid: it is no TOML, or a field is missing, unknown or wrong; every one is named.
    """
    try:
        return Manifest.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigInvalid([f"{source} is not valid TOML: {exc}"]) from exc
    except ValidationError as exc:
        raise ConfigInvalid([_problem(source, error) for error in exc.errors(include_input=False)]) from exc


def read(path: Path) -> Manifest:
    """
    Read a manifest file.

    Raises:
        ConfigInvalid: it cannot be read, or is wrong.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigInvalid([f"{path.name} cannot be read as a manifest"]) from exc


def shipped() -> Path:
    """
    Return the folder of the variants: `models/` beside the sources, or in the environment that the worker runs in.
    """
    beside = Path(__file__).resolve().parents[3] / "models"
    return beside if beside.is_dir() else Path(sys.prefix) / "models"


def variants(folder: Path) -> dict[str, Manifest]:
    """
    Return every manifest of a folder by its variant's name, which is its file's.

    Raises:
        ConfigInvalid: one of them is wrong.
    """
    return {
        path.name.removesuffix(SUFFIX): read(path)
        for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stem)
    }


def variant(folder: Path, name: str) -> Manifest:
    """
    Return the manifest of one variant.

    Raises:
        ConfigInvalid: there is none of that name, or it is wrong.
    """
    known = sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))
    if name not in known:
        raise ConfigInvalid([f"there is no variant {name!r}; there are {', '.join(known)}"])
    return read(folder / f"{name}{SUFFIX}")


def _problem(source: str, error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    return f"{source}: {f'{place}: ' if place else ''}{message}"
