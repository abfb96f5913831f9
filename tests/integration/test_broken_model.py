"""
A model file that is broken: the job says so, on a real ComfyUI.
"""

import asyncio

import pytest
from conftest import WorkerFactory
from integration.conftest import Comfy, ksampler_workflow
from support.pictures import job_of


@pytest.mark.parametrize(
    ("name", "data", "advice"),
    [
        ("page.safetensors", b"<!DOCTYPE html><title>Access denied</title>" * 20, "broken or incomplete"),
        ("empty.safetensors", b"", "broken or incomplete"),
        (
            "other.safetensors",
            b'\x4b\0\0\0\0\0\0\0{"x.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
            + b" " * 14
            + b"\0" * 8,
            "of a kind that this node cannot load",
        ),
    ],
)
def test_broken_model_file_is_named_as_the_cause(
    real_comfy: Comfy, make_worker: WorkerFactory, name: str, data: bytes, advice: str
) -> None:
    """A page saved as a model, an empty file, and a file of another kind must each fail with what to do about it."""
    assert real_comfy.launch.input is not None
    (real_comfy.launch.input.parent / "models" / "checkpoints" / name).write_bytes(data)
    workflow = ksampler_workflow()
    workflow["1"]["inputs"]["ckpt_name"] = name
    worker = make_worker(real_comfy.launch)

    reply = asyncio.run(worker.face.handle(job_of(f"broken-{name}", workflow)))

    text = "\n".join([reply["error"], *reply.get("details", ())])
    assert reply["error_code"] == "node_failed"
    assert advice in text
    assert "CheckpointLoaderSimple" in text
