"""
The life of a worker under the SDK: how it starts, how it ends, and that nothing of it is left behind.
"""

import json
import signal
from pathlib import Path

import pytest
from runpod_sdk.conftest import StartWorker
from support.control_plane import KEY, ControlPlane, wait_until
from support.lanes import comfy_folder, runs, sleeping
from support.pictures import empty_workflow, node
from support.worker_process import WorkerProcess

from comfy_worker import wiring
from comfy_worker.standin.thread import EngineThread

EMPTY = {"workflow": empty_workflow()}
DYING = ("--faults", json.dumps({"die_at_node": "die"}))
UNFIT = ("--faults", json.dumps({"http_500_on": ["/system_stats"]}))


def supervised(plane: ControlPlane, folder: Path, *flags: str, **settings: str) -> dict[str, str]:
    """
    Return the environment of a worker that starts its own engine.
    """
    own = {
        "COMFYUI_PATH": str(comfy_folder(folder / "ComfyUI", *flags)),
        "COMFY_PORT": str(wiring.free_port()),
    }
    return {**plane.environ(), **own, "COMFY_RESTART_DELAY": "0.1", **settings}


def dying() -> dict[str, object]:
    """
    Return the input of a job in the middle of which ComfyUI dies.
    """
    workflow = empty_workflow()
    workflow["die"] = node("ImageInvert", image=("1", 0))
    workflow["2"]["inputs"]["images"] = ["die", 0]
    return {"workflow": workflow}


def assert_nothing_is_left(worker: WorkerProcess) -> None:
    """
    Assert that no process and no file of a worker outlives it.
    """
    wait_until(lambda: not worker.leftovers(), 5.0)
    assert list(worker.temp.iterdir()) == []
    assert list(worker.cwd.iterdir()) == []


def test_runpod_14_37_sigterm_while_idle_ends_comfyui_and_the_ping_child(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """An idle worker that is told to stop must end with code 0, its ComfyUI and the SDK's ping process with it."""
    worker = start_worker(supervised(plane, tmp_path))
    wait_until(lambda: plane.takes and plane.pings)
    assert len(worker.children()) == 2

    worker.tell()

    assert worker.wait() == 0
    assert_nothing_is_left(worker)


def test_runpod_14_37_sigterm_while_busy_finishes_and_posts_the_job(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A busy worker that is told to stop must finish its job, post it, and then end with code 0."""
    worker = start_worker(supervised(plane, tmp_path))
    job = plane.submit({"workflow": sleeping("busy-", seconds=1.0, steps=20)})
    assert job.taken.wait(20.0)
    job.wait_until(lambda _: '"Started."' in worker.text)

    worker.tell()

    assert "images" in job.wait()["output"]
    assert worker.wait() == 0
    assert_nothing_is_left(worker)


def test_sigterm_while_comfyui_boots_ends_the_worker(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker that is told to stop before it was ready must end with code 0 and take its ComfyUI along."""
    worker = start_worker(supervised(plane, tmp_path, "--start-delay", "60"))
    wait_until(lambda: "built-in engine" in worker.text)

    worker.tell()

    assert worker.wait() == 0
    assert plane.takes == []
    assert_nothing_is_left(worker)


def test_runpod_14_38_killed_worker_leaves_no_process_behind(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """When the worker is killed its ComfyUI and the ping process, which would report it alive, must end too."""
    worker = start_worker(supervised(plane, tmp_path))
    wait_until(lambda: plane.takes and plane.pings)
    assert len(worker.children()) == 2

    worker.tell(signal.SIGKILL)

    assert worker.wait() == -signal.SIGKILL
    wait_until(lambda: not worker.leftovers(), 5.0)


def test_runpod_14_28_refresh_worker_stops_the_pod_after_one_job(
    plane: ControlPlane, start_worker: StartWorker, lane: EngineThread
) -> None:
    """With REFRESH_WORKER=true the first result must carry `stopPod`, no second job is taken, and the exit code is 0."""
    first, second = plane.submit_all([(None, {"input": EMPTY}), (None, {"input": EMPTY})])
    worker = start_worker({**plane.environ(), "COMFYUI_URL": lane.url, "REFRESH_WORKER": "yes"})

    body = first.wait()

    assert body["stopPod"] is True
    assert "refresh_worker" not in body["output"]
    assert worker.wait() == 0
    assert not second.taken.is_set()
    assert_nothing_is_left(worker)


def test_runpod_14_29_dead_comfyui_fails_its_job_and_is_started_again_until_it_dies_too_often(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A death must fail the running job with the signal; the next job works; the last death stops the pod."""
    worker = start_worker(supervised(plane, tmp_path, *DYING, COMFY_MAX_RAPID_RESTARTS="2"))

    first = plane.submit(dying()).wait()
    second = plane.submit(EMPTY).wait()
    jobs = plane.submit_all([(None, {"input": dying()}), (None, {"input": EMPTY})])
    third = jobs[0].wait()

    assert first["error"].startswith(
        "WebSocket communication error: ComfyUI HTTP unreachable during websocket reconnect"
    )
    assert "signal SIGKILL" in first["error"]
    assert (first["output"]["error_code"], first["output"]["retryable"]) == ("comfy_unavailable", True)
    assert "stopPod" not in first
    assert "images" in second["output"]
    # runpod_14_77: by the result alone a dying worker would take the job that waits.
    assert third["stopPod"] is True
    assert worker.wait() == 0
    assert not jobs[1].taken.is_set()
    assert_nothing_is_left(worker)


def test_runpod_14_77_recycle_goes_through_the_config(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A ComfyUI that cannot be started again must stop the pod with the first result, and no further job is taken."""
    worker = start_worker(supervised(plane, tmp_path, *DYING, COMFY_MAX_RAPID_RESTARTS="1"))
    jobs = plane.submit_all([(None, {"input": dying()}), (None, {"input": EMPTY})])

    body = jobs[0].wait()

    assert body["stopPod"] is True
    assert worker.wait() == 0
    assert not jobs[1].taken.is_set()


def test_runpod_14_42_unfit_worker_reports_itself_and_ends(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A ComfyUI without an answer about its device must be reported as unhealthy, before any job is taken."""
    worker = start_worker(supervised(plane, tmp_path, *UNFIT))

    code = worker.wait()

    assert code == 1
    [ping] = plane.pings
    assert (ping["status"], ping["check"]) == ("unhealthy", "comfyui")
    assert 0 < len(ping["reason"]) <= 256
    assert plane.takes == []
    assert_nothing_is_left(worker)


@pytest.mark.parametrize("kind", ["running", "supervised"])
def test_worker_without_comfyui_ends_with_one_clear_sentence(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path, kind: str
) -> None:
    """When ComfyUI cannot be had the exit code must be 1, and the last word names its address."""
    port = wiring.free_port()
    environ = {
        "running": {"COMFYUI_URL": f"127.0.0.1:{port}", "COMFY_API_AVAILABLE_MAX_RETRIES": "3"},
        "supervised": {
            "COMFYUI_PATH": str(tmp_path),
            "COMFY_PORT": str(port),
            "COMFY_MAX_RAPID_RESTARTS": "1",
        },
    }[kind]
    (tmp_path / "main.py").write_text("import sys\nprint('address already in use')\nsys.exit(3)\n")

    worker = start_worker({**plane.environ(), **environ})

    assert worker.wait() == 1
    last = worker.records[-1]
    assert last["level"] == "ERROR"
    assert last["message"].startswith(
        f"ComfyUI server (127.0.0.1:{port}) not reachable after multiple retries."
    )
    assert kind == "running" or "COMFY_PORT" in last["message"]
    assert "Traceback" not in worker.text
    assert plane.takes == []
    assert_nothing_is_left(worker)


def test_runpod_14_58_wrong_settings_are_named_all_at_once(
    plane: ControlPlane, start_worker: StartWorker
) -> None:
    """Wrong values must end the worker with code 2 and one message that names every variable."""
    wrong = {"WEBSOCKET_RECONNECT_ATTEMPTS": "five", "REFRESH_WORKER": "maybe", "REPLY_LIMIT_MB": "-1"}

    worker = start_worker({**plane.environ(), **wrong})

    assert worker.wait() == 2
    [record] = worker.records
    assert all(name in record["message"] for name in wrong)
    assert "Traceback" not in worker.text


def test_runpod_14_75_pings_go_on_with_the_spawn_start_method(
    plane: ControlPlane, start_worker: StartWorker, lane: EngineThread, tmp_path: Path
) -> None:
    """A ping process that imports `handler.py` anew must find the main guard, send pings, and end with the worker."""
    (tmp_path / "sitecustomize.py").write_text(
        "import multiprocessing\nmultiprocessing.set_start_method('spawn')\n"
    )
    environ = {**plane.environ(ping_ms=300), "COMFYUI_URL": lane.url, "PYTHONPATH": str(tmp_path)}

    worker = start_worker(environ)
    job = plane.submit({"workflow": sleeping("pinged-", seconds=2.5, steps=50)})
    wait_until(lambda: any(ping.get("job_id") == job.id for ping in plane.pings))
    job.wait()
    worker.tell()

    assert len(plane.pings) >= 2
    assert worker.wait() == 0
    assert_nothing_is_left(worker)


def test_runpod_14_78_job_that_came_too_late_is_named(
    plane: ControlPlane, start_worker: StartWorker, lane: EngineThread
) -> None:
    """A job that arrives on the open poll after SIGTERM is lost by the SDK; the log must name it."""
    plane.hold_s = 2.0
    worker = start_worker({**plane.environ(), "COMFYUI_URL": lane.url})
    wait_until(lambda: plane.open_takes)

    worker.tell()
    wait_until(lambda: "x" if plane.open_takes else "")
    signalled = plane.submit(EMPTY, "too-late-e1")

    assert worker.wait() == 0
    assert signalled.taken.is_set()
    assert signalled.posts == []
    [record] = [record for record in worker.records if record["level"] == "ERROR"]
    assert record["requestId"] == "too-late-e1"
    assert "was not run" in record["message"]


def test_runpod_14_54_level_that_the_sdk_refuses_is_mapped(
    plane: ControlPlane, start_worker: StartWorker, lane: EngineThread
) -> None:
    """RUNPOD_LOG_LEVEL=WARNING, which ends the SDK at its import, must be mapped, with one warning."""
    levels = {"RUNPOD_LOG_LEVEL": "WARNING", "RUNPOD_DEBUG_LEVEL": "1"}
    worker = start_worker({**plane.environ(), **levels, "COMFYUI_URL": lane.url, "REFRESH_WORKER": "1"})

    plane.submit(EMPTY).wait()

    assert worker.wait() == 0
    warnings = [record["message"] for record in worker.records if record["level"] == "WARN"]
    assert [text.split(" ")[0] for text in warnings] == ["RUNPOD_LOG_LEVEL=WARNING", "RUNPOD_DEBUG_LEVEL=1"]
    assert "Started." not in worker.text
    assert KEY not in worker.text


def test_engine_runs_while_the_worker_serves(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path, lane: EngineThread
) -> None:
    """A supervised worker must serve on its own engine, not on any other."""
    worker = start_worker(supervised(plane, tmp_path))

    job = plane.submit({"workflow": sleeping("own-", seconds=0.5, steps=5)})
    assert job.taken.wait(20.0)

    assert not runs(lane, "own-")
    assert "images" in job.wait()["output"]
    worker.tell()
    assert worker.wait() == 0
