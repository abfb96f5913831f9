"""
The files that images are built from agree with each other: Dockerfile, bake rows, manifests, the Hub's files.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from comfy_worker.errors import JobInvalid
from comfy_worker.models import manifest
from comfy_worker.parse import Rules, parse
from comfy_worker.settings import Settings, load, names_of

ROOT = Path(__file__).resolve().parents[2]
BAKE = (ROOT / "docker-bake.hcl").read_text(encoding="utf-8")
ROW = re.compile(
    r'\{ name = "(?P<name>[^"]+)",\s+stage = "(?P<stage>base|final)",\s+cuda = "(?P<cuda>[^"]+)",'
    r"\s+token = (?P<token>true|false),\s+publish = (?P<publish>true|false),\s+small = (?P<small>true|false) \},"
)
ROWS = {row["name"]: row.groupdict() for row in ROW.finditer(BAKE)}
MANIFESTS = manifest.variants(ROOT / "models")
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text(encoding="utf-8"))
HUB_TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text(encoding="utf-8"))

PUBLISHED = (
    "base",
    "sdxl",
    "sd3",
    "flux1-schnell",
    "flux1-dev",
    "flux1-dev-fp8",
    "z-image-turbo",
    "base-cuda12.8.1",
)
FORK = ("hunyuan-instruct-nf4", "hunyuan-instruct-int8")
SMALL_BYTES = 12e9
"""What a hosted runner has room for beside a base image, twice over."""


def instructions() -> list[tuple[str, str]]:
    """
    Return the Dockerfile's instructions, each as its word and the rest on one line.
    """
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(word, re.sub(r"\s+", " ", rest)) for word, _, rest in found]


def of(word: str) -> list[str]:
    """
    Return the rest of every instruction of one word.
    """
    return [rest for name, rest in instructions() if name == word]


def plan(*targets: str, **environ: str) -> dict[str, Any]:
    """
    Return what `docker buildx bake --print` makes of the bake file; skips where there is no buildx.
    """
    command = shlex.split(os.environ.get("BUILDX", "docker buildx"))
    if (
        shutil.which(command[0]) is None
        or subprocess.run([*command, "version"], capture_output=True).returncode
    ):
        pytest.skip("no buildx: install docker-buildx, or set BUILDX to its binary")
    ran = subprocess.run(
        [*command, "bake", "--print", *targets],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_each_target_has_a_manifest_and_each_manifest_a_target() -> None:
    """
    The variants with models are the manifests of models/, and a base's manifest belongs to a base.
    """
    with_models = {name for name, row in ROWS.items() if row["stage"] == "final"}
    bases = {name for name, row in ROWS.items() if row["stage"] == "base"}

    assert len(ROWS) == BAKE.count("{ name = ")
    assert with_models == {name for name in MANIFESTS if not name.startswith("base")}
    assert {name for name in MANIFESTS if name.startswith("base")} <= bases


def test_every_published_name_is_a_row() -> None:
    """
    Who changes only the image's name finds every variant that there was.
    """
    assert {*PUBLISHED, *FORK} <= set(ROWS)


@pytest.mark.parametrize("name", [name for name in ROWS if name in MANIFESTS])
def test_row_agrees_with_its_manifest(name: str) -> None:
    """
    Token, licence and size of a row are what its manifest says.
    """
    row, found = ROWS[name], MANIFESTS[name]

    assert row["token"] == str(found.wants_token).lower()
    assert row["publish"] == str(found.publish).lower()
    assert row["small"] == str(found.bytes <= SMALL_BYTES).lower()


def test_plan_has_every_tag_and_no_token() -> None:
    """
    Each row becomes a target with its tag; secrets go to the rows that want one, and are never arguments.
    """
    targets = plan("all", RELEASE_VERSION="1.2.3", HUGGINGFACE_ACCESS_TOKEN="hf_marker")["target"]

    assert {target["tags"][0] for target in targets.values()} == {
        f"runpod/worker-comfyui:1.2.3-{name}" for name in ROWS
    }
    for name, row in ROWS.items():
        target = targets[name.replace(".", "-")]
        assert bool(target.get("secret")) == (row["token"] == "true")
        assert target["args"]["CUDA_VERSION_FOR_COMFY"] == row["cuda"]
        assert target["target"] == row["stage"]
    assert "hf_marker" not in json.dumps(targets)


def test_plan_takes_versions_from_the_environment_only() -> None:
    """
    Unset, a version is the Dockerfile's; set, it reaches every target.
    """
    assert "COMFYUI_VERSION" not in plan("sdxl")["target"]["sdxl"]["args"]
    assert plan("sdxl", COMFYUI_VERSION="0.30.0")["target"]["sdxl"]["args"]["COMFYUI_VERSION"] == "0.30.0"
    assert "cuda:12.6" in plan("sdxl", CUDA_LEVEL="12.6")["target"]["sdxl"]["args"]["BASE_IMAGE"]


def test_default_group_leaves_out_the_largest() -> None:
    """
    `docker buildx bake` without a name builds all but the two of the fork.
    """
    assert set(plan()["target"]) == {name.replace(".", "-") for name in ROWS if name not in FORK}


def test_each_version_stands_once() -> None:
    """
    ComfyUI, torch, comfy-cli and uv each have one argument with an exact version.
    """
    arguments = [argument.partition("=") for argument in of("ARG")]
    pinned = {name: value for name, _, value in arguments if re.search(r"\d+\.\d+\.\d+", value)}

    assert {
        "COMFYUI_VERSION",
        "PYTORCH_VERSION",
        "COMFY_CLI_VERSION",
        "UV_IMAGE",
        "BASE_IMAGE",
        "VAST_SDK_VERSION",
    } == set(pinned)
    assert len([name for name, _, _ in arguments if name in pinned]) == len(pinned)
    assert not any("latest" in value for _, _, value in arguments)


def test_no_instruction_takes_a_token() -> None:
    """
    A secret comes as a mount; an argument, a variable or a label would keep it in the image's history.
    """
    kept = " ".join([*of("ARG"), *of("ENV"), *of("LABEL"), *of("COPY")])
    runs = [run for run in of("RUN") if re.search(r"secret|TOKEN", run)]

    assert not re.search(r"TOKEN|SECRET|PASSWORD|API_KEY", kept)
    assert runs
    assert all(run.startswith("--mount=type=secret,id=HF_TOKEN fetch-models ") for run in runs)


def test_dockerfile_stays_plain() -> None:
    """
    Nothing in it needs a newer builder than the plainest, nor a variant's name.
    """
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    assert not re.search(
        r"^RUN .*<<|^COPY --(link|exclude|parents)|^RUN --network|^# *syntax=", text, re.MULTILINE
    )
    assert not [name for name in MANIFESTS if re.search(rf"\b{re.escape(name)}\b", text) and name != "base"]
    assert "huggingface.co" not in text


def test_copied_paths_are_there_and_reach_the_builder() -> None:
    """
    Each source of a COPY is in the repository and let through by .dockerignore.
    """
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }

    for copy in of("COPY"):
        words = [word for word in copy.split() if not word.startswith("--chmod")]
        if words[0].startswith("--from"):
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in allowed, source


def test_whole_package_reaches_its_build() -> None:
    """
    What the wheel takes in from outside the sources is copied beside them.
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {copy.split()[0].rstrip("/") for copy in of("COPY") if "/opt/build/" in copy}

    assert {*wheel.get("force-include", {}), "src"} <= copied


def test_container_is_run_as_promised() -> None:
    """
    An init is process 1, /start.sh its command, health is checked, and the three ports are documented.
    """
    assert of("ENTRYPOINT") == ['["/usr/bin/tini", "--"]']
    assert of("CMD") == ['["/start.sh"]']
    assert of("EXPOSE") == ["8188 8000 22"]
    assert "healthcheck.py" in of("HEALTHCHECK")[0]
    assert not any("PYTHONDONTWRITEBYTECODE" in text for text in of("ENV"))


def test_models_come_in_every_part_once() -> None:
    """
    The layers of the models are all parts of one whole.
    """
    parts = [re.search(r"(\d+)/(\d+)$", run) for run in of("RUN") if "fetch-models" in run]

    assert [(part[1], part[2]) for part in parts if part] == [
        (str(n), str(len(parts))) for n in range(1, len(parts) + 1)
    ]


@pytest.mark.parametrize("variable", HUB["config"]["env"], ids=lambda variable: str(variable["key"]))
def test_hub_offers_what_the_worker_knows(variable: dict[str, Any]) -> None:
    """
    Each variable of the Hub is a setting, its default is ours, and each of its values is accepted.
    """
    entry = next(entry for entry in fields(Settings) if variable["key"] in names_of(entry))
    shown = variable["input"]
    default = shown["default"]
    values = [option["value"] for option in shown.get("options", ())]
    values += [shown[key] for key in ("trueValue", "falseValue") if key in shown]

    assert default == ("" if entry.default is None else entry.default)
    for value in values:
        load({variable["key"]: value})
    assert not values or {str(default), str(default).lower()} & set(values)


def test_hub_keeps_the_variables_it_had() -> None:
    """
    Who deploys from the Hub finds every variable that was offered before.
    """
    keys = {variable["key"] for variable in HUB["config"]["env"]}

    assert {
        *("COMFY_ORG_API_KEY", "BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"),
        *(
            "SERVE_API_LOCALLY",
            "COMFY_LOG_LEVEL",
            "WEBSOCKET_RECONNECT_ATTEMPTS",
            "WEBSOCKET_RECONNECT_DELAY_S",
        ),
        *("WEBSOCKET_TRACE", "REFRESH_WORKER", "NETWORK_VOLUME_DEBUG"),
    } <= keys
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= keys


def test_hub_lets_no_host_in_that_cannot_run_the_image() -> None:
    """
    The list of CUDA versions begins with the image's own, and newer hosts are in it.
    """
    lowest = tuple(map(int, ROWS["base"]["cuda"].split(".")))
    allowed = [tuple(map(int, text.split("."))) for text in HUB["config"]["allowedCudaVersions"]]

    assert min(allowed) == lowest
    assert max(allowed) > lowest
    assert HUB_TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]
    assert HUB["config"]["containerDiskInGb"] >= (MANIFESTS["base"].gpu.disk_gb or 0)


def test_hub_jobs_need_no_model() -> None:
    """
    The Hub's first job is one the worker takes in an image without models; the second is refused with a sentence.
    """
    good, bad = HUB_TESTS["tests"]
    job = parse("hub", good["input"], Rules(limit_bytes=10**7))

    assert {node["class_type"] for node in job.workflow.values()} == {"EmptyImage", "SaveImage"}
    with pytest.raises(JobInvalid):
        parse("hub", bad["input"], Rules(limit_bytes=10**7))


@pytest.mark.parametrize("name", [name for name in MANIFESTS if name in ROWS and "cuda" not in name])
def test_deploy_page_agrees_with_the_manifest(name: str) -> None:
    """
    The table that one chooses an image from says what the manifest says, and the image's size is base and models.
    """
    page = (ROOT / "docs" / "howto" / "deploy-runpod.md").read_text(encoding="utf-8")
    [line] = re.findall(rf"^\| `{re.escape(name)}` \|(.*)\|$", page, re.MULTILINE)
    found = MANIFESTS[name]
    _, memory, pools, image, disk, token = [cell.strip() for cell in line.split("|")]

    assert memory == (f"{found.gpu.vram_gb} GB" if found.gpu.vram_gb else "–")
    assert pools == (", ".join(found.gpu.pools) or "any")
    assert image == f"{10 + round(found.bytes / 1e9)} GB"
    assert disk == (f"{found.gpu.disk_gb} GB" if found.gpu.disk_gb else "–")
    assert token == ("yes" if found.wants_token else "no")
