"""
A job's result does not depend on the websocket: it is cut everywhere, loses its last word, or is gone.
"""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import requests
from conftest import WorkerFactory
from integration.conftest import Comfy
from support.cutting_proxy import CuttingProxy
from support.pictures import empty_workflow, job_of, node, opened

from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker

LIMIT_S = 5.0
FRAMES = 18
"""A little more than the frames of the job, so that some cuts come after its end."""


def two_pictures(colour: int) -> dict[str, Any]:
    """
    Return a workflow that saves one picture to disk and sends two over the websocket.
    """
    return {
        **empty_workflow(colour),
        "8": node("EmptyImage", width=8, height=8, batch_size=2, color=colour),
        "9": node("SaveImageWebsocket", images=("8", 0)),
    }


def timed(worker: Worker, job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """
    Run a job; return its reply and the seconds it took.
    """
    began = time.monotonic()
    reply = asyncio.run(worker.face.handle(job))
    return reply, time.monotonic() - began


@pytest.mark.parametrize("reconnect", [0, 5], ids=["no-reconnect", "reconnect"])
@pytest.mark.parametrize("cut_after", range(1, FRAMES))
def test_job_ends_right_when_the_socket_is_cut(
    comfy: Comfy, make_worker: WorkerFactory, cut_after: int, reconnect: int
) -> None:
    """Wherever the socket is cut, the job must return the same files, and not much later."""
    colour = 0x100000 + cut_after * 0x100 + reconnect
    with CuttingProxy(comfy.launch.url, cut_after=cut_after) as proxy:
        worker = make_worker(replace(comfy.launch, url=proxy.url), websocket_reconnect_attempts=reconnect)

        reply, seconds = timed(worker, job_of(f"cut-{cut_after}-{reconnect}", two_pictures(colour)))

        worker.close()
    assert "error" not in reply, reply
    assert [entry["node_id"] for entry in reply["images"]] == ["2", "9", "9"]
    assert opened(reply["images"][1]).size == (8, 8)
    assert seconds < LIMIT_S


def test_job_ends_right_without_any_socket(comfy: Comfy, make_worker: WorkerFactory) -> None:
    """With the websocket refused from the start, a job must end by polling alone."""
    with CuttingProxy(comfy.launch.url, refuse_after_cut=True) as proxy:
        proxy.cuts = 1
        worker = make_worker(replace(comfy.launch, url=proxy.url))

        reply, seconds = timed(worker, job_of("deaf", empty_workflow(0x223344)))

        worker.close()
    assert "error" not in reply, reply
    assert len(reply["images"]) == 1
    assert seconds < LIMIT_S


def test_lost_socket_pictures_fail_with_a_reason_when_they_stay_lost(
    comfy: Comfy, make_worker: WorkerFactory
) -> None:
    """Pictures that exist on the websocket only must never be left out in silence."""
    with CuttingProxy(comfy.launch.url, refuse_after_cut=True) as proxy:
        proxy.cuts = 1
        worker = make_worker(replace(comfy.launch, url=proxy.url))

        reply, _ = timed(worker, job_of("deaf-pictures", two_pictures(0x334455)))

        worker.close()
    assert reply["error_code"] == "delivery_failed"
    assert "SaveImageWebsocket" in reply["error"]
    assert [entry["node_id"] for entry in reply["images"]] == ["2"]


FAULTS: dict[str, dict[str, Any]] = {
    "final event lost": {"lose": ["null_event"]},
    "success and final event lost": {"lose": ["execution_success", "null_event", "status"]},
    "everything doubled": {"duplicate": ["executing", "executed", "execution_success", "progress_state"]},
    "history late": {"history_delay_ms": 400},
    "history late and final event lost": {"history_delay_ms": 400, "lose": ["null_event", "status"]},
    "queued but answered 500": {"queued_but_500": True},
    "every message late": {"delay_ms": {"executing": 50, "execution_success": 300}},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS))
def test_job_ends_right_when_the_engine_misbehaves(engine: EngineThread, worker: Worker, fault: str) -> None:
    """Lost, doubled and late messages must cost time at most, and little of it."""
    requests.post(f"{engine.url}/standin/faults", json=FAULTS[fault], timeout=5).raise_for_status()
    try:
        reply, seconds = timed(worker, job_of(f"fault {fault}", empty_workflow(hash(fault) % 0xFFFFFF)))
    finally:
        requests.post(f"{engine.url}/standin/faults", json={}, timeout=5).raise_for_status()

    assert "error" not in reply, reply
    assert len(reply["images"]) == 1
    assert seconds < LIMIT_S


def test_prompt_that_vanishes_fails_at_once(engine: EngineThread, worker: Worker) -> None:
    """A prompt that somebody removed from the queue must fail its job within seconds, with the reason."""
    blocker = {
        "1": node("StandinSleep", seconds=3.0, steps=30),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }
    body = {"prompt": blocker, "client_id": "somebody"}
    requests.post(f"{engine.url}/prompt", json=body, timeout=5).raise_for_status()

    async def remove_while_it_waits() -> dict[str, Any]:
        running = asyncio.create_task(worker.face.handle(job_of("vanishes", empty_workflow(0x778899))))
        while [len(ids) for ids in worker.engine.client.queued()] != [1, 1]:
            await asyncio.sleep(0.02)
        requests.post(f"{engine.url}/queue", json={"clear": True}, timeout=5)
        return await asyncio.wait_for(running, LIMIT_S)

    reply = asyncio.run(remove_while_it_waits())
    requests.post(f"{engine.url}/interrupt", timeout=5)

    assert reply["error_code"] == "prompt_lost"
    assert reply["retryable"] is True
