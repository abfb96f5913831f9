"""
Provisioning as Vast's images do it: the script by URL, its marks, its bounds, and the cleaning of old outputs.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.http_desk import HttpDesk

from comfy_worker import provisioning, serve
from comfy_worker.dialects import Face
from comfy_worker.errors import ProvisioningFailed
from comfy_worker.housekeeping import old_outputs_of, spare_outputs
from comfy_worker.provisioning import Places, at_start, places_of
from comfy_worker.settings import Settings

NOW = 1_000_000_000.0
DAY_S = 86_400.0
ENVIRON = {"PATH": os.environ["PATH"], "GIVEN": "by the operator"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """
    The files of a machine of the test's own.
    """
    return places_of(tmp_path)


@pytest.fixture
def provision(tmp_path: Path, desk: HttpDesk) -> Callable[..., None]:
    """
    Serve a script and provision with it: `provision(b"touch done", provisioning_timeout_s=5.0)`.
    """

    def run(script: bytes, **fields: Any) -> None:
        url = desk.put("/setup.sh", script)
        at_start(replace(Settings(), provisioning_script=url, **fields), ENVIRON, root=tmp_path)

    return run


def test_script_runs_once_with_the_environment_and_its_lines_in_the_log(
    provision: Callable[..., None],
    places: Places,
    desk: HttpDesk,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The script must run with the operator's variables, also with Windows line ends, and not again when it ended well."""
    caplog.set_level(logging.INFO)
    script = b'#!/bin/bash\r\necho "it says $GIVEN"\r\ntest -f .provisioning && echo x >> ran\r\n'

    provision(script)
    provision(script)

    assert (tmp_path / "ran").read_text() == "x\n"
    assert "provisioning: it says by the operator" in caplog.text
    assert places.complete.exists()
    assert not places.running.exists()
    assert len(desk.seen) == 1


def test_failed_script_stops_the_start_and_runs_anew(
    provision: Callable[..., None], places: Places, desk: HttpDesk
) -> None:
    """A code other than 0 must be an error that names it; the next start runs the file that is there, edited or not."""
    with pytest.raises(ProvisioningFailed, match="ended with code 3"):
        provision(b"exit 3")
    assert places.failed.exists()
    assert not places.complete.exists()
    assert not places.running.exists()

    places.script.write_text("true")
    provision(b"exit 3")

    assert places.complete.exists()
    assert not places.failed.exists()
    assert len(desk.seen) == 1


def test_failure_can_be_let_pass(
    provision: Callable[..., None], places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    """With PROVISIONING_REQUIRED=false the reason must be in the log and the worker go on, as on Vast's images."""
    provision(b"exit 3", provisioning_required=False)

    assert "ended with code 3" in caplog.text
    assert "goes on without it" in caplog.text
    assert places.failed.exists()


@pytest.mark.slow
def test_script_that_takes_too_long_is_ended_with_its_children(
    provision: Callable[..., None], tmp_path: Path
) -> None:
    """After PROVISIONING_TIMEOUT_S script and children must be gone, and the text name the setting."""
    script = b"sleep 60 & echo $! > child\nwait\n"

    with pytest.raises(ProvisioningFailed, match="PROVISIONING_TIMEOUT_S"):
        provision(script, provisioning_timeout_s=1.0)

    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_web_page_is_no_script(provision: Callable[..., None], places: Places) -> None:
    """A link to a page about the script must be told as such, and nothing of it be kept or run."""
    with pytest.raises(ProvisioningFailed, match="raw text"):
        provision(b"\n<!DOCTYPE html><html>")

    assert not places.script.exists()


def test_script_that_is_not_there_is_told(tmp_path: Path, desk: HttpDesk) -> None:
    """A URL without a script must be an error with the status it got."""
    desk.put("/other.sh", b"true")
    config = replace(Settings(), provisioning_script=f"{desk.url}/gone.sh?token=hunter2")

    with pytest.raises(ProvisioningFailed, match=r"could not be fetched.*404") as caught:
        at_start(config, ENVIRON, root=tmp_path)
    assert "hunter2" not in str(caught.value)


def test_provisioning_of_others_is_waited_for(places: Places, tmp_path: Path) -> None:
    """While Vast's own marker is there the worker must wait; what it completed is not done again."""
    places.running.touch()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            places.complete.touch()
            places.running.unlink()

    config = replace(Settings(), provisioning_script="http://127.0.0.1:1/never.sh")
    at_start(config, ENVIRON, root=tmp_path, sleep=sleep)

    assert len(slept) == 3


def test_wait_for_others_is_bounded(places: Places, tmp_path: Path) -> None:
    """A marker that stays must end in an error that names it, also where there is no script."""
    places.running.touch()

    with pytest.raises(ProvisioningFailed, match=r"\.provisioning is still there"):
        at_start(replace(Settings(), provisioning_timeout_s=0.05), ENVIRON, root=tmp_path)


def test_marker_of_a_killed_worker_is_not_waited_for(provision: Callable[..., None], places: Places) -> None:
    """A marker that a worker of ours left must not hold the next one up."""
    places.running.write_text("comfy-worker\n")

    provision(b"true")

    assert places.complete.exists()


def test_nothing_happens_where_nothing_is_set(tmp_path: Path) -> None:
    """Without script and marker no file must be made."""
    at_start(Settings(), ENVIRON, root=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_serve_ends_with_1_before_comfyui_starts(
    desk: HttpDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`serve --face vast` must provision first and end with code 1 when that fails; other faces must not run the script."""
    monkeypatch.setattr(provisioning, "ROOT", tmp_path)
    monkeypatch.setattr(serve, "exit_on_sigterm", lambda: None)
    monkeypatch.setattr("comfy_worker.log.configure", lambda *_args, **_options: None)
    environ = {**ENVIRON, "PROVISIONING_SCRIPT": desk.put("/setup.sh", b"exit 7")}
    begun: list[str] = []

    def begin(*_args: Any, **_options: Any) -> None:
        begun.append("ComfyUI")
        raise serve.ConfigInvalid(["far enough"])

    monkeypatch.setattr(serve.entry, "started", begin)

    assert serve.serve(environ, Face.vast, None, 0) == 1
    assert begun == []
    assert "ended with code 7" in caplog.text
    assert serve.serve(environ, Face.salad, None, 0) == 2
    assert begun == ["ComfyUI"]
    assert len(desk.seen) == 1


def aged(path: Path, age_s: float, text: str = "x") -> Path:
    """
    Write a file of an age.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


def test_vast_29_outputs_of_a_day_ago_make_room(tmp_path: Path) -> None:
    """Old files and the folders they leave empty must go; young ones, empty ones and what a link leads to must stay."""
    output, elsewhere = tmp_path / "output", aged(tmp_path / "elsewhere" / "picture.png", 9 * DAY_S)
    old, deep = aged(output / "old.png", DAY_S + 1), aged(output / "a" / "b" / "old.png", 2 * DAY_S)
    kept = [
        aged(output / "young.png", DAY_S - 1),
        aged(output / "c" / "young.png", 5.0),
        aged(output / "_output_images_will_be_put_here", 9 * DAY_S, ""),
        elsewhere,
    ]
    mixed = aged(output / "c" / "old.png", 2 * DAY_S)
    (output / "link").symlink_to(elsewhere.parent)

    assert spare_outputs(output, DAY_S, now=NOW) == 3

    assert not any(path.exists() for path in (old, deep, deep.parent, mixed))
    assert all(path.exists() for path in kept)
    assert output.is_dir()


@pytest.mark.parametrize(
    ("fields", "cleans"),
    [
        ({}, False),
        ({"old_outputs_age_s": DAY_S}, True),
        ({"old_outputs_age_s": DAY_S, "keep_local_outputs": True}, False),
        ({"old_outputs_age_s": DAY_S, "keep_outputs": True}, False),
    ],
)
def test_outputs_are_cleaned_where_they_may_be(tmp_path: Path, fields: dict[str, Any], cleans: bool) -> None:
    """Old outputs must stay by default and where they are to be kept."""
    assert (old_outputs_of(replace(Settings(), **fields), tmp_path) is not None) is cleans
    assert old_outputs_of(replace(Settings(), **fields), None) is None
