"""
What RunPod's HTTP API takes and shows, as models: they check requests and stand in the OpenAPI document.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from comfy_worker.errors import InputUnavailable, JobInvalid
from comfy_worker.faces.runpod_jobs import EXECUTION_S, TTL_S, Terms
from comfy_worker.fetch_guard import checked

WEEK_MS = 604_800_000
PORT = r"([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2})"
WEBHOOK = rf"^(https?://[A-Za-z0-9][A-Za-z0-9.-]*(:{PORT})?([/?#][!-~]*)?)?$"
"""An http(s) URL without a user, or nothing."""


class Policy(BaseModel):
    """
    How long a job may take, in milliseconds.
    """

    model_config = ConfigDict(strict=True)

    executionTimeout: float | None = Field(
        None, ge=5000, le=WEEK_MS, description="How long it may run; 600,000 by default."
    )
    ttl: float | None = Field(
        None, ge=10_000, le=WEEK_MS, description="When it is dropped, wherever it is; a day by default."
    )
    lowPriority: bool | None = Field(None, description="Accepted, and of no effect on one machine.")


class JobRequest(BaseModel):
    """
    A job as RunPod takes it; further keys reach the handler.
    """

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"example": {"input": {"workflow": {}, "images": []}}}
    )

    input: Any = Field(description="The job: `workflow`, `images`, ...")
    webhook: str | None = Field(
        None,
        max_length=2048,
        pattern=WEBHOOK,
        description="Where the ended job is posted to: an http(s) URL without a user; it should answer 200.",
    )
    policy: Policy | None = None
    s3Config: Any = Field(None, description="A bucket of the caller's for the outputs.")


class JobView(BaseModel):
    """
    The state of a job. `output` is the latest progress while it runs.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    status: str = Field(description="IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED or TIMED_OUT.")
    delayTime: int | None = Field(None, description="Milliseconds it waited.")
    executionTime: int | None = Field(None, description="Milliseconds it ran.")
    workerId: str | None = None
    output: Any = None
    error: str | None = None


def terms_of(job: JobRequest) -> Terms:
    """
    Return what a request asks for besides its input.

    Raises:
        JobInvalid: its webhook is no address that may be asked for.
    """
    policy = job.policy
    execution_ms = policy.executionTimeout if policy is not None else None
    ttl_ms = policy.ttl if policy is not None else None
    if job.webhook:
        _check_webhook(job.webhook)
    return Terms(
        EXECUTION_S if execution_ms is None else execution_ms / 1000,
        TTL_S if ttl_ms is None else ttl_ms / 1000,
        job.webhook or None,
    )


def _check_webhook(url: str) -> None:
    try:
        checked(url)
    except (InputUnavailable, ValueError) as exc:
        text = "'webhook' must be an http(s) URL with a host, and without a user or password"
        raise JobInvalid(text, field="webhook") from exc
