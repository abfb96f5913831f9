"""
A manifest's models on the disk: reads it, plans, fetches, links. What the command line and a worker's start share.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from comfy_worker.deadline import Deadline
from comfy_worker.errors import ConfigInvalid, InputUnavailable, ModelUnavailable
from comfy_worker.fetch import Fetcher
from comfy_worker.fetch_guard import Guard
from comfy_worker.models import cached, hub, manifest, plan, volumes
from comfy_worker.models.download import Downloader, Habits, Outcome
from comfy_worker.models.manifest import Manifest
from comfy_worker.models.plan import Item, Link
from comfy_worker.models.tokens import CIVITAI, HUGGING_FACE, Tokens
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

MOST_MANIFEST_BYTES = 1 << 20
SETTING = "MODELS_MANIFEST"


@dataclass(frozen=True, slots=True)
class Done:
    """
    What came of a fetch: the items and what happened to each.
    """

    items: Sequence[Item] = ()
    outcomes: Sequence[Outcome] = field(default_factory=tuple)


def at_start(config: Settings, comfyui: Path | None) -> Done:
    """
    Have the models of MODELS_MANIFEST on the volume; nothing where it is unset. Blocks, at most MODELS_TIMEOUT_S.

    Raises:
        ConfigInvalid: the manifest is wrong, or there is no folder for models.
        ModelUnavailable: some could not be had.
    """
    if config.models_manifest is None:
        return Done()
    folder = volumes.models_folder(config, comfyui)
    if folder is None:
        raise ConfigInvalid(["MODEL_DIR must be set: there is no volume to put models on"])
    deadline = Deadline(config.models_timeout_s)
    wanted = named(config.models_manifest, deadline, allow_private=config.allow_private_urls)
    habits = Habits(threads=config.models_threads)
    return fetch(config, wanted, items_of(config, wanted, folder), folder, deadline, habits)


def named(text: str, deadline: Deadline, *, allow_private: bool) -> Manifest:
    """
    Return the manifest that a setting names: a URL, the TOML itself, a file, or one of the shipped variants.

    Raises:
        ConfigInvalid: it is wrong or not there.
        ModelUnavailable: its URL does not answer with it.
    """
    if re.match(r"https?://", text):
        return manifest.parse(_downloaded(text, deadline, allow_private), SETTING)
    if "=" in text or "\n" in text:
        return manifest.parse(text, SETTING)
    if Path(text).is_file():
        return manifest.read(Path(text))
    return manifest.variant(manifest.shipped(), text)


def _downloaded(url: str, deadline: Deadline, allow_private: bool) -> str:
    fetcher = Fetcher(allow_private=allow_private, allowed_hosts=[urlsplit(url).netloc])
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "manifest.toml")
        try:
            fetcher.fetch(url, target, deadline, field=SETTING, max_bytes=MOST_MANIFEST_BYTES)
        except InputUnavailable as exc:
            raise ModelUnavailable(f"{exc}.") from exc
        return target.read_text(encoding="utf-8", errors="replace")


def items_of(config: Settings, wanted: Manifest, folder: Path) -> list[Item]:
    """
    Return the files of a manifest; repositories are listed at their host.

    Raises:
        ModelUnavailable: a repository cannot be listed.
    """
    endpoint = config.hf_endpoint or HUGGING_FACE
    token = config.hf_token.get_secret_value() if config.hf_token else None
    return plan.items(wanted, folder, hub.listing(token, endpoint), endpoint)


def fetch(
    config: Settings,
    wanted: Manifest,
    items: Sequence[Item],
    folder: Path,
    deadline: Deadline,
    habits: Habits,
) -> Done:
    """
    Have `items` of a manifest on the disk, and its links below `folder`.

    Raises:
        ModelUnavailable: some could not be had; the text has a line for each.
        JobCancelled: the deadline was cancelled.
    """
    downloader = downloader_of(config, items, habits)
    downloader.check_tokens(items)
    for text in (*plan.unchecked(wanted), *plan.weak(wanted)):
        logger.warning("%s.", text)
    outcomes = downloader.fetch(items, deadline)
    for link in plan.links(wanted, folder):
        _make(link)
    return Done(items, outcomes)


def downloader_of(config: Settings, items: Sequence[Item], habits: Habits) -> Downloader:
    """
    Return a downloader for the hosts of these items: those the operator named may be private, others may not.
    """
    hosts = {urlsplit(item.url).netloc for item in items}
    guard = Guard(allow_private=config.allow_private_urls, allowed_hosts=hosts)
    roots = volumes.roots(config.volume_roots)

    def in_cache(item: Item) -> Path | None:
        if item.repo is None or item.path is None:
            return None
        return cached.find(roots, item.repo, item.revision, item.path, size=item.size, sha256=item.sha256)

    return Downloader(tokens_of(config), guard, habits, cached=in_cache)


def tokens_of(config: Settings) -> Tokens:
    """
    Return the tokens of the settings, each for its own host.
    """
    return Tokens({config.hf_endpoint or HUGGING_FACE: config.hf_token, CIVITAI: config.civitai_token})


def _make(link: Link) -> None:
    # Two workers may do so at once; a relative link is right wherever the volume is mounted.
    if not link.target.is_dir() or link.name.exists():
        return
    with _known_failure(link):
        link.name.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            link.name.symlink_to(os.path.relpath(link.target, link.name.parent))


@contextlib.contextmanager
def _known_failure(link: Link) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ModelUnavailable(f"{link.name.name} could not be made a link to {link.target.name}.") from exc
