"""
Models that RunPod has cached on the machine, in the layout of a Hugging Face cache, found and linked into place.

`<volume>/huggingface-cache/hub/models--<owner>--<name>/{refs/<revision>, snapshots/<commit>/<path>}`
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_worker.settings_parsers import CACHED

logger = logging.getLogger(__name__)

HUB = Path("huggingface-cache", "hub")
SHA256_LENGTH = 64


@dataclass(frozen=True, slots=True)
class CachedModel:
    """
    `path` of a repository, or all of it (`.`), that shall be at `target` below the models folder.
    """

    repo: str
    revision: str
    path: str
    target: str

    @classmethod
    def of(cls, text: str) -> "CachedModel":
        """
        Read `owner/name[@revision]:path -> category[/name]`.
        """
        match = CACHED.fullmatch(text)
        if match is None:
            raise ValueError(text)
        return cls(match["repo"], match["revision"] or "main", match["path"], match["target"].strip())


def linked(wanted: Sequence[CachedModel], volumes: Sequence[Path], folder: Path) -> int:
    """
    Link every wanted model that is cached into `folder`; return how many are. One that is not is a warning.
    """
    count = 0
    for model in wanted:
        source = find(volumes, model.repo, model.revision, model.path)
        if source is None:
            logger.warning("%s:%s is not in the model cache of this machine.", model.repo, model.path)
            continue
        target = folder / (model.target if "/" in model.target else f"{model.target}/{source.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source)
        count += 1
    return count


def find(
    volumes: Sequence[Path],
    repo: str,
    revision: str,
    path: str,
    *,
    size: int | None = None,
    sha256: str | None = None,
) -> Path | None:
    """
    Return a file or folder of a cached repository, None where it is not cached or has another size or checksum.

    The cache names a large file's content by its sha256, so that nothing has to be read.
    """
    for snapshot in _snapshots(volumes, repo, revision):
        found = snapshot / path
        if not found.exists():
            continue
        if size is not None and found.stat().st_size != size:
            continue
        content = found.resolve().name
        if sha256 is not None and len(content) == SHA256_LENGTH and content != sha256:
            continue
        return found.absolute()
    return None


def _snapshots(volumes: Sequence[Path], repo: str, revision: str) -> Iterator[Path]:
    wanted = f"models--{repo.replace('/', '--')}".lower()
    for volume in volumes:
        hub = volume / HUB
        for folder in sorted(hub.iterdir()) if hub.is_dir() else ():
            if folder.name.lower() == wanted:
                yield from _snapshot(folder, revision)


def _snapshot(folder: Path, revision: str) -> Iterator[Path]:
    reference = folder / "refs" / revision
    all_of_them = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    if reference.is_file():
        yield folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
    elif (folder / "snapshots" / revision).is_dir():
        yield folder / "snapshots" / revision
    elif revision == "main" and len(all_of_them) == 1:
        yield all_of_them[0]
