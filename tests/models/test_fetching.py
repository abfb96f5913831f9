"""
From a manifest to models on the disk: at a worker's start and at the command line, on hosts of this machine.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.model_host import Entry, ModelHost

from comfy_worker.deadline import Deadline
from comfy_worker.errors import ConfigInvalid, ModelUnavailable
from comfy_worker.models import cli, fetching, hub
from comfy_worker.settings import Settings

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
TOKEN = "hf_marker_of_this_test"
COMMIT = "c" * 40
FILE = f'repo = "owner/name", path = "m.bin", dest = "vae/m.bin", size = {len(BODY)}, sha256 = "{SHA256}"'
MANIFEST = f"files = [{{{FILE}}}]"
SNAPSHOT = 'snapshots = [{repo = "owner/big", dest = "Big", links = ["Big-v2"]}]'


@pytest.fixture
def host() -> Iterator[ModelHost]:
    """
    A stand-in for Hugging Face with one file and one whole repository.
    """
    with ModelHost() as running:
        running.files["/owner/name/resolve/main/m.bin"] = Entry(BODY)
        listing = {
            "id": "owner/big",
            "sha": COMMIT,
            "siblings": [
                {"rfilename": "config.json", "size": 2},
                {"rfilename": "empty.txt", "size": 0},
                {
                    "rfilename": "sub/w.bin",
                    "size": len(BODY),
                    "lfs": {"sha256": SHA256, "size": len(BODY), "pointerSize": 134},
                },
            ],
        }
        running.files["/api/models/owner/big/revision/main"] = Entry(json.dumps(listing).encode())
        for path, body in (("config.json", b"{}"), ("empty.txt", b""), ("sub/w.bin", BODY)):
            running.files[f"/owner/big/resolve/{COMMIT}/{path}"] = Entry(body)
        yield running


def config_of(host: ModelHost, volume: Path, **fields: Any) -> Settings:
    """
    Return settings for a worker with a volume and that host as Hugging Face.
    """
    known: dict[str, Any] = {"models_manifest": MANIFEST, "hf_endpoint": host.url, "volume_roots": (volume,)}
    return Settings(**(known | fields))


# At the start.


def test_models_are_on_the_volume_before_the_first_job(host: ModelHost, tmp_path: Path) -> None:
    """
    An inline manifest brings its file below `models` of the volume; a second start fetches nothing.
    """
    config = config_of(host, tmp_path)

    first = fetching.at_start(config, None)
    second = fetching.at_start(config, None)

    assert (tmp_path / "models" / "vae" / "m.bin").read_bytes() == BODY
    assert (first.outcomes, second.outcomes) == (["fetched"], ["there"])
    assert len(host.requests) == 1


def test_without_a_manifest_nothing_happens(tmp_path: Path) -> None:
    """
    A worker without MODELS_MANIFEST makes no folder and no request.
    """
    assert fetching.at_start(Settings(volume_roots=(tmp_path,)), None).items == ()
    assert list(tmp_path.iterdir()) == []


def test_manifest_may_be_a_file_or_a_url(host: ModelHost, tmp_path: Path) -> None:
    """
    The same manifest works from a path and from a URL, which is not given a token.
    """
    (tmp_path / "mine.toml").write_text(MANIFEST)
    host.files["/mine.toml"] = Entry(MANIFEST.encode())
    token = SecretStr(TOKEN)

    for place in (str(tmp_path / "mine.toml"), f"{host.url}/mine.toml"):
        volume = tmp_path / hashlib.sha256(place.encode()).hexdigest()
        volume.mkdir()
        fetching.at_start(config_of(host, volume, models_manifest=place, hf_token=token), None)
        assert (volume / "models" / "vae" / "m.bin").is_file()

    headers = next(headers for path, headers in host.requests if path == "/mine.toml")
    assert "authorization" not in headers


def test_manifest_may_be_a_variant() -> None:
    """
    The name of a shipped variant is enough to put its models onto a volume.
    """
    found = fetching.named("sdxl", Deadline(5), allow_private=False)

    assert next(file.dest for file in found.files) == "checkpoints/sd_xl_base_1.0.safetensors"


def test_missing_manifest_is_a_sentence(host: ModelHost) -> None:
    """
    A URL that does not answer, and a text that names nothing, say so.
    """
    with pytest.raises(ModelUnavailable, match=r"'MODELS_MANIFEST' could not be fetched from .*404"):
        fetching.named(f"{host.url}/gone.toml?key=query-marker", Deadline(5), allow_private=False)
    with pytest.raises(ConfigInvalid, match="there is no variant 'gone'; there are base"):
        fetching.named("gone", Deadline(5), allow_private=False)


def test_models_go_to_the_folder_that_is_set(host: ModelHost, tmp_path: Path) -> None:
    """
    MODEL_DIR wins over the volume, the volume over ComfyUI's own folder, and without any the setting is named.
    """
    own = tmp_path / "own"
    comfyui = tmp_path / "ComfyUI"

    fetching.at_start(config_of(host, tmp_path, model_dir=own), comfyui)
    fetching.at_start(config_of(host, tmp_path / "nowhere"), comfyui)

    assert (own / "vae" / "m.bin").is_file()
    assert (comfyui / "models" / "vae" / "m.bin").is_file()
    with pytest.raises(ConfigInvalid, match="MODEL_DIR must be set"):
        fetching.at_start(config_of(host, tmp_path / "nowhere"), None)


def test_token_of_hugging_face_goes_to_its_endpoint_only(host: ModelHost, tmp_path: Path) -> None:
    """
    HF_TOKEN reaches the repository's host, and CIVITAI_TOKEN and HF_TOKEN no other.
    """
    with ModelHost() as other:
        other.files["/x.bin"] = Entry(BODY)
        text = f'files = [{{{FILE}}}, {{url = "{other.url}/x.bin", dest = "vae/x.bin"}}]'
        host.files["/owner/name/resolve/main/m.bin"].token = TOKEN
        config = config_of(
            host,
            tmp_path,
            models_manifest=text,
            hf_token=SecretStr(TOKEN),
            civitai_token=SecretStr("civitai-marker"),
        )

        fetching.at_start(config, None)

        assert "authorization" not in other.requests[0][1]
    assert (tmp_path / "models" / "vae" / "x.bin").read_bytes() == BODY


def test_cached_model_saves_the_download(host: ModelHost, tmp_path: Path) -> None:
    """
    What RunPod has cached is linked to where the manifest wants it.
    """
    snapshot = tmp_path / "huggingface-cache" / "hub" / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "m.bin").write_bytes(BODY)

    done = fetching.at_start(config_of(host, tmp_path), None)

    assert done.outcomes == ["linked"]
    assert (tmp_path / "models" / "vae" / "m.bin").read_bytes() == BODY
    assert host.requests == []


# Whole repositories.


def test_whole_repository_comes_with_its_links(host: ModelHost, tmp_path: Path) -> None:
    """
    Every file of the listed commit is there, large ones checked, and the folder has its second name.
    """
    fetching.at_start(config_of(host, tmp_path, models_manifest=SNAPSHOT), None)

    models = tmp_path / "models"
    assert (models / "Big" / "config.json").read_bytes() == b"{}"
    assert (models / "Big" / "empty.txt").read_bytes() == b""
    assert (models / "Big" / "sub" / "w.bin").read_bytes() == BODY
    assert os.readlink(models / "Big-v2") == "Big"
    assert sorted(path.name for path in models.iterdir()) == ["Big", "Big-v2"]


def test_spoilt_file_of_a_repository_is_refused(host: ModelHost, tmp_path: Path) -> None:
    """
    The checksum of the listing counts like one of a manifest.
    """
    host.files[f"/owner/big/resolve/{COMMIT}/sub/w.bin"].body = BODY[::-1]

    with pytest.raises(ModelUnavailable, match=r"owner/big/sub/w\.bin: what came has sha256"):
        fetching.at_start(config_of(host, tmp_path, models_manifest=SNAPSHOT), None)

    assert not (tmp_path / "models" / "Big" / "sub" / "w.bin").exists()


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "does not show this repository"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no revision 'main'"),
        (403, {"X-Error-Code": "GatedRepo"}, "does not show this repository"),
        (500, {}, "its files could not be listed"),
    ],
)
def test_repository_that_cannot_be_listed_is_a_sentence(
    host: ModelHost, status: int, headers: dict[str, str], sentence: str
) -> None:
    """
    What Hugging Face says about a repository becomes one sentence of ours, without the token.
    """
    host.files["/api/models/owner/big/revision/main"] = Entry(b"", statuses=[status] * 9, headers=headers)

    with pytest.raises(ModelUnavailable, match=sentence) as caught:
        hub.listing(TOKEN, host.url)("owner/big", "main", False)

    assert str(caught.value).startswith("owner/big: ")
    assert TOKEN not in str(caught.value)


def test_dead_hub_is_a_sentence() -> None:
    """
    A host that does not answer becomes the same kind of error.
    """
    with ModelHost() as gone:
        pass

    with pytest.raises(ModelUnavailable, match="owner/big: its files could not be listed"):
        hub.listing(None, gone.url)("owner/big", "main", False)


def test_gated_repository_without_a_token_is_not_asked_for(host: ModelHost) -> None:
    """
    Without a token a gated repository fails before any request.
    """
    with pytest.raises(ModelUnavailable, match="owner/big is gated and there is no token"):
        hub.listing(None, host.url)("owner/big", "main", True)

    assert host.requests == []


# The command line.


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    """
    A folder of variants.
    """
    folder = tmp_path / "variants"
    folder.mkdir()
    (folder / "good.toml").write_text(f'title = "Good"\n{MANIFEST}')
    (folder / "bare.toml").write_text('files = [{repo = "owner/name", path = "m.bin", dest = "vae/m.bin"}]')
    (folder / "gated.toml").write_text(f"files = [{{{FILE}, gated = true}}]")
    (folder / "whole.toml").write_text(SNAPSHOT)
    return folder


class Shell:
    """
    Runs `comfy-worker models` with a stand-in for Hugging Face.
    """

    def __init__(self, host: ModelHost, variants: Path) -> None:
        self._variants = variants
        self._environment = {**os.environ, "HF_ENDPOINT": host.url, "VOLUME_ROOTS": "none"}

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "comfy_worker", "models", *words, "--manifests", str(self._variants)],
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def shell(host: ModelHost, variants: Path) -> Shell:
    """
    The command line.
    """
    return Shell(host, variants)


@pytest.mark.slow
def test_command_fetches_a_release_and_checks_it(shell: Shell, tmp_path: Path) -> None:
    """
    `fetch --release` brings a checked file, `check` agrees, and disagrees once the file is another.
    """
    to = tmp_path / "models"

    fetched = shell("fetch", "--variant", "good", "--to", str(to), "--release")
    agreed = shell("check", "--variant", "good", "--to", str(to))
    (to / "vae" / "m.bin").write_bytes(BODY[::-1])
    refused = shell("check", "--variant", "good", "--to", str(to))

    assert (fetched.returncode, fetched.stdout) == (0, "1 files, 0.0 GB, 0 of them were there.\n")
    assert (to / "checkpoints").is_dir()
    assert (agreed.returncode, agreed.stdout.split()[0]) == (0, "ok")
    assert (refused.returncode, refused.stdout.split("  ")[0]) == (1, "wrong checksum")


@pytest.mark.slow
def test_command_refuses_a_release_without_checksums(shell: Shell, host: ModelHost, tmp_path: Path) -> None:
    """
    What nothing vouches for is refused with --release, and fetched with a warning without.
    """
    refused = shell("fetch", "--variant", "bare", "--to", str(tmp_path / "a"), "--release")
    moving = shell("fetch", "--variant", "whole", "--to", str(tmp_path / "a"), "--release")
    asked = len(host.requests)
    allowed = shell("fetch", "--variant", "bare", "--to", str(tmp_path / "a"))

    assert refused.returncode == moving.returncode == 2
    assert "owner/name/m.bin has no sha256" in refused.stderr
    assert "owner/big is at the moving revision 'main'" in moving.stderr
    assert asked == 0
    assert allowed.returncode == 0
    assert "owner/name/m.bin has no sha256" in allowed.stderr
    assert SHA256 in allowed.stderr


@pytest.mark.slow
def test_command_needs_a_token_for_a_gated_variant(shell: Shell, host: ModelHost, tmp_path: Path) -> None:
    """
    Without a token the first line says what is wrong; with one it is sent, and shown nowhere.
    """
    host.files["/owner/name/resolve/main/m.bin"].token = TOKEN
    place = ("--variant", "gated", "--to", str(tmp_path / "a"))

    without = shell("fetch", *place, HUGGINGFACE_ACCESS_TOKEN=" ")
    asked = len(host.requests)
    wrong = shell("fetch", *place, HF_TOKEN="another-marker")
    right = shell("fetch", *place, HUGGINGFACE_ACCESS_TOKEN=TOKEN)

    assert (without.returncode, wrong.returncode, right.returncode) == (1, 1, 0)
    assert without.stderr.startswith("owner/name/m.bin is gated and there is no token: accept")
    assert without.stderr.count("\n") == 1
    assert asked == 0
    assert "refused the token (403)" in wrong.stderr
    assert "another-marker" not in wrong.stderr
    assert TOKEN not in right.stdout + right.stderr


@pytest.mark.parametrize(
    ("text", "secret"), [(None, None), ("", None), (" \n", None), ("abc\n", SecretStr("abc"))]
)
def test_mounted_secret_is_read_by_its_content(
    tmp_path: Path, text: str | None, secret: SecretStr | None
) -> None:
    """
    A build without a token has no file or an empty one, and both mean that there is none.
    """
    if text is not None:
        (tmp_path / "HF_TOKEN").write_text(text)

    assert cli.secret("HF_TOKEN", tmp_path) == secret


@pytest.mark.slow
def test_command_lists_and_plans(shell: Shell, host: ModelHost, tmp_path: Path) -> None:
    """
    The variants, the files of one, and what a fetch would do are shown without fetching anything.
    """
    every = shell("list").stdout
    one = shell("list", "--variant", "good").stdout
    planned = shell("fetch", "--variant", "good", "--to", str(tmp_path / "a"), "--dry-run").stdout

    assert [line.split()[0] for line in every.splitlines()] == ["bare", "gated", "good", "whole"]
    assert "checked" in one
    assert planned.startswith("to fetch")
    assert host.requests == []
    assert not (tmp_path / "a").exists()


def test_worker_without_its_models_ends_with_the_reason(host: ModelHost, tmp_path: Path) -> None:
    """
    A model of MODELS_MANIFEST that cannot be had ends a worker before any job, with the sentence and code 1.
    """
    host.files.clear()
    (tmp_path / "job.json").write_text("{}")

    done = subprocess.run(
        [sys.executable, "-m", "comfy_worker", "run", str(tmp_path / "job.json")],
        env={
            **os.environ,
            "HF_ENDPOINT": host.url,
            "VOLUME_ROOTS": str(tmp_path),
            "MODELS_MANIFEST": MANIFEST,
        }
        | {"HOME": str(tmp_path), "COMFYUI_PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert "owner/name/m.bin from 127.0.0.1: 127.0.0.1 has no such file (404)." in done.stderr
