"""
How jobs of the Vast face run and end. The numbers are those of the peer's defects.
"""

import hashlib
import hmac
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import launch_of
from pydantic import SecretStr
from support.cutting_proxy import CuttingProxy
from support.http_desk import Answer, HttpDesk
from support.lanes import failing, runs, sleeping, waits
from support.pictures import empty_workflow, invert_workflow, node
from support.served import Served
from support.vast_fixtures import ServeVast, asked, colour_of, ended, generate, started, until
from support.worker_process import KEPT

from comfy_worker.errors import (
    ComfyUnavailable,
    DeliveryFailed,
    InputUnavailable,
    JobInterrupted,
    JobTimedOut,
    NodeFailed,
    OutOfMemory,
    PromptLost,
    WorkerBusy,
    WorkerError,
    WorkflowInvalid,
)
from comfy_worker.faces import vast_reply
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.faces.vast_environ import translated
from comfy_worker.faces.vast_faults import Faults
from comfy_worker.standin.thread import EngineThread

STATUSES: list[tuple[WorkerError, int]] = [
    (WorkflowInvalid("x"), 422),
    (NodeFailed("x"), 422),
    (OutOfMemory("x"), 422),
    (JobTimedOut("x"), 422),
    (InputUnavailable("x", details=["it could not be fetched: the server answered 404"]), 422),
    (InputUnavailable("x", details=["it could not be fetched: it could not be reached"]), 503),
    (InputUnavailable("x", details=["it could not be fetched: the server answered 502"]), 503),
    (DeliveryFailed("x", failures=[{"reason": "HTTP 403 AccessDenied"}]), 422),
    (DeliveryFailed("x", failures=[{"reason": "it could not be reached"}]), 503),
    (WorkerBusy("x"), 503),
    (ComfyUnavailable("x"), 503),
    (PromptLost("x"), 503),
    (JobInterrupted("x"), 503),
]


@pytest.mark.parametrize(("error", "status"), STATUSES)
def test_vast_1_what_fails_again_is_a_4xx_and_what_may_pass_a_503(error: WorkerError, status: int) -> None:
    """Vast's client repeats a 5xx without end, so only what another worker may manage is one."""
    assert vast_reply.failure_status(error) == status


def test_vast_1_failed_job_is_a_422_with_its_result(served: Served) -> None:
    """A node that raises must be a 422 with the Result, its code and its reason."""
    reply = generate(served, failing("vast-1"), request_id="vast-1")

    body = reply.json()
    assert (reply.status_code, body["status"], body["id"]) == (422, "failed", "vast-1")
    assert "no luck with vast-1" in body["message"]
    assert (body["error"]["code"], body["error"]["retryable"]) == ("node_failed", False)
    assert "generation_ms" not in body["timings"] or body["timings"]["generation_ms"] >= 0


def test_vast_2_cancelled_stays_cancelled(served: Served, desk: HttpDesk, engine: EngineThread) -> None:
    """A cancel must be the last word: in `/result` for good, and in the webhook."""
    started(served, "vast-2", sleeping("vast-2"), webhook={"url": f"{desk.url}/hook"})
    until(lambda: runs(engine, "vast-2"))

    reply = served.post("/cancel/vast-2")
    at_once = served.get("/result/vast-2")
    [hook] = desk.wait(1)
    until(lambda: not runs(engine, "vast-2"))

    said = {"message": "Successfully cancelled request vast-2", "status": "cancelled"}
    assert (reply.status_code, reply.json()) == (200, said)
    for result in (at_once, served.get("/result/vast-2")):
        assert (result.status_code, result.json()["status"]) == (499, "cancelled")
    assert hook.json()["status"] == "cancelled"


@pytest.mark.slow
def test_vast_3_parallel_short_jobs_each_get_their_own_picture(served: Served) -> None:
    """Three hundred jobs at once, all with the same names, must each return the pixels of their own."""
    colours = [0x030000 + number for number in range(300)]

    with ThreadPoolExecutor(48) as pool:
        bodies = list(
            pool.map(
                lambda colour: generate(served, empty_workflow(colour), return_outputs_as_base64=True).json(),
                colours,
            )
        )

    assert [body["status"] for body in bodies] == ["completed"] * 300
    assert [colour_of(item) for body in bodies for item in body["output"]] == colours


def test_vast_4_interrupted_is_never_completed(served: Served, engine: EngineThread) -> None:
    """A prompt that somebody interrupts in ComfyUI must be a 503 `failed` that says so."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generate, served, sleeping("vast-4"))
        until(lambda: runs(engine, "vast-4"))
        requests.post(f"{engine.url}/interrupt", timeout=10)
        reply = waiting.result(30)

    assert (reply.status_code, reply.json()["status"]) == (503, "failed")
    assert reply.json()["error"]["code"] == "job_interrupted"
    assert reply.headers["retry-after"] == "5"


def test_vast_5_valid_graph_without_files_is_completed(served: Served, engine: EngineThread) -> None:
    """A graph that makes no file must run once and be completed, empty, with a warning."""
    seed = int(time.monotonic() * 1000)
    graph = {"1": node("PrimitiveInt", value=seed), "2": node("PreviewAny", source=("1", 0))}

    body = generate(served, graph).json()

    assert (body["status"], body["output"]) == ("completed", [])
    assert "the workflow produced no files" in body["warnings"]


def test_vast_6_reasons_of_comfyui_are_kept(served: Served) -> None:
    """An unknown class and a wrong value must be named, with node, class and input, and ComfyUI's object be there."""
    unknown = generate(served, {"9": node("NoSuchNode"), **empty_workflow(0x61)}).json()
    wrong = empty_workflow(0x62)
    wrong["1"]["inputs"]["width"] = -5
    refused = generate(served, wrong).json()

    assert "NoSuchNode" in unknown["message"]
    assert "Raw response" not in unknown["message"]
    assert all(word in refused["message"] for word in ("EmptyImage", "width", "1"))
    assert refused["error"]["details"]["node_errors"]["1"]["errors"]


def test_vast_7_lost_completion_event_costs_seconds_not_minutes(
    tmp_path: Path, serve_vast: ServeVast
) -> None:
    """With the final events never sent the job must end by the history, and right."""
    with EngineThread(tmp_path / "engine", faults={"lose": ["execution_success", "null_event"]}) as lossy:
        served = serve_vast(launch_of(lossy))
        reply = generate(served, empty_workflow(0x70))
        served.close()

    assert (reply.status_code, reply.json()["status"]) == (200, "completed")


def test_vast_8_cancelled_queued_job_blocks_nothing(served: Served, engine: EngineThread) -> None:
    """A job that is cancelled, and one whose client leaves, while they wait must leave the next one free to run."""
    started(served, "run-8", sleeping("vast-8-first"))
    until(lambda: runs(engine, "vast-8-first"))
    started(served, "wait-8", sleeping("vast-8-second"))
    until(lambda: waits(engine, "vast-8-second"))
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        body = json.dumps({"input": asked(sleeping("vast-8-third"), request_id="left-8")}).encode()
        client.sendall(
            b"POST /generate/sync HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: waits(engine, "vast-8-third"))

    served.post("/cancel/wait-8")
    until(lambda: not waits(engine, "vast-8-second") and not waits(engine, "vast-8-third"))
    gone = served.get("/result/left-8")
    served.post("/cancel/run-8")
    next_one = generate(served, empty_workflow(0x80))

    assert (gone.status_code, gone.json()["message"]) == (
        499,
        "Request cancelled due to client disconnection",
    )
    assert next_one.status_code == 200
    assert served.get("/health").status_code == 200


def test_vast_9_unfinished_jobs_are_bounded(serve_vast: ServeVast, engine: EngineThread) -> None:
    """Over MAX_QUEUE_SIZE every route must be a 503 with Retry-After in the wrapper's words."""
    served = serve_vast(max_queue_size=2)
    for number in range(2):
        started(served, f"vast-9-{number}", sleeping(f"vast-9-{number}"))

    body = {"input": asked(empty_workflow(0x90))}
    replies = [served.post(f"/generate{path}", body) for path in ("", "/sync", "/stream")]
    for number in range(2):
        served.post(f"/cancel/vast-9-{number}")
    until(lambda: served.post("/generate/sync", body).status_code == 200)

    text = "Worker at capacity (2 in flight); retry shortly"
    assert [reply.status_code for reply in replies] == [503, 503, 503]
    assert [reply.headers["retry-after"] for reply in replies] == ["5", "5", "5"]
    assert [reply.json().get("message", reply.json().get("detail")) for reply in replies] == [text] * 3


def test_vast_10_nothing_sleeps_on_the_way(served: Served) -> None:
    """Ten trivial jobs in a row must take a part of the twenty seconds that fixed sleeps would cost."""
    began = time.monotonic()
    for number in range(10):
        assert generate(served, empty_workflow(0xA0 + number)).status_code == 200

    assert time.monotonic() - began < 10.0


@pytest.mark.slow
@pytest.mark.parametrize("state", ["running", "waiting"])
def test_vast_11_cancel_reaches_comfyui_in_every_state(
    served: Served, engine: EngineThread, state: str
) -> None:
    """A cancel must take the prompt out of ComfyUI though no message of it comes."""
    names = ("vast-11-a", "vast-11-b")
    for name in names:
        started(served, f"{state}-{name}", sleeping(name))
        until(lambda name=name: runs(engine, name) or waits(engine, name))
    victim = names[0] if state == "running" else names[1]

    served.post(f"/cancel/{state}-{victim}")
    until(lambda: not runs(engine, victim) and not waits(engine, victim), 5.0)

    for name in names:
        served.post(f"/cancel/{state}-{name}")
    until(lambda: not runs(engine, names[0]) and not runs(engine, names[1]))


@pytest.mark.slow
def test_vast_19_webhook_is_tried_again_signed_alike(serve_vast: ServeVast, desk: HttpDesk) -> None:
    """A receiver that fails twice must get the same signed bytes a third time, with `extra` and merged parameters."""
    served = serve_vast(webhook_secret=SecretStr("of-the-operator"))
    desk.answers["/hook"] = [Answer(status=503), Answer(status=429), Answer()]
    hook = {
        "url": f"{desk.url}/hook",
        "secret": "of-the-request",
        "timeout": 5,
        "extra_params": {"order": 17, "id": "mine"},
    }

    generate(served, empty_workflow(0x19), request_id="vast-19", webhook=hook)
    seen = desk.wait(3, timeout_s=40.0)

    digest = hmac.new(b"of-the-request", seen[0].body, hashlib.sha256).hexdigest()
    assert {one.body for one in seen} == {seen[0].body}
    assert {one.headers["x-webhook-signature"] for one in seen} == {f"sha256={digest}"}
    body = seen[0].json()
    assert (body["id"], body["order"], body["extra"]) == ("vast-19", 17, {"order": 17, "id": "mine"})
    assert set(body) >= {"status", "message", "output", "timings"}
    assert "comfyui_response" not in body


def test_vast_19_webhook_to_a_private_address_is_refused(serve_vast: ServeVast, desk: HttpDesk) -> None:
    """A request's webhook into this network must be a 422; the operator's own receiver may be there."""
    served = serve_vast(allow_private_urls=False, webhook_url=f"{desk.url}/own")

    refused = generate(served, empty_workflow(0x191), webhook={"url": f"{desk.url}/hook"})
    generate(served, empty_workflow(0x192), request_id="own-hook")
    [seen] = desk.wait(1)

    assert refused.status_code == 422
    assert (seen.path, seen.json()["id"]) == ("/own", "own-hook")


@pytest.mark.slow
def test_vast_20_same_id_twice_waits_for_one_job_or_is_refused(served: Served, engine: EngineThread) -> None:
    """The same body must join the job under way, another body under its id be a 409 that names it."""
    graph = sleeping("vast-20", seconds=1.0, steps=20)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(generate, served, graph, request_id="vast-20") for _ in range(2)]
        until(lambda: runs(engine, "vast-20"))
        other = generate(served, empty_workflow(0x20), request_id="vast-20")
        bodies = [future.result(30).json() for future in both]

    assert (other.status_code, "vast-20" in other.json()["message"]) == (409, True)
    assert [body["status"] for body in bodies] == ["completed", "completed"]
    assert bodies[0]["timings"] == bodies[1]["timings"]


@pytest.mark.slow
def test_vast_22_health_is_answered_from_what_is_known(serve_vast: ServeVast, engine: EngineThread) -> None:
    """503 before it was ready, 200 while ComfyUI is away and jobs wait for it, 503 for good after a fault."""
    with CuttingProxy(engine.url) as proxy:
        served = serve_vast(replace(launch_of(engine), url=proxy.url))
        body = served.get("/health").json()
        assert (body["status"], body["backends_healthy"]) == ("healthy", "1/1")
        assert set(body) == {"status", "cache_type", "queues", "backends_healthy", "gpu", "backends"}
    until(lambda: not served.get("/health").json()["backends"][0]["http_ok"])

    away = served.get("/health")
    for _ in range(50):
        began = time.monotonic()
        served.get("/health")
        assert time.monotonic() - began < 2.0
    served.close()

    assert (away.status_code, away.json()["status"]) == (200, "healthy")
    assert away.json()["backends_healthy"] == "0/1"


def test_vast_22_not_ready_is_a_503(tmp_path: Path, serve_vast: ServeVast) -> None:
    """Before ComfyUI ever answered, health must be 503 with the same body."""
    nowhere = replace(launch_of_nothing(), url="http://127.0.0.1:9")
    served = serve_vast(nowhere, wait=False)

    reply = served.get("/health")
    served.close()

    assert (reply.status_code, reply.json()["status"]) == (503, "unhealthy")
    assert reply.json()["backends"][0]["http_error"]


def launch_of_nothing() -> Any:
    """
    Return a launch of a ComfyUI that is not there.
    """
    from comfy_worker.comfy.launch import Launch

    return Launch("running", "http://127.0.0.1:9")


def test_vast_22_faults_latch_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """A lost CUDA context, or three jobs in a row without ComfyUI, must latch with the token; a bad job must not."""
    logging.getLogger("comfy_worker").propagate = True
    faults, lonely, well = Faults(3), Faults(3), Faults(3)

    faults.note(NodeFailed("CUDA error: an illegal memory access was encountered"))
    faults.note(None)
    for error in (ComfyUnavailable("x"), ComfyUnavailable("x"), ComfyUnavailable("x")):
        lonely.note(error)
    for error in (
        ComfyUnavailable("x"),
        ComfyUnavailable("x"),
        None,
        ComfyUnavailable("x"),
        NodeFailed("oops"),
    ):
        well.note(error)

    assert "illegal memory access" in str(faults.reason)
    assert "3 jobs in a row" in str(lonely.reason)
    assert well.reason is None
    assert caplog.text.count("BACKEND_UNRECOVERABLE") == 2


@pytest.mark.slow
def test_vast_23_job_in_a_crash_is_a_503_and_the_next_one_runs(tmp_path: Path, serve_vast: ServeVast) -> None:
    """A ComfyUI that dies under a job must cost that job only: a supervised one is started again."""
    from support.lanes import comfy_folder

    from comfy_worker import settings
    from comfy_worker.comfy import launch

    folder = comfy_folder(tmp_path / "ComfyUI", "--test-nodes")
    config = replace(settings.Settings(), comfyui_path=folder, comfy_port=0)
    chosen = launch.choose(config, tmp_path / "scratch", builtin=True)
    served = serve_vast(chosen)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generate, served, sleeping("vast-23"))
        until(lambda: served.get("/queue-info").json()["generation_queue_size"])
        _kill(served)
        reply = waiting.result(60)
    after = generate(served, empty_workflow(0x23))
    served.close()

    assert (reply.status_code, reply.json()["status"]) == (503, "failed")
    assert after.status_code == 200


def _kill(served: Served) -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        if "main.py" in " ".join(child.cmdline()) and str(served.worker.engine.launch.folder) in child.cwd():  # type: ignore[attr-defined]
            child.kill()


@pytest.mark.slow
def test_vast_25_stream_tells_every_change_and_the_result_last(served: Served) -> None:
    """The stream must begin at once, tell nodes and progress while the job runs, and end with the whole Result."""
    graph = sleeping("vast-25", seconds=1.5, steps=30)

    events = list(stream_of(served, graph, request_id="vast-25"))

    assert (events[0]["status"], events[0]["message"]) == ("queued", "Request queued")
    middle = events[1:-1]
    assert {event["status"] for event in middle} >= {"generating"}
    assert any(event["node"] == "2" for event in middle)
    assert any("Progress: " in event["message"] for event in middle)
    assert [event["progress"] for event in middle] == sorted(event["progress"] for event in middle)
    assert set(middle[0]["queue_position"]) == {
        "current_queue",
        "position",
        "queue_size",
        "estimated_wait_time",
    }
    assert (events[-1]["status"], events[-1]["result"]["status"]) == ("final_result", "completed")
    assert events[-1]["result"]["output"]


def stream_of(served: Served, graph: dict[str, Any], **fields: Any) -> Iterator[dict[str, Any]]:
    """
    Yield the events of a stream.
    """
    body = {"input": asked(graph, **fields)}
    with requests.post(f"{served.url}/generate/stream", json=body, stream=True, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


@pytest.mark.slow
def test_vast_25_heartbeat_keeps_an_idle_stream_open(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing changes, comment lines must come."""
    monkeypatch.setattr("comfy_worker.faces.vast_stream.PING_S", 0.2)
    body = {"input": asked(sleeping("vast-25-idle", seconds=3.0, steps=1))}

    with requests.post(f"{served.url}/generate/stream", json=body, stream=True, timeout=60) as reply:
        lines = [line for line in reply.iter_lines() if line]

    assert b": ping" in lines


@pytest.mark.slow
@pytest.mark.parametrize("detach", [False, True])
def test_closed_stream_cancels_its_job_unless_detached(
    served: Served, engine: EngineThread, detach: bool
) -> None:
    """Closing the stream must cancel the job, or leave it alone with `detach`."""
    name = f"vast-closed-{detach}"
    body = {"input": asked(sleeping(name, seconds=2.0, steps=40), request_id=name, detach=detach)}
    with requests.post(f"{served.url}/generate/stream", json=body, stream=True, timeout=60) as reply:
        lines = reply.iter_lines(chunk_size=1)
        next(lines)
        until(lambda: runs(engine, name))

    result = ended(served, name)

    assert result.json()["status"] == ("completed" if detach else "cancelled")


@pytest.mark.parametrize("given", ["redis", "REDIS"])
def test_vast_26_redis_is_not_offered_and_said_once(given: str) -> None:
    """API_CACHE=redis must be one remark, and names without effect another; nothing fails."""
    from comfy_worker.faces.vast_environ import remarks

    found = remarks({"API_CACHE": given, "WEBSOCKET_MESSAGE_TIMEOUT": "5", "GENERATION_WORKERS": "2"})

    assert len(found) == 2
    assert "WEBSOCKET_MESSAGE_TIMEOUT, GENERATION_WORKERS" in found[0]
    assert "redis" in found[1]


def test_vast_27_results_are_bounded_and_an_evicted_id_says_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest results must go first, and their ids answer a 404 that says why."""
    monkeypatch.setattr("comfy_worker.faces.vast_store.RESULTS_MOST", 3)
    for number in range(5):
        generate(served, empty_workflow(0x270 + number), request_id=f"vast-27-{number}")

    replies = [served.get(f"/result/vast-27-{number}") for number in range(5)]

    assert [reply.status_code for reply in replies] == [404, 404, 200, 200, 200]
    assert "let go of" in replies[0].json()["message"]


def test_vast_27_progress_is_capped() -> None:
    """However many steps a job has, the last two hundred are kept."""
    import asyncio

    from comfy_worker.job import Event, Job

    order = type("Order", (), {"job": Job("x", {}), "id": "x"})()
    loop = asyncio.new_event_loop()
    entry = Entry(order, loop)
    for step in range(1000):
        entry.observe(Event("running", 0.0, "1", "K", None, float(step), 1000.0))
    loop.close()

    assert len(entry.updates) == 200
    assert entry.updates[-1]["value"] == 999.0
    assert entry.nodes == ["1"]


def test_vast_28_client_that_leaves_causes_no_trace(
    served: Served, engine: EngineThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A disconnect must cancel the job without an exception in the log."""
    body = json.dumps({"input": asked(sleeping("vast-28"), request_id="vast-28")}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(
            b"POST /generate/sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: runs(engine, "vast-28"))

    result = ended(served, "vast-28")
    until(lambda: not runs(engine, "vast-28"))

    assert (result.status_code, result.json()["status"]) == (499, "cancelled")
    assert "Traceback" not in caplog.text


def test_vast_24_legacy_prompt_takes_any_text(serve_vast: ServeVast, tmp_path: Path) -> None:
    """Quotes, line breaks and braces of a prompt must reach the node as they are."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    (folder / "echo.json").write_text(
        json.dumps(
            {
                "1": node("PreviewAny", source="x"),
                "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
                "3": node("SaveImage", images=["2", 0], filename_prefix="echo"),
            }
        )
    )
    (folder / "echo.yaml").write_text(
        "parameters:\n"
        "  prompt: {type: str, bind: 1.inputs.source}\n"
        "  width: {type: int, bind: 2.inputs.width}\n"
        "  height: {type: int, bind: 2.inputs.height}\n"
        "  seed: {type: int, bind: 2.inputs.color}\n"
        "  steps: {type: int, default: 28, bind: 2.inputs.batch_size}\n"
    )
    served = serve_vast(comfy_model="echo", workflow_dir=folder)
    text = "a \"quoted\" \\ cat\nwith {{PROMPT}} and 'more'"

    reply = served.post(
        "/prompt", {"payload": {"prompt": text, "width": 8, "height": 8, "steps": 1, "seed": 7}}
    )

    assert reply.status_code == 200, reply.text
    assert reply.json()["images"][0].startswith("data:image/png;base64,")
    assert reply.json()["outputs"]["3"]["images"][0]["filename"] == "echo_00001_.png"


@pytest.mark.slow
def test_vast_40_taken_port_is_one_clear_sentence(tmp_path: Path, engine: EngineThread) -> None:
    """A second start on the same port must end with one sentence and a code that is not 0."""
    import os

    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "comfy_worker", "serve", "--face", "vast", "--port", str(port)]
        environ = {**own, "HOME": str(tmp_path), "COMFYUI_API_BASE": engine.url, "LOG_LEVEL": "ERROR"}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)

    assert ran.returncode == 1
    assert "address" in (ran.stdout + ran.stderr).lower()
    assert "Traceback" not in ran.stderr


def test_names_of_the_template_become_ours(tmp_path: Path) -> None:
    """COMFYUI_API_BASE, COMFYUI_BACKENDS, COMFYUI_INSTALL_PATH and DEBUG must mean what they do there."""
    for name in ("input", "output"):
        (tmp_path / name).mkdir()

    found = translated(
        {
            "COMFYUI_API_BASE": "http://127.0.0.1:18188/",
            "COMFYUI_INSTALL_PATH": str(tmp_path),
            "DEBUG": "true",
        }
    )

    assert found["COMFYUI_URL"] == "http://127.0.0.1:18188"
    assert found["COMFY_OUTPUT_DIR"] == str(tmp_path / "output")
    assert found["LOG_LEVEL"] == "DEBUG"
    assert translated({"COMFYUI_BACKENDS": "http://a:1/, http://a:1"})["COMFYUI_URL"] == "http://a:1"
    assert (
        translated({"COMFYUI_URL": "http://own:1", "COMFYUI_API_BASE": "http://b:2"})["COMFYUI_URL"]
        == "http://own:1"
    )


def test_several_backends_are_refused_with_the_way_out() -> None:
    """Two ComfyUIs in COMFYUI_BACKENDS must stop the start with a sentence."""
    from comfy_worker.errors import ConfigInvalid

    with pytest.raises(ConfigInvalid, match="COMFYUI_BACKENDS must name one ComfyUI"):
        translated({"COMFYUI_BACKENDS": "http://a:1,http://b:2"})


def test_invert_of_a_broken_picture_fails_once_with_the_reason(served: Served) -> None:
    """A broken input must fail in the first run, with the node named."""
    reply = generate(served, invert_workflow("data:image/png;base64,aGVsbG8gd29ybGQgaGVsbG8gd29ybGQ="))

    assert reply.status_code == 422
    assert reply.json()["message"]


def test_results_are_right_with_threads_reading_and_cancelling(served: Served) -> None:
    """Half of forty jobs are cancelled at random moments: those are 499 or whole, the others all right."""
    stop = threading.Event()

    def one(number: int) -> tuple[int, requests.Response]:
        reply = generate(
            served,
            empty_workflow(0x400000 + number),
            request_id=f"mix-{number}",
            return_outputs_as_base64=True,
        )
        return number, reply

    def cancel() -> None:
        for number in range(0, 40, 2):
            if stop.wait(0.01):
                return
            served.post(f"/cancel/mix-{number}")

    killer = threading.Thread(target=cancel)
    killer.start()
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(one, range(40)))
    stop.set()
    killer.join(10)

    for number, reply in replies:
        assert reply.status_code in ({200, 499} if number % 2 == 0 else {200}), reply.text
        if reply.status_code == 200:
            assert colour_of(reply.json()["output"][0]) == 0x400000 + number
