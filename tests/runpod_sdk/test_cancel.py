"""
Jobs that are told to stop, by the platform, by their time limit or by somebody at ComfyUI's queue.
"""

import pytest
import requests
from runpod_sdk.conftest import Running
from support.control_plane import PlaneJob, wait_until
from support.lanes import queue_of, runs, sleeping, waits
from support.pictures import empty_workflow, node
from support.slow_host import SlowHost


def stopped(served: Running, job: PlaneJob) -> bool:
    """
    Return whether the SDK says that the job's handler has ended by the cancel.
    """
    return any(
        record["requestId"] == job.id and record["message"] == "Job stopped."
        for record in served.worker.records
    )


def assert_next_job_is_unaffected(served: Running, job: PlaneJob) -> None:
    """
    Assert that a cancelled job got no result, and that the next one runs.
    """
    after = served.plane.submit({"workflow": empty_workflow(prefix="next")})
    assert "images" in after.wait()["output"]
    assert job.results == []


def test_runpod_14_3_cancel_of_a_running_job_frees_comfyui_within_a_second(served: Running) -> None:
    """A cancelled job's prompt must leave ComfyUI within a second, and nothing is posted for it."""
    job = served.plane.submit({"workflow": sleeping("cancelled-")})
    job.wait_until(lambda _: runs(served.engine, "cancelled-"))

    served.plane.cancel(job)

    wait_until(lambda: not runs(served.engine, "cancelled-"), 1.0)
    assert_next_job_is_unaffected(served, job)


@pytest.mark.slow
def test_runpod_14_3_cancel_of_a_job_in_comfyuis_queue_takes_only_that_one(served: Running) -> None:
    """A job that waits in ComfyUI must leave its queue, and the one that runs goes on to its result."""
    first = served.plane.submit({"workflow": sleeping("first-", seconds=1.0, steps=100)})
    first.wait_until(lambda _: runs(served.engine, "first-"))
    second = served.plane.submit({"workflow": sleeping("second-")})
    second.wait_until(lambda _: waits(served.engine, "second-"))

    served.plane.cancel(second)

    wait_until(lambda: not waits(served.engine, "second-"), 2.0)
    assert first.wait()["output"]["images"][0]["filename"] == "first-_00001_.png"
    assert_next_job_is_unaffected(served, second)


def test_runpod_14_3_cancel_of_a_job_that_stages_ends_its_download(served: Running) -> None:
    """A job whose input does not arrive must end at once when it is cancelled."""
    with SlowHost() as host:
        job = served.plane.submit(
            {
                "workflow": {
                    "1": node("LoadImage", image=f"{host.url}/slow.png"),
                    "2": node("SaveImage", images=("1", 0), filename_prefix="staged"),
                }
            }
        )
        assert host.asked.wait(10.0)

        served.plane.cancel(job)

        wait_until(lambda: stopped(served, job), 3.0)
        assert_next_job_is_unaffected(served, job)


@pytest.mark.slow
def test_runpod_14_3_cancel_of_a_job_that_uploads_ends_it(served: Running) -> None:
    """A job whose bucket does not answer must end soon when it is cancelled."""
    with SlowHost() as host:
        config = {
            "accessId": "id",
            "accessSecret": "the-secret-2",
            "bucketName": "b",
            "endpointUrl": host.url,
        }
        job = served.plane.submit({"workflow": empty_workflow()}, s3Config=config)
        assert host.asked.wait(10.0)

        served.plane.cancel(job)

        wait_until(lambda: stopped(served, job), 3.0)
        assert_next_job_is_unaffected(served, job)


def test_cancel_of_a_job_that_nobody_took_never_reaches_the_worker(served: Running) -> None:
    """A job that is cancelled while the plane holds it must never be delivered."""
    served.plane.set(paused=True)
    job = served.plane.submit({"workflow": empty_workflow()})

    served.plane.cancel(job)
    served.plane.set(paused=False)

    assert_next_job_is_unaffected(served, job)
    assert not job.taken.is_set()


def test_runpod_14_3_cancel_that_overtakes_its_job_is_heeded(served: Running) -> None:
    """A job that is told to stop before the SDK has started it must be cancelled when it starts."""
    served.plane.set(paused=True)
    job = served.plane.submit({"workflow": sleeping("overtaken-")})

    served.plane.stop(job)
    served.plane.set(paused=False)

    wait_until(lambda: stopped(served, job), 5.0)
    assert not runs(served.engine, "overtaken-")
    assert_next_job_is_unaffected(served, job)


def test_runpod_14_2_job_over_its_time_limit_fails_with_stage_and_seconds(served: Running) -> None:
    """At its deadline a job must fail with the stage and the seconds, and ComfyUI is free again."""
    job = served.plane.submit({"workflow": sleeping("late-"), "timeout_s": 0.5})

    body = job.wait()

    assert "0.5 s" in body["error"]
    assert body["output"]["error_code"] == "job_timed_out"
    assert body["output"]["stage"] == "running"
    assert not runs(served.engine, "late-")


def test_runpod_14_4_prompt_that_comfyui_forgot_fails_at_once(served: Running) -> None:
    """A prompt that is in neither queue nor history must fail with the known words, not wait."""
    first = served.plane.submit({"workflow": sleeping("hold-")})
    first.wait_until(lambda _: runs(served.engine, "hold-"))
    job = served.plane.submit({"workflow": sleeping("forgotten-")})
    job.wait_until(lambda _: waits(served.engine, "forgotten-"))

    requests.post(f"{served.engine.url}/queue", json={"clear": True}, timeout=10)

    assert " not found in history after execution." in job.wait(10.0)["error"]
    assert job.output["error_code"] == "prompt_lost"
    served.plane.cancel(first)
    wait_until(lambda: queue_of(served.engine) == ("[]", "[]"), 5.0)
