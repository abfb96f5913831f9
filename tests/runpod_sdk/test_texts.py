"""
The texts that clients of RunPod workers of this kind know, word for word, each from a job through the SDK.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from runpod_sdk.conftest import Running
from support.lanes import failing, runs, sleeping
from support.pictures import b64, empty_workflow, invert_workflow, job_of, node, png
from support.slow_host import SlowHost

from comfy_worker.comfy import launch
from comfy_worker.comfy.launch import Launch
from comfy_worker.standin.thread import EngineThread

IMAGES = "'images' must be a list of objects with 'name' and 'image' keys"
UPLOADS = "Failed to upload one or more input images"
GRAPH = empty_workflow()
PIXEL = b64(png((2, 2), (1, 2, 3)))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, "Please provide input"),
        ("no json", "Invalid JSON format in input"),
        ("", "Invalid JSON format in input"),
        ({}, "Missing 'workflow' parameter"),
        ({"workflow": None}, "Missing 'workflow' parameter"),
        *(
            ({"workflow": GRAPH, "images": wrong}, IMAGES)
            for wrong in ("x", {}, 5, [{}], [{"name": "a"}], [5])
        ),
        ({"workflow": GRAPH, "images": ["name image"]}, IMAGES),
    ],
)
def test_wrong_input_is_told_in_the_known_words(served: Running, given: Any, error: str) -> None:
    """Each text of the input checks must be the one that clients compare with."""
    body = served.plane.submit(given).wait()

    assert body["error"] == error


@pytest.mark.parametrize(
    "given", [[1], 5, "[1]", "5", "null", {"workflow": []}, {"workflow": "x"}, {"workflow": {}}]
)
def test_runpod_14_6_wrong_types_are_told_without_a_traceback(served: Running, given: Any) -> None:
    """A wrong type must be told by the name of its field; no traceback, path or host name reaches the client."""
    body = served.plane.submit(given).wait()

    assert "'input'" in body["error"] or "'workflow'" in body["error"]
    assert body["output"]["error_code"] in {"job_invalid", "workflow_invalid"}
    assert not any(word in json.dumps(body) for word in ("Traceback", "error_traceback", "hostname", ".py"))


def test_input_may_be_a_text_of_json(served: Running) -> None:
    """`input` as a string that holds the object must run as the object does."""
    body = served.plane.submit(json.dumps({"workflow": GRAPH})).wait()

    assert body["output"]["images"][0]["filename"] == "out_00001_.png"


def test_all_bad_uploads_are_told_in_details(served: Running) -> None:
    """Every input that cannot be decoded must have its text in `output.details`, in the known words."""
    images = [
        {"name": "a.png", "image": "abc"},
        {"name": "b.png", "image": PIXEL},
        {"name": "c.png", "image": "!!!!"},
    ]

    body = served.plane.submit({"workflow": invert_workflow("b.png"), "images": images}).wait()

    assert body["error"] == UPLOADS
    assert [text.split(":")[0] for text in body["output"]["details"]] == [
        "Error decoding base64 for a.png",
        "Error decoding base64 for c.png",
    ]


def test_runpod_14_5_node_error_is_told_in_details(served: Running) -> None:
    """A node that raises must give the known `error` and, in `details`, its class, id and message."""
    body = served.plane.submit({"workflow": failing("text")}).wait()

    assert body["error"] == "Job processing failed"
    line = "Workflow execution error: Node Type: StandinRaise, Node ID: 2, Message: no luck with text"
    assert [text.strip() for text in body["output"]["details"]] == [line]


def test_refused_workflow_has_the_known_prefix_and_bullets(served: Running) -> None:
    """ComfyUI's 400 must begin with the known words and have a bullet per node."""
    workflow = empty_workflow()
    workflow["1"]["inputs"]["width"] = "wide"

    body = served.plane.submit({"workflow": workflow}).wait()

    assert body["error"].startswith("Workflow validation failed:\n• Node 1 ")


def test_no_outputs_are_told_in_details(served: Running) -> None:
    """A prompt that ends without any output must fail in the known words."""
    workflow = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=255),
        "2": node("StandinBlocker", block=True, message="", any=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix="x"),
    }

    body = served.plane.submit({"workflow": workflow}).wait()

    assert body["error"] == "Job processing failed"
    assert body["output"]["details"][0].startswith("No outputs found in history for prompt ")


@pytest.mark.slow
def test_refused_object_storage_is_told_in_details(served: Running) -> None:
    """An upload that S3 refuses must fail the job in the known words, with status and S3's code, and no secret."""
    answer = b"<Error><Code>AccessDenied</Code><Message>secret-words</Message></Error>"
    with SlowHost(403, answer) as host:
        host.go.set()
        config = {
            "accessId": "the-id",
            "accessSecret": "the-secret-1",
            "bucketName": "b",
            "endpointUrl": host.url,
        }

        body = served.plane.submit({"workflow": GRAPH}, s3Config=config).wait()

    assert body["error"] == "Job processing failed"
    assert body["output"]["details"][0].startswith(
        "Error uploading out_00001_.png to S3: HTTP 403 AccessDenied"
    )
    assert not any(word in json.dumps(body) for word in ("the-secret-1", "secret-words"))


def test_runpod_14_19_interrupted_prompt_says_so(served: Running) -> None:
    """A prompt that somebody interrupts in ComfyUI must fail with a text that says it was interrupted."""
    job = served.plane.submit({"workflow": sleeping("interrupted-")})
    job.wait_until(lambda _: runs(served.engine, "interrupted-"))

    requests.post(f"{served.engine.url}/interrupt", json={}, timeout=10)

    assert "interrupted" in job.wait()["error"]
    assert job.output["error_code"] == "job_interrupted"


def test_files_that_are_gone_are_told_in_details(tmp_path: Path, make_worker: WorkerFactory) -> None:
    """A file that ComfyUI lists and no longer has must fail the job in the known words, after one more run."""
    with EngineThread(tmp_path, test_nodes=True, faults={"delete_outputs_after_run": True}) as engine:
        worker = make_worker(launch_of(engine))

        reply = asyncio.run(worker.face.handle(job_of("gone", GRAPH)))

    assert reply["error"] == "Job processing failed"
    assert reply["details"] == ["Failed to fetch image data for out_00001_.png from /view endpoint."]


def test_file_of_a_name_that_http_cannot_carry_is_told_in_details(
    lane: EngineThread, make_worker: WorkerFactory
) -> None:
    """Without a shared disk a file whose name is no UTF-8 must fail the job in the known words."""
    worker = make_worker(launch_of(lane, shared_disk=False))

    reply = asyncio.run(worker.face.handle(job_of("odd", {"1": node("SaveOddly")})))

    assert reply["error"] == "Job processing failed"
    assert reply["details"] == ["Failed to fetch image data for odd-\ufffd.png from /view endpoint."]


def test_upload_that_comfyui_refuses_is_told_in_details(tmp_path: Path, make_worker: WorkerFactory) -> None:
    """A file that ComfyUI refuses over HTTP must be told by the name that the job gave it."""
    noise = b64(png((64, 64), (1, 2, 3)) + bytes(3000))
    with EngineThread(tmp_path, max_upload_mb=0.003) as engine:
        worker = make_worker(launch_of(engine, shared_disk=False))
        job = job_of("refused", invert_workflow("face.png"), images=[{"name": "face.png", "image": noise}])

        reply = asyncio.run(worker.face.handle(job))

    assert reply["error"] == UPLOADS
    [text] = reply["details"]
    assert text.startswith("Error uploading face.png: ComfyUI answered 413")


def test_runpod_14_33_job_without_a_websocket_goes_on_by_polling(
    tmp_path: Path, make_worker: WorkerFactory
) -> None:
    """A ComfyUI whose websocket cannot be opened must still run the job to its result."""
    with EngineThread(tmp_path, faults={"refuse_socket": True}) as engine:
        worker = make_worker(launch_of(engine))

        reply = asyncio.run(worker.face.handle(job_of("polled", GRAPH)))

    assert [entry["filename"] for entry in reply["images"]] == ["out_00001_.png"]


def test_comfyui_that_does_not_answer_is_told_in_the_known_words(make_worker: WorkerFactory) -> None:
    """Without a ComfyUI the job must fail with the sentence that names its address."""
    port = launch.free_port()
    worker = make_worker(Launch("running", f"http://127.0.0.1:{port}"), comfy_api_available_max_retries=2)

    reply = asyncio.run(worker.face.handle(job_of("alone", GRAPH)))

    assert reply["error"] == f"ComfyUI server (127.0.0.1:{port}) not reachable after multiple retries."
    assert reply["retryable"] is True
