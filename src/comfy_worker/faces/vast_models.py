"""
What a request of the Vast face may hold: fields, types and defaults of Vast.ai's ComfyUI API wrapper (HEAD of 2026-05).

Unknown keys are ignored, as there. The refusals are pydantic's own, which is what clients of the wrapper see.
"""

from typing import Any

from pydantic import BaseModel, Field, model_validator

RAW = "RawWorkflow"
SHORTEST_TIMEOUT_S, LONGEST_TIMEOUT_S = 1, 60


class S3Block(BaseModel):
    """
    Where the files go. An empty text means "not configured".
    """

    access_key_id: str = ""
    secret_access_key: str = ""
    endpoint_url: str = ""
    bucket_name: str = ""
    region: str = ""
    connect_timeout: int = Field(60, description="Seconds the store may take to be reached.")
    connect_attempts: int = Field(3, description="How often a file is tried.")


class WebhookBlock(BaseModel):
    """
    Who is told of the result. An empty URL means "nobody", or the operator's own receiver.
    """

    url: str = ""
    extra_params: dict[str, Any] = Field({}, description="Sent along: as `extra`, and beside the result.")
    timeout: int = Field(30, description="Seconds the receiver may take, 1 to 60.")
    secret: str = Field("", description="Signs the body: `X-Webhook-Signature: sha256=<hex>`.")


class GenerateInput(BaseModel):
    """
    One job: a graph, or a modifier with its parameters.
    """

    request_id: str = Field("", description="The name of the job; a random UUID by default.")
    workflow_json: dict[str, Any] = Field({}, description="A workflow in ComfyUI's API format.")
    modifier: str = Field("", description="The name of a template, such as `Text2Image`.")
    modifications: dict[str, Any] = Field({}, description="The parameters of the modifier.")
    s3: S3Block | None = None
    webhook: WebhookBlock | None = None
    return_outputs_as_base64: bool = Field(False, description="Put the files into the result too.")
    include_comfyui_response: bool | None = Field(
        None, description="Put ComfyUI's own record into the result."
    )
    detach: bool = Field(False, description="A closed stream does not cancel the job.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "GenerateInput":
        if self.workflow_json and self.modifier and self.modifier != RAW:
            raise ValueError("Cannot provide both workflow_json and modifier - they are mutually exclusive")
        if self.modifications and not self.modifier:
            raise ValueError("modifications can only be provided when modifier is specified")
        if not self.workflow_json and not self.modifier:
            raise ValueError("Must provide either workflow_json OR modifier")
        return self


class GenerateRequest(BaseModel):
    """
    The body of `/generate`, `/generate/sync` and `/generate/stream`.
    """

    input: GenerateInput


class IdRequest(BaseModel):
    """
    The body of `POST /result` and `POST /cancel`.
    """

    request_id: str
