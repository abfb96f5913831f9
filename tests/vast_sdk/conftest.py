"""
The PyWorker on the real `vastai` SDK: a process in the SDK's own Python, before a model server of the tests, reporting to
a router of the tests. Skipped, loudly, where there is no such Python.
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import NO_VAST_SDK
from support.vast_autoscaler import Autoscaler
from support.vast_model_server import ModelServer
from support.vast_pyworker import PYTHON, PyWorker, put_score


@dataclass(frozen=True)
class Stack:
    """
    A loaded PyWorker with the router that it reports to and the model server behind it.
    """

    worker: PyWorker
    autoscaler: Autoscaler
    model_server: ModelServer


def pytest_itemcollected(item: pytest.Item) -> None:
    """
    Count every test here as slow: each starts processes that wait for each other.
    """
    item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def vast_python() -> Path:
    """
    The Python with the SDK in it.
    """
    if not PYTHON.is_file():
        pytest.skip(NO_VAST_SDK)
    probe = [str(PYTHON), "-c", "import vastai.serverless.server.worker"]
    ran = subprocess.run(probe, capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"{NO_VAST_SDK}: {ran.stderr.strip().splitlines()[-1]}")
    return PYTHON


@pytest.fixture
def autoscaler() -> Iterator[Autoscaler]:
    """
    A router that has heard of no worker yet.
    """
    with Autoscaler() as running:
        yield running


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    """
    A model server that is ready and quick.
    """
    with ModelServer() as running:
        yield running


PyWorkerFactory = Callable[..., PyWorker]


@pytest.fixture
def make_pyworker(
    vast_python: Path, autoscaler: Autoscaler, model_server: ModelServer, tmp_path: Path
) -> Iterator[PyWorkerFactory]:
    """
    Start PyWorkers before the model server, `make_pyworker(VAST_SESSIONS="2")`, and end them with the test.
    """
    running: list[PyWorker] = []

    def make(*arguments: str, score: float | None = None, **environ: str) -> PyWorker:
        folder = tmp_path / f"worker-{len(running)}"
        options = {name: environ.pop(name) for name in ("program", "python", "port") if name in environ}
        if score is not None:
            put_score(folder, score)
        given = {"MODEL_SERVER_URL": model_server.url, **environ}
        worker = PyWorker(folder, autoscaler, given, *arguments, **options)  # type: ignore[arg-type]
        running.append(worker)
        return worker

    yield make
    for worker in running:
        worker.close()


@pytest.fixture(scope="module")
def shared(vast_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """
    One stack for the tests of a module, each of which leaves no job behind.
    """
    with Autoscaler() as autoscaler, ModelServer() as model_server:
        environ = {"MODEL_SERVER_URL": model_server.url}
        worker = PyWorker(tmp_path_factory.mktemp("pyworker"), autoscaler, environ)
        try:
            yield Stack(worker.loaded(), autoscaler, model_server)
        finally:
            worker.close()
