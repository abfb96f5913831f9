"""
`comfy-worker serve` and `handler.py` as processes: how they start, where they listen, with what code they end.
"""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from support.control_plane import wait_until
from support.lanes import comfy_folder
from support.pictures import empty_workflow
from support.served import base_of
from support.worker_process import WorkerProcess

from comfy_worker.standin.thread import EngineThread

SERVE = ("-m", "comfy_worker", "serve", "--face", "runpod")
Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """
    Start worker processes, `start({"NAME": "value"}, "--flag", program=(...))`, and end them with the test.
    """
    started: list[WorkerProcess] = []

    def go(environ: dict[str, str], *arguments: str, program: tuple[str, ...] = SERVE) -> WorkerProcess:
        started.append(WorkerProcess(tmp_path / str(len(started)), environ, *arguments, program=program))
        return started[-1]

    yield go
    for process in started:
        process.close()


@pytest.mark.slow
def test_serve_starts_a_comfyui_and_takes_it_down_on_sigterm(start: Start, tmp_path: Path) -> None:
    """A served worker must start its own ComfyUI, be ready once it answers, and leave nothing behind with code 0."""
    process = start({"COMFYUI_PATH": str(comfy_folder(tmp_path / "comfy")), "COMFY_PORT": "0"}, "--port", "0")
    base = base_of(process)
    wait_until(lambda: requests.get(f"{base}/ready", timeout=5).status_code == 200, 30.0)

    view = requests.post(f"{base}/runsync", json={"input": {"workflow": empty_workflow()}}, timeout=30).json()
    process.tell(signal.SIGTERM)

    assert view["status"] == "COMPLETED"
    assert process.wait() == 0
    assert process.leftovers() == set()
    assert "Traceback" not in process.text


@pytest.mark.slow
def test_serve_with_a_key_lets_only_its_bearer_in(start: Start, engine: EngineThread) -> None:
    """With SERVER_API_KEY set a job must need the key, a probe must not, and the log must not show it."""
    process = start({"COMFYUI_URL": engine.url, "SERVER_API_KEY": "a-long-secret"}, "--port", "0")
    base = base_of(process)
    job = {"input": {"workflow": empty_workflow()}}

    def ask(key: str | None) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return requests.post(f"{base}/runsync?api_key=q-secret", json=job, headers=headers, timeout=30)

    statuses = [ask(key).status_code for key in (None, "wrong-secret", "a-long-secret")]

    assert statuses == [401, 401, 200]
    assert requests.get(f"{base}/health", timeout=5).status_code == 200
    assert requests.get(f"{base}/metrics", timeout=5).status_code == 401
    assert "POST /runsync 401" in process.text
    assert not [word for word in ("a-long-secret", "wrong-secret", "q-secret") if word in process.text]


@pytest.mark.slow
def test_serve_api_locally_makes_the_handler_listen_everywhere(start: Start, engine: EngineThread) -> None:
    """In a container SERVE_API_LOCALLY must open RunPod's API on every address, and the flags must say where."""
    handler = (str(Path(__file__).parents[2] / "handler.py"),)
    everywhere = start(
        {"COMFYUI_URL": engine.url, "SERVE_API_LOCALLY": "true"}, "--rp_api_port=0", program=handler
    )
    loopback = start(
        {"COMFYUI_URL": engine.url},
        "--rp_serve_api",
        "--rp_api_host",
        "127.0.0.1",
        "--rp_api_port",
        "0",
        program=handler,
    )

    assert base_of(everywhere).startswith("http://0.0.0.0:")
    health = requests.get(f"{base_of(loopback)}/v2/any/health", timeout=5).json()
    assert set(health) == {"jobs", "workers"}


def test_serve_ends_with_2_for_wrong_settings_and_1_for_a_taken_port(
    start: Start, engine: EngineThread
) -> None:
    """A start that cannot work must end, with a code that says why and a sentence in the log."""
    wrong = start({"COMFYUI_URL": engine.url, "WORKER_CONCURRENCY": "none"}, "--port", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = start({"COMFYUI_URL": engine.url}, "--port", str(taken.getsockname()[1]))

        assert wrong.wait() == 2
        assert "WORKER_CONCURRENCY" in wrong.text
        assert refused.wait() == 1
        assert "address already in use" in refused.text


@pytest.mark.slow
def test_failed_warm_up_that_is_required_ends_the_worker(start: Start, engine: EngineThread) -> None:
    """A worker whose required warm-up fails must never be ready, and end with 1."""
    environ = {"COMFYUI_URL": engine.url, "WARMUP_WORKFLOW": '{"1": {"class_type": "Nope", "inputs": {}}}'}
    process = start({**environ, "WARMUP_REQUIRED": "true"}, "--port", "0")

    assert process.wait() == 1
    assert "warm-up failed" in process.text
