"""
The whole way: the official SDK in front, `serve --face vast` behind it as its child, and an engine behind that.

On the built-in engine, and on a real ComfyUI where one is found.
"""

import base64
import http.client
import io
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from integration.conftest import CHECKPOINT, ksampler_workflow, real_launch
from PIL import Image
from support.control_plane import wait_until
from support.lanes import comfy_folder, sleeping
from support.pictures import empty_workflow, node
from support.vast_autoscaler import Autoscaler
from support.vast_pyworker import API_KEY, MASTER_TOKEN, PYTHON, PyWorker, free_port
from support.worker_process import ROOT

from comfy_worker.comfy.client import Client
from comfy_worker.comfy.process import ComfyProcess

CLIENT = ROOT / "tests" / "vast_sdk" / "official_client.py"
COMMAND = ("-m", "comfy_worker", "vast")
STEPS, STEP_S = 10, 0.2
PROMPT = "a prompt that stands in no log"


@dataclass(frozen=True)
class Whole:
    """
    A loaded worker of both processes, its router, and the ComfyUI behind it.
    """

    worker: PyWorker
    autoscaler: Autoscaler
    comfy_url: str
    real: bool

    def long_job(self, label: str) -> dict[str, Any]:
        """
        Return a workflow that would take minutes.
        """
        return ksampler_workflow(seed=hash(label) % 2**31, steps=9999) if self.real else sleeping(label)

    def queue(self) -> tuple[int, int]:
        """
        Return how many prompts ComfyUI runs, and how many wait.
        """
        view = requests.get(f"{self.comfy_url}/queue", timeout=10).json()
        return len(view["queue_running"]), len(view["queue_pending"])


def builtin_environ(base: Path, step_s: float = 0.01) -> dict[str, str]:
    """
    Return the settings of a worker that starts the built-in engine, and a benchmark of ten steps on it.
    """
    graph = {
        "1": node("StandinKSampler", seed=0, steps=STEPS, seconds_per_step=step_s, size=64),
        "2": node("SaveImage", images=("1", 0), filename_prefix="benchmark"),
    }
    (base / "benchmark.json").write_text(json.dumps(graph))
    return {"COMFYUI_PATH": str(comfy_folder(base / "comfy")), "COMFY_PORT": str(free_port())}


def real_environ(base: Path, comfy_url: str) -> dict[str, str]:
    """
    Return the settings of a worker before a real ComfyUI that runs, and a text to image on the random checkpoint.
    """
    wanted = {"ckpt_name": CHECKPOINT, "width": 64, "height": 64, "steps": 2, "prompt": "a fox"}
    (base / "benchmark.json").write_text(json.dumps({"modifier": "Text2Image", "modifications": wanted}))
    return {"COMFYUI_URL": comfy_url}


@pytest.fixture(scope="module")
def real_comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """
    The address of a real ComfyUI with the random checkpoint; skipped, loudly, where there is none.
    """
    chosen = real_launch(tmp_path_factory.mktemp("comfyui"))
    assert chosen.folder is not None
    client, process = (
        Client(chosen.url),
        ComfyProcess(chosen.command, chosen.folder, chosen.url, boot_timeout_s=120),
    )
    process.start()
    try:
        process.wait_ready(client.answers)
        yield chosen.url
    finally:
        process.stop()
        client.close()


def started(base: Path, autoscaler: Autoscaler, environ: dict[str, str]) -> PyWorker:
    """
    Start `comfy-worker vast`.
    """
    given = {"VAST_PYTHON": str(PYTHON), "BENCHMARK_JSON_PATH": str(base / "benchmark.json"), **environ}
    port = ("--model-port", str(free_port()))
    return PyWorker(base / "worker", autoscaler, given, *port, program=COMMAND, python=sys.executable)


@pytest.fixture(scope="module", params=["builtin", "real"])
def whole(
    request: pytest.FixtureRequest, vast_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    """
    A loaded worker on each engine, for tests that leave no job behind.
    """
    base, real = tmp_path_factory.mktemp("whole"), request.param == "real"
    environ = (
        real_environ(base, request.getfixturevalue("real_comfyui")) if real else builtin_environ(base, STEP_S)
    )
    comfy_url = environ.get("COMFYUI_URL") or f"http://127.0.0.1:{environ['COMFY_PORT']}"
    with Autoscaler() as autoscaler:
        worker = started(base, autoscaler, environ)
        try:
            yield Whole(worker.loaded(), autoscaler, comfy_url, real)
        finally:
            worker.close()


def picture(item: dict[str, Any]) -> Image.Image:
    """
    Open the picture of an `output` item.
    """
    return Image.open(io.BytesIO(base64.b64decode(item["data"])))


def job(workflow: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """
    Return the payload of a workflow whose files come back as base64.
    """
    return {"input": {"workflow_json": workflow, "return_outputs_as_base64": True, **fields}}


def test_score_is_what_the_benchmark_takes(whole: Whole) -> None:
    """
    A job of two seconds scores 50, less what the way costs: a tenth at most.
    """
    last = whole.autoscaler.last

    assert last["error_msg"] == ""
    if whole.real:
        assert last["max_perf"] > 0
    else:
        assert last["max_perf"] == pytest.approx(100 / (STEPS * STEP_S), rel=0.1)


def test_workflow_becomes_its_picture(whole: Whole) -> None:
    """
    A signed workflow comes back as `completed` with the very pixels, a length and no compression.
    """
    reply = whole.worker.post("/generate/sync", job(empty_workflow(0x336699, 16), request_id="mine"))

    result = reply.json()
    assert reply.status_code == 200, reply.text
    assert (result["id"], result["status"]) == ("mine", "completed")
    assert picture(result["output"][0]).getpixel((3, 3)) == (0x33, 0x66, 0x99)
    assert int(reply.headers["Content-Length"]) == len(reply.content)


def test_official_client_gets_a_picture(whole: Whole) -> None:
    """
    The official client finds the worker by the router and holds a picture in the end; on ComfyUI by Text2Image.
    """
    wanted = {"prompt": PROMPT, "ckpt_name": CHECKPOINT, "width": 64, "height": 64, "steps": 2}
    payload = job(empty_workflow(0x102030, 64))
    if whole.real:
        payload = {
            "input": {"modifier": "Text2Image", "modifications": wanted, "return_outputs_as_base64": True}
        }

    answer = official(whole.autoscaler, "/generate/sync", payload)

    assert (answer["ok"], answer["status"]) == (True, 200), answer
    assert picture(answer["response"]["output"][0]).size == (64, 64)


def test_official_client_is_told_at_once_what_is_wrong(whole: Whole) -> None:
    """
    A graph that cannot run is 422 with its reason, and the client does not run it again.
    """
    began = time.monotonic()

    answer = official(whole.autoscaler, "/generate/sync", job({"1": node("NoSuchNode")}))

    assert (answer["ok"], answer["status"], answer["response"]["status"]) == (False, 422, "failed")
    assert "NoSuchNode" in answer["response"]["message"]
    assert time.monotonic() - began < 30


def test_failed_node_is_named_through_the_proxy(whole: Whole) -> None:
    """
    The caller of the PyWorker reads which node raised, with a status that says not to try again.
    """
    broken = {"1": node("LoadImage", image="no such file.png"), "2": node("SaveImage", images=("1", 0))}

    reply = whole.worker.post("/generate/sync", job(broken))

    assert reply.status_code == 422
    assert reply.json()["status"] == "failed"
    assert "LoadImage" in json.dumps(reply.json())


def test_stream_shows_a_job_from_first_to_last(whole: Whole) -> None:
    """
    The first event comes within a second, and the last has the whole result.
    """
    envelope = whole.worker.envelope(job(empty_workflow(0x445566, 16)))
    began = time.monotonic()

    with requests.post(
        f"{whole.worker.url}/generate/stream", json=envelope, stream=True, timeout=60
    ) as reply:
        lines = (line for line in reply.iter_lines(chunk_size=None) if line.startswith(b"data:"))
        first = json.loads(next(lines).removeprefix(b"data:"))
        first_s = time.monotonic() - began
        events = [json.loads(line.removeprefix(b"data:")) for line in lines]

    assert first["status"] == "queued"
    assert first_s < 1.0
    assert events[-1]["status"] == "final_result"
    assert picture(events[-1]["result"]["output"][0]).getpixel((0, 0)) == (0x44, 0x55, 0x66)


def test_caller_that_leaves_cancels_the_prompt_that_runs(whole: Whole) -> None:
    """
    Once the caller is gone ComfyUI is idle again, the next job runs, and the router hears `Cancelled`.
    """
    envelope = whole.worker.envelope(job(whole.long_job("left while running")))
    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(_leave_when, whole, envelope, lambda: whole.queue()[0] == 1)
        left.result()

    wait_until(lambda: whole.queue() == (0, 0), 30.0)
    after = whole.worker.post("/generate/sync", job(empty_workflow(0x010101, 16)))

    index = envelope["auth_data"]["request_idx"]
    whole.autoscaler.wait(lambda: whole.autoscaler.ended.get(index) == "Cancelled")
    assert after.status_code == 200


def test_caller_that_leaves_a_stream_cancels_the_prompt(whole: Whole) -> None:
    """
    A stream that is closed ends its job in ComfyUI.
    """
    envelope = whole.worker.envelope(job(whole.long_job("left a stream")))

    with requests.post(
        f"{whole.worker.url}/generate/stream", json=envelope, stream=True, timeout=60
    ) as reply:
        lines = reply.iter_lines()  # kept: one that is dropped closes the connection
        next(lines)
        wait_until(lambda: whole.queue()[0] == 1, 30.0)

    wait_until(lambda: whole.queue() == (0, 0), 30.0)
    assert whole.worker.post("/generate/sync", job(empty_workflow(0x020202, 16))).status_code == 200


def test_caller_that_leaves_while_waiting_takes_its_job_along(whole: Whole) -> None:
    """
    A request behind a running one that goes away never reaches ComfyUI.
    """
    marked = f"left-while-waiting-{uuid.uuid4().hex}"
    waiting = whole.worker.envelope(job(empty_workflow(0x030303, 16, marked)))
    runs = whole.worker.envelope(job(whole.long_job("runs meanwhile")))

    with ThreadPoolExecutor(1) as pool:

        def busy_and_gone() -> bool:
            if whole.queue()[0] != 1:
                return False
            with suppress(requests.Timeout):
                whole.worker.send("/generate/sync", waiting, timeout_s=0.5)
            return True

        pool.submit(_leave_when, whole, runs, busy_and_gone).result()

    wait_until(lambda: whole.queue() == (0, 0), 30.0)
    assert whole.worker.post("/generate/sync", job(empty_workflow(0x040404, 16))).status_code == 200
    assert marked not in requests.get(f"{whole.comfy_url}/history", timeout=30).text


def test_job_can_be_asked_after_and_taken_back(whole: Whole) -> None:
    """
    By POST through the PyWorker, beside the line: `/result` knows a running job, `/cancel` ends it, `/queue-info` counts.
    """
    name = f"job-{uuid.uuid4().hex}"
    with ThreadPoolExecutor(1) as pool:
        payload = job(whole.long_job(name), request_id=name)
        running = pool.submit(whole.worker.post, "/generate/sync", payload)
        wait_until(lambda: whole.queue()[0] == 1, 30.0)

        state = whole.worker.post("/result", {"request_id": name}).json()
        counts = whole.worker.post("/queue-info", {}).json()
        taken = whole.worker.post("/cancel", {"request_id": name})
        reply = running.result()

    assert (state["id"], state["status"]) == (name, "generating")
    assert set(counts) == {f"{stage}_queue_size" for stage in ("preprocess", "generation", "postprocess")}
    assert (taken.status_code, taken.json()["status"]) == (200, "cancelled")
    assert (reply.status_code, reply.json()["status"]) == (499, "cancelled")
    wait_until(lambda: whole.queue() == (0, 0), 30.0)


@pytest.mark.parametrize("route", ["/custom-workflow", "/custom_workflow/"])
def test_vast_39_legacy_client_gets_its_picture(whole: Whole, route: str) -> None:
    """
    A client of 2024, without `request_idx`, sends its workflow and finds the picture where it looks for it.
    """
    colour = 0x778800 + len(route)
    envelope = whole.worker.envelope({"custom_fields": {"steps": 1}, "workflow": empty_workflow(colour, 16)})
    for name in ("request_idx", "__request_id"):
        del envelope["auth_data"][name]

    reply = whole.worker.send(route, envelope)

    assert reply.status_code == 200, reply.text
    kind, _, data = reply.json()["images"][0].partition(",")
    assert kind == "data:image/png;base64"
    assert picture({"data": data}).getpixel((0, 0)) == (0x77, 0x88, len(route))


def test_vast_32_neither_log_holds_a_secret(whole: Whole) -> None:
    """
    Keys, secrets and prompts of a request stand in no line of the two processes.
    """
    storage = {
        "access_key_id": "",
        "secret_access_key": "s3-secret-of-the-job",
        "endpoint_url": "",
        "bucket_name": "",
    }
    wanted = {"prompt": PROMPT, "ckpt_name": "no-such.safetensors"}

    whole.worker.post(
        "/generate/sync", {"input": {"modifier": "Text2Image", "modifications": wanted, "s3": storage}}
    )
    whole.worker.post("/generate/sync", job(empty_workflow()), signature="garbage")

    for secret in (API_KEY, MASTER_TOKEN, PROMPT, "s3-secret-of-the-job"):
        assert secret not in whole.worker.text


@pytest.mark.parametrize(
    ("real", "more", "missing"),
    [
        (False, {}, "KSampler"),
        (True, {}, "v1-5-pruned-emaonly-fp16.safetensors"),
        (True, {"COMFY_MODEL": "sd3"}, "sd3_medium_incl_clips_t5xxlfp16.safetensors"),
    ],
    ids=["builtin", "real", "real-legacy"],
)
def test_vast_36_missing_model_of_the_benchmark_is_the_workers_error(
    request: pytest.FixtureRequest,
    vast_python: Path,
    tmp_path: Path,
    real: bool,
    more: dict[str, str],
    missing: str,
) -> None:
    """
    A benchmark without its checkpoint or node: the router reads what is missing, there is no score, and one SIGTERM ends
    both processes with 0.
    """
    url = request.getfixturevalue("real_comfyui") if real else ""
    environ = real_environ(tmp_path, url) if real else builtin_environ(tmp_path)
    with Autoscaler() as autoscaler:
        worker = started(tmp_path, autoscaler, {**environ, "BENCHMARK_JSON_PATH": "", **more})
        try:
            assert missing in autoscaler.wait_error()
            assert autoscaler.last["max_perf"] == 0
            worker.tell()
            assert worker.wait() == 0
            assert not worker.leftovers()
        finally:
            worker.close()


def test_hundred_callers_get_their_own_picture(vast_python: Path, tmp_path: Path) -> None:
    """
    A hundred requests at once through the PyWorker: each has the pixels that it asked for.
    """
    with Autoscaler() as autoscaler:
        environ = {**builtin_environ(tmp_path), "VAST_MAX_QUEUE_TIME": "none"}
        worker = started(tmp_path, autoscaler, environ).loaded()
        try:

            def shade(number: int) -> tuple[int, Any]:
                reply = worker.post("/generate/sync", job(empty_workflow(0x010000 * number + 7, 16)))
                assert reply.status_code == 200, reply.text
                return number, picture(reply.json()["output"][0]).getpixel((5, 5))

            with ThreadPoolExecutor(100) as pool:
                shades = list(pool.map(shade, range(100)))
        finally:
            worker.close()

    assert [found for _, found in shades] == [(number, 0, 7) for number, _ in shades]


def test_comfyui_that_never_comes_is_the_workers_error(vast_python: Path, tmp_path: Path) -> None:
    """
    A ComfyUI whose start fails is named to the router with its reason.
    """
    builtin_environ(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "main.py").write_text("import sys; print('no module named torch'); sys.exit(1)")
    environ = {
        "COMFYUI_PATH": str(broken),
        "COMFY_PORT": "0",
        "COMFY_MAX_RAPID_RESTARTS": "1",
        "COMFY_RESTART_DELAY": "0",
    }
    with Autoscaler() as autoscaler:
        worker = started(tmp_path, autoscaler, {**environ, "VAST_READY_TIMEOUT_S": "20"})
        try:
            error = autoscaler.wait_error()
            assert "ComfyUI said: no module named torch" in error
            worker.tell()
            assert worker.wait() == 0
            assert not worker.leftovers()
        finally:
            worker.close()


def test_vast_34_one_signal_lets_the_job_end_and_ends_both(vast_python: Path, tmp_path: Path) -> None:
    """
    A running job is delivered after SIGTERM, then both processes and ComfyUI are gone, with 0.
    """
    with Autoscaler() as autoscaler:
        worker = started(tmp_path, autoscaler, builtin_environ(tmp_path)).loaded()
        try:
            with ThreadPoolExecutor(1) as pool:
                reply = pool.submit(worker.post, "/generate/sync", job(sleeping("ends", 2.0, 20)))
                autoscaler.wait(lambda: autoscaler.last["cur_load"] == 100)
                worker.tell()
                assert reply.result().status_code == 200
            assert worker.wait() == 0
            assert not worker.leftovers()
        finally:
            worker.close()


def official(autoscaler: Autoscaler, route: str, payload: Any) -> dict[str, Any]:
    """
    Send one request with the official client and return what its caller gets.
    """
    asked = json.dumps({"route": route, "payload": payload})
    ran = subprocess.run(
        [str(PYTHON), str(CLIENT), autoscaler.url, asked],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _leave_when(whole: Whole, envelope: dict[str, Any], is_so: Any) -> None:
    """
    Send a request, and close its connection once something holds.
    """
    connection = http.client.HTTPConnection("127.0.0.1", whole.worker.port, timeout=60)
    connection.request("POST", "/generate/sync", json.dumps(envelope), {"Content-Type": "application/json"})
    try:
        wait_until(is_so, 60.0)
    finally:
        connection.close()
