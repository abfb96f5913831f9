"""
The file of paths, the links and the cached models: what ComfyUI is told of volumes before it starts.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_worker import settings
from comfy_worker.comfy import launch
from comfy_worker.errors import ConfigInvalid
from comfy_worker.models import cached, diagnostics, volumes
from comfy_worker.models.cached import CachedModel
from comfy_worker.settings import Settings

COMMIT = "a" * 40


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """
    A volume with one checkpoint.
    """
    folder = tmp_path / "volume" / "models" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "m.safetensors").write_bytes(b"weights")
    return tmp_path / "volume"


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """
    A ComfyUI's folder with empty models.
    """
    (tmp_path / "ComfyUI" / "models" / "checkpoints").mkdir(parents=True)
    return tmp_path / "ComfyUI"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """
    The worker's own folder.
    """
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def told(config: Settings, comfyui: Path, scratch: Path) -> dict[str, Any]:
    """
    Return what the generated file says, as YAML.
    """
    flag, file, *_ = volumes.flags(config, comfyui, scratch)
    assert flag == "--extra-model-paths-config"
    found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def hub_of(volume: Path, repo: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    """
    Put a repository into the model cache of a volume, contents as blobs.
    """
    folder = volume / "huggingface-cache" / "hub" / f"models--{repo.replace('/', '--')}"
    for path, content in files.items():
        blob = folder / "blobs" / f"{len(content):064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        target = folder / "snapshots" / commit / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(blob)
    if ref:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return folder


# The file of paths.


def test_without_a_volume_comfyui_is_told_nothing(comfyui: Path, scratch: Path) -> None:
    """
    Where no volume is mounted, ComfyUI starts as ever and nothing is written.
    """
    config = Settings(volume_roots=(scratch / "nowhere",))

    assert volumes.flags(config, comfyui, scratch) == []
    assert list(scratch.iterdir()) == []


def test_volume_has_every_category(volume: Path, comfyui: Path, scratch: Path) -> None:
    """
    The section that users know has every category, the old folders `clip` and `unet` with the new ones.
    """
    section = told(Settings(volume_roots=(volume,)), comfyui, scratch)["runpod_worker_comfy"]

    assert section.pop("base_path") == str(volume)
    assert set(section) == set(volumes.FOLDERS)
    assert section["text_encoders"].split() == ["models/text_encoders", "models/clip"]
    assert section["diffusion_models"].split() == ["models/diffusion_models", "models/unet"]
    assert section["checkpoints"].split() == ["models/checkpoints"]
    assert "clip" not in section
    assert "unet" not in section


def test_folder_of_the_image_comes_first_where_packs_do_not_add_it(
    volume: Path, comfyui: Path, scratch: Path
) -> None:
    """
    A mapped category must not hide the models in the image from a pack that keeps an existing entry.
    """
    section = told(Settings(volume_roots=(volume,)), comfyui, scratch)["runpod_worker_comfy"]

    assert section["ipadapter"].split() == [str(comfyui / "models" / "ipadapter"), "models/ipadapter"]


def test_every_root_is_told_once(volume: Path, comfyui: Path, scratch: Path, tmp_path: Path) -> None:
    """
    A second volume has a section of its own; the same folder under two names has one.
    """
    second = tmp_path / "second"
    second.mkdir()
    (tmp_path / "alias").symlink_to(volume)
    config = Settings(volume_roots=(volume, tmp_path / "alias", second))

    found = told(config, comfyui, scratch)

    assert {name: section["base_path"] for name, section in found.items()} == {
        "runpod_worker_comfy": str(volume),
        "runpod_worker_comfy_2": str(second),
    }


def test_models_of_a_comfyui_on_the_volume_are_told(volume: Path, comfyui: Path, scratch: Path) -> None:
    """
    Who filled a volume with a ComfyUI of a Pod finds those models too.
    """
    (volume / "ComfyUI" / "models").mkdir(parents=True)

    section = told(Settings(volume_roots=(volume,)), comfyui, scratch)["runpod_worker_comfy_comfyui"]

    assert section["loras"].split() == ["ComfyUI/models/loras"]


def test_comfyui_that_runs_from_the_volume_is_not_told_its_own(volume: Path, scratch: Path) -> None:
    """
    The running ComfyUI reads its own models anyway.
    """
    own = volume / "ComfyUI"
    (own / "models").mkdir(parents=True)

    assert set(told(Settings(volume_roots=(volume,)), own, scratch)) == {"runpod_worker_comfy"}


def test_folder_of_fetched_models_is_told(comfyui: Path, scratch: Path, tmp_path: Path) -> None:
    """
    MODEL_DIR is read by ComfyUI wherever it is, and not a second time when it is a volume's.
    """
    (tmp_path / "v").mkdir()
    config = Settings(volume_roots=(), model_dir=tmp_path / "mine")
    usual = Settings(volume_roots=(tmp_path / "v",), model_dir=tmp_path / "v" / "models")

    section = told(config, comfyui, scratch)["model_dir"]

    assert (section["base_path"], section["vae"].split()) == (str(tmp_path / "mine"), ["vae"])
    assert set(told(usual, comfyui, scratch)) == {"runpod_worker_comfy"}


def test_code_of_a_volume_is_loaded_only_when_asked_for(volume: Path, comfyui: Path, scratch: Path) -> None:
    """
    custom_nodes of a volume is a matter of VOLUME_CUSTOM_NODES.
    """
    off = told(Settings(volume_roots=(volume,)), comfyui, scratch)["runpod_worker_comfy"]
    on = told(Settings(volume_roots=(volume,), volume_custom_nodes=True), comfyui, scratch)

    assert "custom_nodes" not in off
    assert on["runpod_worker_comfy"]["custom_nodes"] == "custom_nodes"


def test_file_of_paths_on_the_volume_is_passed_too(volume: Path, comfyui: Path, scratch: Path) -> None:
    """
    Categories of one's own come by a file on the volume.
    """
    (volume / "extra_model_paths.yaml").write_text("mine:\n  my_models: models/mine\n")

    flags = volumes.flags(Settings(volume_roots=(volume,)), comfyui, scratch)

    assert flags[1:] == [str(scratch / "extra_model_paths.yaml"), str(volume / "extra_model_paths.yaml")]


def test_launch_passes_the_file(volume: Path, comfyui: Path, scratch: Path) -> None:
    """
    The command that starts ComfyUI has the flag, and none where there is nothing to tell.
    """
    (comfyui / "main.py").touch()

    on = launch.comfyui(Settings(volume_roots=(volume,)), comfyui, 8188, scratch).command
    off = launch.comfyui(Settings(volume_roots=()), comfyui, 8188, scratch).command

    assert on[on.index("--extra-model-paths-config") + 1] == str(scratch / "extra_model_paths.yaml")
    assert "--extra-model-paths-config" not in off


def test_place_that_cannot_be_written_to_is_no_end(
    volume: Path, comfyui: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    When the places cannot be prepared, ComfyUI starts without them and the log says so.
    """
    with caplog.at_level(logging.ERROR):
        assert volumes.flags(Settings(volume_roots=(volume,)), comfyui, tmp_path / "nowhere") == []

    assert "could not be prepared" in caplog.text


# Links.


def test_fixed_folders_are_linked_under_both_names(volume: Path, comfyui: Path, scratch: Path) -> None:
    """
    A pack that reads a fixed folder finds the volume's, with and without the version in its name.
    """
    folder = volume / "models" / "HunyuanImage-3.0-Instruct-Distil-NF4-v2"
    folder.mkdir()
    (volume / "models" / "insightface").mkdir()

    for _ in range(2):
        volumes.flags(Settings(volume_roots=(volume,)), comfyui, scratch)

    models = comfyui / "models"
    assert (models / "HunyuanImage-3.0-Instruct-Distil-NF4-v2").resolve() == folder
    assert (models / "HunyuanImage-3.0-Instruct-Distil-NF4").resolve() == folder
    assert (models / "insightface").resolve() == volume / "models" / "insightface"


def test_link_overwrites_nothing(volume: Path, comfyui: Path, scratch: Path, tmp_path: Path) -> None:
    """
    What is baked in stays; a link that leads nowhere any more is renewed.
    """
    (volume / "models" / "insightface").mkdir()
    (volume / "models" / "HunyuanImage-3.0-X").mkdir()
    (comfyui / "models" / "insightface").mkdir()
    (comfyui / "models" / "HunyuanImage-3.0-X").symlink_to(tmp_path / "gone")

    volumes.flags(Settings(volume_roots=(volume,)), comfyui, scratch)

    assert not (comfyui / "models" / "insightface").is_symlink()
    assert (comfyui / "models" / "HunyuanImage-3.0-X").resolve() == volume / "models" / "HunyuanImage-3.0-X"


# Cached models.


def test_cached_models_are_linked_where_they_are_asked_for(
    volume: Path, comfyui: Path, scratch: Path
) -> None:
    """
    A file of the cache appears under a category, by its own name or a given one, however the owner is spelt.
    """
    hub_of(volume, "Owner/Name", {"m.safetensors": b"abc", "sub/vae.safetensors": b"vaes"})
    wanted = settings.load(
        {
            "CACHED_MODELS": "owner/name:m.safetensors -> checkpoints, Owner/Name:sub/vae.safetensors -> vae/mine.safetensors",
            "VOLUME_ROOTS": str(volume),
        }
    )

    section = told(wanted, comfyui, scratch)["cached_models"]

    base = Path(section["base_path"])
    assert (base / section["checkpoints"].strip() / "m.safetensors").read_bytes() == b"abc"
    assert (base / section["vae"].strip() / "mine.safetensors").read_bytes() == b"vaes"


def test_missing_cached_model_is_a_warning(
    volume: Path, comfyui: Path, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A model that is not cached here is named in the log, and ComfyUI starts all the same.
    """
    config = Settings(volume_roots=(volume,), cached_models=("o/n:m.bin -> vae",))

    assert set(told(config, comfyui, scratch)) == {"runpod_worker_comfy"}
    assert "o/n:m.bin is not in the model cache" in caplog.text


@pytest.mark.parametrize(
    ("ref", "revision", "found"),
    [
        ("main", "main", True),
        ("", "main", True),
        ("main", COMMIT, True),
        ("main", "v2", False),
        ("v2", "v2", True),
    ],
)
def test_revision_is_looked_up_as_the_cache_keeps_it(
    volume: Path, ref: str, revision: str, found: bool
) -> None:
    """
    A revision is a reference, a commit, or for main the only snapshot there is.
    """
    hub_of(volume, "o/n", {"m.bin": b"abc"}, ref=ref)

    assert bool(cached.find([volume], "o/n", revision, "m.bin")) is found


def test_two_snapshots_without_a_reference_are_no_answer(volume: Path) -> None:
    """
    Which of two commits `main` is cannot be guessed.
    """
    hub_of(volume, "o/n", {"m.bin": b"abc"}, ref="")
    hub_of(volume, "o/n", {"m.bin": b"abcd"}, commit="b" * 40, ref="")

    assert cached.find([volume], "o/n", "main", "m.bin") is None


def test_cached_file_must_be_the_wanted_one(volume: Path) -> None:
    """
    Size and the checksum in the cache's name for the content are compared where they are known.
    """
    hub_of(volume, "o/n", {"m.bin": b"abc"})
    right = f"{3:064x}"

    assert cached.find([volume], "o/n", "main", "m.bin", size=3, sha256=right) is not None
    assert cached.find([volume], "o/n", "main", "m.bin", size=4) is None
    assert cached.find([volume], "o/n", "main", "m.bin", sha256="f" * 64) is None
    assert cached.find([volume], "o/n", "main", "other.bin") is None


@pytest.mark.parametrize(
    "text",
    ["o/n:m.bin", "o/n -> vae", "n:m.bin -> vae", "o/n:m.bin -> ../vae", "o/n:../m -> vae", "o/n:/m -> vae"],
)
def test_wrong_cached_model_is_refused_at_the_start(text: str) -> None:
    """
    A line that is no mapping, or leads elsewhere, stops the worker with its variable's name.
    """
    with pytest.raises(ConfigInvalid, match="CACHED_MODELS must be"):
        settings.load({"CACHED_MODELS": text})


def test_cached_model_reads_its_parts() -> None:
    """
    Repository, revision, path and target are told apart.
    """
    assert CachedModel.of("o/n@v1:a/m.bin -> vae/x.bin") == CachedModel("o/n", "v1", "a/m.bin", "vae/x.bin")


@pytest.mark.parametrize(("text", "paths"), [("none", ()), ("/a:/b", (Path("/a"), Path("/b")))])
def test_roots_are_read_from_one_text(text: str, paths: tuple[Path, ...]) -> None:
    """
    VOLUME_ROOTS has paths with colons between, or none.
    """
    assert settings.load({"VOLUME_ROOTS": text}).volume_roots == paths


# The report.


def report(config: Settings, comfyui: Path, listed: dict[str, list[str]]) -> str:
    """
    Return the report as one text.
    """
    return "\n".join(diagnostics.report(config, comfyui, lambda name: listed.get(name, [])))


def test_report_compares_the_disk_with_comfyui(volume: Path, comfyui: Path) -> None:
    """
    Files on the volume stand beside what ComfyUI lists, nested ones too, and the missing ones are named.
    """
    (volume / "models" / "loras" / "sub").mkdir(parents=True)
    (volume / "models" / "loras" / "sub" / "a.safetensors").touch()
    (volume / "models" / "loras" / "notes.txt").touch()
    config = Settings(volume_roots=(volume, volume / "nowhere"))

    text = report(config, comfyui, {"checkpoints": ["m.safetensors"], "loras": ["sub/a.safetensors"]})

    assert f"Volume {volume}: there." in text
    assert "nowhere: not there." in text
    assert "checkpoints: 1 files, 1 of them seen by ComfyUI." in text
    assert "loras: 2 files, 1 of them seen by ComfyUI; not seen: notes.txt." in text


def test_report_says_what_is_missing(comfyui: Path, tmp_path: Path) -> None:
    """
    An empty volume and no volume are both explained.
    """
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "models").mkdir(parents=True)

    empty = report(Settings(volume_roots=(tmp_path / "empty", tmp_path / "bare")), comfyui, {})
    none = report(Settings(volume_roots=()), comfyui, {})

    assert "put models into" in empty
    assert "has no file in any folder that ComfyUI reads" in empty
    assert "No volume is attached" in none
