"""
A worker under the real runpod SDK: `handler.py` as a process, a control plane and a built-in engine around it.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.control_plane import ControlPlane, wait_until
from support.worker_process import WorkerProcess

from comfy_worker.standin.node import Context, Node, Returned
from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.nodes_testing import TEST_NODES
from comfy_worker.standin.thread import EngineThread

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]  # these look into /proc

SLOTS = 40
LIMIT_MB = 0.1
ODD_NAME = b"odd-\xff.png"
PICTURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Running:
    """
    A worker that serves jobs of a plane on an engine.
    """

    plane: ControlPlane
    engine: EngineThread
    worker: WorkerProcess


def _save_oddly(_inputs: Any, context: Context) -> Returned:
    folder = context.folders.output
    (Path(folder) / ODD_NAME.decode(errors="surrogateescape")).write_bytes(PICTURE)
    entry = {"filename": ODD_NAME.decode(errors="surrogateescape"), "subfolder": "", "type": "output"}
    return Returned((), {"images": [entry]})


ODD_NODE = Node("SaveOddly", _save_oddly, output_node=True, fingerprint=lambda inputs, folders: float("nan"))


@pytest.fixture(scope="session")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineThread]:
    """
    An engine for the workers of this folder, with a node that saves under a name that is no UTF-8.
    """
    nodes = {**NODES, **TEST_NODES, "SaveOddly": ODD_NODE}
    with EngineThread(tmp_path_factory.mktemp("lane"), nodes) as engine:
        yield engine


@pytest.fixture(scope="session")
def served(lane: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """
    One worker for all tests that leave it alive.
    """
    # Between two polls for cancels the SDK rests for a second, so they are held like the real ones.
    with ControlPlane(hold_s=60.0) as plane:
        settings = {
            "COMFYUI_URL": lane.url,
            "COMFY_INPUT_DIR": str(lane.folders.input),
            "COMFY_OUTPUT_DIR": str(lane.folders.output),
            "WORKER_CONCURRENCY": str(SLOTS),
            "REPLY_LIMIT_MB": str(LIMIT_MB),
            "ALLOW_PRIVATE_URLS": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
        }
        worker = WorkerProcess(tmp_path_factory.mktemp("served"), {**plane.environ(), **settings})
        try:
            wait_until(lambda: plane.takes)
            yield Running(plane, lane, worker)
        finally:
            plane.set(hold_s=0.0)
            worker.close()


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """
    Start workers, `start_worker(environ, *arguments)`, and end them with the test.
    """
    workers: list[WorkerProcess] = []

    def start(environ: dict[str, str], *arguments: str, **options: Any) -> WorkerProcess:
        worker = WorkerProcess(tmp_path / f"worker-{len(workers)}", environ, *arguments, **options)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    """
    A plane of a test's own.
    """
    with ControlPlane() as running:
        yield running
