"""
Time limits, cancels, deaths and repetitions: what happens to a job when something happens to ComfyUI.
"""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from integration.conftest import Comfy, ksampler_workflow
from support.control_plane import wait_until
from support.pictures import empty_workflow, invert_job, job_of, node, png

from comfy_worker import entry, wiring
from comfy_worker.comfy import launch
from comfy_worker.graph import folder_of
from comfy_worker.settings import Settings
from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker


def run(worker: Worker, job: dict[str, Any]) -> dict[str, Any]:
    """
    Run one job through the RunPod face.
    """
    return asyncio.run(worker.face.handle(job))


def slow_workflow(comfy: Comfy, seconds: float, seed: int) -> dict[str, Any]:
    """
    Return a workflow that takes about so long, on either engine, and can be interrupted on its way.
    """
    if comfy.real:
        return ksampler_workflow(seed=seed, steps=int(seconds * 50))
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=seed),
        "2": node("StandinSleep", seconds=seconds, steps=int(seconds * 20), any=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix="slow"),
    }


def until(check: Any, seconds: float = 10.0) -> float:
    """
    Wait until `check()` holds; return the seconds it took.
    """
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.slow
def test_job_over_its_time_limit_fails_and_frees_comfyui(comfy: Comfy, comfy_worker: Worker) -> None:
    """At its deadline a job must fail with the stage and the seconds, and ComfyUI must be idle again."""
    reply = run(comfy_worker, job_of("late", slow_workflow(comfy, 60, 21), timeout_s=1.0))

    assert (reply["error_code"], reply["timeout_s"], reply["stage"]) == ("job_timed_out", 1.0, "running")
    assert comfy_worker.engine.client.queued() == (frozenset(), frozenset())


@pytest.mark.parametrize("state", ["running", "queued"])
def test_cancelled_job_leaves_comfyui_at_once(comfy: Comfy, make_worker: WorkerFactory, state: str) -> None:
    """A cancel must stop a running prompt, or remove a waiting one, long before its end, and spare the others."""
    worker = make_worker(comfy.launch, worker_concurrency=2)
    client = worker.engine.client

    async def scene() -> tuple[float, dict[str, Any] | None]:
        first = asyncio.create_task(
            worker.face.handle(job_of("c-1", slow_workflow(comfy, 60, 31), timeout_s=60))
        )
        await asyncio.to_thread(until, lambda: len(client.queued()[0]) == 1)
        second = asyncio.create_task(
            worker.face.handle(job_of("c-2", empty_workflow(0x314159), timeout_s=60))
        )
        await asyncio.to_thread(until, lambda: len(client.queued()[1]) == 1)
        (running,), (pending,) = client.queued()
        victim, gone = (first, running) if state == "running" else (second, pending)
        victim.cancel()
        seconds = await asyncio.to_thread(until, lambda: gone not in frozenset.union(*client.queued()))
        with pytest.raises(asyncio.CancelledError):
            await victim
        if state == "queued":
            first.cancel()
            await asyncio.wait([first])
            return seconds, None
        return seconds, await second

    seconds, other = asyncio.run(scene())

    assert seconds < 5.0  # of the sixty that the first would take
    assert other is None or "error" not in other


def test_job_interrupted_by_somebody_else_says_so(comfy: Comfy, comfy_worker: Worker) -> None:
    """A prompt that somebody interrupts in ComfyUI must fail its job with that reason."""
    client = comfy_worker.engine.client

    async def scene() -> dict[str, Any]:
        running = asyncio.create_task(comfy_worker.face.handle(job_of("i-1", slow_workflow(comfy, 20, 41))))
        await asyncio.to_thread(until, lambda: len(client.queued()[0]) == 1)
        await asyncio.sleep(0.3)
        requests.post(f"{client.url}/interrupt", timeout=5)
        return await running

    reply = asyncio.run(scene())

    assert reply["error_code"] == "job_interrupted"
    assert "interrupted" in reply["error"]


def test_same_job_again_is_answered_from_its_finished_prompt(
    comfy: Comfy, make_worker: WorkerFactory
) -> None:
    """A job that is delivered twice while its files are kept must not run twice."""
    worker = make_worker(comfy.launch, keep_outputs=True)
    job = invert_job("twice", png((5, 5), (50, 60, 70)))

    first, second = run(worker, job), run(worker, job)

    assert second["prompt_id"] == first["prompt_id"]
    assert second["images"] == first["images"]
    assert second["timings"]["nodes"] == {}


def test_failed_job_again_runs_again(comfy: Comfy, make_worker: WorkerFactory) -> None:
    """A job that failed and is sent again must run, not repeat its old failure."""
    worker = make_worker(comfy.launch, keep_outputs=True)
    job = job_of("retry", slow_workflow(comfy, 0.5, 51))

    async def interrupted() -> dict[str, Any]:
        running = asyncio.create_task(worker.face.handle(job))
        await asyncio.to_thread(until, lambda: len(worker.engine.client.queued()[0]) == 1)
        worker.engine.client.interrupt(next(iter(worker.engine.client.queued()[0]), ""))
        return await running

    first = asyncio.run(interrupted())
    second = run(worker, job)

    assert first["error_code"] == "job_interrupted"
    assert "error" not in second
    assert second["prompt_id"] != first["prompt_id"]


@pytest.mark.slow
def test_prompt_of_a_former_worker_is_joined(comfy: Comfy, make_worker: WorkerFactory) -> None:
    """A job whose prompt another worker left running in ComfyUI must join it, not queue it again."""
    workflow = slow_workflow(comfy, 2, 61)
    first, second = (make_worker(comfy.launch, keep_outputs=True) for _ in range(2))

    async def scene() -> tuple[dict[str, Any], dict[str, Any], int]:
        one = asyncio.create_task(first.face.handle(job_of("joined", workflow)))
        await asyncio.to_thread(until, lambda: len(first.engine.client.queued()[0]) == 1)
        two = asyncio.create_task(second.face.handle(job_of("joined", workflow)))
        most = 0
        while not (one.done() and two.done()):
            most = max(most, sum(map(len, first.engine.client.queued())))
            await asyncio.sleep(0.02)
        return one.result(), two.result(), most

    one, two, most = asyncio.run(scene())

    assert most == 1
    assert one["prompt_id"] == two["prompt_id"]
    assert "error" not in one
    assert "error" not in two


def test_files_and_history_of_a_job_are_gone_after_it(comfy: Comfy, comfy_worker: Worker) -> None:
    """After delivery no file of the job may be left, and its history entry soon be gone."""
    reply = run(comfy_worker, job_of("tidy", empty_workflow(0x515253)))

    assert comfy.launch.output is not None
    assert not (comfy.launch.output / folder_of(reply["prompt_id"])).exists()
    wait_until(lambda: comfy_worker.engine.client.history(reply["prompt_id"]) is None, 5.0)


def test_job_sent_again_at_once_runs_again(comfy: Comfy, comfy_worker: Worker) -> None:
    """The entry of the first run must not be taken for the second one's, nor its deletion take the second one's along."""
    for _ in range(20):
        reply = run(comfy_worker, job_of("again", empty_workflow(0x545556)))

        assert "error" not in reply, reply
        assert len(reply["images"]) == 1


def test_file_that_is_gone_is_made_once_more(engine: EngineThread, worker: Worker) -> None:
    """When ComfyUI names a file that no longer exists the job must run once more, and then fail, never lose it."""
    requests.post(f"{engine.url}/standin/faults", json={"delete_outputs_after_run": True}, timeout=5)
    try:
        reply = run(worker, job_of("gone", empty_workflow(0x616263)))
    finally:
        requests.post(f"{engine.url}/standin/faults", json={}, timeout=5)

    assert reply["error_code"] == "delivery_failed"
    assert any("out_00001_.png" in text for text in (reply["error"], *reply.get("details", ())))


def supervised(tmp_path: Path, *extra: str) -> launch.Launch:
    """
    Describe a built-in engine that the worker starts itself.
    """
    return launch.builtin_engine(launch.free_port(), tmp_path, ("--test-nodes", *extra))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_job_fails_with_the_reason_when_comfyui_dies_and_the_next_one_runs(
    tmp_path: Path, make_worker: WorkerFactory, number: signal.Signals
) -> None:
    """When ComfyUI dies under a job, the job must fail at once with the signal, and the next job must run."""
    worker = make_worker(supervised(tmp_path))
    worker.engine.wait_ready()
    sleeping = {"1": node("StandinSleep", seconds=30.0, steps=10), "2": node("PreviewAny", source=("1", 0))}

    async def scene() -> tuple[dict[str, Any], float]:
        running = asyncio.create_task(worker.face.handle(job_of("dies", sleeping)))
        await asyncio.to_thread(until, lambda: len(worker.engine.client.queued()[0]) == 1)
        assert worker.engine.process is not None and worker.engine.process.pid is not None
        began = time.monotonic()
        os.kill(worker.engine.process.pid, number)
        return await running, time.monotonic() - began

    reply, seconds = asyncio.run(scene())
    after = run(worker, job_of("after", empty_workflow(0x717273)))

    assert reply["error_code"] == "comfy_unavailable"
    assert number.name in reply["error"]
    assert seconds < 3.0
    assert "error" not in after


def test_worker_gives_up_on_a_comfyui_that_keeps_dying(tmp_path: Path, make_worker: WorkerFactory) -> None:
    """A ComfyUI that dies at every start must be told to the job, and make the worker ask to be recycled."""
    broken = replace(
        supervised(tmp_path), command=("/bin/sh", "-c", "echo Torch not compiled with CUDA enabled; exit 1")
    )
    worker = make_worker(broken)

    reply = run(worker, job_of("hopeless", empty_workflow()))

    assert reply["error_code"] == "comfy_unavailable"
    assert "COMFYUI_ARGS=--cpu" in reply["error"]
    assert reply["refresh_worker"] is True


@pytest.mark.slow
def test_stuck_comfyui_is_killed_and_started_again(tmp_path: Path, make_worker: WorkerFactory) -> None:
    """A ComfyUI that does not let go of a cancelled prompt must be replaced."""
    worker = make_worker(supervised(tmp_path), cancel_grace_s=0.5)
    worker.engine.wait_ready()
    assert worker.engine.process is not None
    before = worker.engine.process.pid
    hanging = {"1": node("StandinHang"), "2": node("PreviewAny", source=("1", 0))}

    reply = run(worker, job_of("hangs", hanging, timeout_s=0.5))
    after = run(worker, job_of("after-hang", empty_workflow(0x818283)))

    assert reply["error_code"] == "job_timed_out"
    assert "error" not in after
    assert worker.engine.process.pid != before


def test_closing_a_worker_leaves_no_process_or_thread(tmp_path: Path) -> None:
    """After `close` neither a child process nor a thread of the worker may be left."""
    threads = set(threading.enumerate())
    config, chosen = Settings(), supervised(tmp_path)
    process = entry.process_of(config, chosen)
    worker = wiring.build(config, chosen, tmp_path / "scratch", process).start()
    worker.engine.wait_ready()
    run(worker, job_of("last", empty_workflow(0x919293)))
    assert worker.engine.process is not None
    pid = worker.engine.process.pid
    assert pid is not None

    worker.close()

    assert not Path(f"/proc/{pid}").exists()
    assert {thread.name for thread in set(threading.enumerate()) - threads} <= {"asyncio_0"}


def test_engine_of_a_shared_disk_is_recognised(
    engine: EngineThread, make_worker: WorkerFactory, tmp_path: Path
) -> None:
    """COMFY_INPUT_DIR that is not ComfyUI's folder must be noticed, and the files go over HTTP."""
    wrong = replace(launch_of(engine), input=tmp_path, output=tmp_path)
    worker = make_worker(wrong)

    reply = run(worker, invert_job("wrong-folder", png((3, 3), (1, 2, 3))))

    assert "error" not in reply
