"""
The tree of ways a job can fail. One way to fail: raise one of these.

    WorkerError                  code, http_status, retryable, details; str(error) is one sentence its reader can act on
    ├── JobInvalid         400   the caller changes the job
    │   ├── WorkflowInvalid  422 ComfyUI refused the workflow, or would
    │   └── InputUnavailable 422 an input could not be fetched, decoded, or is not allowed
    ├── JobFailed          500   the job ran and failed
    │   ├── NodeFailed     422   one node raised
    │   ├── OutOfMemory    500   this GPU is too small (retryable)
    │   ├── JobTimedOut    504   it ran longer than it may
    │   ├── JobInterrupted 409   someone asked ComfyUI to stop it
    │   ├── JobCancelled   409   the caller took the job back
    │   ├── NothingProduced 422  it succeeded and left neither a file nor a text
    │   ├── PromptLost     500   ComfyUI no longer knows the prompt (retryable)
    │   └── ReplyTooLarge  413   the files exist and do not fit into a reply
    ├── DeliveryFailed     502   the files exist and could not be handed over (retryable)
    ├── WorkerBusy         503   the queue in front of the pipeline is full (retryable)
    ├── ModelUnavailable   503   a model could not be fetched
    ├── DiskFull           507   the worker's disk has no room for a job (retryable)
    ├── ProvisioningFailed 503   the operator's provisioning script did not end well
    └── ComfyUnavailable   503   ComfyUI did not start, died, or stopped answering (retryable)
    ConfigInvalid                raised once, before anything starts; names every wrong variable

A 4xx says "the same job will fail again", a 5xx "another worker may manage".
Codes are stable and listed in docs/reference/errors.md. Foreign exceptions become one of these in one place per system.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class WorkerError(Exception):
    """
    Base of every way a job can fail; `str(error)` is the sentence for the caller.

    `details` holds further facts that are safe to show: JSON values only, no path of this machine, no secret.
    `partial` is set by the pipeline when files were finished before the failure (a `job.Result`).
    """

    code: ClassVar[str] = "worker_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details: dict[str, Any] = details
        self.partial: Any = None


class JobInvalid(WorkerError):
    """
    The job cannot be run as it was sent; `details["field"]` names the field to change.
    """

    code = "job_invalid"
    http_status = 400


class WorkflowInvalid(JobInvalid):
    """
    ComfyUI refused the workflow; `details["node_errors"]` is ComfyUI's own object when it sent one.
    """

    code = "workflow_invalid"
    http_status = 422


class InputUnavailable(JobInvalid):
    """
    An input file could not be fetched or decoded, or is not allowed; `details["details"]` has one text per file.
    """

    code = "input_unavailable"
    http_status = 422


class JobFailed(WorkerError):
    """
    The job ran and failed.
    """

    code = "job_failed"


class NodeFailed(JobFailed):
    """
    One node raised; details: `node_id`, `class_type`, `exception_type`.
    """

    code = "node_failed"
    http_status = 422


class OutOfMemory(JobFailed):
    """
    The device or the machine ran out of memory; details as `NodeFailed` where a node is known.
    """

    code = "out_of_memory"
    retryable = True


class JobTimedOut(JobFailed):
    """
    The job ran longer than it may; details: `stage`, `timeout_s`.
    """

    code = "job_timed_out"
    http_status = 504


class JobInterrupted(JobFailed):
    """
    Somebody other than the caller asked ComfyUI to stop the prompt.
    """

    code = "job_interrupted"
    http_status = 409


class JobCancelled(JobFailed):
    """
    The caller, or the shutdown of the worker, took the job back; details: `stage`.
    """

    code = "job_cancelled"
    http_status = 409


class NothingProduced(JobFailed):
    """
    The prompt succeeded and its history names no output at all.
    """

    code = "nothing_produced"
    http_status = 422


class PromptLost(JobFailed):
    """
    The prompt is in neither ComfyUI's queue nor its history: deleted, cleared, or ComfyUI restarted.
    """

    code = "prompt_lost"
    retryable = True


class ReplyTooLarge(JobFailed):
    """
    The files exist and do not fit into a reply; details: `size_bytes`, `limit_bytes`.
    """

    code = "reply_too_large"
    http_status = 413


class DeliveryFailed(WorkerError):
    """
    The files exist and could not be handed over; details: `failures`, one object per file.
    """

    code = "delivery_failed"
    http_status = 502
    retryable = True


class WorkerBusy(WorkerError):
    """
    The queue in front of the pipeline is full, or the worker is shutting down.
    """

    code = "worker_busy"
    http_status = 503
    retryable = True


class ModelUnavailable(WorkerError):
    """
    A model could not be fetched; the text names its host and file.
    """

    code = "model_unavailable"
    http_status = 503


class ComfyUnavailable(WorkerError):
    """
    ComfyUI did not start, died, or stopped answering.
    """

    code = "comfy_unavailable"
    http_status = 503
    retryable = True


class DiskFull(WorkerError):
    """
    A disk that the job would write to is almost full; details: `free_bytes`, `needed_bytes`.
    """

    code = "disk_full"
    http_status = 507
    retryable = True


class ProvisioningFailed(WorkerError):
    """
    The operator's provisioning script could not be fetched, ended with an error, or took too long.
    """

    code = "provisioning_failed"
    http_status = 503


class ConfigInvalid(Exception):
    """
    The settings are wrong; `problems` holds one sentence per variable and the text holds them all.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(["The configuration is invalid:", *(f"  - {text}" for text in self.problems)])
        )


def every_error() -> Mapping[str, type[WorkerError]]:
    """
    Return every concrete error by its code; the documentation and its test are written from this.
    """
    found: dict[str, type[WorkerError]] = {}
    pending: list[type[WorkerError]] = [WorkerError]
    while pending:
        error = pending.pop(0)
        found.setdefault(error.code, error)
        pending.extend(error.__subclasses__())
    return found
