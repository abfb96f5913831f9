"""
The end of a prompt -> the job's failure or none, in the texts that RunPod users know.
"""

from typing import Any

import pytest

from comfy_worker import outcome
from comfy_worker.collect import Collected
from comfy_worker.comfy.progress import NodeError, Verdict
from comfy_worker.comfy.prompts import Finished
from comfy_worker.errors import (
    DeliveryFailed,
    JobFailed,
    JobInterrupted,
    NodeFailed,
    NothingProduced,
    OutOfMemory,
    WorkerError,
)
from comfy_worker.job import Artifact

PROMPT = "8a4c6b0e-5f3d-5c55-9a53-0f2f6b9d1c11"
OUTPUTS = {"3": {"images": [{"filename": "a.png"}]}}
ARTIFACT = Artifact("3", "images", "image", "a.png", "", "output", "image/png", b"x", 1)


def failure(verdict: Verdict, collected: Collected | None = None, **finished: Any) -> WorkerError | None:
    """
    Judge the end of a prompt.
    """
    return outcome.failure_of(PROMPT, Finished(verdict, {}, **finished), collected or Collected((ARTIFACT,)))


def raised(exception_type: str, message: str, outputs: Any = OUTPUTS) -> WorkerError | None:
    """
    Judge a prompt of which one node raised.
    """
    error = NodeError("7", "KSampler", exception_type, message, ("File /comfyui/nodes.py",))
    return failure(Verdict("failed", error, outputs))


def test_prompt_that_succeeded_with_outputs_is_no_failure() -> None:
    """A prompt that ran to its end and left something must be fine."""
    assert failure(Verdict("succeeded", None, OUTPUTS)) is None


def test_pictures_of_the_websocket_alone_are_outputs() -> None:
    """A prompt whose history is empty but whose pictures arrived must be fine."""
    assert failure(Verdict("succeeded"), pictures=(("1", "image/png", b"x"),)) is None


def test_empty_outputs_of_a_node_are_outputs() -> None:
    """A node that lists nothing must not be a failure: the reply says that there are no images."""
    assert failure(Verdict("succeeded", None, {"3": {"images": []}}), Collected()) is None


def test_prompt_without_outputs_produced_nothing() -> None:
    """A prompt that left no outputs at all must fail with the known text, and tell of the nodes that did not run."""
    error = failure(Verdict("succeeded"), Collected(), warnings=("Node 1 did not run: blocked",))

    assert isinstance(error, NothingProduced)
    assert str(error) == f"No outputs found in history for prompt {PROMPT}."
    assert error.details == {"details": ["Node 1 did not run: blocked"]}


def test_interrupted_prompt_says_so() -> None:
    """An interrupt by somebody else must be told as one, whatever was made before it."""
    error = failure(Verdict("interrupted", None, OUTPUTS))

    assert isinstance(error, JobInterrupted)
    assert "interrupted in ComfyUI" in str(error)
    assert error.details == {"prompt_id": PROMPT}


def test_node_that_raised_is_named() -> None:
    """A node's error must have the known form and its facts beside it, without tracebacks."""
    error = raised("ValueError", "shapes do not fit")

    assert isinstance(error, NodeFailed)
    assert (
        str(error) == "Workflow execution error: Node Type: KSampler, Node ID: 7, Message: shapes do not fit"
    )
    assert error.details == {"node_id": "7", "class_type": "KSampler", "exception_type": "ValueError"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot open '/comfyui/input/cw-1.png'", "cannot open 'cw-1.png'"),
        ("No such file: /runpod-volume/models/vae/x.pt, sorry", "No such file: x.pt, sorry"),
        ("C:\\ComfyUI\\input\\x.png is broken", "x.png is broken"),
        ("1/2 of https://a.example/b/c", "1/2 of https://a.example/b/c"),
    ],
)
def test_paths_of_the_host_are_cut_from_messages(message: str, shown: str) -> None:
    """A node's message must not tell where ComfyUI lies."""
    assert str(raised("OSError", message)).endswith(f"Message: {shown}")


@pytest.mark.parametrize(
    ("exception_type", "message"),
    [
        ("torch.OutOfMemoryError", "Allocation on device 0 would exceed allowed memory. (out of memory)"),
        ("torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("RuntimeError", "CUDA error: out of memory"),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        ("RuntimeError", "not enough memory: you tried to allocate 1 bytes"),
        ("comfy.model_management.OOM_EXCEPTION", "Allocation on device "),
    ],
)
def test_lack_of_memory_is_a_failure_of_its_own(exception_type: str, message: str) -> None:
    """Too little memory must be told apart, for another worker may have more."""
    error = raised(exception_type, message)

    assert isinstance(error, OutOfMemory)
    assert error.retryable


@pytest.mark.parametrize("message", ["memory of a cat", "MemoryError", "RAM", "device"])
def test_other_errors_are_not_lack_of_memory(message: str) -> None:
    """A message that only mentions memory must not be taken for the lack of it."""
    assert isinstance(raised("ValueError", message), NodeFailed)


def test_failed_prompt_without_an_error_tells_what_is_known() -> None:
    """A failed prompt of which no node raised must pass on what the history says."""
    error = failure(Verdict("failed", None, {}, warnings=("history does not say",)))

    assert type(error) is JobFailed
    assert str(error) == "history does not say"


def test_files_that_are_gone_are_named() -> None:
    """Files that history lists and nobody has any more must fail the job with their names, five at most."""
    names = tuple(f"{number}.png" for number in range(9))

    error = failure(Verdict("succeeded", None, OUTPUTS), Collected((ARTIFACT,), missing=names))

    assert isinstance(error, DeliveryFailed)
    assert (
        str(error) == "Failed to fetch image data for 0.png, 1.png, 2.png, 3.png, 4.png from /view endpoint."
    )


def test_pictures_lost_with_the_websocket_are_told() -> None:
    """Pictures that were lost with the socket must fail the job with the way out."""
    error = failure(Verdict("succeeded", None, OUTPUTS), pictures_missing=True)

    assert isinstance(error, DeliveryFailed)
    assert "Use SaveImage in its place." in str(error)


def test_error_of_a_node_wins_over_missing_files() -> None:
    """When a node raised, that is the news, not what is missing because of it."""
    error = NodeError("7", "KSampler", "ValueError", "x")

    found = failure(Verdict("failed", error, OUTPUTS), Collected(missing=("a.png",)), pictures_missing=True)

    assert isinstance(found, NodeFailed)


@pytest.mark.parametrize(
    ("exception_type", "message", "advice"),
    [
        (
            "safetensors._safetensors_rust.SafetensorError",
            "Error while deserializing header: header too large",
            "download it again",
        ),
        (
            "safetensors._safetensors_rust.SafetensorError",
            "Error while deserializing header: incomplete metadata, file not fully covered",
            "download it again",
        ),
        (
            "_pickle.UnpicklingError",
            "Weights only load failed. In PyTorch 2.6, we changed",
            "download it again",
        ),
        (
            "RuntimeError",
            "PytorchStreamReader failed reading zip archive: failed finding central directory",
            "download it again",
        ),
        (
            "RuntimeError",
            "ERROR: Could not detect model type of: /models/x.safetensors\n",
            "use the loader that fits it",
        ),
    ],
)
def test_broken_model_file_is_told_to_be_one(exception_type: str, message: str, advice: str) -> None:
    """What a loader says of a broken model file must end with what to do about it."""
    failed = raised(exception_type, message)

    assert isinstance(failed, NodeFailed)
    assert str(failed).startswith("Workflow execution error: Node Type: KSampler, Node ID: 7, Message: ")
    assert advice in str(failed).splitlines()[-1]
    assert "/models" not in str(failed)
