"""
The life of a worker under the SDK: how it starts, how it ends, and that nothing of it is left behind.
"""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from runpod_sdk.conftest import StartWorker
from support.control_plane import ControlPlane, PlaneJob, wait_until
from support.lanes import comfy_folder, sleeping
from support.pictures import empty_workflow, node
from support.worker_process import WorkerProcess

from comfy_worker.comfy import launch
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
        "COMFY_PORT": str(launch.free_port()),
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


@dataclass(frozen=True)
class Ended:
    """
    A worker that has ended, and what its plane saw; `jobs` in the order they were sent.
    """

    worker: WorkerProcess
    plane: ControlPlane
    code: int
    jobs: list[PlaneJob]


def live_idle(folder: Path, lane: EngineThread) -> Ended:
    """
    A worker told to stop while it waits for a job; one comes in on the poll that is still open.
    """
    with ControlPlane(hold_s=2.0) as plane:
        worker = WorkerProcess(folder, supervised(plane, folder, RUNPOD_DEBUG_LEVEL="DEBUG"))
        try:
            wait_until(lambda: plane.open_takes and plane.pings)
            assert len(worker.children()) == 2
            worker.tell()
            wait_until(lambda: "Kill worker." in worker.text)
            threading.Event().wait(0.3)  # three rounds of the SDK's loop over its queue
            job = plane.submit(EMPTY, "too-late-e1")
            return Ended(worker, plane, worker.wait(), [job])
        finally:
            worker.close()


def live_busy(folder: Path, lane: EngineThread) -> Ended:
    """
    A worker told to stop while it runs a job; its ping process is spawned, which imports `handler.py` anew.
    """
    (folder / "sitecustomize.py").write_text("import multiprocessing as m\nm.set_start_method('spawn')\n")
    with ControlPlane() as plane:
        environ = {**supervised(plane, folder, PYTHONPATH=str(folder)), "RUNPOD_PING_INTERVAL": "300"}
        worker = WorkerProcess(folder, environ)
        try:
            job = plane.submit({"workflow": sleeping("busy-", seconds=4.0, steps=50)})
            wait_until(lambda: len(plane.pings) >= 2)
            worker.tell()
            return Ended(worker, plane, worker.wait(), [job])
        finally:
            worker.close()


def live_refreshed(folder: Path, lane: EngineThread) -> Ended:
    """
    A worker with REFRESH_WORKER and with log levels that the SDK does not know; two jobs wait for it.
    """
    levels = {"RUNPOD_LOG_LEVEL": "WARNING", "RUNPOD_DEBUG_LEVEL": "1"}
    with ControlPlane() as plane:
        jobs = plane.submit_all([(None, {"input": EMPTY}), (None, {"input": EMPTY})])
        environ = {**plane.environ(), **levels, "COMFYUI_URL": lane.url, "REFRESH_WORKER": "yes"}
        worker = WorkerProcess(folder, environ)
        try:
            jobs[0].wait()
            return Ended(worker, plane, worker.wait(), jobs)
        finally:
            worker.close()


def live_dying(folder: Path, lane: EngineThread) -> Ended:
    """
    A worker whose ComfyUI dies twice, the second time for good; the fourth job waits when that happens.
    """
    with ControlPlane() as plane:
        worker = WorkerProcess(folder, supervised(plane, folder, *DYING, COMFY_MAX_RAPID_RESTARTS="2"))
        try:
            jobs = [plane.submit(dying()), plane.submit(EMPTY)]
            jobs[1].wait()
            jobs += plane.submit_all([(None, {"input": dying()}), (None, {"input": EMPTY})])
            jobs[2].wait()
            return Ended(worker, plane, worker.wait(), jobs)
        finally:
            worker.close()


@pytest.fixture(scope="module")
def lives(lane: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """
    Four workers from their start to their end, at the same time.
    """
    acts = (live_idle, live_busy, live_refreshed, live_dying)
    with ThreadPoolExecutor(len(acts)) as pool:
        ends = {act.__name__: pool.submit(act, tmp_path_factory.mktemp(act.__name__), lane) for act in acts}
        return {name.removeprefix("live_"): end.result() for name, end in ends.items()}


@pytest.fixture
def idle(lives: dict[str, Ended]) -> Ended:
    """
    See `live_idle`.
    """
    return lives["idle"]


@pytest.fixture
def busy(lives: dict[str, Ended]) -> Ended:
    """
    See `live_busy`.
    """
    return lives["busy"]


@pytest.fixture
def refreshed(lives: dict[str, Ended]) -> Ended:
    """
    See `live_refreshed`.
    """
    return lives["refreshed"]


@pytest.fixture
def died(lives: dict[str, Ended]) -> Ended:
    """
    See `live_dying`.
    """
    return lives["dying"]


def test_runpod_14_37_sigterm_while_idle_ends_comfyui_and_the_ping_child(idle: Ended) -> None:
    """An idle worker that is told to stop must end with code 0, its ComfyUI and the SDK's ping process with it."""
    assert idle.code == 0
    assert_nothing_is_left(idle.worker)


def test_runpod_14_78_job_that_came_too_late_is_named(idle: Ended) -> None:
    """A job that arrives on the open poll after SIGTERM is lost by the SDK; the log must name it."""
    [job] = idle.jobs
    assert job.taken.is_set()
    assert job.posts == []
    [record] = [record for record in idle.worker.records if record["level"] == "ERROR"]
    assert record["requestId"] == "too-late-e1"
    assert "was not run" in record["message"]


def test_runpod_14_37_sigterm_while_busy_finishes_and_posts_the_job(busy: Ended) -> None:
    """A busy worker that is told to stop must finish its job, post it, and then end with code 0."""
    assert "images" in busy.jobs[0].output
    assert busy.code == 0
    assert_nothing_is_left(busy.worker)


def test_runpod_14_75_pings_go_on_with_the_spawn_start_method(busy: Ended) -> None:
    """A spawned ping process must find the main guard and send more than one ping, at an interval that it can keep."""
    assert len(busy.plane.pings) >= 2
    assert busy.plane.pings[1]["job_id"] == busy.jobs[0].id


def test_runpod_14_28_refresh_worker_stops_the_pod_after_one_job(refreshed: Ended) -> None:
    """With REFRESH_WORKER=true the first result must carry `stopPod`, no second job is taken, and the exit code is 0."""
    first, second = refreshed.jobs
    assert first.body["stopPod"] is True
    assert "refresh_worker" not in first.output
    assert refreshed.code == 0
    assert not second.taken.is_set()
    assert_nothing_is_left(refreshed.worker)


def test_runpod_14_54_level_that_the_sdk_refuses_is_mapped(refreshed: Ended) -> None:
    """RUNPOD_LOG_LEVEL=WARNING, which ends the SDK at its import, must be mapped, with one warning."""
    warnings = [record["message"] for record in refreshed.worker.records if record["level"] == "WARN"]
    assert [text.split(" ")[0] for text in warnings] == ["RUNPOD_LOG_LEVEL=WARNING", "RUNPOD_DEBUG_LEVEL=1"]
    assert "Started." not in refreshed.worker.text


def test_sigterm_while_comfyui_boots_ends_the_worker(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker that is told to stop before it was ready must end with code 0 and take its ComfyUI along."""
    (tmp_path / "main.py").write_text("import time\nprint('booting', flush=True)\ntime.sleep(60)\n")
    worker = start_worker({**plane.environ(), "COMFYUI_PATH": str(tmp_path)})
    wait_until(lambda: "booting" in worker.text)

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


def test_runpod_14_29_dead_comfyui_fails_its_job_and_is_started_again(died: Ended) -> None:
    """The job under which ComfyUI died must fail in the known words, with the signal, and the next one works."""
    first, second = died.jobs[:2]
    assert first.body["error"].startswith(
        "WebSocket communication error: ComfyUI HTTP unreachable during websocket reconnect"
    )
    assert "signal SIGKILL" in first.body["error"]
    assert (first.output["error_code"], first.output["retryable"]) == ("comfy_unavailable", True)
    assert "stopPod" not in first.body
    assert "images" in second.output


def test_runpod_14_29_comfyui_that_dies_too_often_stops_the_pod(died: Ended) -> None:
    """When ComfyUI is given up that job's result must carry `stopPod`, and the worker ends without another job."""
    third, fourth = died.jobs[2:]
    assert third.body["stopPod"] is True
    assert "signal SIGKILL" in third.body["error"]
    assert died.code == 0
    assert not fourth.taken.is_set()
    assert_nothing_is_left(died.worker)


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
    port = launch.free_port()
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
