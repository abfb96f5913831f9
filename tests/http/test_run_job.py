"""
The factory as a face uses it: a job run for a client, its failures in the face's own words.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from support.control_plane import wait_until
from support.lanes import sleeping
from support.pictures import empty_workflow
from support.served import Served

from comfy_worker.faces.http import JsonRoute, create_app, run_job, service_of
from comfy_worker.faces.http_problem import Json, Problem
from comfy_worker.job import Result
from comfy_worker.parse import Rules, parse
from comfy_worker.standin.thread import EngineThread


class Body(BaseModel):
    """
    What the face of these tests takes.
    """

    id: str
    workflow: dict[str, Any]


def face_of() -> APIRouter:
    """
    Return a small face: POST /job runs a workflow and names its files.
    """
    router = APIRouter(route_class=JsonRoute)

    @router.post("/job")
    async def job(request: Request, body: Body) -> Json:
        result: Result = await run_job(request, parse(body.id, {"workflow": body.workflow}, Rules()))
        return Json({"files": [output.filename for output in result.outputs]})

    @router.get("/draining")
    async def draining(request: Request) -> Json:
        return Json({"draining": service_of(request).draining})

    return router


def worded(request: Request, problem: Problem) -> Response:
    """
    Word a problem in the dialect of these tests.
    """
    where = [".".join(map(str, path)) for path, _ in problem.invalid]
    return Json(
        {"code": problem.code, "where": where, "path": request.url.path},
        problem.status,
        dict(problem.headers),
    )


@pytest.fixture
def make_face(engine: EngineThread, make_worker: WorkerFactory) -> Iterator[Callable[..., Served]]:
    """
    Serve the small face over workers with other settings.
    """
    running: list[Served] = []

    def make(**fields: Any) -> Served:
        worker = make_worker(launch_of(engine), **{"shutdown_grace_s": 0.2, **fields})
        app = create_app(
            worker, title="Small", bearer=None, max_body_bytes=1000, routers=[face_of()], render=worded
        )
        running.append(Served(app))
        return running[-1]

    yield make
    for served in running:
        served.close()


def test_job_is_run_for_its_client_and_can_be_followed(make_face: Callable[..., Served]) -> None:
    """A face's job must give its result, and its events must be found by its id."""
    served = make_face()

    answer = served.post("/job", {"id": "small-1", "workflow": empty_workflow()})
    end = served.get("/jobs/small-1/events")

    assert answer.json() == {"files": ["out_00001_.png"]}
    assert b"event: end" in end.content


@pytest.mark.slow
def test_client_that_leaves_takes_its_job_with_it(make_face: Callable[..., Served]) -> None:
    """When the connection of a waiting request ends, its job must be cancelled, running or waiting."""
    served = make_face(worker_concurrency=1)
    worker = served.app.state.service.worker

    def leave(number: int) -> None:
        with pytest.raises(requests.Timeout):
            body = {"id": f"leaves-{number}", "workflow": sleeping(f"leaves{number}")}
            requests.post(f"{served.url}/job", json=body, timeout=1.0)

    threads = [threading.Thread(target=leave, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: worker.pool.busy == 3, 10.0)
    for thread in threads:
        thread.join(20)

    wait_until(lambda: worker.pool.busy == 0, 20.0)
    assert served.post("/job", {"id": "stays", "workflow": empty_workflow()}).status_code == 200


def test_failures_are_worded_by_the_face(make_face: Callable[..., Served]) -> None:
    """A failed job, a wrong request, an unknown path and a large body must all be in the face's words."""
    served = make_face()
    nope = {"1": {"class_type": "Nope", "inputs": {}}}

    answers = [
        served.post("/job", {"id": "x", "workflow": nope}),
        served.post("/job", {"id": "x"}),
        served.post("/job", data=b"{"),
        served.get("/nowhere"),
        served.get("/job"),
        served.post("/job", {"id": "x" * 1000}),
    ]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (422, "workflow_invalid"),
        (400, "request_invalid"),
        (400, "request_invalid"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (413, "body_too_large"),
    ]
    assert answers[1].json()["where"] == ["body.workflow"]
    assert answers[3].json()["path"] == "/nowhere"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_is_taken_whatever_its_type_says(make_face: Callable[..., Served], kind: str) -> None:
    """A client that forgets the content type must be understood."""
    body = b'{"id": "typed", "workflow": {}}'

    answer = make_face().post("/job", data=body, headers={"Content-Type": kind})

    assert answer.json()["code"] == "workflow_invalid"


def test_full_queue_is_503_with_a_time_to_wait(make_face: Callable[..., Served]) -> None:
    """With the queue full a job must be refused at once, and the caller told when to come back."""
    served = make_face(worker_concurrency=1, queue_limit=1)
    worker = served.app.state.service.worker
    waiting = [
        threading.Thread(
            target=_tried, args=(served, {"id": f"q{number}", "workflow": sleeping(f"q{number}")})
        )
        for number in range(2)
    ]
    for number, thread in enumerate(waiting):
        thread.start()
        wait_until(lambda number=number: worker.pool.busy == number + 1, 10.0)  # type: ignore[misc]
        wait_until(lambda number=number: worker.pool.waiting == number, 10.0)  # type: ignore[misc]

    answer = served.post("/job", {"id": "q2", "workflow": empty_workflow()})
    served.close()
    for thread in waiting:
        thread.join(20)

    assert (answer.status_code, answer.json()["code"]) == (503, "worker_busy")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.slow
def test_job_cut_off_by_the_end_of_the_server_may_be_sent_again(make_face: Callable[..., Served]) -> None:
    """A job that the shutdown cancels must be a 503, not a cancel that nobody asked for."""
    served = make_face()
    answers: list[requests.Response] = []
    body = {"id": "cut", "workflow": sleeping("cut")}
    thread = threading.Thread(target=lambda: answers.append(served.post("/job", body)))
    thread.start()
    wait_until(lambda: served.app.state.service.worker.pool.busy == 1, 10.0)
    time.sleep(0.1)
    served.close()
    thread.join(20)

    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "worker_busy")


def _tried(served: Served, body: dict[str, Any]) -> None:
    try:
        served.post("/job", body)
    except requests.RequestException:
        return
