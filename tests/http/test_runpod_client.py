"""
The runpod SDK's own client, with nothing changed but its base URL.
"""

import importlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.lanes import sleeping
from support.pictures import b64, empty_workflow, invert_workflow, opened, png
from support.served import Served


@pytest.fixture
def endpoint(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """
    Return `runpod.Endpoint` on our server: what RUNPOD_ENDPOINT_BASE_URL sets when the module is loaded.
    """
    runpod = importlib.import_module("runpod")
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{served.url}/v2")
    made = runpod.Endpoint("anything", api_key="no-matter")
    yield made
    made.rp_client.rp_session.close()


def invert_input() -> dict[str, Any]:
    """
    Return the input of a job with a picture.
    """
    images = [{"name": "in.png", "image": b64(png((8, 6), (10, 20, 30)))}]
    return {"workflow": invert_workflow(), "images": images}


@pytest.mark.slow
def test_run_status_and_output(endpoint: Any) -> None:
    """`run` must give a job whose status ends as COMPLETED and whose output is the picture."""
    job = endpoint.run({"input": invert_input()})
    output = job.output(timeout=20)

    assert job.status() == "COMPLETED"
    assert opened(output["images"][0]).size == (8, 6)


def test_run_sync_returns_the_output(endpoint: Any) -> None:
    """`run_sync` must return the output itself."""
    output = endpoint.run_sync(invert_input(), timeout=20)

    assert opened(output["images"][0]).getpixel((0, 0)) == pytest.approx((245, 235, 225), abs=1)


def test_run_sync_of_a_failing_job_has_details(endpoint: Any) -> None:
    """`run_sync` of a job that fails must still return the facts beside the error."""
    output = endpoint.run_sync({"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}, timeout=20)

    assert output["error_code"] == "workflow_invalid"


def test_cancel_stops_a_job(endpoint: Any) -> None:
    """`cancel` must end a running job."""
    job = endpoint.run({"input": {"workflow": sleeping("client-cancel")}})
    while job.status() == "IN_QUEUE":
        time.sleep(0.02)

    assert job.cancel()["status"] == "CANCELLED"
    assert job.status() == "CANCELLED"


@pytest.mark.slow
def test_stream_yields_the_output_and_ends(endpoint: Any) -> None:
    """`stream` must yield the output once and come to an end."""
    job = endpoint.run({"input": {"workflow": empty_workflow()}})

    [part] = list(job.stream())

    assert len(part["images"]) == 1


def test_health_and_purge(endpoint: Any) -> None:
    """`health` and `purge_queue` must answer in production's shape."""
    endpoint.run_sync(invert_input(), timeout=20)

    assert endpoint.health()["jobs"]["completed"] >= 1
    assert endpoint.purge_queue() == {"removed": 0, "status": "completed"}
