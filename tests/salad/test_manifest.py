"""
comfyui-api's manifest: its models are there before the worker is ready, or later; nothing is installed.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.http_desk import Answer, HttpDesk
from support.salad_fixtures import ServeSalad
from support.worker_process import WorkerProcess

from comfy_worker.errors import ConfigInvalid
from comfy_worker.models import peer_manifest
from comfy_worker.settings import load

URL = "https://example.com/a.safetensors?token=t"


def manifest(**models: Any) -> dict[str, Any]:
    """
    Return the settings of a worker with these models in its manifest.
    """
    return {"manifest": json.dumps({"models": models})}


def until(check: Callable[[], bool]) -> None:
    """
    Wait until `check()` holds.
    """
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_salad_s79_before_start_comes_before_ready_and_in_parallel(
    serve_salad: ServeSalad, desk: HttpDesk, tmp_path: Path
) -> None:
    """The worker is ready once the models are there; relative paths lie in COMFY_HOME; several are fetched at once."""
    for name in "abcd":
        desk.answers[f"/{name}.bin"] = Answer(name.encode(), delay_s=1.0)
    models = [{"url": f"{desk.url}/{name}.bin", "local_path": f"models/vae/{name}.bin"} for name in "abc"]
    models.append({"url": f"{desk.url}/d.bin", "local_path": str(tmp_path / "else" / "d.bin")})

    served = serve_salad(comfyui_path=tmp_path / "home", **manifest(before_start=models))

    assert served.get("/health").status_code == 500
    until(lambda: len(desk.seen) == 4)
    assert not list((tmp_path / "home").rglob("*.bin"))  # all were asked for before the first had come
    until(lambda: served.get("/ready").status_code == 200)
    found = {path.name: path.read_text() for path in (tmp_path / "home" / "models" / "vae").glob("*.bin")}
    assert found == {"a.bin": "a", "b.bin": "b", "c.bin": "c"}
    assert (tmp_path / "else" / "d.bin").read_text() == "d"


def test_salad_s79_after_start_is_fetched_later_and_may_fail(
    serve_salad: ServeSalad, desk: HttpDesk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model of `after_start` that cannot be had is logged; the worker is ready, and the others come."""
    url = desk.put("/late.bin", b"late")
    desk.answers["/gone.bin"] = Answer(status=404)
    models = [
        {"url": f"{desk.url}/gone.bin", "local_path": "models/vae/gone.bin"},
        {"url": url, "local_path": "models/vae/late.bin"},
    ]

    served = serve_salad(comfyui_path=tmp_path / "home", **manifest(after_start=models))

    until(lambda: served.get("/ready").status_code == 200)
    until((tmp_path / "home" / "models" / "vae" / "late.bin").is_file)
    until(lambda: "after_start of MANIFEST" in caplog.text)
    assert served.get("/ready").status_code == 200


def test_model_that_cannot_be_had_ends_the_worker(
    serve_salad: ServeSalad, desk: HttpDesk, tmp_path: Path
) -> None:
    """Without a model of `before_start` the worker never says that it is ready."""
    desk.answers["/gone.bin"] = Answer(status=404)
    models = [{"url": f"{desk.url}/gone.bin", "local_path": "models/vae/gone.bin"}]

    served = serve_salad(comfyui_path=tmp_path, **manifest(before_start=models))

    until(lambda: bool(served.server.failed))


@pytest.mark.parametrize(
    "text", ["{}", '{"models": {}}', '{"models": null, "apt": []}', '{"models": {"after_start": []}}']
)
def test_salad_s79_models_are_optional(text: str) -> None:
    """Every part of a manifest may be left out."""
    assert peer_manifest.wanted(load({"MANIFEST_JSON": text}), None) == peer_manifest.Wanted()


@pytest.mark.parametrize("name", ["apt", "pip", "custom_nodes"])
def test_salad_s79_what_would_be_installed_is_refused(name: str) -> None:
    """Packages and nodes belong into the image; a manifest that asks for them does not pass for done."""
    with pytest.raises(ConfigInvalid, match=f"no '{name}'"):
        peer_manifest.wanted(load({"MANIFEST_JSON": json.dumps({name: ["x"]})}), None)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (
            ".yaml",
            "models:\n  before_start:\n    - {url: 'https://example.com/a', local_path: models/vae/a}\n",
        ),
        (".YML", "models: {before_start: [{url: 'https://example.com/a', local_path: models/vae/a}]}"),
        (
            ".json",
            '{"models": {"before_start": [{"url": "https://example.com/a", "local_path": "models/vae/a"}]}}',
        ),
    ],
)
def test_manifest_is_read_from_a_file(suffix: str, text: str, tmp_path: Path) -> None:
    """MANIFEST is the path of a YAML or JSON file."""
    file = tmp_path / f"manifest{suffix}"
    file.write_text(text)

    [item] = peer_manifest.wanted(load({"MANIFEST": str(file)}), tmp_path).before

    assert (item.url, item.to) == ("https://example.com/a", tmp_path / "models/vae/a")


def test_text_wins_over_the_file() -> None:
    """MANIFEST_JSON counts where both are set."""
    config = load({"MANIFEST": "/nowhere.json", "MANIFEST_JSON": "{}"})

    assert peer_manifest.wanted(config, None) == peer_manifest.Wanted()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("/nowhere/m.yaml", "Manifest file not found at path: /nowhere/m.yaml"),
        ("/nowhere/m.toml", "must be in JSON or YAML"),
        ("{", "Failed to parse MANIFEST_JSON"),
        ('{"models": []}', "models"),
        ('{"models": {"before_start": [{"local_path": "a"}]}}', "before_start.0.url"),
        ('{"models": {"before_start": [{"url": "s3://b/k", "local_path": "a"}]}}', "http"),
        *(
            (json.dumps({"models": {"before_start": [{"url": URL, "local_path": path}]}}), "local_path")
            for path in ("", "/", "../a", "models/../../a", "models/", "a\0b")
        ),
        (json.dumps({"models": {"before_start": [{"url": URL, "local_path": "a"}] * 2}}), "two things"),
    ],
)
def test_wrong_manifest_is_named(given: str, problem: str, tmp_path: Path) -> None:
    """What is wrong is said, and no token of a URL with it."""
    with pytest.raises(ConfigInvalid) as caught:
        peer_manifest.wanted(load({"MANIFEST": given}), tmp_path)

    assert problem in str(caught.value)
    assert "token=t" not in str(caught.value)


def test_relative_path_needs_comfy_home() -> None:
    """Without a known ComfyUI folder a relative path has no place."""
    text = json.dumps({"models": {"before_start": [{"url": URL, "local_path": "models/vae/a"}]}})

    with pytest.raises(ConfigInvalid, match="COMFY_HOME must be set"):
        peer_manifest.wanted(load({"MANIFEST_JSON": text}), None)


def test_salad_s79_wrong_manifest_stops_the_start(tmp_path: Path) -> None:
    """The process ends with 2 and says why, before anything is started."""
    environ = {"MANIFEST_JSON": '{"pip": ["torch"]}', "COMFYUI_URL": "http://127.0.0.1:9"}
    process = WorkerProcess(
        tmp_path, environ, "serve", "--face", "salad", "--port", "0", program=("-m", "comfy_worker")
    )
    try:
        assert process.wait() == 2
        assert "no 'pip'" in process.text
    finally:
        process.close()
