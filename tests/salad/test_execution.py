"""
Waiting for ComfyUI and how runs fail: never without a bound, never without a reason.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import launch_of
from support.cutting_proxy import CuttingProxy
from support.http_desk import HttpDesk
from support.pictures import empty_workflow, node
from support.salad_fixtures import ServeSalad
from support.served import Served

from comfy_worker.standin.thread import EngineThread


def slow(seconds: float, seed: int) -> dict[str, Any]:
    """
    Return a graph that takes about so long and can be interrupted.
    """
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=seed),
        "2": node("StandinSleep", seconds=seconds, steps=int(seconds * 20) or 1, any=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix="slow"),
    }


def until(check: Any, seconds: float = 10.0) -> None:
    """
    Wait until `check()` holds.
    """
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_salad_s1_lost_websocket_changes_no_result(engine: EngineThread, serve_salad: ServeSalad) -> None:
    """With the websocket cut in the middle, this request and the next one are answered."""
    with CuttingProxy(engine.url, cut_after=4) as proxy:
        served = serve_salad(replace(launch_of(engine), url=proxy.url))

        first = served.post("/prompt", {"prompt": empty_workflow(0x010101)})
        second = served.post("/prompt", {"prompt": empty_workflow(0x010102)})

        served.close()
    assert [first.status_code, second.status_code] == [200, 200]
    assert len(first.json()["images"]) == len(second.json()["images"]) == 1


def test_salad_s2_fully_cached_graph_is_answered(served: Served) -> None:
    """The same graph under the same id twice gives its file twice."""
    body = {"id": "same", "prompt": empty_workflow(0x020202)}

    replies = [served.post("/prompt", body) for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert all(len(reply.json()["images"]) == 1 for reply in replies)


@pytest.mark.slow
def test_salad_s3_lost_prompt_fails_with_a_reason(tmp_path: Path, serve_salad: ServeSalad) -> None:
    """A prompt that ComfyUI forgets is a 500 that names the loss, within seconds."""
    with EngineThread(tmp_path / "engine", test_nodes=True, faults={"lost_but_200": True}) as lossy:
        served = serve_salad(launch_of(lossy))

        reply = served.post("/prompt", {"prompt": empty_workflow(0x030303)})

        served.close()
    assert (reply.status_code, reply.json()["code"]) == (500, "prompt_lost")
    assert "knows the prompt no longer" in reply.json()["message"]


@pytest.mark.slow
def test_salad_s4_death_of_comfyui_ends_requests(
    tmp_path: Path, serve_salad: ServeSalad, desk: HttpDesk
) -> None:
    """When ComfyUI dies, waiting requests are 500 and asynchronous ones send `prompt.failed`."""
    with EngineThread(tmp_path / "engine", test_nodes=True) as mortal:
        served = serve_salad(launch_of(mortal), comfy_api_available_max_retries=20)
        client = served.worker.engine.client  # type: ignore[attr-defined]
        served.post("/prompt", {"id": "bg", "prompt": slow(30, 1), "webhook_v2": f"{desk.url}/hook"})
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(served.post, "/prompt", {"prompt": slow(30, 2)})
            until(lambda: len(client.queued()[1]) == 1)
            mortal.stop()
            reply = waiting.result(30)
        [hook] = desk.wait(1)

        served.close()
    assert reply.status_code == 500
    assert "Failed to get prompt outputs: " in reply.json()["message"]
    assert (hook.json()["type"], hook.json()["id"]) == ("prompt.failed", "bg")


def test_salad_s5_requests_in_flight_need_no_threads_of_their_own(serve_salad: ServeSalad) -> None:
    """Many requests at once are read by one websocket thread, and all are answered right."""
    before = set(threading.enumerate())
    served = serve_salad(worker_concurrency=8)

    with ThreadPoolExecutor(24) as pool:
        bodies = [{"id": f"r{number}", "prompt": empty_workflow(0x050000 + number)} for number in range(24)]
        replies = list(pool.map(lambda body: served.post("/prompt", body).json(), bodies))
        fresh = set(threading.enumerate()) - before
        readers = [thread for thread in fresh if thread.name == "comfy-socket"]

    assert [reply["filenames"] for reply in replies] == [
        [f"r{number}_out_00001_.png"] for number in range(24)
    ]
    assert len(readers) <= 1


def test_salad_s6_nothing_is_remembered_after_failures(served: Served) -> None:
    """Requests that failed leave no id behind."""
    prompt = empty_workflow(0x060606)
    prompt["2"]["inputs"]["images"] = ["7", 0]
    prompt["7"] = node("StandinRaise", message="on purpose")
    for number in range(3):
        assert served.post("/prompt", {"id": f"f{number}", "prompt": prompt}).status_code >= 400

    stop = served.post("/interrupt", {"id": "f1"})

    assert (stop.status_code, stop.json()) == (404, {"id": "f1", "interrupted": "failed"})


def test_salad_s7_rejected_graph_is_a_400_with_its_reasons(served: Served) -> None:
    """A graph that ComfyUI refuses is the caller's to change: 400, with the node and ComfyUI's own objects."""
    prompt = empty_workflow(0x070707)
    prompt["1"]["inputs"]["width"] = 0

    reply = served.post("/prompt", {"prompt": prompt})

    body = reply.json()
    assert reply.status_code == 400
    assert body["error"].startswith("Failed to queue prompt: ")
    assert body["location"] == "prompt.1"
    assert body["node_errors"]["1"]["errors"]
    assert body["comfy_error"]["node_errors"] == body["node_errors"]


def test_salad_s8_execution_error_names_node_and_reason(served: Served, desk: HttpDesk) -> None:
    """A node that raises is a 500 with its id, class, exception and text, in replies and webhooks."""
    prompt = empty_workflow(0x080808)
    prompt["2"]["inputs"]["images"] = ["7", 0]
    prompt["7"] = node("StandinRaise", message="raised for s8", any=("1", 0))

    reply = served.post("/prompt", {"id": "s8", "prompt": prompt})
    served.post("/prompt", {"id": "s8-bg", "prompt": prompt, "webhook_v2": f"{desk.url}/hook"})

    body = reply.json()
    [hook] = desk.wait(1)
    assert (reply.status_code, body["id"], body["error"]) == (500, "s8", "Internal Server Error")
    assert body["message"].startswith("Failed to get prompt outputs: node 7 (StandinRaise): RuntimeError: ")
    assert "raised for s8" in body["message"]
    assert body["execution_error"]["node_id"] == "7"
    assert body["execution_error"]["exception_message"] == "raised for s8"
    assert hook.json()["error"] == body["message"]


def test_salad_s9_interrupted_request_says_so(served: Served) -> None:
    """Who waits for an interrupted request gets a 500 that says what happened."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.post, "/prompt", {"id": "s9", "prompt": slow(30, 9)})
        client = served.worker.engine.client  # type: ignore[attr-defined]
        until(lambda: len(client.queued()[0]) == 1)
        stop = served.post("/interrupt", {"id": "s9"})
        reply = waiting.result(20)

    assert (stop.status_code, stop.json()) == (200, {"id": "s9", "interrupted": "success"})
    assert reply.status_code == 500
    assert reply.json()["message"] == "Failed to get prompt outputs: Prompt execution interrupted"
    assert reply.json()["interrupted"] is True
    assert client.queued() == (frozenset(), frozenset())


@pytest.mark.slow
def test_salad_s10_queued_prompts_of_an_id_are_all_interrupted(served: Served) -> None:
    """An interrupt reaches what runs, what waits in ComfyUI and what waits here; later it is a 404."""
    client = served.worker.engine.client  # type: ignore[attr-defined]
    with ThreadPoolExecutor(4) as pool:
        other = pool.submit(served.post, "/prompt", {"id": "other", "prompt": slow(2, 10)})
        until(lambda: len(client.queued()[0]) == 1)
        same = [
            pool.submit(served.post, "/prompt", {"id": "s10", "prompt": slow(30, 11 + number)})
            for number in range(2)
        ]
        until(lambda: len(client.queued()[1]) >= 1)
        time.sleep(0.2)
        stop = served.post("/interrupt", {"id": "s10"})
        replies = [one.result(20) for one in same]
        kept = other.result(20)

    assert stop.status_code == 200
    assert [reply.json().get("interrupted") for reply in replies] == [True, True]
    assert kept.status_code == 200
    assert served.post("/interrupt", {"id": "s10"}).status_code == 404


def test_interrupt_with_a_bad_body_is_refused(served: Served) -> None:
    """The id is required, in the words of the schema."""
    reply = served.post("/interrupt", {})

    assert reply.status_code == 400
    assert reply.json()["message"] == "body/id Required"


@pytest.mark.slow
def test_client_that_leaves_takes_its_request_along(served: Served) -> None:
    """A client that goes away must free ComfyUI."""
    client = served.worker.engine.client  # type: ignore[attr-defined]
    with pytest.raises(requests.Timeout):
        requests.post(f"{served.url}/prompt", json={"prompt": slow(30, 12)}, timeout=1)

    until(lambda: client.queued() == (frozenset(), frozenset()))


@pytest.mark.slow
def test_salad_s23_full_queue_is_a_503(serve_salad: ServeSalad) -> None:
    """More requests than QUEUE_LIMIT are told to come again."""
    served = serve_salad(worker_concurrency=1, queue_limit=1)
    with ThreadPoolExecutor(8) as pool:
        posts = [
            pool.submit(served.post, "/prompt", {"id": f"q{number}", "prompt": slow(1, 20 + number)})
            for number in range(6)
        ]
        replies = [one.result(40) for one in posts]

    refused = [reply for reply in replies if reply.status_code == 503]
    assert refused
    assert all(int(reply.headers["retry-after"]) > 0 for reply in refused)
    assert {reply.status_code for reply in replies} == {200, 503}
