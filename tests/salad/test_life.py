"""
Probes, events, warm-up, the end: what a platform and its operator see of the worker.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import launch_of
from standardwebhooks.webhooks import Webhook
from support.http_desk import Answer, HttpDesk
from support.pictures import empty_workflow, invert_workflow, node, png
from support.salad_fixtures import WEBHOOK_SECRET, ServeSalad
from support.served import Served

from comfy_worker import __version__
from comfy_worker.comfy import launch
from comfy_worker.comfy.launch import free_port
from comfy_worker.dialects import Face
from comfy_worker.errors import ConfigInvalid
from comfy_worker.faces.salad_events import ComfyEvents, DeletionCost
from comfy_worker.serve import address_of, listeners
from comfy_worker.settings import load
from comfy_worker.standin.thread import EngineThread


def until(check: Any, seconds: float = 20.0) -> None:
    """
    Wait until `check()` holds.
    """
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def healthy(served: Served) -> bool:
    """
    Tell whether the health probe says 200.
    """
    return served.get("/health").status_code == 200


def slow(seconds: float, seed: int) -> dict[str, Any]:
    """
    Return a graph that takes about so long.
    """
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=seed),
        "2": node("StandinSleep", seconds=seconds, steps=int(seconds * 20), any=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix="slow"),
    }


def test_probes_say_healthy_and_ready(served: Served) -> None:
    """Once ComfyUI answered, both probes are 200 in the peer's shape, for HEAD too."""
    until(lambda: healthy(served))

    assert served.get("/health").json() == {"version": __version__, "status": "healthy"}
    assert served.get("/ready").json() == {"version": __version__, "status": "ready"}
    assert requests.head(f"{served.url}/health", timeout=5).status_code == 200


@pytest.mark.slow
def test_salad_s75_ready_says_no_while_comfyui_is_away(tmp_path: Path, serve_salad: ServeSalad) -> None:
    """With ComfyUI gone, `/ready` is 503 and `/health` stays 200."""
    with EngineThread(tmp_path / "engine") as mortal:
        served = serve_salad(launch_of(mortal))
        until(lambda: served.get("/ready").status_code == 200)
        mortal.stop()

        until(lambda: served.get("/ready").status_code == 503)

        assert served.get("/ready").json()["status"] == "not ready"
        assert healthy(served)
        served.close()


def test_salad_s78_socket_is_open_while_comfyui_starts(engine: EngineThread, serve_salad: ServeSalad) -> None:
    """Before ComfyUI answers, the probes answer: 500 and 503."""
    away = replace(launch_of(engine), url=f"http://127.0.0.1:{free_port()}")
    served = serve_salad(away, comfy_api_available_max_retries=1_000_000)

    health, ready = served.get("/health"), served.get("/ready")

    assert (health.status_code, health.json()["status"]) == (500, "not healthy")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")


@pytest.mark.slow
def test_ready_says_no_when_the_queue_is_full(serve_salad: ServeSalad) -> None:
    """At MAX_QUEUE_DEPTH `/ready` is 503, and requests are still taken."""
    served = serve_salad(max_queue_depth=1)
    until(lambda: served.get("/ready").status_code == 200)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.post, "/prompt", {"prompt": slow(2, 1)})
        until(lambda: served.get("/ready").status_code == 503)
        assert served.post("/prompt", {"prompt": empty_workflow(1)}).status_code == 200
        assert waiting.result(20).status_code == 200

    until(lambda: served.get("/ready").status_code == 200)


@pytest.mark.slow
def test_warm_up_runs_before_healthy(tmp_path: Path, serve_salad: ServeSalad) -> None:
    """The graph of WARMUP_PROMPT_FILE runs before the worker is healthy."""
    import json

    file = tmp_path / "warm.json"
    file.write_text(json.dumps(slow(1, 7)))

    served = serve_salad(warmup_workflow=str(file))

    assert served.get("/health").status_code == 500
    until(lambda: healthy(served))


def test_system_events_are_signed_and_carry_metadata(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """ComfyUI's messages arrive under the request's id, and files of the cache are told."""
    served = serve_salad(
        system_webhook_url=f"{desk.url}/sys",
        system_webhook_events=frozenset(
            {"execution_start", "executed", "execution_success", "file_downloaded"}
        ),
        system_meta=(("purpose", "test"), ("salad_machine_id", "m-1")),
    )
    until(lambda: healthy(served))
    url = desk.put("/event.png", png((4, 4), (7, 7, 7)))

    served.post("/prompt", {"id": "ev-1", "prompt": invert_workflow(url)})

    until(lambda: any("execution_success" in seen.path + seen.body.decode() for seen in desk.seen))
    until(lambda: len([seen for seen in desk.seen if seen.method == "POST"]) >= 4)
    hooks = [
        Webhook(WEBHOOK_SECRET).verify(seen.body, seen.headers) for seen in desk.seen if seen.method == "POST"
    ]
    names = [hook["event"] for hook in hooks]
    assert set(names) == {
        "comfy.execution_start",
        "comfy.executed",
        "comfy.execution_success",
        "storage.file_downloaded",
    }
    assert all(hook["metadata"] == {"purpose": "test", "salad_machine_id": "m-1"} for hook in hooks)
    comfy = [hook["data"] for hook in hooks if hook["event"].startswith("comfy.")]
    assert {data["data"]["prompt_id"] for data in comfy} == {"ev-1"}
    [stored] = [hook["data"] for hook in hooks if hook["event"].startswith("storage.")]
    assert (stored["url"], set(stored)) == (url, {"url", "local_path", "size", "duration"})


def test_salad_s70_events_of_a_prompt_are_in_order(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """However slow the receiver, the start comes before the end."""
    desk.answers["/sys"] = Answer(delay_s=0.05)
    served = serve_salad(
        system_webhook_url=f"{desk.url}/sys",
        system_webhook_events=frozenset({"execution_start", "executing", "executed", "execution_success"}),
    )
    until(lambda: healthy(served))

    served.post("/prompt", {"id": "s70", "prompt": empty_workflow(70)})

    def names() -> list[str]:
        return [seen.json()["event"] for seen in desk.seen]

    until(lambda: names().count("comfy.execution_success") == 1)
    assert names()[0] == "comfy.execution_start"
    assert names().index("comfy.executed") < names().index("comfy.execution_success")


def test_salad_s64_upload_is_told_after_success_only(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """`file_uploaded` names the path as text, and a failed upload is no event."""
    desk.answers["/bad/s64_out_00001_.png"] = Answer(status=403)
    served = serve_salad(
        system_webhook_url=f"{desk.url}/sys", system_webhook_events=frozenset({"file_uploaded"})
    )
    prompt = empty_workflow(64)

    for path in ("bad", "good"):
        served.post(
            "/prompt", {"id": "s64", "prompt": prompt, "http_upload": {"url_prefix": f"{desk.url}/{path}"}}
        )

    [event] = desk.wait(1)
    assert event.json()["event"] == "storage.file_uploaded"
    assert event.json()["data"]["url"] == f"{desk.url}/good/s64_out_00001_.png"
    assert isinstance(event.json()["data"]["local_path"], str)


@pytest.mark.parametrize(("text", "count"), [(" status , progress ", 2), ("", 0), (" ", 0), ("all", 13)])
def test_salad_s71_event_list_is_trimmed(text: str, count: int) -> None:
    """Blanks do not matter and nothing is none; an unknown name stops the start."""
    assert len(load({"SYSTEM_WEBHOOK_EVENTS": text}).system_webhook_events) == count
    with pytest.raises(ConfigInvalid, match="SYSTEM_WEBHOOK_EVENTS"):
        load({"SYSTEM_WEBHOOK_EVENTS": "status, nonsense"})


def test_salad_s81_deletion_cost_is_put_on_change_only(desk: HttpDesk) -> None:
    """The length of ComfyUI's queue goes to the platform once per value, with its header."""
    events = ComfyEvents(None, DeletionCost(f"{desk.url}/cost"))

    def status(remaining: int) -> bytes:
        return b'{"type":"status","data":{"status":{"exec_info":{"queue_remaining":%d}}}}' % remaining

    for remaining in (1, 1, 1):
        events(status(remaining))
    desk.wait(1, "PUT")
    for remaining in (0, 0):
        events(status(remaining))

    puts = desk.wait(2, "PUT")
    assert [put.json() for put in puts] == [{"deletion_cost": 1}, {"deletion_cost": 0}]
    assert puts[0].headers["metadata"] == "true"


def test_ids_of_ended_prompts_are_forgotten() -> None:
    """The map from prompts to requests does not grow."""
    events = ComfyEvents(None)
    for number in range(1000):
        events.known(f"p{number}", "r")
        events.over(f"p{number}")

    assert events.remembered < 100


def test_input_and_output_folders_of_the_peer_go_together() -> None:
    """INPUT_DIR and OUTPUT_DIR are read when both are there; one alone is somebody else's."""
    both = load({"INPUT_DIR": "/in", "OUTPUT_DIR": "/out"})

    assert (both.comfy_input_dir, both.comfy_output_dir) == (Path("/in"), Path("/out"))
    assert load({"OUTPUT_DIR": "/out"}).comfy_output_dir is None


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("COMFY_HOME", "/opt/ComfyUI", "comfyui_path", Path("/opt/ComfyUI")),
        ("COMFYUI_PORT_HOST", "8199", "comfy_port", 8199),
        ("WARMUP_PROMPT_FILE", "/w.json", "warmup_workflow", "/w.json"),
        ("WARMUP_PROMPT_URL", "https://e.com/w.json", "warmup_workflow", "https://e.com/w.json"),
        ("LRU_CACHE_SIZE_GB", "1.5", "lru_cache_size_gb", 1.5),
        ("MAX_QUEUE_DEPTH", "3", "max_queue_depth", 3),
        ("MAX_BODY_SIZE_MB", "50", "max_body_size_mb", 50.0),
        ("PREPEND_FILENAMES", "False", "prepend_filenames", False),
        ("PROMPT_WEBHOOK_RETRIES", "5", "prompt_webhook_retries", 5),
        ("AWS_DEFAULT_REGION", "eu-west-1", "aws_region", "eu-west-1"),
        ("LOG_LEVEL", "warn", "log_level", "WARNING"),
        ("LOG_LEVEL", "fatal", "log_level", "CRITICAL"),
        (
            "HTTP_TRUSTED_ORIGINS",
            "https://A.example:8443, http://b",
            "http_trusted_origins",
            ("https://a.example:8443", "http://b:80"),
        ),
        ("SYSTEM_META_Purpose", "x", "system_meta", (("Purpose", "x"),)),
        ("SALAD_MACHINE_ID", "m", "system_meta", (("salad_machine_id", "m"),)),
    ],
)
def test_variables_of_the_peer_are_read(name: str, text: str, field: str, value: Any) -> None:
    """The names that users have set keep their meaning."""
    assert getattr(load({name: text}), field) == value


@pytest.mark.slow
def test_salad_s72_sigterm_finishes_work_and_ends_well(engine: EngineThread, desk: HttpDesk) -> None:
    """Told to end, the worker finishes what runs, delivers its webhook, and leaves with 0."""
    port = free_port()
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [
        sys.executable,
        "-m",
        "comfy_worker",
        "serve",
        "--face",
        "salad",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environ = {
        **keep,
        "COMFYUI_URL": engine.url,
        "WEBHOOK_SECRET": WEBHOOK_SECRET,
        "ALLOW_PRIVATE_URLS": "true",
    }
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/ready"), 40)
        body = {"id": "s72", "prompt": slow(2, 72), "webhook_v2": f"{desk.url}/hook"}
        assert requests.post(f"http://127.0.0.1:{port}/prompt", json=body, timeout=20).status_code == 202
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=40)
    finally:
        process.kill()
        process.communicate()
    [hook] = desk.wait(1)
    assert process.returncode == 0, log
    assert hook.json()["type"] == "prompt.complete"
    assert not re.search("Traceback", log)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False


@pytest.mark.slow
def test_salad_s74_dead_comfyui_is_started_again(serve_salad: ServeSalad, tmp_path: Path) -> None:
    """A supervised ComfyUI that is killed comes back; `/ready` tells the truth and requests run again."""
    scratch = tmp_path / "engine"
    scratch.mkdir()
    served = serve_salad(launch.builtin_engine(free_port(), scratch, ["--test-nodes"]))
    process = served.worker.engine.process  # type: ignore[attr-defined]
    until(lambda: served.get("/ready").status_code == 200, 40)
    starts = process.starts

    process.kill()
    until(lambda: process.starts > starts, 40)
    until(lambda: served.get("/ready").status_code == 200, 40)

    assert healthy(served)
    assert served.post("/prompt", {"prompt": empty_workflow(74)}).status_code == 200


def test_salad_s77_nothing_of_comfyui_is_imported() -> None:
    """The face imports neither ComfyUI nor torch."""
    program = (
        "import comfy_worker.faces.salad, sys; print(sorted({'torch', 'comfy', 'nodes'} & set(sys.modules)))"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


@pytest.mark.parametrize(
    ("environ", "face", "given", "address"),
    [
        ({}, Face.salad, (None, None), ("::", 3000)),
        ({"HOST": "0.0.0.0", "PORT": "3100"}, Face.salad, (None, None), ("0.0.0.0", 3100)),
        ({"HOST": "0.0.0.0", "PORT": "3100"}, Face.salad, ("127.0.0.1", 0), ("127.0.0.1", 0)),
        ({"HOST": "0.0.0.0", "PORT": "3100"}, Face.runpod, (None, None), ("127.0.0.1", 8000)),
    ],
)
def test_address_is_that_of_the_peer(environ: dict[str, str], face: Face, given: Any, address: Any) -> None:
    """HOST and PORT count on this face, after what the command line says."""
    assert address_of(environ, face, *given) == address


def test_port_that_is_none_stops_the_start() -> None:
    """A wrong PORT is named."""
    with pytest.raises(ConfigInvalid, match="PORT must be"):
        address_of({"PORT": "http"}, Face.salad, None, None)


def test_every_address_takes_ipv4_and_ipv6() -> None:
    """`::` is reached by both, as in Node.js."""
    [listener] = listeners("::", 0) or []
    port = listener.getsockname()[1]
    with listener:
        for host in ("127.0.0.1", "::1") if listener.family == socket.AF_INET6 else ("127.0.0.1",):
            socket.create_connection((host, port), 5).close()

    assert listeners("127.0.0.1", 0) is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_salad_s73_comfyui_never_outlives_the_worker(tmp_path: Path) -> None:
    """Killed without a word, the worker takes its ComfyUI along."""
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "COMFY_PORT": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "comfy_worker", "serve", "--face", "salad"], env=environ
    ) as process:
        try:
            until(lambda: _answers(f"http://127.0.0.1:{port}/ready"), 60)
            children = [
                int(text)
                for path in Path(f"/proc/{process.pid}/task").glob("*/children")
                for text in path.read_text().split()
            ]
            assert children
        finally:
            process.kill()

    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_warm_up_that_must_succeed_ends_the_server(serve_salad: ServeSalad) -> None:
    """With WARMUP_REQUIRED, a failing warm-up is the end of the worker, which never was healthy."""
    served = serve_salad(
        warmup_workflow='{"1": {"class_type": "NoSuchClass", "inputs": {}}}', warmup_required=True
    )

    until(lambda: served.server.failed)


@pytest.mark.slow
def test_fault_after_the_202_is_told(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """Whatever goes wrong inside the worker, an accepted request ends with a webhook."""
    served = serve_salad()
    files = served.worker.files  # type: ignore[attr-defined]
    locate = files.locate
    files.locate = lambda *_, **__: 1 / 0

    reply = served.post("/prompt", {"id": "fault", "prompt": slow(1, 3), "webhook_v2": desk.url})

    [hook] = desk.wait(1)
    files.locate = locate
    assert reply.status_code == 202
    assert (hook.json()["type"], hook.json()["id"]) == ("prompt.failed", "fault")
    assert "ZeroDivisionError" not in hook.body.decode()
