"""
What surrounds the runpod SDK: its version, its import, what it is told, and what it prints.
"""

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from runpod_sdk.conftest import SLOTS, Running, StartWorker
from support.control_plane import KEY, ControlPlane, wait_until
from support.lanes import failing, runs, sleeping, waits
from support.pictures import b64, empty_workflow, invert_workflow, png
from support.slow_host import SlowHost
from support.worker_process import ROOT

from comfy_worker.errors import ComfyUnavailable
from comfy_worker.faces import runpod_sdk
from comfy_worker.faces.runpod_drain import Drain
from comfy_worker.faces.runpod_sdk import Loop


def python(code: str, **environ: str) -> str:
    """
    Run code in a clean process of its own; return what it printed.
    """
    own = {"PATH": os.environ["PATH"], **environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=own,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loop_of(reply: dict[str, Any], **options: Any) -> Loop:
    """
    Return a loop whose every job gets `reply`.
    """

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        return dict(reply)

    fields = {"concurrency": 2, "refresh_worker": False, "system_stats": dict, "close": lambda: None}
    loop = Loop(handler, **{**fields, **options})
    loop.drain = Drain(1.0, lambda: None, list)  # the SDK, whose list it would ask, is not loaded here
    return loop


def test_runpod_14_70_sdk_is_of_a_version_that_spreads_jobs() -> None:
    """1.7.11 to 1.10.0 send every job to one worker, so the requirement and what is installed must be 1.12 or later."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    major, minor = version("runpod").split(".")[:2]

    assert "runpod>=1.12,<2" in wanted
    assert (int(major), int(minor) >= 12) == (1, True)


def test_runpod_14_34_comfyui_is_started_before_the_sdk_is_imported(
    start_worker: StartWorker, plane: ControlPlane, tmp_path: Path
) -> None:
    """When the SDK's import begins, ComfyUI must be booting already."""
    booted = tmp_path / "booted"
    (tmp_path / "main.py").write_text(f"import time\nopen({str(booted)!r}, 'w').close()\ntime.sleep(60)\n")
    (tmp_path / "runpod").mkdir()
    (tmp_path / "runpod" / "__init__.py").write_text(
        "import os, sys, time\n"
        "end = time.monotonic() + 10\n"
        f"while not os.path.exists({str(booted)!r}) and time.monotonic() < end:\n"
        "    time.sleep(0.01)\n"
        f"print('runpod is imported, ComfyUI boots:', os.path.exists({str(booted)!r}))\n"
        "sys.exit(5)\n"
    )
    environ = {**plane.environ(), "COMFYUI_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)}

    worker = start_worker(environ)

    assert worker.wait() == 5
    assert "runpod is imported, ComfyUI boots: True" in worker.lines
    assert worker.leftovers() == set()


def test_runpod_14_35_import_of_the_sdk_runs_no_cpu_probe() -> None:
    """The second that the SDK's import sleeps in its CPU probe must be spared."""
    printed = python(
        "import os, sys\n"
        "from comfy_worker.faces.runpod_sdk import prepare\n"
        "prepare(os.environ)\n"
        "import runpod.serverless\n"
        "print(hasattr(sys.modules['cpuinfo'], '__file__'))\n"
    )

    assert printed.split() == ["False"]


def test_runpod_14_36_worker_process_holds_no_torch_and_skips_the_sdks_gpu_checks() -> None:
    """Neither the handler nor the SDK may bring torch in, and the SDK's own checks must be off."""
    printed = python(
        "import os, sys, handler\n"
        "from comfy_worker.faces.runpod_sdk import prepare\n"
        "prepare(os.environ)\n"
        "import runpod.serverless\n"
        "print('torch' in sys.modules, os.environ['RUNPOD_SKIP_GPU_CHECK'], "
        "os.environ['RUNPOD_SKIP_AUTO_SYSTEM_CHECKS'])\n"
    )

    assert printed.split() == ["False", "true", "true"]


def test_runpod_14_42_fitness_check_asks_comfyui_for_its_device() -> None:
    """A ComfyUI without a device, or without an answer, must be unfit, and is ended first; on a CPU it is fit."""

    def silent() -> dict[str, Any]:
        raise ComfyUnavailable("no answer")

    closed: list[str] = []
    loop_of(
        {}, system_stats=lambda: {"devices": [{"type": "cpu"}]}, close=lambda: closed.append("fit")
    ).comfyui()
    for number, stats in enumerate((lambda: {"devices": []}, silent)):
        with pytest.raises(ComfyUnavailable):
            loop_of({}, system_stats=stats, close=lambda number=number: closed.append(str(number))).comfyui()

    assert closed == ["0", "1"]


def test_runpod_14_77_refresh_in_a_reply_ends_the_loop_too() -> None:
    """`refresh_worker` must also be set in the dict that the SDK reads after each job."""
    config = loop_of({"error": "x", "refresh_worker": True}).config()
    healthy = loop_of({"images": []}).config()

    asyncio.run(config["handler"]({"id": "1"}))
    asyncio.run(healthy["handler"]({"id": "1"}))

    assert config["refresh_worker"] is True
    assert healthy["refresh_worker"] is False


def test_all_slots_are_asked_for_from_the_first_take(served: Running) -> None:
    """The SDK resizes only when it is idle, so the number of slots must be right from the start."""
    assert f"batch_size={SLOTS}&" in served.plane.takes[0]


@pytest.mark.parametrize(
    ("given", "level"),
    [("WARNING", "WARN"), ("warn", "WARN"), ("critical", "ERROR"), ("10", "INFO"), ("debug", "DEBUG")],
)
def test_runpod_14_54_levels_are_mapped_to_those_of_the_sdk(given: str, level: str) -> None:
    """Every level that people write must become one that the SDK takes."""
    environ = {"RUNPOD_LOG_LEVEL": given}

    runpod_sdk.prepare(environ)

    assert environ["RUNPOD_LOG_LEVEL"] == level


@pytest.mark.parametrize(("given", "kept"), [("300", "1000"), ("10000", "10000"), ("x", "x")])
def test_ping_interval_below_a_second_is_raised(given: str, kept: str) -> None:
    """The SDK's ping process ends at once when its interval is below a second."""
    environ = {"RUNPOD_PING_INTERVAL": given}

    runpod_sdk.prepare(environ)

    assert environ["RUNPOD_PING_INTERVAL"] == kept


def test_runpod_14_53_sdk_prints_no_outputs_and_every_line_names_its_job(served: Running) -> None:
    """On RunPod every line must be JSON in its shape; a job's lines carry its id, and no output is printed."""
    picture = b64(png((9, 9), (1, 2, 3)))
    images = [{"name": "in.png", "image": picture}]
    job = served.plane.submit({"workflow": invert_workflow(), "images": images}, "logged-e1")
    data = job.wait()["output"]["images"][0]["data"]
    job.wait_until(lambda _: '"requestId": "logged-e1", "message": "Finished."' in served.worker.text)

    rest = [line for line in served.worker.lines if not line.startswith("{")]
    assert [line for line in rest if not line.startswith("--- Starting Serverless Worker")] == []
    assert all(set(record) == {"requestId", "message", "level"} for record in served.worker.records)
    assert any(record["requestId"] == "logged-e1" for record in served.worker.records)
    assert data[:60] not in served.worker.text
    assert picture[:60] not in served.worker.text


@pytest.mark.slow
def test_secrets_of_jobs_and_of_the_worker_are_in_no_log_and_no_reply(served: Running) -> None:
    """Neither the worker's key nor keys, signatures and passwords of a job may be printed or sent back."""
    secrets = ["the-comfy-key", "the-access-id", "the-access-secret", "the-signature", "the-password"]
    with SlowHost(403) as host:
        host.go.set()
        config = {
            "accessId": "the-access-id",
            "accessSecret": "the-access-secret",
            "bucketName": "b",
            "endpointUrl": host.url,
        }
        address = host.url.replace("//", "//user:the-password@") + "/a.png?X-Amz-Signature=the-signature"
        files = [{"name": "in.png", "url": address}]
        jobs = [
            served.plane.submit(
                {"workflow": workflow, "comfy_org_api_key": "the-comfy-key", **more}, s3Config=config
            )
            for workflow, more in (
                (empty_workflow(), {}),
                (failing("the-comfy-key"), {}),
                (invert_workflow(), {"files": files}),
                (
                    invert_workflow(),
                    {"files": [{"name": "in.png", "url": address.replace("user:the-password@", "")}]},
                ),
            )
        ]
        bodies = [job.wait() for job in jobs]

    assert all("error" in body for body in bodies)
    for text in (served.worker.text, json.dumps(bodies)):
        assert [secret for secret in [*secrets, KEY] if secret in text] == []


@pytest.mark.parametrize("status", [400, 500])
def test_plane_that_answers_takes_with_errors_is_asked_again(served: Running, status: int) -> None:
    """The worker must survive a plane that answers its polls with errors, and take the next job."""
    seen = len(served.plane.takes)
    served.plane.set(take_status=status)
    job = served.plane.submit({"workflow": empty_workflow()})
    wait_until(lambda: len(served.plane.takes) > seen + 2)

    served.plane.set(take_status=None)

    assert "images" in job.wait()["output"]


def test_runpod_14_76_next_prompt_waits_in_comfyui_while_the_present_one_runs(served: Running) -> None:
    """With more than one slot the GPU must not wait for the SDK: the next prompt is queued before the first is over."""
    first = served.plane.submit({"workflow": sleeping("present-")})
    first.wait_until(lambda _: runs(served.engine, "present-"))
    second = served.plane.submit({"workflow": sleeping("next-", seconds=0.1, steps=2)})

    second.wait_until(lambda _: waits(served.engine, "next-"))

    assert runs(served.engine, "present-")
    served.plane.cancel(first)
    assert "images" in second.wait()["output"]


def test_runpod_14_61_comfyui_elsewhere_is_used_and_none_is_started(served: Running) -> None:
    """With COMFYUI_URL the worker's only child must be the SDK's ping process."""
    assert len(served.worker.children()) == 1


def test_runpod_14_79_jobs_leave_the_working_directory_as_it_was(served: Running) -> None:
    """None of the SDK's helpers that litter the working directory may be used."""
    picture = {"name": "in.png", "image": b64(png((4, 4), (3, 2, 1)))}
    served.plane.submit({"workflow": invert_workflow(), "images": [picture]}).wait()

    assert list(served.worker.cwd.iterdir()) == []
    # A job that was cancelled before may need a moment more for its own files.
    wait_until(
        lambda: all(path.name.startswith("comfy-worker-engine-") for path in served.worker.temp.iterdir()),
        5.0,
    )
