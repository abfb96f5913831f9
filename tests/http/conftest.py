"""
Workers behind HTTP faces, on the built-in engine.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from support.control_plane import wait_until
from support.served import Served

from comfy_worker import wiring
from comfy_worker.faces import runpod_http
from comfy_worker.settings import Settings
from comfy_worker.standin.thread import EngineThread

ServedFactory = Callable[..., Served]


@pytest.fixture
def serve_runpod(engine: EngineThread, make_worker: WorkerFactory) -> Iterator[ServedFactory]:
    """
    Serve RunPod's API over workers with other settings, `serve_runpod(worker_concurrency=2, ...)`, until the test ends.
    """
    running: list[Served] = []

    def serve(**fields: Any) -> Served:
        worker = make_worker(launch_of(engine), **{"shutdown_grace_s": 0.2, **fields})
        running.append(Served(runpod_http.app_of(worker)))
        return running[-1]

    yield serve
    for served in running:
        served.close()


@pytest.fixture
def fresh(serve_runpod: ServedFactory) -> Served:
    """
    RunPod's API over a worker of its own, with two threads.
    """
    return serve_runpod(worker_concurrency=2)


@pytest.fixture(scope="module")
def served(engine: EngineThread) -> Iterator[Served]:
    """
    The same, shared by the tests of a module; none may leave a job behind.
    """
    config = Settings(worker_concurrency=2, shutdown_grace_s=0.2, cancel_grace_s=10.0)
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-test-"))
    shared = Served(runpod_http.app_of(wiring.build(config, launch_of(engine), scratch)))
    yield shared
    wait_until(lambda: shared.app.state.service.worker.pool.busy == 0, 5.0)
    shared.close()
