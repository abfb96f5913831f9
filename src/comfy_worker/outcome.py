"""
What the end of a prompt means for the job: its failure as one of our errors, or None. Pure.

The texts for a node's error and for a run without outputs are those RunPod users know (worker-comfyui 5.8.5).
"""

import re

from comfy_worker.collect import Collected
from comfy_worker.comfy.progress import NodeError
from comfy_worker.comfy.prompts import Finished
from comfy_worker.comfy.wording import without_paths
from comfy_worker.errors import (
    DeliveryFailed,
    JobFailed,
    JobInterrupted,
    NodeFailed,
    NothingProduced,
    OutOfMemory,
)

MEMORY = re.compile(
    r"OutOfMemory|out of memory|not enough memory|can't allocate memory|Allocation on device", re.I
)
BROKEN_MODEL = re.compile(
    r"SafetensorError|Error while deserializing header|UnpicklingError|PytorchStreamReader|failed finding central directory"
)
WRONG_MODEL = re.compile(r"Could not detect model type of")
ADVICE = (
    (BROKEN_MODEL, "The model file that this node loads is broken or incomplete: download it again."),
    (
        WRONG_MODEL,
        "The model file is of a kind that this node cannot load: use the loader that fits it, or another file.",
    ),
)
"""What a message of a node means, where its own words do not say it (ComfyUI 0.27.0 with safetensors and torch)."""


def failure_of(prompt_id: str, finished: Finished, collected: Collected) -> JobFailed | DeliveryFailed | None:
    """
    Return why the job failed, None when it did not.
    """
    verdict = finished.verdict
    if verdict.kind == "interrupted":
        return JobInterrupted(
            "The prompt was interrupted in ComfyUI, by somebody other than the caller of this job.",
            prompt_id=prompt_id,
        )
    if verdict.kind == "failed":
        return _node_failure(verdict.error) if verdict.error else JobFailed("; ".join(verdict.warnings))
    if collected.missing:
        names = ", ".join(collected.missing[:5])
        return DeliveryFailed(
            f"Failed to fetch image data for {names} from /view endpoint.", prompt_id=prompt_id
        )
    if finished.pictures_missing:
        return DeliveryFailed(
            "The websocket to ComfyUI was lost twice while SaveImageWebsocket sent pictures, which exist nowhere else. "
            "Use SaveImage in its place.",
            prompt_id=prompt_id,
        )
    if not verdict.outputs and not finished.pictures:
        return NothingProduced(
            f"No outputs found in history for prompt {prompt_id}.", details=[*finished.warnings]
        )
    return None


def ran_out_of_memory(finished: Finished) -> bool:
    """
    Return whether a node failed for want of memory, the GPU's or the machine's.
    """
    error = finished.verdict.error
    return error is not None and MEMORY.search(_said(error)) is not None


def _said(error: NodeError) -> str:
    return f"{error.exception_type} {error.message}"


def _node_failure(error: NodeError) -> NodeFailed | OutOfMemory:
    message = without_paths(error.message)
    text = f"Workflow execution error: Node Type: {error.class_type}, Node ID: {error.node_id}, Message: {message}"
    advice = next((advice for pattern, advice in ADVICE if pattern.search(_said(error))), None)
    if advice is not None:
        text = f"{text.rstrip()}\n{advice}"
    kind = OutOfMemory if MEMORY.search(_said(error)) else NodeFailed
    return kind(text, node_id=error.node_id, class_type=error.class_type, exception_type=error.exception_type)
