"""
Whole jobs whose files go to object storage, against an S3 server that checks signatures.
"""

import asyncio
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest
from conftest import WorkerFactory, launch_of
from integration.conftest import Comfy
from pydantic import SecretStr
from storage.sigv4 import SigV4, served
from support.pictures import empty_workflow, invert_job, job_of, node, png

from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker

KEY, SECRET = "AKIAWHOLEJOBS", "sEcReT/of+whole=jobs"


@pytest.fixture(scope="module")
def layer() -> Iterator[tuple[SigV4, str]]:
    """
    An S3 server with one bucket, `pictures`.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app

    checked = SigV4(DomainDispatcherApplication(create_backend_app), {KEY: SECRET})
    with served(checked) as url:
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        checked.checksums = True
        client.create_bucket(Bucket="pictures")
        client.close()
        checked.checksums = False
        yield checked, url


@pytest.fixture
def s3(layer: tuple[SigV4, str]) -> SigV4:
    """
    The server without faults.
    """
    layer[0].faults, layer[0].later = 0, timedelta(0)
    layer[0].seen.clear()
    return layer[0]


def storing(make_worker: WorkerFactory, comfy_launch: Any, url: str, **fields: Any) -> Worker:
    """
    Return a worker whose outputs go to `pictures`.
    """
    given = {
        "bucket_endpoint_url": url,
        "bucket_access_key_id": KEY,
        "bucket_secret_access_key": SecretStr(SECRET),
        "bucket_name": "pictures",
        **fields,
    }
    return make_worker(comfy_launch, **given)


def run(worker: Worker, job: dict[str, Any]) -> dict[str, Any]:
    """
    Run one job through the RunPod face.
    """
    return asyncio.run(worker.face.handle(job))


def fetched(url: str) -> bytes:
    """
    Return what a link gives.
    """
    with urllib.request.urlopen(url, timeout=20) as answer:
        data: bytes = answer.read()
        return data


def test_files_are_in_the_bucket_and_the_links_work(
    comfy: Comfy, make_worker: WorkerFactory, layer: tuple[SigV4, str], s3: SigV4
) -> None:
    """With a bucket configured each file must be stored under the job's id, and its link must give its bytes."""
    worker = storing(make_worker, comfy.launch, layer[1])
    workflow = empty_workflow(0x0A0B0C)
    workflow["3"] = node("EmptyAudio", duration=0.2, sample_rate=44100, channels=1)
    workflow["4"] = node("SaveAudio", audio=("3", 0), filename_prefix="sounds/one")

    reply = run(worker, job_of("stored-1", workflow))

    assert "error" not in reply, reply
    [image], [sound] = reply["images"], reply["audio"]
    assert image["type"] == "s3_url"
    assert "/pictures/stored-1/out_00001_.png?" in image["data"]
    assert fetched(image["data"])[:4] == b"\x89PNG"
    assert fetched(sound["data"])[:4] == b"fLaC"


def test_runpod_14_46_job_with_its_own_bucket_uses_its_own_keys(
    engine: EngineThread, make_worker: WorkerFactory, layer: tuple[SigV4, str], s3: SigV4
) -> None:
    """A job's `s3Config` must win over the worker's bucket, with none of its keys."""
    worker = storing(make_worker, launch_of(engine), "http://127.0.0.1:9", allow_private_urls=True)
    config = {"accessId": KEY, "accessSecret": SECRET, "bucketName": "pictures", "endpointUrl": layer[1]}

    reply = run(worker, {**job_of("own-bucket", empty_workflow(0x0A0B0D)), "s3Config": config})

    assert "error" not in reply, reply
    assert fetched(reply["images"][0]["data"])[:4] == b"\x89PNG"


def test_job_bucket_on_a_private_address_is_refused(
    engine: EngineThread, make_worker: WorkerFactory, layer: tuple[SigV4, str]
) -> None:
    """A job must not make the worker talk to the operator's own network by way of a bucket."""
    worker = make_worker(launch_of(engine))
    config = {"accessId": KEY, "accessSecret": SECRET, "bucketName": "pictures", "endpointUrl": layer[1]}

    reply = run(worker, {**job_of("inside", empty_workflow()), "s3Config": config})

    assert reply["error_code"] == "job_invalid"
    assert "not a public address" in reply["error"]


CASES = {
    "wrong secret": ({"bucket_secret_access_key": SecretStr("wrong-secret-key")}, 0, "SignatureDoesNotMatch"),
    "missing bucket": ({"bucket_name": "nowhere"}, 0, "NoSuchBucket"),
    "503 for ever": ({}, 10_000, "503"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_runpod_14_47_job_fails_with_the_reason_when_storage_refuses(
    engine: EngineThread, make_worker: WorkerFactory, layer: tuple[SigV4, str], s3: SigV4, case: str
) -> None:
    """When a file cannot be stored the job must be FAILED, name the file and the reason, and show no key."""
    fields, s3.faults, reason = CASES[case]
    worker = storing(make_worker, launch_of(engine), layer[1], **fields)

    reply = run(worker, job_of(f"refused-{len(case)}", empty_workflow(0x0B0000 + len(case))))

    assert reply["error_code"] == "delivery_failed"
    assert reply["images"] == []
    assert any("out_00001_.png" in text for text in reply["details"])
    assert reason in str(reply)
    assert SECRET not in str(reply)
    assert KEY not in str(reply)


@pytest.mark.slow
def test_some_503s_only_cost_time(
    engine: EngineThread, make_worker: WorkerFactory, layer: tuple[SigV4, str], s3: SigV4
) -> None:
    """A storage that refuses twice and then takes the file must give a job that succeeded."""
    s3.faults = 2
    worker = storing(make_worker, launch_of(engine), layer[1])

    reply = run(worker, job_of("patience", empty_workflow(0x0C0000)))

    assert "error" not in reply, reply
    assert fetched(reply["images"][0]["data"])[:4] == b"\x89PNG"


def test_s3_url_as_an_input_is_read_with_the_bucket_of_the_worker(
    engine: EngineThread, make_worker: WorkerFactory, layer: tuple[SigV4, str], s3: SigV4
) -> None:
    """An s3 URL of the worker's own bucket must be usable as an input, one of another bucket must not."""
    worker = storing(make_worker, launch_of(engine), layer[1])
    run(worker, invert_job("source", png((32, 32), (9, 8, 7))))
    job = invert_job("again", b"")
    job["input"]["images"][0]["image"] = "s3://pictures/source/out_00001_.png"
    foreign = invert_job("foreign", b"")
    foreign["input"]["images"][0]["image"] = "s3://other/source/out_00001_.png"

    good, bad = run(worker, job), run(worker, foreign)

    assert "error" not in good, good
    assert bad["error_code"] == "input_unavailable"
    assert "own bucket only" in bad["details"][0]


def test_unconfigured_bucket_keeps_the_legacy_layout(
    engine: EngineThread, make_worker: WorkerFactory, layer: tuple[SigV4, str], s3: SigV4
) -> None:
    """Without BUCKET_NAME the path must be the one users' lifecycle rules know: month, job id, eight hex digits."""
    worker = storing(make_worker, launch_of(engine), layer[1] + "/pictures", bucket_name=None)

    run(worker, job_of("legacy", empty_workflow(0x0D0000)))

    [path] = {seen.path for seen in s3.seen if seen.method == "PUT"}
    month, job, name = path.strip("/").split("/")[-3:]
    assert (len(month), month[2], job, len(name)) == (5, "-", "legacy", len("01234567.png"))
