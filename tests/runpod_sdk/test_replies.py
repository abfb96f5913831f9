"""
A reply always arrives: it can be encoded, it fits, it is nobody else's object, and an error is never empty.
"""

import asyncio
import json
import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from runpod_sdk.conftest import LIMIT_MB, Running
from support.lanes import big, queue_of, runs, sleeping, waits
from support.pictures import b64, empty_workflow, invert_workflow, job_of, node, opened, png

from comfy_worker.deadline import Deadline
from comfy_worker.errors import DeliveryFailed, NodeFailed, ReplyTooLarge, WorkerError
from comfy_worker.faces.reply import sealed
from comfy_worker.faces.runpod import RunpodFace, sealed_failure, to_failure
from comfy_worker.job import Job, Observer, Output, Result
from comfy_worker.parse import Rules
from comfy_worker.pool import Pool, Ticket

LIMIT = 1_000_000


def face_of(outcome: Result | BaseException, limit: int = LIMIT) -> RunpodFace:
    """
    Return a face whose every job ends with `outcome`.
    """

    def submit(job: Job, observe: Observer) -> Ticket:
        future: Future[Result] = Future()
        if isinstance(outcome, Result):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
        return Ticket(future, lambda claim: None)

    return RunpodFace(submit, Rules(), (limit, limit))


def handled(face: RunpodFace, job_id: str = "job") -> dict[str, Any]:
    """
    Run one job through a face.
    """
    return asyncio.run(face.handle(job_of(job_id, empty_workflow())))


def picture(data: str = "AAAA") -> Output:
    """
    Return an output.
    """
    return Output("9", "images", "image", "a.png", "", "image/png", 3, "base64", data)


def test_good_job_through_the_sdk_returns_its_picture(served: Running) -> None:
    """A job through the real job loop must be posted once, as the wire format says, with its picture."""
    images = [{"name": "in.png", "image": b64(png((8, 6), (10, 20, 30)))}]

    job = served.plane.submit({"workflow": invert_workflow(), "images": images}, webhook="https://x.invalid")
    body = job.wait()

    assert set(body) == {"output"}
    assert opened(body["output"]["images"][0]).getpixel((0, 0)) == pytest.approx((245, 235, 225), abs=1)
    [post] = job.results
    assert post.query["isStream"] == "false"
    assert post.headers["X-Request-ID"] == job.id


def test_temporary_previews_alone_are_a_success_without_images(served: Running) -> None:
    """A workflow with PreviewImage only must complete with the known status and say what to use instead."""
    workflow = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=3),
        "2": node("PreviewImage", images=("1", 0)),
    }

    output = served.plane.submit({"workflow": workflow}).wait()["output"]

    assert (output["status"], output["images"]) == ("success_no_images", [])
    assert "SaveImage" in output["errors"][0]


def test_runpod_14_21_name_that_is_no_utf8_is_repaired(served: Running) -> None:
    """A file whose name is no UTF-8 must arrive, under a name that is."""
    output = served.plane.submit({"workflow": {"1": node("SaveOddly")}}).wait()["output"]

    assert [entry["filename"] for entry in output["images"]] == ["odd-\ufffd.png"]


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, Path("x"), math.nan, math.inf, "a\udcffb", "\ud800"])
def test_runpod_14_21_what_json_cannot_hold_is_replaced_and_named(value: Any) -> None:
    """A value that cannot be encoded must be replaced, and the reply names its key."""
    reply = sealed({"images": [], "deep": [{"odd": value}]}, LIMIT)

    json.dumps(reply, ensure_ascii=False, allow_nan=False).encode()
    assert "output.deep[0].odd" in reply["errors"][0]


def test_runpod_14_21_circular_reply_becomes_a_failure() -> None:
    """A reply that refers to itself must become an error result instead of none."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    error = WorkerError("x", loop=loop)

    reply = handled(face_of(error))

    assert reply["error"].startswith("An unexpected error occurred: ")


@pytest.mark.parametrize("sync", [False, True])
def test_runpod_14_22_too_large_a_reply_fails_for_run_and_passes_for_runsync(
    served: Running, sync: bool
) -> None:
    """Over the limit a job must FAIL with sizes and ways out; an id of /runsync has the larger limit."""
    job = served.plane.submit({"workflow": big(0.2)}, "sync-large-e1" if sync else "large-e1")
    body = job.wait()

    if sync:
        assert body["output"]["images"][0]["size_bytes"] > LIMIT_MB * 1e6
    else:
        assert body["output"]["error_code"] == "reply_too_large"
        assert "BUCKET_ENDPOINT_URL" in body["error"]
        assert job.results[0].size < LIMIT_MB * 1e6


def test_runpod_14_22_size_is_measured_as_the_sdk_encodes() -> None:
    """What passes the limit must not exceed it as the SDK writes it, with its blanks."""
    reply = {"timings": {str(number): number for number in range(1000)}, "images": [1, 2, 3]}
    size = len(json.dumps(reply, ensure_ascii=False).encode())

    assert sealed(reply, size) == reply
    with pytest.raises(ReplyTooLarge):
        sealed(reply, size - 1)


def test_runpod_14_18_node_error_beside_finished_files_names_the_node_and_keeps_them() -> None:
    """With some files finished `error` must be the node's own text, and the files stay in `images`."""
    error = NodeFailed("Workflow execution error: Node Type: A, Node ID: 1, Message: no", node_id="1")
    error.partial = Result("job", "prompt", (picture(),))

    reply = handled(face_of(error))

    assert reply["error"] == "Workflow execution error: Node Type: A, Node ID: 1, Message: no"
    assert [entry["filename"] for entry in reply["images"]] == ["a.png"]
    assert reply["node_id"] == "1"


def test_failure_with_files_that_do_not_fit_is_told_without_them() -> None:
    """A failure must arrive even where its files or its texts are larger than a reply may be."""
    error = NodeFailed("Workflow execution error: " + "x" * 50_000, node_id="1", extra="y" * 50_000)
    error.partial = Result("job", "prompt", (picture("A" * 50_000),))

    reply = handled(face_of(error, limit=10_000))

    assert reply["error"].startswith("Workflow execution error: xxx")
    assert reply["error_code"] == "node_failed"
    assert "left out" in reply["errors"][0]
    assert len(json.dumps(reply)) < 10_000


def test_large_text_of_a_node_is_shortened_in_details() -> None:
    """An error text of any size must not keep the failure from arriving."""
    reply = sealed_failure(NodeFailed("Workflow execution error: " + "ü" * 90_000), 10_000)

    assert reply["error"] == "Job processing failed"
    assert reply["details"][0].startswith("Workflow execution error: üüü")


def test_files_that_s3_refused_are_told_one_by_one() -> None:
    """Each file that could not be uploaded must have its line in `details`."""
    failures = [{"filename": name, "reason": "HTTP 403 AccessDenied"} for name in ("a.png", "b.png")]

    reply = to_failure(DeliveryFailed("2 of the files ...", failures=failures))

    assert reply["error"] == "Job processing failed"
    assert reply["details"] == [
        f"Error uploading {name} to S3: HTTP 403 AccessDenied" for name in ("a.png", "b.png")
    ]


def test_runpod_14_43_id_that_is_delivered_twice_runs_once(served: Running) -> None:
    """A second delivery of a running job must join it: one prompt, and both deliveries get its result."""
    first = served.plane.submit({"workflow": sleeping("hold-up-")})
    first.wait_until(lambda _: runs(served.engine, "hold-up-"))
    workflow = {"workflow": empty_workflow(prefix="joined-")}
    one = served.plane.submit(workflow, "joined-e1")
    one.wait_until(lambda _: waits(served.engine, "joined-"))
    two = served.plane.submit(workflow, "joined-e1")
    assert two.taken.wait(10.0)
    two.wait_until(lambda _: served.worker.text.count('"requestId": "joined-e1", "message": "Started."') == 2)
    waiting = queue_of(served.engine)[1].count("joined-")

    served.plane.cancel(first)
    two.wait_until(lambda _: len(two.results) == 2)

    assert waiting == 1
    assert two.results[0].body == two.results[1].body
    assert "images" in two.results[0].body["output"]


def test_runpod_14_43_failed_job_that_is_sent_again_runs_again(served: Running) -> None:
    """The same id after a failure must run again, and may succeed."""
    failed = served.plane.submit({"workflow": sleeping("retried-"), "timeout_s": 0.2}, "retried-e1")
    assert failed.wait()["error"]

    again = served.plane.submit({"workflow": sleeping("retried-", seconds=0.1, steps=2)}, "retried-e1")

    assert "images" in again.wait()["output"]


def test_runpod_14_71_leaked_cancel_becomes_an_error() -> None:
    """A CancelledError that nobody asked for must become an error result, or the job would hang."""
    reply = handled(face_of(asyncio.CancelledError()))

    assert reply["error"] == "The job was cut off inside the worker."


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError("x"), RecursionError()])
def test_whatever_ends_a_run_becomes_an_error(error: BaseException) -> None:
    """Nothing that a run raises may end the process or reach the client as a traceback."""

    def run(job: Job, deadline: Deadline, observe: Observer) -> Result:
        raise error

    pool = Pool(run, threads=1, limit=1)
    try:
        reply = handled(RunpodFace(pool.submit, Rules(), (LIMIT, LIMIT)))
    finally:
        pool.close(1.0)

    assert reply["error"].startswith("An unexpected error occurred: ")
    assert reply["error_code"] == "worker_error"


@pytest.mark.parametrize("error", [WorkerError(""), WorkerError("  \n"), NodeFailed("")])
def test_runpod_14_72_error_is_never_empty(error: WorkerError) -> None:
    """An empty text would turn FAILED into COMPLETED."""
    assert handled(face_of(error))["error"].strip()


def test_runpod_14_73_every_reply_is_an_object_of_its_own() -> None:
    """The SDK takes keys out of the reply it gets, which must not reach any other reply."""
    result = Result("job", "prompt", (picture(),), node_errors={"1": {"errors": []}})
    face = face_of(result)

    first, second = handled(face), handled(face)
    first["images"][0].clear()
    first["node_errors"].clear()

    assert second["images"][0]["filename"] == "a.png"
    assert second["node_errors"] == {"1": {"errors": []}}
    assert result.node_errors


def test_runpod_14_74_no_nan_reaches_the_wire() -> None:
    """NaN and infinity are no JSON: they become null, with a warning that names them."""
    result = Result("job", "prompt", (picture(),), node_errors={"1": {"value": math.nan}})

    reply = handled(face_of(result))

    assert reply["node_errors"] == {"1": {"value": None}}
    assert "node_errors" in reply["errors"][0]
