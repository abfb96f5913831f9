"""
`comfy-worker models`: list the variants, fetch the models of one, check what is there. Reads the environment.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from comfy_worker import log, settings
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ConfigInvalid, JobFailed, ModelUnavailable
from comfy_worker.models import fetching, manifest, plan, transfer
from comfy_worker.models.download import Habits
from comfy_worker.models.manifest import Manifest
from comfy_worker.models.plan import Item
from comfy_worker.settings import Settings

SECRETS = Path("/run/secrets")
BUILD_TIMEOUT_S = 6 * 3600.0

app = typer.Typer(help="Models of an image variant, or of a manifest of your own.", no_args_is_help=True)

Variant = Annotated[str | None, typer.Option(help="An image variant, a file of models/.")]
Own = Annotated[Path | None, typer.Option("--manifest", help="A manifest of your own, instead of a variant.")]
To = Annotated[Path, typer.Option("--to", help="The models folder.")]
Folder = Annotated[Path | None, typer.Option("--manifests", help="The folder of the variants.")]


@app.command("list")
def list_(manifests: Folder = None, variant: Variant = None) -> None:
    """
    List the variants, or the files of one.
    """
    with _told():
        if variant is None:
            for name, found in manifest.variants(manifests or manifest.shipped()).items():
                token = "token" if found.wants_token else ""
                typer.echo(f"{name:<24}{found.bytes / 1e9:>7.1f} GB  {token:<7}{found.title}")
            return
        found = manifest.variant(manifests or manifest.shipped(), variant)
        for file in found.files:
            check = "weak" if file.weak else "checked" if file.sha256 else "unchecked"
            typer.echo(f"{file.dest:<60}{file.bytes / 1e9:>7.1f} GB  {check:<10}{file.title}")
        for snapshot in found.snapshots:
            typer.echo(f"{snapshot.dest + '/':<60}{snapshot.bytes / 1e9:>7.1f} GB  {'':<10}{snapshot.title}")


@app.command()
def fetch(
    to: To,
    variant: Variant = None,
    own: Own = None,
    manifests: Folder = None,
    release: Annotated[bool, typer.Option(help="Refuse what has no checksum.")] = False,
    shard: Annotated[
        str, typer.Option(help="Fetch one part of n, like 2/4, for layers of a bearable size.")
    ] = "1/1",
    threads: Annotated[int, typer.Option(min=1, max=32, help="Files at once.")] = 4,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be fetched.")] = False,
) -> None:
    """
    Fetch the models of a variant. HF_TOKEN and CIVITAI_TOKEN are read from the environment or from /run/secrets.
    """
    with _told():
        config = _settings()
        wanted = _wanted(variant, own, manifests)
        _judge(wanted, release=release)
        items = plan.shard(fetching.items_of(config, wanted, to), shard)
        if dry_run:
            for item in items:
                typer.echo(
                    f"{'there' if plan.is_there(item) else 'to fetch':<10}{item.bytes / 1e9:>7.1f} GB  {item.title}"
                )
            return
        habits = Habits(threads=threads, verify=True)
        done = fetching.fetch(
            config, wanted, items, to, Deadline(max(BUILD_TIMEOUT_S, config.models_timeout_s)), habits
        )
        _make_folders(wanted, to)
        total = sum(item.to.stat().st_size for item in done.items)
        typer.echo(
            f"{len(done.items)} files, {total / 1e9:.1f} GB, {done.outcomes.count('there')} of them were there."
        )


@app.command()
def check(to: To, variant: Variant = None, own: Own = None, manifests: Folder = None) -> None:
    """
    Compare what is there with the manifest: names, sizes and checksums. Ends with 1 when something is wrong.
    """
    with _told():
        wanted = _wanted(variant, own, manifests)
        problems = 0
        for item in fetching.items_of(_settings(), wanted, to):
            verdict = _verdict(item)
            problems += verdict != "ok"
            typer.echo(f"{verdict:<24}{item.title}")
    if problems:
        raise typer.Exit(1)


def _verdict(item: Item) -> str:
    if not item.to.is_file():
        return "missing"
    if not plan.is_there(item):
        return "wrong size"
    if item.sha256 is None:
        return "ok"
    return "ok" if transfer.sha256_of(item, lambda _: None) == item.sha256 else "wrong checksum"


def _wanted(variant: str | None, own: Path | None, manifests: Path | None) -> Manifest:
    if (variant is None) == (own is None):
        raise ConfigInvalid(["give --variant or --manifest, one of the two"])
    if own is not None:
        return manifest.read(own)
    return manifest.variant(manifests or manifest.shipped(), str(variant))


def _judge(wanted: Manifest, *, release: bool) -> None:
    unchecked = plan.unchecked(wanted)
    if release and unchecked:
        raise ConfigInvalid([*unchecked, "without --release it is fetched all the same"])


def _make_folders(wanted: Manifest, to: Path) -> None:
    # Derived images put files beside the variant's, so the usual folders exist even when they are empty.
    if wanted.files or wanted.snapshots:
        names = ("checkpoints", "vae", "unet", "clip", "text_encoders", "diffusion_models", "model_patches")
        for name in names:
            (to / name).mkdir(parents=True, exist_ok=True)


def _settings() -> Settings:
    config = settings.load(os.environ)
    log.configure(config.log_level, as_json=False)
    config = replace(
        config,
        hf_token=config.hf_token or secret("HF_TOKEN"),
        civitai_token=config.civitai_token or secret("CIVITAI_TOKEN"),
    )
    log.MASK.add(config.secrets())
    return config


def secret(name: str, folder: Path = SECRETS) -> SecretStr | None:
    """
    Return a secret that a build has mounted as a file; None without the file, and for an empty or blank one.
    """
    try:
        text = (folder / name).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return SecretStr(text) if text else None


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ConfigInvalid, ModelUnavailable, JobFailed) as exc:
        typer.echo(log.MASK.text(str(exc)), err=True)
        sys.exit(2 if isinstance(exc, ConfigInvalid) else 1)
