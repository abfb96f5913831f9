"""
How the outputs of a request are handed back, and what of the request its replies repeat. Pure.
"""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from comfy_worker import convert
from comfy_worker.azure import AzureAccount, AzureTarget
from comfy_worker.errors import JobInvalid
from comfy_worker.faces import salad_auth
from comfy_worker.faces.salad_auth import Trust
from comfy_worker.faces.salad_models import (
    STORAGE,
    AzureBlobUpload,
    ConvertOutput,
    HfUpload,
    HttpUpload,
    Options,
    S3Upload,
    Strict,
)
from comfy_worker.job import Bucket, Conversion, Delivery, HfTarget, HttpTarget
from comfy_worker.storage import azure_access

NEEDED_BY_AZURE = "AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING"
REPO = re.compile(r"[A-Za-z0-9._-]{1,96}(/[A-Za-z0-9._-]{1,96})?")
CONTAINER = re.compile(r"\$(root|web|logs)|[a-z0-9](-?[a-z0-9]){2,62}")
"""Names of containers, as Azure takes them; 63 characters at most."""

NOTHING_SHOWN = Trust()


@dataclass(frozen=True, slots=True)
class Rules:
    """
    The operator's part: defaults, what the worker's own keys are, and how files may be named.

    `bucket` has the keys of AWS_*; None means that none are configured.
    """

    trust: Trust = NOTHING_SHOWN
    bucket: Bucket | None = None
    hf_endpoint: str | None = None
    azure: AzureAccount | None = None
    timeout_s: float = 3600.0
    prepend: bool = True
    strict: bool = False
    comfy_org_api_key: SecretStr | None = None


def echo_of(request_id: str, options: Options) -> dict[str, Any]:
    """
    Return what a reply repeats of a request, defaults filled in and secrets left out, but for the graph.
    """
    echo: dict[str, Any] = {"id": request_id}
    for name in ("webhook", "webhook_v2"):
        if getattr(options, name) is not None:
            echo[name] = getattr(options, name)
    conversion = _conversion(options.convert_output)
    if conversion is not None:
        echo["convert_output"] = {
            "format": conversion.format,
            "options": convert.with_defaults(conversion.format, conversion.options),
        }
    if options.credentials is not None:
        echo["credentials"] = salad_auth.redacted(options.credentials)
    for name in STORAGE:
        block = getattr(options, name)
        if block is not None:
            echo[name] = _filled(block)
    return echo


def _filled(block: Strict) -> dict[str, Any]:
    fields = type(block).model_fields
    values = {
        entry.alias or name: getattr(block, name) if getattr(block, name) is not None else entry.default
        for name, entry in fields.items()
    }
    if isinstance(block, HttpUpload):
        values["url_prefix"] = salad_auth.without_user(block.url_prefix)[0]
    return values


def _conversion(given: ConvertOutput | None) -> Conversion | None:
    if given is None:
        return None
    known = convert.OPTIONS[given.format]
    options = {
        name: value for name, value in (given.options or {}).items() if name in known and value is not None
    }
    return Conversion(given.format, convert.check_options(given.format, options))


def block_of(options: Options) -> tuple[str, Any] | None:
    """
    Return the storage block that counts; with webhook v1 there is none.
    """
    if options.webhook:
        return None
    given = ((name, getattr(options, name)) for name in STORAGE)
    return next(((name, block) for name, block in given if block is not None), None)


def delivery_of(options: Options, rules: Rules) -> Delivery:
    """
    Return how the outputs are handed back.

    Raises:
        JobInvalid: an option is wrong, or the storage is not configured.
    """
    conversion = _conversion(options.convert_output)
    block = block_of(options)
    match block:
        case None:
            return Delivery(conversion=conversion)
        case (_, S3Upload() as s3):
            return Delivery(_bucket(s3, rules.bucket), conversion=conversion)
        case (_, HttpUpload() as upload):
            return Delivery(target=_target(upload, rules.trust), conversion=conversion)
        case (_, HfUpload() as repository):
            return Delivery(target=_repository(repository, rules), conversion=conversion)
        case (_, AzureBlobUpload() as blobs):
            return Delivery(target=_container(blobs, rules.azure), conversion=conversion)
    raise AssertionError(f"a storage block of another kind: {block}")


def _not_configured(name: str, text: str) -> JobInvalid:
    return JobInvalid(text, field=name)


def _bucket(s3: S3Upload, own: Bucket | None) -> Bucket:
    if own is None:
        raise _not_configured(
            "s3", "S3 is not configured on this worker: set AWS_REGION or AWS_DEFAULT_REGION"
        )
    return Bucket(
        own.endpoint_url,
        own.access_key,
        own.secret_key,
        bucket=s3.bucket,
        prefix=s3.prefix or "",
        region=own.region,
        session_token=own.session_token,
        addressing_style="path",
        plain=True,
    )


def _repository(upload: HfUpload, rules: Rules) -> HfTarget:
    token = rules.trust.hf_token
    if token is None:
        raise _not_configured("hf_upload", "hf_upload is not configured on this worker: set HF_TOKEN")
    if not REPO.fullmatch(upload.repo):
        raise JobInvalid("'hf_upload.repo' must be a name such as user/repo", field="hf_upload.repo")
    revision, directory = upload.revision or "main", upload.directory or ""
    if ".." in directory.split("/"):
        raise JobInvalid("'hf_upload.directory' must be a path without '..'", field="hf_upload.directory")
    return HfTarget(upload.repo, token, upload.repo_type or "model", revision, directory, rules.hf_endpoint)


def _container(upload: AzureBlobUpload, account: AzureAccount | None) -> AzureTarget:
    name = "azure_blob_upload"
    if account is None:
        raise _not_configured(name, f"{name} is not configured on this worker: set {NEEDED_BY_AZURE}")
    lacking = azure_access.missing(account)
    if lacking is not None:
        raise _not_configured(name, lacking)
    if len(upload.container) > 63 or not CONTAINER.fullmatch(upload.container):
        raise JobInvalid(f"'{name}.container' must be the name of a container", field=f"{name}.container")
    prefix = (upload.blob_prefix or "").removeprefix("/")
    if {".", ".."} & set(prefix.split("/")):
        raise JobInvalid(f"'{name}.blob_prefix' must be a path without '..'", field=f"{name}.blob_prefix")
    return AzureTarget(account, upload.container, prefix)


def _target(upload: HttpUpload, trust: Trust) -> HttpTarget:
    url, auth = salad_auth.resolved(upload.url_prefix, (), trust)
    try:
        parts = urlsplit(url)
        usable = parts.scheme.lower() in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise JobInvalid("'http_upload.url_prefix' must be an http(s) URL", field="http_upload.url_prefix")
    return HttpTarget(url, auth.headers if auth else ())
