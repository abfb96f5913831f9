"""
`comfy-worker vast` and `worker.py`: how they are started, what they start, and that one signal ends all of it.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from support.control_plane import wait_until
from support.vast_autoscaler import Autoscaler
from support.vast_model_server import ModelServer
from support.vast_pyworker import PYTHON, PyWorker, act, free_port
from support.worker_process import ROOT, WorkerProcess
from vast_sdk.conftest import PyWorkerFactory

COMMAND = ("-m", "comfy_worker", "vast")
MODEL_SERVER = ROOT / "tests" / "support" / "vast_model_server.py"


def serving(make: PyWorkerFactory, *program: str) -> PyWorker:
    """
    Start a PyWorker with a model server of its own; `program` is another one than the tests'.
    """
    port = str(free_port())
    command = program or (sys.executable, str(MODEL_SERVER), port)
    return make("--serve", *command, MODEL_SERVER_URL=f"http://127.0.0.1:{port}")


def test_command_becomes_the_pyworker(make_pyworker: PyWorkerFactory) -> None:
    """
    The command gives its place to the Python with the SDK, keeps its process id, and drains on one SIGTERM.
    """
    worker = make_pyworker(
        program=COMMAND,
        python=sys.executable,
        VAST_PYTHON=str(PYTHON),  # type: ignore[arg-type]
    ).loaded()

    served = worker.post("/generate/sync", act())
    worker.tell()

    assert served.status_code == 200
    assert worker.wait() == 0


def test_command_without_the_sdk_names_it(tmp_path: Path) -> None:
    """
    Where vastai is missing the command says what to install, and the code is 2.
    """
    workers = [
        WorkerProcess(tmp_path / "bare", {}, program=COMMAND),
        WorkerProcess(tmp_path / "wrong", {"VAST_PYTHON": "/nowhere/python"}, program=COMMAND),
    ]

    for worker in workers:
        assert worker.wait() == 2
        worker.close()
        assert "Install comfy-worker[vast]" in worker.text
        assert "Traceback" not in worker.text


def test_one_signal_ends_the_model_server_too(make_pyworker: PyWorkerFactory, autoscaler: Autoscaler) -> None:
    """
    The model server is told to stop once the requests are through, and its lines are ours.
    """
    worker = serving(make_pyworker).loaded()
    children = worker.children()

    worker.tell()

    assert worker.wait() == 0
    assert len(children) == 1
    assert not worker.leftovers()
    assert worker.text.index("This worker takes no more requests") < worker.text.index("draining")
    assert "ready to serve" in worker.text


def test_model_server_does_not_outlive_a_killed_pyworker(make_pyworker: PyWorkerFactory) -> None:
    """
    A PyWorker that cannot clean up leaves nothing behind.
    """
    worker = serving(make_pyworker).loaded()

    worker.tell(signal.SIGKILL)
    worker.wait()

    wait_until(lambda: not worker.leftovers(), 10.0)


def test_model_server_that_cannot_start_is_reported_by_its_reason(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    Its last error is the worker's, at once.
    """
    program = "import sys; print('ERROR COMFYUI_PATH: there is no main.py'); sys.exit(2)"

    worker = serving(make_pyworker, sys.executable, "-c", program)

    error = autoscaler.wait_error()
    worker.tell()
    assert "The model server ended with exit code 2: COMFYUI_PATH: there is no main.py" in error
    assert worker.wait() == 0


@pytest.mark.slow
def test_model_server_that_dies_later_is_reported_by_its_reason(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    The reason stays, also when the SDK's own health check finds nobody there.
    """
    worker = serving(make_pyworker).loaded()
    (child,) = worker.children()

    os.kill(child.pid, signal.SIGKILL)

    assert autoscaler.wait_error() == "The model server ended by signal 9: ready to serve"
    autoscaler.wait(
        lambda: [s["error_msg"] for s in autoscaler.statuses].count(autoscaler.last["error_msg"]) >= 2
    )
    assert "by signal 9" in autoscaler.last["error_msg"]


def test_vast_40_model_port_that_is_taken_is_named(
    make_pyworker: PyWorkerFactory, model_server: ModelServer
) -> None:
    """
    Another model server on the port is neither used by mistake nor started against.
    """
    worker = make_pyworker("--serve", "/bin/false", MODEL_SERVER_URL=model_server.url)

    assert worker.wait(20.0) == 1
    assert f"MODEL_SERVER_URL={model_server.url} uses the one that runs there" in worker.text


def test_command_that_does_not_exist_is_reported(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    A model server that cannot even be started is the router's to know.
    """
    worker = serving(make_pyworker, "/nowhere/python")

    assert "The model server cannot be started: [Errno 2]" in autoscaler.wait_error()
    worker.tell()
    assert worker.wait() == 1
