"""
RunPod's HTTP API on each engine: a whole job, its progress, and a cancel that frees the engine.
"""

from collections.abc import Iterator

import pytest
from conftest import WorkerFactory
from integration.conftest import Comfy, ksampler_workflow
from integration.test_lifecycle import slow_workflow
from support.pictures import invert_job, opened, png
from support.served import Served

from comfy_worker.faces import runpod_http
from comfy_worker.wiring import Worker


@pytest.fixture
def served(comfy_worker: Worker) -> Iterator[Served]:
    """
    RunPod's API over a worker on each engine.
    """
    running = Served(runpod_http.app_of(comfy_worker))
    yield running
    running.close()


def test_job_over_http_gives_the_picture(served: Served) -> None:
    """A job with a picture must come back over HTTP as it does from the handler."""
    view = served.post("/runsync", invert_job("any", png((8, 6), (10, 20, 30)))).json()

    assert view["status"] == "COMPLETED", view
    assert opened(view["output"]["images"][0]).getpixel((0, 0)) == pytest.approx((245, 235, 225), abs=1)


def test_cancel_over_http_frees_the_engine(served: Served, comfy: Comfy) -> None:
    """A running job must be seen running, end by /cancel, and leave the engine to the next one."""
    slow = served.post("/run", {"input": {"workflow": slow_workflow(comfy, 30.0, seed=77)}}).json()
    served.until(slow["id"], "IN_PROGRESS")

    assert served.post(f"/cancel/{slow['id']}").json()["status"] == "CANCELLED"
    view = served.post("/runsync", invert_job("next", png((8, 6), (1, 2, 3)))).json()

    assert view["status"] == "COMPLETED", view
    assert b'"status":"failed"' in served.get(f"/jobs/{slow['id']}/events").content


@pytest.mark.slow
def test_previews_of_a_real_sampler_are_sent(real_comfy: Comfy, make_worker: WorkerFactory) -> None:
    """A real KSampler's previews must reach who asks for them."""
    served = Served(runpod_http.app_of(make_worker(real_comfy.launch)))
    try:
        taken = served.post("/run", {"input": {"workflow": ksampler_workflow(seed=5, steps=40)}}).json()
        events = served.get(f"/jobs/{taken['id']}/events?previews=true").content
    finally:
        served.close()

    assert b"event: preview" in events
    assert b'"mime":"image/jpeg"' in events
    assert events.rstrip().endswith(b'data: {"status":"completed"}')
