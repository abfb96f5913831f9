"""
A job that runs out of memory: ComfyUI is told to free its own, and the job runs once more where that is set.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from support.pictures import empty_workflow, job_of

from comfy_worker.job import Event
from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker


class Scene:
    """
    A worker on an engine whose memory is full until it was freed `full` times.
    """

    def __init__(self, worker: Worker, url: str, full: int) -> None:
        self.worker, self.url, self.full = worker, url, full
        self.runs = self.freed = 0
        free = worker.engine.client.free

        def counted() -> None:
            self.freed += 1
            if self.freed == self.full:
                self.faults({})
            free()

        worker.engine.client.free = counted  # type: ignore[method-assign]
        self.faults({"oom_at_node": "2"})

    def faults(self, faults: dict[str, Any]) -> None:
        """
        Tell the engine what goes wrong.
        """
        requests.post(f"{self.url}/standin/faults", json=faults, timeout=5).raise_for_status()

    def observe(self, event: Event) -> None:
        """
        Count the runs.
        """
        if event.kind == "queued":
            self.runs += 1

    def run(self) -> dict[str, Any]:
        """
        Run a job.
        """
        return asyncio.run(
            self.worker.face.handle(
                job_of(f"oom-{self.full}", empty_workflow(0x44 + self.full)), self.observe
            )
        )


@pytest.fixture
def engine_url(engine: EngineThread) -> Iterator[str]:
    """
    The engine, without faults afterwards.
    """
    yield engine.url
    requests.post(f"{engine.url}/standin/faults", json={}, timeout=5)


def test_memory_is_freed_once_and_the_job_fails(
    engine: EngineThread, engine_url: str, make_worker: WorkerFactory
) -> None:
    """By default the job must fail with its code after one run, and ComfyUI be told to free memory for the next."""
    scene = Scene(make_worker(launch_of(engine)), engine_url, full=99)

    reply = scene.run()

    assert (reply["error_code"], reply["retryable"]) == ("out_of_memory", True)
    assert (scene.runs, scene.freed) == (1, 1)


@pytest.mark.parametrize(("full", "failed"), [(1, False), (99, True)])
def test_job_runs_once_more_where_that_is_set(
    engine: EngineThread, engine_url: str, make_worker: WorkerFactory, full: int, failed: bool
) -> None:
    """With OOM_RETRY the job must run a second time, after memory was freed, and never a third time."""
    scene = Scene(make_worker(launch_of(engine), oom_retry=True), engine_url, full=full)

    reply = scene.run()

    assert scene.runs == 2
    assert ("error" in reply) is failed
    assert scene.freed == 1 + failed
