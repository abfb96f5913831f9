"""
The supervised process itself, with small programs in ComfyUI's place: its lines, its packs, its end, its children.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory
from support.lanes import comfy_folder
from support.pictures import job_of, node

from comfy_worker.comfy import launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.comfy.restarts import Restarts
from comfy_worker.errors import ComfyUnavailable


def until(check: Callable[[], object], seconds: float = 20.0) -> None:
    """
    Wait until `check()` holds.
    """
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """
    The program's log.
    """
    logger = logging.getLogger("comfy_worker")
    former = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.DEBUG, logger="comfy_worker"):
        yield caplog
    logger.propagate = former


Start = Callable[..., ComfyProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """
    Start a program as a ComfyUI, `start(text, limit=1)`, and end it with the test.
    """
    running: list[ComfyProcess] = []

    def begin(text: str, *, limit: int = 1, port: int = 1, **asked: Callable[[], Any]) -> ComfyProcess:
        process = ComfyProcess(
            (sys.executable, "-u", "-c", text),
            tmp_path,
            f"http://127.0.0.1:{port}",
            restarts=Restarts(0.05, limit, 60.0),
            **asked,
        )
        running.append(process)
        process.start()
        return process

    yield begin
    for process in running:
        process.stop()


def test_lines_reach_our_log_with_their_level(start: Start, told: pytest.LogCaptureFixture) -> None:
    """Each line of ComfyUI must be a line of our log, with ComfyUI's level and without its colours."""
    process = start(
        r"print('\033[32m[INFO]\033[0m Device: cpu'); print('\033[1m\033[33m[WARNING]\033[0m careful')"
    )
    until(lambda: process.given_up)

    lines = [
        (record.levelno, record.message) for record in told.records if record.name == "comfy_worker.comfyui"
    ]

    assert lines == [(logging.INFO, "Device: cpu"), (logging.WARNING, "careful")]


def test_last_lines_are_told_again_at_its_end(start: Start, told: pytest.LogCaptureFixture) -> None:
    """When it dies its last lines must stand in the log beside the reason, and not in the reason."""
    process = start("print('first'); print('the last words'); raise SystemExit(3)")
    until(lambda: process.given_up)

    errors = [record.message for record in told.records if record.levelno == logging.ERROR]

    assert errors[0].startswith("ComfyUI ended unexpectedly (exit code 3).")
    assert errors[0].endswith("It is not started again.")
    assert errors[1:] == ["ComfyUI said: first", "ComfyUI said: the last words"]


def test_progress_bar_without_an_end_does_not_fill_the_memory(
    start: Start, told: pytest.LogCaptureFixture
) -> None:
    """A program that never ends its line must be read in pieces, each of them bounded."""
    process = start("import sys; sys.stdout.write('x' * 3_000_000); sys.stdout.flush()")
    until(lambda: process.given_up)

    lines = [record.message for record in told.records if record.name == "comfy_worker.comfyui"]

    assert len(lines) > 1
    assert max(map(len, lines)) <= 4001


@pytest.mark.slow
def test_death_is_noticed_although_a_child_holds_its_output(start: Start) -> None:
    """A grandchild in a session of its own that keeps the pipe open must not hide the death."""
    process = start(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(8)'], start_new_session=True)\n"
        "print(child.pid)\nraise SystemExit(4)"
    )
    began = time.monotonic()
    until(lambda: process.given_up)

    assert time.monotonic() - began < 7.0


def test_children_end_with_it(start: Start, told: pytest.LogCaptureFixture) -> None:
    """A process that a custom node started must end with ComfyUI, however ComfyUI ends."""
    process = start(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid)\ntime.sleep(60)"
    )
    until(lambda: "child" in told.text)
    child = int(told.text.split("child ")[1].split()[0])
    assert process.pid is not None

    os.kill(process.pid, signal.SIGKILL)

    until(
        lambda: (
            not Path(f"/proc/{child}").exists() or "\nState:\tZ" in Path(f"/proc/{child}/status").read_text()
        )
    )
    until(lambda: process.given_up)


def test_what_is_known_of_the_gpu_is_in_the_reason(start: Start) -> None:
    """When it finds no GPU and the look at the GPU knows why, the reason must say it."""
    process = start(
        "print('RuntimeError: No CUDA GPUs are available'); raise SystemExit(1)",
        limit=9,
        gpu=lambda: "It is gone.",
    )

    with pytest.raises(ComfyUnavailable) as caught:
        process.wait_ready(lambda: False)

    assert "COMFYUI_ARGS=--cpu. It is gone. (exit code 1)" in str(caught.value)


@pytest.mark.parametrize("more", [1, 0])
def test_kill_for_memory_is_told_by_the_count_of_its_own_life(start: Start, more: int) -> None:
    """A SIGKILL must be lack of memory only if the kernel's count grew while this ComfyUI lived."""
    counts = iter([3, 3 + more])
    process = start("import os; os.kill(os.getpid(), 9)", oom_kills=lambda: next(counts))

    with pytest.raises(ComfyUnavailable) as caught:
        process.wait_ready(lambda: False)

    assert ("memory (RAM) was full" in str(caught.value)) is bool(more)


@pytest.mark.slow
def test_taken_port_is_told_before_anything_is_started(start: Start, tmp_path: Path) -> None:
    """Whoever listens on its port must not be taken for ComfyUI: it is not started, and the reason is the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = start("open('starts', 'a').write('x')", port=other.getsockname()[1])

        with pytest.raises(ComfyUnavailable) as caught:
            process.wait_ready(lambda: True)

    assert "COMFY_PORT" in str(caught.value)
    assert not (tmp_path / "starts").exists()


def test_port_that_gets_free_is_waited_for(start: Start, tmp_path: Path) -> None:
    """A port that a former ComfyUI gives up in a moment must not end the worker."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = start("open('starts', 'a').write('x')", port=other.getsockname()[1])
        time.sleep(0.3)
    until(lambda: process.given_up)

    assert (tmp_path / "starts").read_text() == "x"


def test_it_is_started_again_until_the_limit(start: Start, tmp_path: Path) -> None:
    """A program that dies at once must be started as often as the limit says, and `on_given_up` be called once."""
    process = start(
        "open('starts', 'a').write('x'); import time; time.sleep(0.05); raise SystemExit(1)", limit=3
    )
    calls: list[int] = []
    process.on_given_up = lambda: calls.append(1)
    until(lambda: process.given_up)
    until(lambda: calls)

    assert (tmp_path / "starts").read_text() == "xxx"
    assert calls == [1]


@pytest.mark.slow
@pytest.mark.parametrize("failed", [True, False])
def test_refusal_of_an_unknown_class_names_the_packs_that_failed(
    tmp_path: Path, make_worker: WorkerFactory, failed: bool
) -> None:
    """A class that ComfyUI lacks must be refused with the packs that could not be imported, if there are any."""
    engine = comfy_folder(tmp_path / "engine")
    main = engine / "main.py"
    line = "   0.0 seconds (IMPORT FAILED): /comfyui/custom_nodes/BrokenPack" if failed else "all is well"
    main.write_text(f"print({line!r}, flush=True)\n{main.read_text()}")
    builtin = launch.builtin_engine(launch.free_port(), tmp_path)
    worker = make_worker(replace(builtin, command=(sys.executable, str(main), *builtin.command[3:])))

    reply: dict[str, Any] = asyncio.run(worker.face.handle(job_of("lacks", {"1": node("NoSuchNode")})))

    assert reply["error_code"] == "workflow_invalid"
    assert ("could not import these custom node packs" in reply["error"]) is failed
    assert ("BrokenPack" in reply["error"]) is failed
    assert list(worker.engine.failed_packs) == (["BrokenPack"] if failed else [])
