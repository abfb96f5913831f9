"""
Whole jobs through the RunPod face, the same on the built-in engine and on a real ComfyUI.
"""

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from conftest import WorkerFactory
from integration.conftest import Comfy, ksampler_workflow
from PIL import Image
from support.pictures import b64, empty_workflow, invert_job, job_of, node, opened, png

from comfy_worker.job import Event, ignore
from comfy_worker.wiring import Worker

ROOT = Path(__file__).parents[2]


def run(worker: Worker, job: dict[str, Any], observe: Any = ignore) -> dict[str, Any]:
    """
    Run one job through the RunPod face.
    """
    return asyncio.run(worker.face.handle(job, observe))


def test_example_job_returns_the_inverted_picture(any_worker: Worker) -> None:
    """The shipped test_input.json must give the scaled and inverted picture, pixel for pixel."""
    job = json.loads((ROOT / "test_input.json").read_text())
    source = base64.b64decode(job["input"]["images"][0]["image"].partition(",")[2])
    picture = Image.open(io.BytesIO(source)).resize((192, 128), Image.Resampling.LANCZOS)

    reply = run(any_worker, {"id": "example", **job})

    assert "error" not in reply
    [entry] = reply["images"]
    assert (entry["filename"], entry["type"], entry["subfolder"]) == ("inverted_00001_.png", "base64", "")
    difference = np.abs(np.asarray(opened(entry), dtype=int) - (255 - np.asarray(picture, dtype=int)))
    assert difference.max() <= 1


def test_sampled_job_reports_progress_and_returns_a_picture(comfy: Comfy, comfy_worker: Worker) -> None:
    """A job that samples must report monotonic progress of its sampler and return a picture."""
    workflow = ksampler_workflow(seed=11, steps=4)
    if not comfy.real:
        workflow = {
            "5": node("StandinKSampler", steps=4, seed=11, size=64, seconds_per_step=0.01),
            "7": node("SaveImage", images=("5", 0), filename_prefix="sampled"),
        }
    events: list[Event] = []

    reply = run(comfy_worker, job_of("sampled", workflow), events.append)

    assert "error" not in reply
    assert opened(reply["images"][0]).size == (64, 64)
    percents = [event.percent for event in events]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert any(event.node_id == "5" and event.max == 4 and event.value for event in events)


def test_video_comes_back_among_the_images(any_worker: Worker) -> None:
    """An mp4 of the core SaveVideo must be in `images`, as ComfyUI lists it there."""
    workflow = {
        "1": node("EmptyImage", width=64, height=64, batch_size=8, color=255),
        "2": node("CreateVideo", images=("1", 0), fps=8.0),
        "3": node("SaveVideo", video=("2", 0), filename_prefix="clip", format="auto", codec="auto"),
    }

    reply = run(any_worker, job_of("video", workflow))

    assert "error" not in reply
    [entry] = reply["images"]
    assert entry["mime"] == "video/mp4"
    assert base64.b64decode(entry["data"])[4:8] == b"ftyp"


def test_audio_comes_back_as_flac(any_worker: Worker) -> None:
    """A flac of SaveAudio must be in `audio`, with its type and size."""
    workflow = {
        "1": node("EmptyAudio", duration=0.5, sample_rate=44100, channels=2),
        "2": node("SaveAudio", audio=("1", 0), filename_prefix="sound"),
    }

    reply = run(any_worker, job_of("audio", workflow))

    assert "error" not in reply
    [entry] = reply["audio"]
    data = base64.b64decode(entry["data"])
    assert (entry["mime"], data[:4], entry["size_bytes"]) == ("audio/flac", b"fLaC", len(data))


def test_text_comes_back_as_text(any_worker: Worker) -> None:
    """A text output must be in `text`, with its node."""
    workflow = {
        "1": node("PrimitiveString", value="Grüße 🎈"),
        "2": node("PreviewAny", source=("1", 0)),
    }

    reply = run(any_worker, job_of("text", workflow))

    assert "error" not in reply
    assert reply["text"] == [{"node_id": "2", "text": "Grüße 🎈"}]


def test_websocket_pictures_come_back(any_worker: Worker) -> None:
    """Pictures of SaveImageWebsocket, which exist on the socket only, must be in `images`."""
    workflow = {
        "1": node("EmptyImage", width=24, height=16, batch_size=2, color=0x00FF00),
        "2": node("SaveImageWebsocket", images=("1", 0)),
    }

    reply = run(any_worker, job_of("socket", workflow))

    assert "error" not in reply
    assert [opened(entry).size for entry in reply["images"]] == [(24, 16), (24, 16)]
    assert opened(reply["images"][0]).getpixel((3, 3)) == (0, 255, 0)


def test_unknown_checkpoint_names_what_there_is(comfy: Comfy, comfy_worker: Worker) -> None:
    """A refused value must be told with node, field, value, and the nearest valid names."""
    if comfy.real:
        workflow = ksampler_workflow()
        workflow["1"]["inputs"]["ckpt_name"] = "tiny-randon.safetensors"
        wanted = "tiny-random.safetensors"
    else:
        workflow = empty_workflow()
        workflow["3"] = node(
            "ImageScale", image=("1", 0), upscale_method="lancsoz", width=4, height=4, crop="disabled"
        )
        workflow["2"]["inputs"]["images"] = ["3", 0]
        wanted = "lanczos"

    reply = run(comfy_worker, job_of("unknown", workflow))

    assert reply["error_code"] == "workflow_invalid"
    assert reply["error"].startswith("Workflow validation failed:\n• Node ")
    assert wanted in reply["error"]
    assert "traceback" not in json.dumps(reply)


def test_half_valid_workflow_runs_and_names_what_was_dropped(comfy_worker: Worker) -> None:
    """A 200 with node errors must run the valid part and name each dropped output."""
    workflow = empty_workflow()
    workflow["9"] = node("SaveImage", filename_prefix="broken")

    reply = run(comfy_worker, job_of("half", workflow))

    assert len(reply["images"]) == 1
    assert any("Node 9" in text for text in reply["errors"])
    assert "9" in reply["node_errors"]


def test_half_valid_workflow_is_refused_when_strict(comfy_worker: Worker) -> None:
    """With `strict` a workflow that is only partly valid must be refused and leave nothing in ComfyUI."""
    workflow = empty_workflow()
    workflow["9"] = node("SaveImage", filename_prefix="broken")

    reply = run(comfy_worker, job_of("strict", workflow, strict=True))

    assert reply["error_code"] == "workflow_invalid"
    assert "Node 9" in reply["error"]
    assert comfy_worker.engine.client.queued() == (frozenset(), frozenset())


def test_failing_node_fails_the_job_and_is_named(comfy: Comfy, comfy_worker: Worker) -> None:
    """A node that raises must fail the job with its id, class and message, and without a path or traceback."""
    workflow = {
        "1": node("LoadImage", image="broken.png"),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }
    job = job_of(
        "raises", workflow, files=[{"name": "broken.png", "data": b64(b"this is no picture at all")}]
    )

    reply = run(comfy_worker, job)

    assert (reply["error"], reply["error_code"], reply["node_id"]) == (
        "Job processing failed",
        "node_failed",
        "1",
    )
    [text] = reply["details"]
    assert text.startswith("Workflow execution error: Node Type: LoadImage, Node ID: 1, Message: ")
    assert str(comfy.launch.input) not in json.dumps(reply)


def test_dry_run_accepts_a_good_workflow_and_runs_nothing(comfy_worker: Worker) -> None:
    """A dry run of a valid job must say so and leave no prompt behind."""
    job = invert_job("dry", png((4, 4), (1, 2, 3)))
    job["input"]["dry_run"] = True

    reply = run(comfy_worker, job)

    assert (reply["status"], reply["images"], reply["prompt_id"]) == ("valid", [], None)


def test_dry_run_refuses_what_comfyui_would_refuse(comfy_worker: Worker) -> None:
    """A dry run must find a bad value without running anything."""
    workflow = empty_workflow()
    workflow["1"]["inputs"]["width"] = 99999

    reply = run(comfy_worker, job_of("dry-bad", workflow, dry_run=True))

    assert reply["error_code"] == "workflow_invalid"
    assert "16384" in reply["error"]


def test_same_picture_with_another_ending_hits_the_cache(comfy_worker: Worker) -> None:
    """Equal input bytes under other names must be a cache hit for the nodes before what changed."""
    first = invert_job("cache-1", png((9, 9), (7, 7, 7)), "one.png")
    second = invert_job("cache-2", png((9, 9), (7, 7, 7)), "two.png")
    run(comfy_worker, first)

    reply = run(comfy_worker, second)

    assert set(reply["timings"]["nodes"]) == {"3"}


@pytest.mark.slow
def test_many_jobs_with_equal_names_keep_their_pictures(comfy: Comfy, make_worker: WorkerFactory) -> None:
    """200 pairs of jobs at once, equal input names and prefixes, other pictures: each reply must hold its own."""
    worker = make_worker(comfy.launch, worker_concurrency=4)

    async def all_of_them() -> list[dict[str, Any]]:
        jobs = [invert_job(f"pair-{index}", png((4, 4), colour(index))) for index in range(400)]
        return await asyncio.gather(*(worker.face.handle(job) for job in jobs))

    replies = asyncio.run(all_of_them())

    for index, reply in enumerate(replies):
        got, wanted = opened(reply["images"][0]).getpixel((0, 0)), colour(index)
        assert all(abs(255 - part - shown) <= 1 for part, shown in zip(wanted, got, strict=True))
    assert {reply["images"][0]["filename"] for reply in replies} == {"out_00001_.png"}


def colour(index: int) -> tuple[int, int, int]:
    """
    Return a colour that no other index has, nor one near it.
    """
    return (index % 64 * 4, index // 64 * 4, 77)


def test_class_that_comfyui_replaced_runs_without_meta(real_comfy: Comfy, make_worker: WorkerFactory) -> None:
    """D29: a removed class that ComfyUI replaces must not end in its bare 500 because the node has no `_meta`."""
    worker = make_worker(real_comfy.launch)
    replaced = requests.get(f"{real_comfy.launch.url}/node_replacements", timeout=5)
    if replaced.status_code != 200 or "Load3DAnimation" not in replaced.json():
        pytest.skip("this ComfyUI replaces no class")
    workflow = {**empty_workflow(0x123123), "9": node("Load3DAnimation")}

    reply = run(worker, job_of("replaced", workflow))

    assert "error" not in reply, reply
    assert len(reply["images"]) == 1
