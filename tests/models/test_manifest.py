"""
Manifests say what they must, wrong ones are refused with the field, and the shipped ones fit their example graphs.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from comfy_worker.errors import ConfigInvalid, ModelUnavailable
from comfy_worker.models import manifest, plan
from comfy_worker.models.manifest import Manifest
from comfy_worker.models.plan import Item, RepoFile
from comfy_worker.models.volumes import FOLDERS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = manifest.variants(ROOT / "models")

FILE = 'files = [{repo = "owner/name", path = "m.bin", dest = "vae/m.bin"}]'

# Which input of which loader names a model, and of which category.
LOADERS = {
    ("CheckpointLoaderSimple", "ckpt_name"): "checkpoints",
    ("UNETLoader", "unet_name"): "diffusion_models",
    ("CLIPLoader", "clip_name"): "text_encoders",
    ("DualCLIPLoader", "clip_name1"): "text_encoders",
    ("DualCLIPLoader", "clip_name2"): "text_encoders",
    ("VAELoader", "vae_name"): "vae",
    ("ModelPatchLoader", "name"): "model_patches",
    ("HunyuanInstructLoader", "model_name"): "hunyuan_instruct",
}


def test_variants_are_the_known_ones() -> None:
    """
    Every variant that users know has a manifest, under its name.
    """
    assert set(SHIPPED) == {
        *("base", "base-cuda12.8.1", "sdxl", "sd3", "flux1-schnell", "flux1-dev", "flux1-dev-fp8"),
        *("z-image-turbo", "hunyuan-instruct-nf4", "hunyuan-instruct-int8"),
    }


@pytest.mark.parametrize(
    ("name", "gigabytes", "token"),
    [
        ("base", 0.0, False),
        ("sdxl", 7.6, False),
        ("sd3", 10.9, True),
        ("flux1-schnell", 29.3, True),
        ("flux1-dev", 29.3, True),
        ("flux1-dev-fp8", 17.2, False),
        ("z-image-turbo", 23.8, True),
        ("hunyuan-instruct-nf4", 48.0, False),
        ("hunyuan-instruct-int8", 83.0, False),
    ],
)
def test_variant_has_its_size_and_token(name: str, gigabytes: float, token: bool) -> None:
    """
    The sum of a variant's models is what its users plan disks with, and who needs a token says so.
    """
    assert round(SHIPPED[name].bytes / 1e9, 1) == gigabytes
    assert SHIPPED[name].wants_token is token


@pytest.mark.parametrize("name", SHIPPED)
def test_every_model_of_a_variant_has_licence_size_and_folder(name: str) -> None:
    """
    What is built into an image has a licence, a size, and lies in a folder that ComfyUI reads.
    """
    found = SHIPPED[name]

    folders = {folder for paths in FOLDERS.values() for folder in paths}

    assert found.title
    for item in (*found.files, *found.snapshots):
        assert item.licence
        assert item.bytes > 0
    for file in found.files:
        assert file.dest.rpartition("/")[0] in folders
        assert file.repo is not None
    for node in found.nodes:
        assert node.commit
        assert node.licence


def test_non_commercial_models_are_not_published() -> None:
    """
    Pushing an image is passing the weights on, which these licences restrict.
    """
    restricted = {
        name
        for name, found in SHIPPED.items()
        for item in (*found.files, *found.snapshots, *found.nodes)
        if re.search(r"non-commercial|-nc-|community", item.licence)
    }

    assert restricted == {
        "flux1-dev",
        "flux1-dev-fp8",
        "sd3",
        "hunyuan-instruct-nf4",
        "hunyuan-instruct-int8",
    }
    assert {name for name, found in SHIPPED.items() if not found.publish} == restricted


def test_only_repositories_without_a_commit_are_unchecked() -> None:
    """
    Every single file has a checksum; the two whole repositories wait for their commits.
    """
    unchecked = {name: plan.unchecked(found) for name, found in SHIPPED.items() if plan.unchecked(found)}

    assert set(unchecked) == {"hunyuan-instruct-nf4", "hunyuan-instruct-int8"}
    assert all("moving revision 'main'" in text for texts in unchecked.values() for text in texts)


@pytest.mark.parametrize("name", SHIPPED)
def test_example_uses_models_of_its_variant_only(name: str) -> None:
    """
    Every model that an example names is in the manifest, in a folder of the category that its loader reads.
    """
    found = SHIPPED[name]
    graph = _graph(found)

    named = {
        (category, node["inputs"][field])
        for node in graph.values()
        for (class_type, field), category in LOADERS.items()
        if node["class_type"] == class_type
    }
    there = {
        (category, dest.removeprefix(f"{folder}/"))
        for category, folders in FOLDERS.items()
        for folder in folders
        for dest in _dests(found)
        if folder == "." or dest.startswith(f"{folder}/")
    }

    assert named <= there
    assert bool(named) is bool(found.files or found.snapshots)


@pytest.mark.parametrize("name", SHIPPED)
def test_example_names_no_model_elsewhere(name: str) -> None:
    """
    No text of an example looks like a model file that the test of the loaders does not know of.
    """
    for node in _graph(SHIPPED[name]).values():
        for field, value in node["inputs"].items():
            if isinstance(value, str) and re.search(r"\.(safetensors|sft|ckpt|pt|pth|bin|gguf)$", value):
                assert (node["class_type"], field) in LOADERS


@pytest.mark.parametrize("name", SHIPPED)
def test_example_is_a_graph_that_saves(name: str) -> None:
    """
    An example is in API format, its links lead somewhere, and it ends in a saved picture.
    """
    graph = _graph(SHIPPED[name])

    links = [
        value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)
    ]

    assert set(links) <= set(graph)
    assert [node for node in graph.values() if node["class_type"] == "SaveImage"]


def _graph(found: Manifest) -> dict[str, Any]:
    assert found.example is not None
    graph = json.loads((ROOT / found.example).read_text(encoding="utf-8"))
    assert isinstance(graph, dict)
    return graph


def _dests(found: Manifest) -> list[str]:
    links = [link for snapshot in found.snapshots for link in snapshot.links]
    return [*(file.dest for file in found.files), *(item.dest for item in found.snapshots), *links]


# What is refused.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("files = [", "is not valid TOML"),
        ("colour = 1", "colour: Extra inputs are not permitted"),
        ('files = [{dest = "vae/m.bin"}]', "files.0: needs repo and path, or url, and not both"),
        (FILE.replace('path = "m.bin", ', ""), "needs repo and path, or url"),
        (FILE.replace("}]", ', url = "https://example.com/m.bin"}]'), "and not both"),
        (FILE.replace("vae/m.bin", "../m.bin"), "files.0.dest: must be a path inside the models folder"),
        (FILE.replace("vae/m.bin", "/m.bin"), "files.0.dest: must be a path inside"),
        (FILE.replace("vae/m.bin", "vae\\\\\\\\m.bin"), "files.0.dest: must be a path inside"),
        (FILE.replace("}]", ', sha256 = "abc"}]'), "files.0.sha256"),
        (FILE.replace("}]", ", size = 0}]"), "files.0.size"),
        (FILE.replace("owner/name", "name"), "files.0.repo: must be owner/name"),
        ('files = [{url = "ftp://example.com/m", dest = "vae/m"}]', "files.0.url: must be an http"),
        ('files = [{url = "https://me:pw@example.com/m", dest = "vae/m"}]', "files.0.url: must be an http"),
        ('files = [{url = "https://example.com:x/m", dest = "vae/m"}]', "files.0.url: must be an http"),
        (
            'snapshots = [{repo = "a/b", dest = "x", links = ["x"]}]',
            "has two things for x",
        ),
        ('nodes = [{url = "https://example.com/n", commit = "main"}]', "nodes.0.commit"),
    ],
)
def test_wrong_manifest_names_its_field(text: str, problem: str) -> None:
    """
    A wrong manifest is refused with its source, the field, and what the field takes.
    """
    with pytest.raises(ConfigInvalid, match=re.escape(problem)) as caught:
        manifest.parse(text, "MODELS_MANIFEST")

    assert "MODELS_MANIFEST" in str(caught.value)


def test_password_in_a_url_is_not_repeated() -> None:
    """
    The text about a wrong URL does not hold the URL.
    """
    with pytest.raises(ConfigInvalid) as caught:
        manifest.parse('files = [{url = "https://me:pw-marker@example.com/m", dest = "vae/m"}]', "x")

    assert "pw-marker" not in str(caught.value)


def test_unknown_variant_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    """
    Who mistypes a variant is shown the list, and no path of the machine.
    """
    (tmp_path / "sdxl.toml").write_text(FILE)

    with pytest.raises(ConfigInvalid, match="there is no variant 'sdlx'; there are sdxl"):
        manifest.variant(tmp_path, "sdlx")


# Plans.


def test_urls_of_a_plan(tmp_path: Path) -> None:
    """
    A file of a repository has its resolve URL at the endpoint, escaped; any other its own.
    """
    text = """
    files = [
      {repo = "o/n", revision = "refs/pr/1", path = "a b/m.bin", dest = "vae/m.bin"},
      {url = "https://example.com/x?token=1", dest = "vae/x.bin", size = 3},
    ]
    """

    first, second = plan.items(manifest.parse(text, "m"), tmp_path, _nothing, "https://mirror.example.com/")

    assert first.url == "https://mirror.example.com/o/n/resolve/refs%2Fpr%2F1/a%20b/m.bin"
    assert (second.url, second.title) == ("https://example.com/x?token=1", "example.com/x")
    assert (second.to, second.size) == (tmp_path / "vae" / "x.bin", 3)


def test_repository_is_planned_at_its_commit(tmp_path: Path) -> None:
    """
    Every file of a repository is fetched at the commit that was listed, so that a push between two files does no harm.
    """
    text = 'snapshots = [{repo = "o/n", dest = "n"}]'
    files = [RepoFile("b.bin", 5, "0" * 64), RepoFile("a/c.json", 2, None)]

    found = plan.items(manifest.parse(text, "m"), tmp_path, lambda *_: ("c" * 40, files))

    assert [item.url.partition("/resolve/")[2] for item in found] == [
        "c" * 40 + "/a/c.json",
        "c" * 40 + "/b.bin",
    ]
    assert [item.sha256 for item in found] == [None, "0" * 64]


def test_repository_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    """
    No listing makes us write outside the models folder.
    """
    text = 'snapshots = [{repo = "o/n", dest = "n"}]'

    with pytest.raises(ModelUnavailable, match="leads out of its folder"):
        plan.items(manifest.parse(text, "m"), tmp_path, lambda *_: ("main", [RepoFile("../x", 1, None)]))


def test_shards_are_even_and_complete(tmp_path: Path) -> None:
    """
    The parts of a plan have each file once, about the same size, and are the same at every call.
    """
    items = [Item(str(n), "https://example.com/", tmp_path / str(n), size=n % 7 + 1) for n in range(40)]

    parts = [plan.shard(items, f"{number}/4") for number in range(1, 5)]

    sizes = [sum(item.bytes for item in part) for part in parts]
    assert sorted(item.title for part in parts for item in part) == sorted(item.title for item in items)
    assert max(sizes) - min(sizes) <= 7
    assert parts == [plan.shard(list(reversed(items)), f"{number}/4") for number in range(1, 5)]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/2", "1/0"])
def test_wrong_shard_is_refused(text: str) -> None:
    """
    A shard that is none of the parts is a usage error.
    """
    with pytest.raises(ConfigInvalid, match="--shard must be like 1/4"):
        plan.shard([], text)


def _nothing(*_: object) -> tuple[str, list[RepoFile]]:
    raise AssertionError("there is no repository to list")
