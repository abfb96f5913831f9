"""
The life of a worker under the SDK: how it starts, how it ends, and that nothing of it is left behind.
"""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from runpod_sdk.conftest import StartWorker
from support.control_plane import ControlPlane, PlaneJob, wait_until
from support.lanes import comfy_folder, sleeping
from support.pictures import empty_workflow, invert_workflow, node, png
from support.slow_host import SlowHost
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


def is_running(label: str, port: int) -> bool:
    """
    Return whether the engine at a port runs the workflow with this label.
    """
    try:
        return label in str(requests.get(f"http://127.0.0.1:{port}/queue", timeout=5).json()["queue_running"])
    except requests.RequestException:
        return False


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
    A worker told to stop while it waits for a job.
    """
    with ControlPlane() as plane:
        worker = WorkerProcess(folder, supervised(plane, folder))
        try:
            wait_until(lambda: plane.open_takes and plane.pings)
            assert len(worker.children()) == 2
            worker.tell()
            return Ended(worker, plane, worker.wait(), [])
        finally:
            worker.close()


def live_late(folder: Path, lane: EngineThread) -> Ended:
    """
    A worker told to stop while it runs a job that outlasts the grace; its other poll is held.
    """
    own = {"SHUTDOWN_GRACE_S": "1", "WORKER_CONCURRENCY": "2"}
    with ControlPlane(hold_s=60.0) as plane:
        worker = WorkerProcess(folder, supervised(plane, folder, **own))
        try:
            job = plane.submit({"workflow": sleeping("late-")})
            job.wait_until(lambda job: any("running" in str(post.body) for post in job.progress))
            worker.tell()
            return Ended(worker, plane, worker.wait(), [job])
        finally:
            worker.close()


def live_busy(folder: Path, lane: EngineThread) -> Ended:
    """
    A worker told to stop while it runs a job and asks for another, which comes in too late.

    Its ping process is spawned, which imports `handler.py` anew.
    """
    (folder / "sitecustomize.py").write_text("import multiprocessing as m\nm.set_start_method('spawn')\n")
    own = {"PYTHONPATH": str(folder), "RUNPOD_DEBUG_LEVEL": "DEBUG", "WORKER_CONCURRENCY": "2"}
    with ControlPlane(hold_s=60.0) as plane, SlowHost(200, png((8, 8), (1, 2, 3))) as host:
        environ = supervised(plane, folder, ALLOW_PRIVATE_URLS="true", SHUTDOWN_GRACE_S="60", **own)
        worker = WorkerProcess(folder, {**environ, "RUNPOD_PING_INTERVAL": "300"})
        try:
            job = plane.submit({"workflow": invert_workflow(f"{host.url}/a.png")})
            wait_until(lambda: host.asked.is_set() and len(plane.pings) > 2 and plane.open_takes)
            worker.tell()
            wait_until(lambda: "Kill worker." in worker.text)
            threading.Event().wait(0.5)  # some rounds of the SDK's loop over its queue
            late = plane.submit(EMPTY, "too-late-e1")
            late.taken.wait(10.0)
            host.go.set()
            return Ended(worker, plane, worker.wait(), [job, late])
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


@pytest.fixture(scope="session")
def lives(lane: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """
    Five workers from their start to their end, at the same time.
    """
    acts = (live_idle, live_late, live_busy, live_refreshed, live_dying)
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
def late(lives: dict[str, Ended]) -> Ended:
    """
    See `live_late`.
    """
    return lives["late"]


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


def test_runpod_14_37_sigterm_while_busy_finishes_and_posts_the_job(busy: Ended) -> None:
    """A busy worker that is told to stop must finish its job, post it, and then end with code 0."""
    assert "images" in busy.jobs[0].output
    assert busy.code == 0
    assert_nothing_is_left(busy.worker)


def test_runpod_14_37_job_that_outlasts_the_grace_is_cancelled_and_posted(late: Ended) -> None:
    """A job still running SHUTDOWN_GRACE_S after SIGTERM must be cancelled and posted, and the worker end with code 0."""
    assert late.jobs[0].output["error_code"] == "job_cancelled"
    assert late.code == 0
    assert "SHUTDOWN_GRACE_S" in late.worker.text
    assert_nothing_is_left(late.worker)


def test_runpod_14_75_pings_go_on_with_the_spawn_start_method(busy: Ended) -> None:
    """A spawned ping process must find the main guard and send more than one ping, at an interval that it can keep."""
    assert len([ping for ping in busy.plane.pings if busy.jobs[0].id in ping.get("job_id", "")]) >= 2


def test_runpod_14_78_job_that_came_too_late_is_named(busy: Ended) -> None:
    """A job that arrives on the open poll after SIGTERM is lost by the SDK; the log must name it."""
    late = busy.jobs[1]
    assert late.taken.is_set()
    assert late.posts == []
    [record] = [record for record in busy.worker.records if record["level"] == "ERROR"]
    assert record["requestId"] == "too-late-e1"
    assert "was not run" in record["message"]


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
    ours = [text.split(" ")[0] for text in warnings if text.startswith("RUNPOD_")]
    assert ours == ["RUNPOD_LOG_LEVEL=WARNING", "RUNPOD_DEBUG_LEVEL=1"]
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
    assert died.code == 1  # the worker is of no use any more
    assert not fourth.taken.is_set()
    assert_nothing_is_left(died.worker)


@pytest.mark.slow
def test_worker_whose_comfyui_is_given_up_while_idle_ends(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """When ComfyUI is given up and no job runs, the worker must end with code 1, and leave the next job to another."""
    environ = supervised(plane, tmp_path)
    main = tmp_path / "ComfyUI" / "main.py"
    main.write_text(
        "import os, pathlib, threading, time\n"
        "def end():\n"
        f"    while not pathlib.Path({str(tmp_path / 'end')!r}).exists(): time.sleep(0.02)\n"
        "    print('RuntimeError: No CUDA GPUs are available', flush=True)\n"
        "    os._exit(1)\n"
        f"threading.Thread(target=end, daemon=True).start()\n{main.read_text()}"
    )
    worker = start_worker(environ)
    wait_until(lambda: plane.open_takes)

    (tmp_path / "end").touch()

    assert worker.wait() == 1
    job = plane.submit(EMPTY)
    assert not job.taken.is_set()
    assert "found no GPU that it can use" in worker.text
    assert_nothing_is_left(worker)


@pytest.mark.slow
@pytest.mark.parametrize("required", [True, False])
def test_warmup_runs_before_the_first_job_is_taken(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path, required: bool
) -> None:
    """A warm-up that fails must be loud, come before any job, and end the worker with code 1 only where it is required."""
    raising = {"1": node("StandinRaise", message="cold"), "2": node("PreviewAny", source=("1", 0))}
    own = {"WARMUP_WORKFLOW": json.dumps(raising), "WARMUP_REQUIRED": str(required).lower()}
    job = plane.submit(EMPTY)

    worker = start_worker(supervised(plane, tmp_path, **own))

    if required:
        assert worker.wait() == 1
        assert plane.takes == []
        assert_nothing_is_left(worker)
    else:
        job.wait()
        assert "images" in job.output
    [told] = [record for record in worker.records if record["message"].startswith("The warm-up failed: ")]
    assert told["level"] == "ERROR"


@pytest.mark.slow
def test_sigterm_during_the_warmup_ends_the_worker(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker that is told to stop while it warms up must end with code 0 at once, without a job."""
    environ = supervised(plane, tmp_path, WARMUP_WORKFLOW=json.dumps(sleeping("warm-")))
    worker = start_worker(environ)
    wait_until(lambda: is_running("warm-", int(environ["COMFY_PORT"])))

    worker.tell()

    assert worker.wait() == 0
    assert plane.takes == []
    assert_nothing_is_left(worker)


@pytest.mark.slow
def test_leftovers_of_a_crashed_worker_are_removed_at_the_start(
    plane: ControlPlane, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Old run folders in ComfyUI's output must be gone soon after the start, young ones and a person's must stay."""
    environ = supervised(plane, tmp_path)
    output = tmp_path / "ComfyUI" / "output"
    old, young, own = (output / name for name in (f"cw-{'a' * 20}", f"cw-{'b' * 20}", "holiday"))
    for path in (old, young, own):
        path.mkdir(parents=True)
    for path in (old, own):
        os.utime(path, (1e9, 1e9))

    start_worker(environ)

    wait_until(lambda: not old.exists())
    assert young.exists()
    assert own.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "own"), [(UNFIT, {}), ((), {"MIN_FREE_DISK_MB": "1e12"})], ids=["comfyui", "disk"]
)
def test_runpod_14_42_unfit_worker_reports_itself_and_ends(
    plane: ControlPlane,
    start_worker: StartWorker,
    tmp_path: Path,
    flags: tuple[str, ...],
    own: dict[str, str],
) -> None:
    """A ComfyUI without an answer about its device, and a full disk, must be reported before any job is taken."""
    worker = start_worker(supervised(plane, tmp_path, *flags, **own))

    code = worker.wait()

    assert code == 1
    [ping] = plane.pings
    assert (ping["status"], ping["check"]) == ("unhealthy", "comfyui")
    assert 0 < len(ping["reason"]) <= 256
    assert plane.takes == []
    assert_nothing_is_left(worker)


@pytest.mark.slow
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
