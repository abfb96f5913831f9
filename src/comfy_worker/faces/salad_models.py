"""
The requests of the Salad face, field by field: what is checked before anything else, and what /docs shows.

Field names, defaults and texts of the fields are those of SaladTechnologies/comfyui-api 1.18.0; `null` counts as absent.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, SecretStr
from pydantic.json_schema import SkipJsonSchema

Absent = SkipJsonSchema[None]


class Strict(BaseModel):
    """
    A part of a request: types are not converted, unknown keys are dropped.
    """

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)


class Node(Strict):
    """
    One node of a graph. `inputs` must be an object, which is checked where its place can be named.
    """

    class_type: str
    inputs: Any = None
    meta: Any = Field(None, alias="_meta")


class BearerAuth(Strict):
    """
    `Authorization: Bearer <token>`.
    """

    type: Literal["bearer"]
    token: SecretStr = Field(description="Bearer token for the Authorization header")


class BasicAuth(Strict):
    """
    `Authorization: Basic ...`.
    """

    type: Literal["basic"]
    username: SecretStr
    password: SecretStr


class HeaderAuth(Strict):
    """
    A header of any name.
    """

    type: Literal["header"]
    header_name: str
    header_value: SecretStr


class QueryAuth(Strict):
    """
    A parameter of the query, as Azure's SAS tokens are.
    """

    type: Literal["query"]
    query_param: str
    query_value: SecretStr


class S3Auth(Strict):
    """
    Keys for an s3 URL.
    """

    type: Literal["s3"]
    access_key_id: SecretStr
    secret_access_key: SecretStr
    session_token: SecretStr | Absent = None
    endpoint: str | Absent = Field(None, description="Endpoint of a store that is not AWS")
    region: str | Absent = None


Auth = Annotated[BearerAuth | BasicAuth | HeaderAuth | QueryAuth | S3Auth, Discriminator("type")]


class Credential(Strict):
    """
    Whom to show what: the first pattern that matches the whole URL wins.
    """

    url_pattern: str = Field(
        description="Glob over the whole URL: * without a slash, ** with, ? one character"
    )
    auth: Auth


class ConvertOutput(Strict):
    """
    How images are re-encoded. The options are those of the chosen format; others are dropped.
    """

    format: Literal["jpeg", "jpg", "webp"] = Field(description="output format")
    options: dict[str, Any] | Absent = None


class S3Upload(Strict):
    """
    Store the outputs in a bucket, with the keys of the worker.
    """

    bucket: str = Field(min_length=1)
    prefix: str | Absent = Field(
        "", description="Put in front of every file name as it is, no slash is added"
    )
    is_async: bool | Absent = Field(False, alias="async")


class HfUpload(Strict):
    """
    Store the outputs in a repository of Hugging Face.
    """

    repo: str = Field(description="Repository, e.g. user/repo")
    repo_type: Literal["model", "dataset"] | Absent = "model"
    revision: str | Absent = "main"
    directory: str | Absent = "/"
    is_async: bool | Absent = Field(False, alias="async")


class AzureBlobUpload(Strict):
    """
    Store the outputs in a container of Azure Blob Storage.
    """

    container: str
    blob_prefix: str | Absent = ""
    is_async: bool | Absent = Field(False, alias="async")


class HttpUpload(Strict):
    """
    Send each output by PUT to `<url_prefix>/<file name>`.
    """

    url_prefix: str
    is_async: bool | Absent = Field(False, alias="async")


class Options(Strict):
    """
    What /prompt and /workflow/... have in common.
    """

    id: str | Absent = Field(None, description="Name of the request; a random UUID by default")
    webhook: str | Absent = Field(
        None, json_schema_extra={"deprecated": True}, description="One POST per output; use webhook_v2"
    )
    webhook_v2: str | Absent = Field(
        None, description="One signed POST at the end; makes the request asynchronous"
    )
    convert_output: ConvertOutput | Absent = None
    credentials: list[Credential] | Absent = None
    s3: S3Upload | Absent = None
    hf_upload: HfUpload | Absent = None
    azure_blob_upload: AzureBlobUpload | Absent = None
    http_upload: HttpUpload | Absent = None


class PromptRequest(Options):
    """
    A graph in ComfyUI's API format, and what to do with its outputs.
    """

    prompt: dict[str, Node]


class WorkflowRequest(Options):
    """
    The parameters of a named workflow, and what to do with its outputs.
    """

    input: dict[str, Any]


class InterruptRequest(Strict):
    """
    Which request to stop.
    """

    id: str


class DownloadRequest(Strict):
    """
    A model to fetch into a folder of ComfyUI's models.
    """

    url: str
    model_type: str
    filename: str | Absent = None
    wait: bool | Absent = False
    auth: Auth | Absent = None


STORAGE = ("s3", "hf_upload", "azure_blob_upload", "http_upload")
"""The storage blocks; the first one that is present counts."""
