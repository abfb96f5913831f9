"""
The workflow that runs before the first job: from a file, inline or a URL, through the pipeline, loud when it fails.
"""

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from integration.conftest import Comfy
from support.pictures import empty_workflow, invert_job, node, png

from comfy_worker.standin.thread import EngineThread
from comfy_worker.warmup import warm_up
from comfy_worker.wiring import Worker

FAILING = {"1": node("StandinRaise", message="no luck"), "2": node("PreviewAny", source=("1", 0))}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """
    The program's log.
    """
    logger = logging.getLogger("comfy_worker")
    former = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.INFO, logger="comfy_worker"):
        yield caplog
    logger.propagate = former


def run(worker: Worker, given: str) -> bool:
    """
    Warm a worker up.
    """
    return warm_up(given, worker.pool.submit, worker.face.rules, worker.fetcher)


def test_workflow_in_the_setting_itself_runs(
    comfy: Comfy, comfy_worker: Worker, told: pytest.LogCaptureFixture
) -> None:
    """A workflow given as JSON must run on ComfyUI, and leave neither files nor a history entry."""
    assert comfy.launch.output is not None
    before = set(comfy.launch.output.glob("cw-*"))

    assert run(comfy_worker, json.dumps(empty_workflow(0x010101)))

    assert "The warm-up made 1 outputs" in told.text
    assert set(comfy.launch.output.glob("cw-*")) == before
    assert comfy_worker.engine.client.queued() == (frozenset(), frozenset())


def test_whole_job_in_a_file_runs_with_its_pictures(worker: Worker, tmp_path: Path) -> None:
    """A job file with input pictures must run as it would for a caller."""
    path = tmp_path / "warmup.json"
    path.write_text(json.dumps(invert_job("any", png((4, 4), (1, 2, 3)))))

    assert run(worker, str(path))


@pytest.mark.parametrize("private", [True, False])
def test_url_is_fetched_through_the_guard(
    engine: EngineThread, make_worker: WorkerFactory, told: pytest.LogCaptureFixture, private: bool
) -> None:
    """A URL must be fetched, and one on a private network only where that is allowed."""
    body = json.dumps(empty_workflow(0x020202)).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    worker = make_worker(launch_of(engine), allow_private_urls=private)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        done = run(worker, f"http://127.0.0.1:{server.server_address[1]}/warmup.json?key=hidden")
        server.shutdown()
        thread.join(5.0)

    assert done is private
    assert private or "WARMUP_WORKFLOW" in told.text
    assert "hidden" not in told.text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (json.dumps(FAILING), "Node Type: StandinRaise"),
        ("/no/such/file.json", "WARMUP_WORKFLOW cannot be read: No such file or directory"),
        ("{not json", "WARMUP_WORKFLOW does not lead to JSON"),
        ('{"1": {"class_type": "NoSuchNode", "inputs": {}}}', "NoSuchNode"),
        ('{"input": {"images": []}}', "Missing 'workflow' parameter"),
    ],
)
def test_failure_is_loud(worker: Worker, told: pytest.LogCaptureFixture, given: str, reason: str) -> None:
    """Whatever goes wrong must be one error line that names the reason."""
    assert not run(worker, given)

    [record] = [record for record in told.records if record.levelno == logging.ERROR]
    assert record.message.startswith("The warm-up failed: ")
    assert reason in record.message


@pytest.mark.parametrize(
    ("fields", "goes_on"),
    [
        ({}, True),
        ({"warmup_workflow": json.dumps(FAILING)}, True),
        ({"warmup_workflow": json.dumps(FAILING), "warmup_required": True}, False),
        ({"warmup_workflow": json.dumps(empty_workflow(0x030303)), "warmup_required": True}, True),
    ],
    ids=["none", "failed", "failed-and-required", "fine-and-required"],
)
def test_only_a_required_warmup_ends_the_worker(
    engine: EngineThread, make_worker: WorkerFactory, fields: dict[str, Any], goes_on: bool
) -> None:
    """A warm-up that fails must end the worker where it is required, and only there."""
    assert make_worker(launch_of(engine), **fields).warm_up() is goes_on
