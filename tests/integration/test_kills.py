"""
ComfyUI killed by each signal at each stage: the right sentence, the next job served, bounded restarts, nothing left over.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory
from integration.conftest import ksampler_workflow, real_launch
from pydantic import SecretStr
from support.lanes import comfy_folder, sleeping
from support.pictures import empty_workflow, job_of
from support.slow_host import SlowHost
from support.worker_process import Child, descendants

from comfy_worker.comfy import launch
from comfy_worker.comfy.launch import Launch
from comfy_worker.wiring import Worker

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT)
KEYS = {"bucket_access_key_id": "key", "bucket_secret_access_key": SecretStr("secret")}


def until(check: Any, seconds: float = 30.0) -> None:
    """
    Wait until `check()` holds.
    """
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Victim:
    """
    A worker whose ComfyUI is killed again and again; `said` is what it logged about that, `seen` every process it had.
    """

    def __init__(self, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
        assert worker.engine.process is not None
        self.worker, self.process = worker, worker.engine.process
        self.caplog = caplog
        self.seen: set[Child] = set()
        self.jobs = 0

    @property
    def said(self) -> list[str]:
        """
        The sentences about deaths, in order.
        """
        return [
            record.message
            for record in self.caplog.records
            if record.name == "comfy_worker.comfy.process" and record.message.startswith("ComfyUI ended")
        ]

    def alive(self) -> int:
        """
        Wait for a living ComfyUI and return its process id.
        """
        until(lambda: self.process.pid is not None)
        pid = self.process.pid
        assert pid is not None
        self.seen |= {child for child in descendants(os.getpid()) if child.pid == pid} | descendants(pid)
        return pid

    def kill(self, number: signal.Signals) -> None:
        """
        Send a signal to ComfyUI and wait until its end was noticed.
        """
        pid, deaths = self.alive(), len(self.said)
        os.kill(pid, number)
        until(lambda: len(self.said) > deaths)

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """
        Run a job to its end.
        """
        self.jobs += 1
        return asyncio.run(self.worker.face.handle(job_of(f"job-{self.jobs}", workflow, timeout_s=60)))

    def run_beside(self, workflow: dict[str, Any]) -> "Running":
        """
        Begin a job.
        """
        return Running(self, workflow)

    def serves(self) -> None:
        """
        Assert that the next job works.
        """
        reply = self.run(empty_workflow(0x102030 + self.jobs))
        assert "error" not in reply, reply

    def gone(self) -> None:
        """
        End the worker and assert that no process of it is left, not even a dead one that nobody waited for.
        """
        self.alive()
        self.worker.close(drain_s=1.0)
        assert self.seen
        assert [child for child in self.seen if Path(f"/proc/{child.pid}").exists()] == []


class Running:
    """
    A job in a thread; `reply` waits for its end.
    """

    def __init__(self, victim: Victim, workflow: dict[str, Any]) -> None:
        self._reply: dict[str, Any] = {}
        self._thread = threading.Thread(target=lambda: self._reply.update(victim.run(workflow)), daemon=True)
        self._thread.start()

    def reply(self) -> dict[str, Any]:
        """
        Return what came of it.
        """
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        return self._reply


def sentence(number: signal.Signals) -> str:
    """
    Return how the end by a signal is told; one that handles SIGTERM and SIGINT well ends without an error.
    """
    if number in {signal.SIGTERM, signal.SIGINT}:
        return "ComfyUI ended"
    return f"ComfyUI ended unexpectedly (signal {number.name})"


def slow_to_boot(folder: Path) -> Launch:
    """
    Describe a built-in engine that takes a moment to begin, so that it can be killed before it answers.

    It heeds SIGINT, which a shell has its background jobs ignore, and they all that they start.
    """
    engine = comfy_folder(folder / "engine")
    main = engine / "main.py"
    heeding = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    main.write_text(f"{heeding}print('booting', flush=True)\ntime.sleep(0.3)\n{main.read_text()}")
    builtin = launch.builtin_engine(launch.free_port(), folder)
    return replace(builtin, command=(builtin.command[0], str(main), *builtin.command[3:]))


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """
    The log of the program, whatever was configured before.
    """
    logger = logging.getLogger("comfy_worker")
    former = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.INFO, logger="comfy_worker"):
        yield caplog
    logger.propagate = former


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_comfyui_killed_at_each_stage_costs_at_most_the_job_it_ran(
    tmp_path: Path, make_worker: WorkerFactory, quiet_log: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    """Booting, idle, mid-job, while its files are handed over: told rightly each time, and the next job works."""
    with SlowHost(status=200) as store:
        worker = make_worker(
            slow_to_boot(tmp_path),
            comfy_max_rapid_restarts=50,
            comfy_restart_delay=0.0,
            bucket_endpoint_url=store.url,
            allow_private_urls=True,
            **KEYS,
        )
        victim = Victim(worker, quiet_log)

        # Not before its first line, which makes it heed SIGINT.
        until(lambda: any(record.message == "booting" for record in quiet_log.records))
        victim.kill(number)
        store.go.set()
        victim.serves()

        victim.kill(number)  # idle
        victim.serves()

        running = victim.run_beside(sleeping("mid-job-"))
        until(lambda: len(worker.engine.client.queued()[0]) == 1)
        victim.kill(number)
        failed = running.reply()
        victim.serves()

        store.go.clear()
        store.asked.clear()
        running = victim.run_beside(empty_workflow(0x998877))
        until(store.asked.is_set)
        victim.kill(number)
        store.go.set()
        delivered = running.reply()
        victim.serves()

        assert len(victim.said) == 4
        assert all(text.startswith(sentence(number)) for text in victim.said)
        assert failed["error_code"] == "comfy_unavailable"
        assert failed["error"].startswith("WebSocket communication error: ComfyUI HTTP unreachable")
        assert sentence(number) in failed["error"]
        assert failed["retryable"] is True
        assert delivered["images"][0]["type"] == "s3_url"
        assert "error" not in delivered
        assert not worker.is_worn
        victim.gone()


@pytest.mark.slow
def test_comfyui_that_dies_at_every_job_is_given_up(
    tmp_path: Path, make_worker: WorkerFactory, quiet_log: pytest.LogCaptureFixture
) -> None:
    """Restarts must have a bound, after which the worker asks to be replaced and starts ComfyUI no more."""
    worker = make_worker(slow_to_boot(tmp_path), comfy_max_rapid_restarts=3, comfy_restart_delay=0.1)
    victim = Victim(worker, quiet_log)
    given_up = threading.Event()
    victim.process.on_given_up = given_up.set

    for _ in range(3):
        victim.kill(signal.SIGKILL)

    assert given_up.wait(10.0)
    assert worker.is_worn
    assert victim.process.pid is None or not Path(f"/proc/{victim.process.pid}").exists()
    reply = victim.run(empty_workflow())
    assert reply["error_code"] == "comfy_unavailable"
    assert reply["refresh_worker"] is True
    assert [child for child in victim.seen if Path(f"/proc/{child.pid}").exists()] == []


@pytest.mark.slow
def test_real_comfyui_killed_booting_and_mid_job_is_started_again(
    tmp_path: Path, make_worker: WorkerFactory, quiet_log: pytest.LogCaptureFixture
) -> None:
    """A real ComfyUI killed while it boots and under a job must be told, started again, and leave nothing."""
    worker = make_worker(real_launch(tmp_path), comfy_restart_delay=0.0, comfy_boot_timeout_s=120.0)
    victim = Victim(worker, quiet_log)

    victim.alive()
    until(lambda: any(record.name == "comfy_worker.comfyui" for record in quiet_log.records))
    victim.kill(signal.SIGKILL)
    worker.engine.wait_ready()
    running = victim.run_beside(ksampler_workflow(seed=5, steps=10_000))
    until(lambda: len(worker.engine.client.queued()[0]) == 1)
    victim.kill(signal.SIGKILL)
    failed = running.reply()
    victim.serves()

    assert [text.split(".")[0] for text in victim.said] == [
        "ComfyUI ended unexpectedly (signal SIGKILL)",
    ] * 2
    assert "signal SIGKILL" in failed["error"]
    levels = {record.levelname for record in quiet_log.records if record.name == "comfy_worker.comfyui"}
    assert "INFO" in levels
    assert not any("\x1b" in record.message for record in quiet_log.records)
    victim.gone()
