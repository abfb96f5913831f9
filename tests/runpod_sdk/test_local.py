"""
`handler.py` without a platform: one job from a file or an argument, the SDK's HTTP server, and a plain import.
"""

import base64
import json
import shutil
import socket
from pathlib import Path

import pytest
import requests
from runpod_sdk.conftest import StartWorker
from support.control_plane import wait_until
from support.lanes import failing
from support.pictures import empty_workflow
from support.worker_process import ROOT

from comfy_worker.comfy import launch
from comfy_worker.standin.thread import EngineThread

LOOK = """
import os, sys, threading, logging, pathlib, signal, atexit
def look():
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "environ": dict(os.environ),
        "folder": sorted(os.listdir(".")),
        "temp": sorted(os.listdir(os.environ["TMPDIR"])),
        "sigterm": signal.getsignal(signal.SIGTERM),
        "root": list(logging.getLogger().handlers),
        "log": list(logging.getLogger("comfy_worker").handlers),
        "atexit": atexit._ncallbacks(),
        "children": pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }
"""


def test_runpod_14_66_shipped_test_input_runs_on_the_built_in_engine(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    """`python handler.py` on a machine without ComfyUI must run the shipped file once and end with code 0."""
    cwd = tmp_path / "worker-0" / "cwd"
    cwd.mkdir(parents=True)
    shutil.copy(ROOT / "test_input.json", cwd)

    worker = start_worker({})

    assert worker.wait() == 0
    assert "completed successfully" in worker.text
    assert worker.leftovers() == set()
    assert list(worker.temp.iterdir()) == []
    assert [path.name for path in worker.cwd.iterdir()] == ["test_input.json"]


def test_runpod_14_66_bare_workflow_is_run_with_a_hint(
    start_worker: StartWorker, lane: EngineThread, tmp_path: Path
) -> None:
    """A test_input.json without the wrapper must run too, and say how it should look."""
    cwd = tmp_path / "worker-0" / "cwd"
    cwd.mkdir(parents=True)
    (cwd / "test_input.json").write_text(json.dumps(empty_workflow()))

    worker = start_worker({"COMFYUI_URL": lane.url})

    assert worker.wait() == 0
    assert '{"input": {"workflow": ...}}' in worker.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"input": {"workflow": empty_workflow()}}, 0),
        ({"input": {"workflow": failing("local")}}, 1),
        ({"input": {}}, 1),
    ],
)
def test_test_input_of_the_command_line_decides_the_exit_code(
    start_worker: StartWorker, lane: EngineThread, job: dict[str, object], code: int
) -> None:
    """`--test_input JSON` must run that job once: code 0 when it completed, 1 when it failed."""
    worker = start_worker({"COMFYUI_URL": lane.url}, "--test_input", json.dumps(job))

    assert worker.wait() == code
    assert "Traceback" not in worker.text


def test_missing_test_input_ends_with_code_1(start_worker: StartWorker, lane: EngineThread) -> None:
    """Without a job to run the program must say so."""
    worker = start_worker({"COMFYUI_URL": lane.url})

    assert worker.wait() == 1
    assert "test_input.json not found" in worker.text


def listens(port: int) -> bool:
    """
    Return whether somebody listens on a port of loopback.
    """
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_http_server_answers_runsync(start_worker: StartWorker, lane: EngineThread) -> None:
    """With --rp_serve_api a POST to /runsync must be answered with the job's output, and SIGTERM ends the server."""
    port = launch.free_port()
    worker = start_worker({"COMFYUI_URL": lane.url}, "--rp_serve_api", "--rp_api_port", str(port))
    wait_until(lambda: listens(port))

    replies = [
        requests.post(f"http://127.0.0.1:{port}/runsync", json={"input": input_}, timeout=20).json()
        for input_ in ({"workflow": empty_workflow()}, {"workflow": failing("http")})
    ]
    worker.tell()

    assert replies[0]["status"] == "COMPLETED"
    assert base64.b64decode(replies[0]["output"]["images"][0]["data"])[:4] == b"\x89PNG"
    assert (replies[1]["status"], replies[1]["error"]) == ("FAILED", "Job processing failed")
    worker.wait()
    assert worker.leftovers() == set()


def test_import_of_the_handler_has_no_side_effect(start_worker: StartWorker) -> None:
    """Importing `handler` must start, open, write and change nothing."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{LOOK}\nimport requests, PIL.Image\nbefore = look()\n"
        "import handler\nafter = look()\n"
        "print({name: (before[name], after[name]) for name in before if before[name] != after[name]})"
    )

    worker = start_worker({"COMFYUI_URL": "127.0.0.1:9"}, program=("-c", code))

    assert worker.wait() == 0, worker.text
    assert worker.lines == ["{}"]


def test_handler_runs_in_a_plain_process_which_then_ends_cleanly(start_worker: StartWorker) -> None:
    """`await handler(job)` must work without the SDK's loop; at the process's end its engine and its files are gone."""
    job = {"id": "plain", "input": {"workflow": empty_workflow()}}
    code = (
        f"import asyncio, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from handler import handler\n"
        f"reply = asyncio.run(handler({job!r}))\n"
        f"again = asyncio.run(handler({job!r}))\n"
        "print('done', [entry['filename'] for entry in reply['images'] + again['images']])\n"
    )

    worker = start_worker({}, program=("-c", code))
    wait_until(lambda: "done" in worker.text or worker.children())

    assert worker.wait() == 0
    assert "done ['out_00001_.png', 'out_00001_.png']" in worker.lines
    assert worker.leftovers() == set()
    assert list(worker.temp.iterdir()) == []
    assert list(worker.cwd.iterdir()) == []
