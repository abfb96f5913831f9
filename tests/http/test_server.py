"""
Connections that misbehave, and the end of a server.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from support.control_plane import wait_until
from support.lanes import sleeping
from support.pictures import empty_workflow
from support.served import Served, base_of
from support.worker_process import WorkerProcess

from comfy_worker.faces import runpod_http
from comfy_worker.faces.http_server import BoundedProtocol
from comfy_worker.standin.thread import EngineThread

GIGABYTE = 1_000_000_000
HEAD = b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Hasty(BoundedProtocol):
    """
    The protocol with short times.
    """

    headers_s = 0.3
    stall_s = 0.3


@pytest.fixture
def hasty(engine: EngineThread, make_worker: WorkerFactory) -> Iterator[Served]:
    """
    A server that waits for nobody.
    """
    served = Served(runpod_http.app_of(make_worker(launch_of(engine), shutdown_grace_s=0.2)), Hasty)
    yield served
    served.close()


def connected(port: int) -> socket.socket:
    """
    Return a connection to a server.
    """
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def closed_by_peer(connection: socket.socket) -> bool:
    """
    Wait for the other side's end of a connection; whatever comes before it is dropped.
    """
    try:
        while connection.recv(65536):
            continue
    except ConnectionError:
        return True
    return True


def test_head_that_trickles_in_ends_the_connection(hasty: Served) -> None:
    """A client that never finishes the head of a request must lose its connection, on a fresh and on a used one."""
    with connected(hasty.port) as fresh, connected(hasty.port) as used:
        used.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in used.recv(65536)
        for connection in (fresh, used):
            connection.sendall(b"GET /health HTT")

        assert closed_by_peer(fresh)
        assert closed_by_peer(used)
    assert hasty.get("/health").status_code == 200


def test_client_that_takes_nothing_of_its_answer_loses_the_connection(hasty: Served) -> None:
    """An answer that is not taken must not be held for ever."""
    connections = hasty.server.server_state.connections
    with connected(hasty.port) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        wait_until(lambda: connections, 20.0)

        wait_until(lambda: not connections, 20.0)


def test_huge_head_is_refused(hasty: Served) -> None:
    """A head that grows without end must be refused in bounded memory."""
    with connected(hasty.port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                connection.sendall(b"a" * 65536)
        assert closed_by_peer(connection)
    assert hasty.get("/health").status_code == 200


@pytest.mark.slow
def test_gigabyte_is_refused_with_413_in_bounded_memory(engine: EngineThread, tmp_path: Path) -> None:
    """A body of 1 GB, announced or not, must be answered with 413, and the process grow by a few limits at most."""
    process = WorkerProcess(
        tmp_path,
        {"COMFYUI_URL": engine.url},
        program=("-m", "comfy_worker", "serve", "--face", "runpod", "--port", "0"),
    )
    try:
        port = int(base_of(process).rpartition(":")[2])
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
        before = peak_kb(process.pid)
        heads = (f"Content-Length: {GIGABYTE}\r\n\r\n".encode(), b"Transfer-Encoding: chunked\r\n\r\n")
        for rest in heads:
            with connected(port) as connection:
                answer = flooded(connection, HEAD + rest, chunked=b"chunked" in rest)
            assert b" 413 " in answer.split(b"\r\n")[0]

        assert peak_kb(process.pid) - before < 80_000
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    finally:
        process.close()


def flooded(connection: socket.socket, head: bytes, *, chunked: bool) -> bytes:
    """
    Send a head and up to 1 GB behind it; return what came back before the other side had enough.
    """
    connection.sendall(head)
    piece = b"x" * 1_000_000
    framed = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
    with contextlib.suppress(ConnectionError, TimeoutError):
        for _ in range(GIGABYTE // len(piece)):
            connection.sendall(framed)
    connection.settimeout(20)
    with contextlib.suppress(ConnectionError):
        return connection.recv(65536)
    return b""


def peak_kb(pid: int) -> int:
    """
    Return the most memory that a process has held, in kB.
    """
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])


@pytest.mark.slow
def test_drain_refuses_new_jobs_and_lets_the_running_one_finish(
    engine: EngineThread, make_worker: WorkerFactory
) -> None:
    """Told to end, a server must not be ready, refuse new jobs, give the running one its time and send its answer."""
    served = Served(runpod_http.app_of(make_worker(launch_of(engine), shutdown_grace_s=20.0)))
    answers: dict[str, Any] = {}
    running = asked(served, answers, "running", sleeping("drain", 1.5, 150))
    try:
        wait_until(lambda: served.get("/health").json()["jobs"]["inProgress"] == 1, 10.0)
        waiting = asked(served, answers, "waiting", empty_workflow())
        wait_until(lambda: served.get("/health").json()["jobs"]["inQueue"] == 1, 10.0)

        served.stop()
        wait_until(lambda: served.get("/ready").status_code == 503, 5.0)
        refused = served.post("/run", {"input": {"workflow": empty_workflow()}})
        for thread in (running, waiting):
            thread.join(30)
    finally:
        served.close()

    assert (refused.status_code, refused.json()["error_code"]) == (503, "worker_busy")
    assert answers["running"]["status"] == "COMPLETED"
    assert answers["waiting"]["status"] == "FAILED"


def test_drain_cancels_what_outlasts_the_grace(engine: EngineThread, make_worker: WorkerFactory) -> None:
    """A job that does not end within the grace must be cancelled, its client told, and the engine free."""
    served = Served(runpod_http.app_of(make_worker(launch_of(engine), shutdown_grace_s=0.2)))
    answers: dict[str, Any] = {}
    running = asked(served, answers, "running", sleeping("drained"))
    wait_until(lambda: served.get("/health").json()["jobs"]["inProgress"] == 1, 10.0)
    served.close()
    running.join(30)

    assert answers["running"]["status"] == "FAILED"
    assert answers["running"]["output"]["error_code"] == "job_cancelled"


def asked(served: Served, answers: dict[str, Any], name: str, workflow: dict[str, Any]) -> threading.Thread:
    """
    Send a job to /runsync on a thread; its answer comes under `name`.
    """

    def ask() -> None:
        answers[name] = served.post("/runsync", {"input": {"workflow": workflow}}).json()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def test_server_ends_when_comfyui_cannot_be_had_any_more(
    serve_runpod: Callable[..., Served],
) -> None:
    """A worker that is of no use any more must end its server, for the platform to replace it."""
    served = serve_runpod()
    served.app.state.service.worker.engine.is_stuck = True

    wait_until(lambda: served.server.failed, 10.0)
    served.close()
