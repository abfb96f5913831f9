"""
What is to be done for a manifest: the files with their URLs and targets, the links, and what a release refuses.

Looks at the disk, changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from comfy_worker.errors import ConfigInvalid, ModelUnavailable
from comfy_worker.models.manifest import Manifest, Snapshot, inside
from comfy_worker.models.tokens import HUGGING_FACE


@dataclass(frozen=True, slots=True)
class Item:
    """
    One file to have: where it comes from, where it goes, what is known of it. `size` is exact, `about` rounded.
    """

    title: str
    url: str
    to: Path
    size: int | None = None
    about: int = 0
    sha256: str | None = None
    gated: bool = False
    repo: str | None = None
    revision: str = "main"
    path: str | None = None

    @property
    def bytes(self) -> int:
        """
        Its size as far as it is known.
        """
        return self.about if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class RepoFile:
    """
    One file of a Hugging Face repository; `sha256` is known of large files only.
    """

    path: str
    size: int
    sha256: str | None


Listing = Callable[[str, str, bool], tuple[str, Sequence[RepoFile]]]
"""(repo, revision, gated) -> the commit, and its files. `hub.listing` makes one."""


@dataclass(frozen=True, slots=True)
class Link:
    """
    A further name of a folder: the relative link `name` beside `target`.
    """

    name: Path
    target: Path


def items(manifest: Manifest, to: Path, listing: Listing, endpoint: str = HUGGING_FACE) -> list[Item]:
    """
    Return every file of a manifest, targets below `to`, in the manifest's order.

    Raises:
        ModelUnavailable: a repository cannot be listed.
    """
    found = []
    for file in manifest.files:
        url = file.url or _resolved(endpoint, str(file.repo), file.revision, str(file.path))
        found.append(
            Item(
                file.title,
                url,
                to / file.dest,
                file.size,
                file.about or 0,
                file.sha256,
                file.gated,
                file.repo,
                file.revision,
                file.path,
            )
        )
    for snapshot in manifest.snapshots:
        found.extend(_of_snapshot(snapshot, to, listing, endpoint))
    return found


def _of_snapshot(snapshot: Snapshot, to: Path, listing: Listing, endpoint: str) -> Iterator[Item]:
    commit, files = listing(snapshot.repo, snapshot.revision, snapshot.gated)
    for file in sorted(files, key=lambda file: file.path):
        try:
            inside(file.path)
        except ValueError as exc:
            raise ModelUnavailable(f"{snapshot.repo} has a file whose path leads out of its folder.") from exc
        yield Item(
            f"{snapshot.repo}/{file.path}",
            _resolved(endpoint, snapshot.repo, commit, file.path),
            to / snapshot.dest / file.path,
            file.size,
            0,
            file.sha256,
            snapshot.gated,
            snapshot.repo,
            commit,
            file.path,
        )


def _resolved(endpoint: str, repo: str, revision: str, path: str) -> str:
    return f"{endpoint.rstrip('/')}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"


def links(manifest: Manifest, to: Path) -> list[Link]:
    """
    Return the further names that folders of a manifest get.
    """
    return [Link(to / link, to / snapshot.dest) for snapshot in manifest.snapshots for link in snapshot.links]


def is_there(item: Item) -> bool:
    """
    Tell whether the target exists with the right size, as far as that is known. Contents are not read.
    """
    try:
        found = item.to.stat().st_size
    except OSError:
        return False
    return item.size is None or found == item.size


def unchecked(manifest: Manifest) -> list[str]:
    """
    Return one sentence for everything whose content nothing vouches for.
    """
    files = [
        f"{file.title} has no sha256: fetch it once, look at what came, and write its checksum into the manifest"
        for file in manifest.files
        if file.sha256 is None
    ]
    folders = [
        f"{snapshot.title} is at the moving revision {snapshot.revision!r}: name a commit"
        for snapshot in manifest.snapshots
        if not snapshot.is_pinned
    ]
    return files + folders


def weak(manifest: Manifest) -> list[str]:
    """
    Return one sentence for every checksum that only one source states.
    """
    return [f"{file.title}: its sha256 was seen in one place only" for file in manifest.files if file.weak]


def shard(found: Sequence[Item], text: str) -> list[Item]:
    """
    Return the `k/n` of the items that is asked for: n parts of about equal size, the same for the same items.

    Raises:
        ConfigInvalid: the text is no such fraction.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigInvalid([f"--shard must be like 1/4, not {text!r}"])
    sizes = [0] * int(of)
    parts: list[list[Item]] = [[] for _ in sizes]
    for item in sorted(found, key=lambda item: (-item.bytes, str(item.to))):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += item.bytes
        parts[smallest].append(item)
    return parts[int(number) - 1]
