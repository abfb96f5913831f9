"""
Server-sent events of a job, and the numbers of a process.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from support.control_plane import wait_until
from support.lanes import sleeping
from support.pictures import empty_workflow, node
from support.served import Served

from comfy_worker.deadline import Deadline
from comfy_worker.errors import NodeFailed
from comfy_worker.faces import runpod_http
from comfy_worker.job import Job, Result, Timings, ignore
from comfy_worker.metrics import BUCKETS_S, MOST_CLASSES, Gauge, Metrics
from comfy_worker.standin.thread import EngineThread

SAMPLE = re.compile(r'^[a-z_]+(\{[a-z_]+="(?:[^"\\]|\\.)*"(,le="[^"]+")?\})? [0-9.e+-]+$')


def events_of(served: Served, job_id: str, query: str = "") -> list[tuple[str, dict[str, Any]]]:
    """
    Follow a job to its end and return every event.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    with served.get(f"/jobs/{job_id}/events{query}", stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith(b"event: "):
                found.append((line.removeprefix(b"event: ").decode(), {}))
            elif line.startswith(b"data: "):
                found[-1] = (found[-1][0], json.loads(line.removeprefix(b"data: ")))
    return found


@pytest.mark.slow
def test_events_tell_the_place_in_the_queue_the_nodes_and_the_end(served: Served) -> None:
    """A watcher must see where a job waits, then nodes and a percentage that never falls, then one end."""
    first, second = (
        served.post("/run", {"input": {"workflow": sleeping(f"sse{i}", 1.0, 100)}}).json() for i in range(2)
    )
    waiting = served.post("/run", {"input": {"workflow": sleeping("sse2", 0.3, 30)}}).json()
    served.until(first["id"], "IN_PROGRESS")
    served.until(second["id"], "IN_PROGRESS")

    found = events_of(served, waiting["id"])

    assert found[0] == ("progress", {"stage": "waiting", "percent": 0.0, "position": 0})
    assert found[-1] == ("end", {"status": "completed"})
    assert [kind for kind, _ in found].count("end") == 1
    percents = [state["percent"] for kind, state in found if kind == "progress"]
    assert percents == sorted(percents)
    assert any(state.get("class_type") == "StandinSleep" for _, state in found)


@pytest.mark.slow
def test_previews_come_to_who_asks_for_them(tmp_path: Path, make_worker: WorkerFactory) -> None:
    """Where ComfyUI makes previews, a watcher who asks must get them as JPEG, and one who does not must not."""
    sampled = {
        "1": node("StandinKSampler", seed=1, steps=10, seconds_per_step=0.1, size=64),
        "2": node("SaveImage", images=("1", 0), filename_prefix="sampled"),
    }
    with EngineThread(tmp_path / "engine", test_nodes=True, preview_method="auto") as engine:
        served = Served(runpod_http.app_of(make_worker(launch_of(engine), shutdown_grace_s=0.2)))
        try:
            taken = served.post("/run", {"input": {"workflow": sampled}}).json()
            found = events_of(served, f"{taken['id']}", "?previews=true")
            again = served.post("/run", {"input": {"workflow": {**sampled, "9": sampled["2"]}}}).json()
            plain = events_of(served, again["id"])
        finally:
            served.close()

    pictures = [state for kind, state in found if kind == "preview"]
    assert {(state["node"], state["mime"]) for state in pictures} == {("1", "image/jpeg")}
    assert all(base64.b64decode(state["data"])[:3] == b"\xff\xd8\xff" for state in pictures)
    assert "preview" not in {kind for kind, _ in plain}


def test_events_of_a_failed_job_end_with_its_error(served: Served) -> None:
    """A watcher who comes after the end must still be told how it was."""
    view = served.post(
        "/runsync", {"input": {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}}
    ).json()

    [(kind, state)] = events_of(served, view["id"])

    assert (kind, state["status"], state["error_code"]) == ("end", "failed", "workflow_invalid")


def test_events_of_a_cancelled_job_end(served: Served) -> None:
    """A cancel must end the events of a job."""
    taken = served.post("/run", {"input": {"workflow": sleeping("sse-cancel")}}).json()
    served.until(taken["id"], "IN_PROGRESS")
    served.post(f"/cancel/{taken['id']}")

    kind, state = events_of(served, taken["id"])[-1]

    assert (kind, state["error_code"]) == ("end", "job_cancelled")


def test_events_of_an_unknown_job_are_404(served: Served) -> None:
    """There is nothing to follow of a job that nobody sent."""
    assert served.get("/jobs/nobody/events").status_code == 404


def test_metrics_count_jobs_nodes_and_the_queue(fresh: Served) -> None:
    """/metrics must be text in Prometheus' format, and count what happened."""
    for _ in range(2):
        fresh.post("/runsync", {"input": {"workflow": empty_workflow(0x123456)}})
    fresh.post("/runsync", {"input": {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}})

    answer = fresh.get("/metrics")
    lines = answer.text.splitlines()

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert [line for line in lines if not line.startswith("#") and not SAMPLE.match(line)] == []
    assert 'comfy_worker_jobs_total{outcome="completed"} 2' in lines
    assert 'comfy_worker_jobs_total{outcome="workflow_invalid"} 1' in lines
    assert 'comfy_worker_node_seconds_count{class_type="SaveImage"} 2' in lines
    assert 'comfy_worker_nodes_total{result="cached"} 1' in lines
    assert "comfy_worker_queue_length 0" in lines
    assert "comfy_worker_comfyui_up 1" in lines
    assert any(line.startswith("comfy_worker_device_memory_total_bytes{device=") for line in lines)


def test_metrics_say_when_comfyui_is_away(fresh: Served) -> None:
    """With ComfyUI away the numbers must still come, and say so."""
    service = fresh.app.state.service
    service.worker.engine.client.close()
    service.worker.engine.client = type(service.worker.engine.client)("http://127.0.0.1:9")

    assert "comfy_worker_comfyui_up 0" in fresh.get("/metrics").text.splitlines()
    wait_until(lambda: fresh.get("/ready").status_code == 503, 5.0)


def test_histogram_buckets_are_cumulative() -> None:
    """A time must be counted in its bucket and in every larger one."""
    metrics = Metrics()
    job = Job("j", {"1": {"class_type": "A", "inputs": {}}})
    for milliseconds in (10.0, 10.1, 1e9):
        metrics.count("completed", job, Result("j", None, timings=Timings(nodes={"1": milliseconds})), 1.0)

    lines = metrics.exposition([]).splitlines()
    counts = [
        int(line.split()[-1])
        for line in lines
        if line.startswith('comfy_worker_node_seconds_bucket{class_type="A"')
    ]

    assert counts == [1, *[2] * (len(BUCKETS_S) - 1), 3]


def test_metrics_stay_small_whatever_classes_come() -> None:
    """Classes beyond the limit must share one series, so that no client can grow the numbers without end."""
    metrics = Metrics()
    for number in range(MOST_CLASSES + 50):
        job = Job("j", {"1": {"class_type": f'C"{number}\n', "inputs": {}}})
        metrics.count("completed", job, Result("j", None, timings=Timings(nodes={"1": 1.0, "9": 1.0})), 1.0)

    lines = metrics.exposition([]).splitlines()
    series = {line for line in lines if line.startswith("comfy_worker_node_seconds_count")}

    assert len(series) == MOST_CLASSES
    assert all(SAMPLE.match(line) for line in lines if not line.startswith("#"))


def test_failed_runs_are_counted_by_their_code() -> None:
    """A run that raises must be counted under its code, and the error must go on to the caller."""
    metrics = Metrics()

    def run(job: Job, deadline: Deadline, observe: object) -> Result:
        raise NodeFailed("no")

    with pytest.raises(NodeFailed):
        metrics.measured(run)(Job("j", {}), Deadline(1.0), ignore)

    assert 'comfy_worker_jobs_total{outcome="node_failed"} 1' in metrics.exposition([]).splitlines()


def test_gauges_of_one_name_are_told_of_once() -> None:
    """Samples of one name must stand under one HELP and one TYPE, each with all its digits."""
    gauges = [Gauge("x", "Text.", number, f'{{device="{number}"}}') for number in (25_276_514_304, 0.5)]

    assert Metrics().exposition(gauges).splitlines()[-4:] == [
        "# HELP x Text.",
        "# TYPE x gauge",
        'x{device="25276514304"} 25276514304',
        'x{device="0.5"} 0.5',
    ]
