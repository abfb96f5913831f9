"""
The nouns of a job, all frozen: what came in, what happens meanwhile, what goes out.

Here belongs what more than one stage has to name. No I/O, no decision.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr

from comfy_worker.azure import AzureTarget

Workflow = Mapping[str, Any]
"""A graph in ComfyUI's API format: `{node_id: {"class_type": str, "inputs": {...}, "_meta"?: {"title": str}}}`."""

Queueing = Callable[[str, Workflow], None]
"""(prompt id, workflow) of a run that is about to begin. Runs on the job's thread and returns at once."""

Preview = tuple[str, bytes | memoryview]
"""MIME type and bytes of a picture of what a node is at."""

Kind = Literal["image", "video", "audio", "3d", "latent", "text", "file"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """
    Where and how objects are stored. `bucket` None is the legacy layout: the month is the first part of the path.

    `expiry_s` is the life of a presigned link, 1..604800; `public_url` replaces signing by a plain URL. `plain`: keys are
    `<prefix><file name>` taken literally, and `s3://bucket/key` is handed out, or a presigned link with `links`.
    `connect_timeout_s` and `attempts` are the worker's own where they are None.
    """

    endpoint_url: str | None
    access_key: str
    secret_key: SecretStr
    bucket: str | None = None
    prefix: str = ""
    region: str | None = None
    session_token: SecretStr | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    expiry_s: int = 604_800
    public_url: str | None = None
    plain: bool = False
    links: bool = False
    connect_timeout_s: float | None = None
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class UrlAuth:
    """
    What a download shows to prove who asks; it goes to the origin of the URL only. `bucket` has the keys for an s3 URL.
    """

    headers: tuple[tuple[str, SecretStr], ...] = ()
    query: tuple[tuple[str, SecretStr], ...] = ()
    bucket: Bucket | None = None


@dataclass(frozen=True, slots=True)
class InputFile:
    """
    One file the workflow reads: `data` (encoded text, still to be decoded), `url` (http, https, s3) or `path` is set. A
    `path` is a file of the worker's disk that was judged already; `is_repository` says that `url` is one for git.

    `name` is what the workflow calls it, `field` where the job gave it (`images[0]`), for messages. `folder` is set for
    a model: the folder of ComfyUI's models that it goes to, instead of the input folder.
    """

    name: str
    field: str
    data: str | None = None
    url: str | None = None
    must_be_image: bool = False
    auth: UrlAuth | None = None
    folder: str | None = None
    path: Path | None = None
    is_repository: bool = False


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """
    A web server that takes files by PUT below `url_prefix` (its query, if it has one, goes behind the file's name).
    """

    url_prefix: str
    headers: tuple[tuple[str, SecretStr], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversion:
    """
    How images are re-encoded. `options` are checked values by their wire names (`quality`, `lossless`, ...).
    """

    format: Literal["png", "jpeg", "jpg", "webp", "avif"]
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_metadata: bool = False


@dataclass(frozen=True, slots=True)
class HfTarget:
    """
    A repository of Hugging Face that takes files below `directory`; `endpoint` None is the usual one.
    """

    repo: str
    token: SecretStr
    repo_type: Literal["model", "dataset"] = "model"
    revision: str = "main"
    directory: str = ""
    endpoint: str | None = None


Target = HttpTarget | HfTarget | AzureTarget


@dataclass(frozen=True, slots=True)
class Apart:
    """
    Each file for itself: as base64 when it has no more than `inline_bytes` (0: none is), and in the bucket where there
    is one. What one way loses and the other has is a note on the output. With `leave` the files stay in ComfyUI's folder.
    """

    inline_bytes: int = 0
    leave: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    How the files are handed back. No `bucket` and no `target` means inline base64, unless the size budget spills to `spill`.

    `limit_bytes` bounds the encoded reply; `strip_metadata` removes workflow and prompt from images that keep their
    format. `apart` hands each file back in more than one way, or in none.
    """

    bucket: Bucket | None = None
    spill: Bucket | None = None
    limit_bytes: int | None = None
    conversion: Conversion | None = None
    strip_metadata: bool = False
    target: Target | None = None
    apart: Apart | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """
    A request we took on, checked and translated; what a face hands to the pipeline.

    `reads` has the keys for s3 URLs among the inputs, where they are not those of `delivery.bucket`. `params` are those of
    a template, drawn seeds with them, to be told to the caller. With `temp_if_alone` temporary files count where there are
    no others. `queueing` is told the prompt id and the workflow, its
    inputs in place, before each run; it is no part of what makes two jobs the same.
    """

    id: str
    workflow: Workflow
    inputs: tuple[InputFile, ...] = ()
    delivery: Delivery = Delivery()
    timeout_s: float = 600.0
    strict: bool = False
    dry_run: bool = False
    include_temp: bool = False
    comfy_org_api_key: SecretStr | None = None
    extra_pnginfo: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    reads: Bucket | None = None
    queueing: Queueing | None = field(default=None, compare=False, repr=False)
    params: Mapping[str, Any] | None = None
    temp_if_alone: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """
    One step of a running job: `percent` never falls within a job, and is 100 only with the verdict.

    `kind` is the stage (`staging`, `queued`, `running`, `delivering`, `done`); `value` of `max` belongs to the node.
    `preview` comes with an event that says nothing else that is new, and only where ComfyUI makes previews.
    """

    kind: Literal["staging", "queued", "running", "delivering", "done"]
    percent: float
    node_id: str | None = None
    class_type: str | None = None
    title: str | None = None
    value: float | None = None
    max: float | None = None
    preview: Preview | None = field(default=None, repr=False)


Observer = Callable[[Event], None]
"""Runs on the job's thread and returns at once."""


def ignore(event: Event) -> None:
    """
    Observe nothing.
    """


@dataclass(frozen=True, slots=True)
class Artifact:
    """
    One file ComfyUI made, or the text of one node.

    `key` is the history key it stood under (`images`, `gifs`, ...); `content` is a path inside ComfyUI's folders or a
    file of the job, or the bytes of a websocket frame, or the text when `kind` is `text`.
    `filename` and `subfolder` are what ComfyUI would have shown without our job folder.
    """

    node_id: str
    key: str
    kind: Kind
    filename: str
    subfolder: str
    type: str
    mime: str
    content: Path | bytes | str
    size_bytes: int
    animated: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """
    What the caller gets of one artifact: `type` is `base64` or `s3_url`, `data` the text of it.

    `folder` is ComfyUI's folder it was made in. A delivery that is `apart` may leave a file (`left`: no data), put base64
    beside a URL (`inline`), and say what did not work (`upload_error`, `inline_error`); `path` is where the file is.
    """

    node_id: str
    key: str
    kind: Kind
    filename: str
    subfolder: str
    mime: str
    size_bytes: int
    type: Literal["base64", "s3_url", "text", "left"]
    data: str
    folder: str = "output"
    inline: str | None = None
    upload_error: str | None = None
    inline_error: str | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """
    Milliseconds of each stage; `nodes` by node id, for the nodes that ran. `converted` is a part of `delivered`.
    """

    staged: float = 0.0
    queued: float = 0.0
    executed: float = 0.0
    delivered: float = 0.0
    total: float = 0.0
    converted: float = 0.0
    nodes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """
    What a finished job hands back; partial success is in `warnings` and `node_errors`. `cached_nodes` did not run again.

    `history` is ComfyUI's own record of the prompt, as it was.
    """

    job_id: str
    prompt_id: str | None
    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    node_errors: Mapping[str, Any] = field(default_factory=dict)
    timings: Timings = Timings()
    only_temp: bool = False
    dry_run: bool = False
    cached_nodes: int = 0
    history: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
