"""
RunPod's API on this machine: the routes, states and numbers that clients meet in production.
"""

import time
from collections.abc import Callable

import pytest
import requests
from support.lanes import sleeping
from support.pictures import b64, empty_workflow, invert_workflow, opened, png
from support.served import Served

from comfy_worker.faces import runpod_http

PREFIXES = ("", "/v2/local")


def job() -> dict[str, object]:
    """
    Return a job with an input picture.
    """
    images = [{"name": "in.png", "image": b64(png((8, 6), (10, 20, 30)))}]
    return {"input": {"workflow": invert_workflow(), "images": images}}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_run_answers_at_once_and_status_has_the_result(served: Served, prefix: str) -> None:
    """A job sent to /run must be queued at once, and its picture must come by /status with times and worker."""
    taken = served.post(f"{prefix}/run", job()).json()
    view = served.until(taken["id"], "COMPLETED", "FAILED")

    assert taken["status"] == "IN_QUEUE"
    assert not taken["id"].startswith("sync-")
    assert view["status"] == "COMPLETED"
    assert opened(view["output"]["images"][0]).getpixel((0, 0)) == pytest.approx((245, 235, 225), abs=1)
    assert isinstance(view["delayTime"], int)
    assert isinstance(view["executionTime"], int)
    assert view["workerId"] == "local"
    assert served.get(f"{prefix}/status/{taken['id']}").json() == view
    assert served.post(f"{prefix}/status/{taken['id']}").json() == view


@pytest.mark.parametrize("prefix", PREFIXES)
def test_runsync_answers_with_the_result(served: Served, prefix: str) -> None:
    """A job sent to /runsync must be answered with its final state."""
    view = served.post(f"{prefix}/runsync", job()).json()

    assert view["status"] == "COMPLETED"
    assert view["id"].startswith("sync-")
    assert len(view["output"]["images"]) == 1


@pytest.mark.slow
def test_runsync_answers_with_the_state_once_its_wait_is_over(served: Served) -> None:
    """A job that outlasts `wait` must be answered with its state, and go on."""
    taken = served.post("/runsync?wait=1000", {"input": {"workflow": sleeping("wait", 1.5, 150)}}).json()

    assert taken["status"] == "IN_PROGRESS"
    assert taken["output"]["type"] == "progress"
    assert served.until(taken["id"], "COMPLETED", "FAILED")["status"] == "COMPLETED"


def test_progress_is_the_output_while_a_job_runs(fresh: Served) -> None:
    """While a job runs, /status must show how far it is."""
    taken = fresh.post("/run", {"input": {"workflow": sleeping("progress")}}).json()
    view = fresh.until(taken["id"], "IN_PROGRESS")
    while view["output"]["node"] != "2":
        time.sleep(0.02)
        view = fresh.get(f"/status/{taken['id']}").json()

    assert view["output"]["stage"] == "running"
    assert 0 <= view["output"]["percent"] < 100
    assert "executionTime" not in view


def test_cancel_ends_a_running_job_and_the_next_one_runs(served: Served) -> None:
    """A cancelled job must be CANCELLED at once and let the engine go."""
    taken = served.post("/run", {"input": {"workflow": sleeping("cancel")}}).json()
    served.until(taken["id"], "IN_PROGRESS")

    answer = served.post(f"/cancel/{taken['id']}").json()

    assert answer == {"id": taken["id"], "status": "CANCELLED"}
    assert served.post("/runsync", job()).json()["status"] == "COMPLETED"
    assert served.get(f"/status/{taken['id']}").json()["status"] == "CANCELLED"


def test_cancel_leaves_an_ended_job_as_it_is(served: Served) -> None:
    """A cancel that comes late must not take the result away."""
    view = served.post("/runsync", job()).json()

    assert served.post(f"/cancel/{view['id']}").json() == {"id": view["id"], "status": "COMPLETED"}
    assert served.get(f"/status/{view['id']}").json() == view


def test_failed_job_has_its_error_at_the_top(served: Served) -> None:
    """A failure must have a text in `error` and its facts in `output`, as in production."""
    view = served.post(
        "/runsync", {"input": {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}}
    ).json()

    assert view["status"] == "FAILED"
    assert "Nope" in view["error"]
    assert view["output"]["error_code"] == "workflow_invalid"


def test_stream_gives_the_output_once(served: Served) -> None:
    """/stream must give the output of an ended job, and nothing the second time."""
    taken = served.post("/runsync", job()).json()

    first, second = (served.get(f"/stream/{taken['id']}").json() for _ in range(2))

    assert [part["output"] for part in first["stream"]] == [taken["output"]]
    assert second == {"status": "COMPLETED", "stream": []}
    assert served.post(f"/stream/{taken['id']}").json() == second


def test_purge_cancels_what_waits_and_nothing_else(fresh: Served) -> None:
    """/purge-queue must cancel the waiting jobs, count them, and leave the running ones."""
    running = [fresh.post("/run", {"input": {"workflow": sleeping(f"purge{i}")}}).json() for i in range(2)]
    for taken in running:
        fresh.until(taken["id"], "IN_PROGRESS")
    waiting = fresh.post("/run", job()).json()

    assert fresh.get("/health").json()["jobs"]["inQueue"] == 1
    assert fresh.post("/purge-queue").json() == {"removed": 1, "status": "completed"}
    assert fresh.get(f"/status/{waiting['id']}").json()["status"] == "CANCELLED"
    assert {fresh.get(f"/status/{taken['id']}").json()["status"] for taken in running} == {"IN_PROGRESS"}


def test_health_counts_jobs_and_tells_what_the_worker_does(fresh: Served) -> None:
    """/health must have production's shape and count what happened."""
    fresh.post("/runsync", job())
    fresh.post("/runsync", {"input": {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}})
    taken = fresh.post("/run", {"input": {"workflow": sleeping("health")}}).json()
    fresh.until(taken["id"], "IN_PROGRESS")

    health = fresh.get("/health").json()

    assert health["jobs"] == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 0, "retried": 0}
    assert health["workers"]["running"] == 1
    assert health["workers"]["idle"] == 0


@pytest.mark.parametrize("route", ["status", "stream"])
def test_unknown_job_is_404(served: Served, route: str) -> None:
    """An id that nobody has must be answered with 404."""
    answer = served.get(f"/{route}/nobody")

    assert answer.status_code == 404
    assert answer.json()["error_code"] == "not_found"


@pytest.mark.parametrize(
    ("request_body", "field"),
    [
        ({}, "input"),
        ({"input": {}, "policy": {"executionTimeout": 1}}, "policy.executionTimeout"),
        ({"input": {}, "webhook": "ftp://example.com/x"}, "webhook"),
        ({"input": {}, "webhook": "http://user:secret-word@example.com/x"}, "webhook"),
    ],
)
def test_wrong_request_is_400_and_names_the_field(
    served: Served, request_body: dict[str, object], field: str
) -> None:
    """A request that does not fit must be refused with the field, and without a secret of it."""
    answer = served.post("/run", request_body)

    assert answer.status_code == 400
    assert field in answer.json()["error"]
    assert "secret-word" not in answer.text


def test_request_over_10_mb_is_refused_by_run_and_taken_by_runsync(served: Served) -> None:
    """/run takes 10 MB and /runsync 20 MB, as in production."""
    large = {"input": {"workflow": empty_workflow(), "unused": "x" * 10_000_001}}

    refused = served.post("/run", large)
    taken = served.post("/runsync", large)
    too_large = served.post("/runsync", {"input": "x" * 20_000_001})

    assert (refused.status_code, taken.status_code, too_large.status_code) == (400, 200, 413)
    assert refused.json()["limit_bytes"] == 10_000_000
    assert taken.json()["status"] == "COMPLETED"


@pytest.mark.slow
def test_client_that_leaves_runsync_cancels_its_job(fresh: Served) -> None:
    """Nobody can ask for a /runsync job whose client went away, so it must be stopped."""
    with pytest.raises(requests.Timeout):
        requests.post(f"{fresh.url}/runsync", json={"input": {"workflow": sleeping("left")}}, timeout=0.5)

    worker = fresh.app.state.service.worker
    end = time.monotonic() + 20
    while worker.pool.busy and time.monotonic() < end:
        time.sleep(0.02)
    assert worker.pool.busy == 0
    assert fresh.get("/health").json()["jobs"]["inProgress"] == 0


def test_full_queue_is_503_with_retry_after(serve_runpod: Callable[..., Served]) -> None:
    """A job over the limit of the queue must be refused with 503 and a time to wait."""
    served = serve_runpod(queue_limit=1)
    served.post("/run", {"input": {"workflow": sleeping("full")}})

    answer = served.post("/run", job())

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error_code"] == "worker_busy"


def test_ready_tells_whether_comfyui_answers(served: Served) -> None:
    """/ready must be 200 while ComfyUI answers and jobs are taken."""
    assert served.get("/ready").json() == {"status": "ready"}


def test_everything_below_the_api_has_an_id_for_the_request(served: Served) -> None:
    """Every answer must carry the caller's request id, or one of ours where there is none that could be one."""
    given = served.get("/health", headers={"X-Request-ID": "mine-1"})
    made = served.get("/nowhere", headers={"X-Request-ID": "bad id"})

    assert given.headers["x-request-id"] == "mine-1"
    assert made.status_code == 404
    assert made.json()["request_id"] == made.headers["x-request-id"] != "bad id"


def test_limits_are_those_of_production() -> None:
    """The limits of requests must be RunPod's."""
    assert (runpod_http.RUN_LIMIT, runpod_http.RUNSYNC_LIMIT) == (10_000_000, 20_000_000)
