"""
Progress reaches `/status` in order, and never after the result.
"""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from runpod_sdk.conftest import Running
from support.control_plane import ControlPlane, wait_until
from support.lanes import runs, sleeping
from support.pictures import empty_workflow, job_of, node

from comfy_worker.faces.runpod_progress import Poster, Progress
from comfy_worker.job import Event
from comfy_worker.standin.thread import EngineThread


@pytest.mark.slow
def test_runpod_14_51_progress_names_node_title_and_percent_of_the_whole(served: Running) -> None:
    """While a job runs its progress must name the node, its title and value, and the percent of the whole graph."""
    workflow = {
        "1": node("StandinKSampler", steps=24, seconds_per_step=0.1, seed=3, size=64),
        "2": node("SaveImage", images=("1", 0), filename_prefix="progress-"),
    }
    workflow["1"]["_meta"] = {"title": "My sampler"}

    job = served.plane.submit({"workflow": workflow})
    job.wait()

    shown = [post.body["output"] for post in job.progress]
    assert len(shown) >= 2
    assert all(post.body["status"] == "IN_PROGRESS" for post in job.progress)
    last = shown[-1]
    assert (last["type"], last["node"], last["title"], last["max"]) == ("progress", "1", "My sampler", 24)
    assert 0 < last["value"] <= 24
    percents = [value["percent"] for value in shown]
    assert percents == sorted(percents)
    assert 0 < percents[-1] < 100
    assert job.posts[-1].kind == "result"
    assert job.progress[0].query == job.results[0].query
    assert job.progress[0].headers["X-Request-ID"] == job.id


@pytest.mark.slow
def test_progress_of_a_cancelled_job_ends_with_the_cancel(served: Running) -> None:
    """After a cancel no progress may put the job back to IN_PROGRESS."""
    job = served.plane.submit({"workflow": sleeping("quiet-")})
    job.wait_until(lambda _: job.progress)
    wait_until(lambda: runs(served.engine, "quiet-"))

    served.plane.cancel(job)
    wait_until(lambda: not runs(served.engine, "quiet-"))
    seen = len(job.posts)
    after = served.plane.submit({"workflow": sleeping("after-quiet-", seconds=1.2, steps=15)})
    after.wait()

    assert after.progress  # so there was time for more
    assert len(job.posts) == seen


def test_runpod_14_52_no_progress_follows_the_result() -> None:
    """`close` must wait for the post in flight, and nothing that comes later is sent, in any of 200 jobs."""
    sent: list[float] = []
    closed = False

    def post(value: Mapping[str, Any]) -> None:
        assert not closed
        sent.append(value["percent"])

    for number in range(200):
        closed = False
        progress = Progress(post, interval_s=0.001)
        for percent in range(5):
            progress(Event("running", float(percent)))
            threading.Event().wait(0.0005 * (number % 4))
        progress.close()
        closed = True
        progress(Event("done", 100.0))

    assert sent
    assert 100.0 not in sent


def test_close_waits_for_the_post_in_flight() -> None:
    """A post that has begun must be over when `close` returns."""
    begun, go, over = threading.Event(), threading.Event(), threading.Event()

    def post(value: Mapping[str, Any]) -> None:
        begun.set()
        go.wait(10.0)
        over.set()

    progress = Progress(post, interval_s=0.001)
    progress(Event("running", 1.0))
    assert begun.wait(10.0)
    threading.Timer(0.05, go.set).start()

    progress.close()

    assert over.is_set()


def test_only_the_latest_value_is_sent() -> None:
    """Of many values within one interval only the last may be sent."""
    sent: list[float] = []
    progress = Progress(lambda value: sent.append(value["percent"]), interval_s=0.05)

    for percent in range(50):
        progress(Event("running", float(percent)))
    wait_until(lambda: sent)
    progress.close()

    assert sent == [49.0]


def test_plane_that_refuses_progress_fails_no_job(plane: ControlPlane) -> None:
    """A failing post, and an id or a title that cannot be sent, must fail nothing."""
    address = plane.environ()["RUNPOD_WEBHOOK_POST_OUTPUT"]
    poster = Poster(address, "wrong key", "w1")
    try:
        poster.of("job-1")({"percent": 1.0})
        poster.of("job\n\udcff")({"title": "\udcff"})
    finally:
        poster.close()


def test_progress_can_be_switched_off(plane: ControlPlane, make_worker: WorkerFactory, tmp_path: Any) -> None:
    """With PROGRESS_UPDATES=false, and without RunPod's address, nothing may be sent."""
    address = plane.environ()["RUNPOD_WEBHOOK_POST_OUTPUT"]
    with EngineThread(tmp_path) as engine:
        off = make_worker(launch_of(engine), runpod_webhook_post_output=address, progress_updates=False)
        local = make_worker(launch_of(engine))

        replies = [asyncio.run(worker.face.handle(job_of("x", empty_workflow()))) for worker in (off, local)]

    assert all("images" in reply for reply in replies)
    assert off.face.poster is None
    assert local.face.poster is None
