"""
What clients of the Vast face do, end to end, on the built-in engine and on a real ComfyUI.
"""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from integration.conftest import CHECKPOINT, Comfy
from integration.test_lifecycle import slow_workflow
from support.http_desk import HttpDesk
from support.pictures import empty_workflow, invert_workflow, png
from support.salad_fixtures import BUCKET, KEY, SECRET, S3Server, desk, s3_server
from support.served import Served
from support.vast_fixtures import asked, colour_of, ended, generate, serving, started, until

__all__ = ["desk", "s3_server"]


@pytest.fixture
def vast(comfy: Comfy, tmp_path: Path) -> Iterator[Served]:
    """
    The face on each engine.
    """
    served = serving(comfy.launch, tmp_path)
    yield served
    served.close()


def at(served: Served, stage: str) -> int:
    """
    Return how many requests are at a stage.
    """
    found: int = served.get("/queue-info").json()[f"{stage}_queue_size"]
    return found


@pytest.mark.slow
def test_modifier_really_samples(real_comfy: Comfy, tmp_path: Path) -> None:
    """Text2Image and Image2Image must draw with the random checkpoint, and equal seeds give equal pictures."""
    served = serving(real_comfy.launch, tmp_path)
    try:
        shared = {"prompt": "a cat", "steps": 2, "seed": 7, "ckpt_name": CHECKPOINT, "cfg_scale": 4.0}
        fields = {"modifier": "Text2Image", "return_outputs_as_base64": True}
        first = generate(served, modifications={**shared, "width": 64, "height": 64}, **fields)
        # The picture goes back in as the start of the second.
        picture = first.json()["output"][0]["data"]
        again = generate(served, modifications={**shared, "width": 64, "height": 64}, **fields).json()
        fields["modifier"] = "Image2Image"
        second = generate(served, modifications={**shared, "input_image": picture}, **fields)
    finally:
        served.close()

    assert (first.status_code, second.status_code) == (200, 200), first.text + second.text
    assert first.json()["output"][0]["filename"] == "image_00001_.png"
    assert colour_of(again["output"][0]) == colour_of(first.json()["output"][0])
    assert base64.b64decode(second.json()["output"][0]["data"])[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("model", "files"), [("sd3", {"sd3_medium"}), ("flux", {"flux1-dev", "t5xxl", "clip_l", "ae.s"})]
)
def test_former_template_lacks_nothing_but_its_models(
    real_comfy: Comfy, tmp_path: Path, model: str, files: set[str]
) -> None:
    """A real ComfyUI must refuse the graphs of COMFY_MODEL for the files it does not have, and for nothing else."""
    served = serving(real_comfy.launch, tmp_path, comfy_model=model)
    try:
        reply = served.post(
            "/prompt", {"payload": {"prompt": 'a "cat"', "width": 64, "height": 64, "seed": 1}}
        )
    finally:
        served.close()

    errors = [error for node in reply.json()["node_errors"].values() for error in node["errors"]]
    assert (reply.status_code, reply.json()["error"]) == (422, "there was an error in the workflow")
    assert {error["type"] for error in errors} == {"value_not_in_list"}
    assert all(any(name in json.dumps(error) for error in errors) for name in files)


@pytest.mark.slow
def test_hundred_parallel_jobs_keep_their_pictures(vast: Served) -> None:
    """A hundred jobs of one name at once must each return their own pixels."""
    colours = [0x500000 + number for number in range(100)]

    with ThreadPoolExecutor(24) as pool:
        bodies = list(
            pool.map(
                lambda one: generate(vast, empty_workflow(one), return_outputs_as_base64=True).json(), colours
            )
        )

    assert [colour_of(item) for body in bodies for item in body["output"]] == colours


def test_picture_by_url_to_a_store_and_a_webhook(vast: Served, desk: HttpDesk, s3_server: S3Server) -> None:
    """A URL in, a link out, and a webhook that tells of it."""
    url = desk.put("/face.png", png((16, 12), (0, 0, 255)))
    block = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint_url": s3_server.url,
        "bucket_name": BUCKET,
    }

    started(vast, "whole-way", invert_workflow(url), s3=block, webhook={"url": f"{desk.url}/hook"})
    body = ended(vast, "whole-way").json()
    hook = desk.wait(1)[0].json()

    assert body["status"] == "completed", body
    link = body["output"][0]["url"]
    assert requests.get(link, timeout=10).content[:4] == b"\x89PNG"
    assert (hook["id"], hook["status"], hook["output"][0]["url"]) == ("whole-way", "completed", link)


@pytest.mark.slow
def test_stream_follows_a_job(vast: Served, comfy: Comfy) -> None:
    """Events must come while the job runs, and the whole Result last."""
    body = {"input": asked(slow_workflow(comfy, 1.0, 601))}

    with requests.post(f"{vast.url}/generate/stream", json=body, stream=True, timeout=60) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith(b"data: ")]

    assert events[0]["status"] == "queued"
    assert any(event["status"] == "generating" for event in events)
    assert events[-1]["result"]["status"] == "completed"


def test_cancelled_queued_job_blocks_nothing(vast: Served, comfy: Comfy) -> None:
    """A job cancelled while it waits in ComfyUI must let the next one run; the running one is cancelled at once."""
    started(vast, "first", slow_workflow(comfy, 60, 611))
    until(lambda: vast.get("/result/first").json()["status"] == "generating", 60.0)
    started(vast, "second", slow_workflow(comfy, 60, 612))
    until(lambda: at(vast, "generation") == 2)

    replies = [vast.post(f"/cancel/{name}").json() for name in ("second", "first")]
    after = generate(vast, empty_workflow(0x613))

    assert [reply["status"] for reply in replies] == ["cancelled", "cancelled"]
    assert after.status_code == 200
    assert [vast.get(f"/result/{name}").status_code for name in ("first", "second")] == [499, 499]


def test_interrupted_job_is_failed(vast: Served, comfy: Comfy) -> None:
    """A prompt that somebody interrupts in ComfyUI must never be completed."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generate, vast, slow_workflow(comfy, 60, 621), request_id="stopped")
        until(lambda: vast.get("/result/stopped").json()["status"] == "generating", 60.0)
        requests.post(f"{comfy.launch.url}/interrupt", timeout=10)
        reply = waiting.result(60)

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "job_interrupted")


def test_unknown_model_is_named(real_comfy: Comfy, tmp_path: Path) -> None:
    """A checkpoint that is not there must be a 422 that names node, input and value."""
    served = serving(real_comfy.launch, tmp_path)
    parameters = {"prompt": "x", "ckpt_name": "no-such.safetensors"}
    reply = generate(served, modifier="Text2Image", modifications=parameters)
    served.close()

    assert reply.status_code == 422
    assert "CheckpointLoaderSimple" in reply.text
