"""
A job's own bucket, in the spellings its callers know, and the secrets that a raw job may hold.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, SecretStr, StrictStr, ValidationError

from comfy_worker import graph
from comfy_worker.errors import JobInvalid
from comfy_worker.job import Bucket
from comfy_worker.storage import s3

SECRET_NAME = re.compile(r"(^|_)(api_?key|secret|password|token|authorization)$", re.IGNORECASE)
SECRET_KEYS = (
    *("accessId", "accessSecret", "sessionToken"),
    *("access_key_id", "secret_access_key", "session_token"),
)


class S3Config(BaseModel):
    """
    A job's own bucket, as RunPod's `s3Config` spells it.
    """

    model_config = ConfigDict(extra="forbid")

    accessId: StrictStr
    accessSecret: SecretStr
    bucketName: StrictStr
    endpointUrl: StrictStr
    region: StrictStr | None = None
    prefix: StrictStr = ""
    sessionToken: SecretStr | None = None


class S3Block(BaseModel):
    """
    A job's own bucket, with the names Vast users know.
    """

    model_config = ConfigDict(extra="forbid")

    access_key_id: StrictStr
    secret_access_key: SecretStr
    bucket_name: StrictStr
    endpoint_url: StrictStr | None = None
    region: StrictStr | None = None
    prefix: StrictStr = ""
    session_token: SecretStr | None = None


def own_bucket(data: Mapping[str, Any], s3_config: Any) -> Bucket | None:
    """
    Return the bucket that a job's input or its envelope's `s3Config` names, None when there is none.

    Raises:
        JobInvalid: it is not complete, or cannot work.
    """
    found = [
        (name, value)
        for name, value in (
            ("s3Config", s3_config),
            ("s3Config", data.get("s3Config")),
            ("s3", data.get("s3")),
        )
        if value is not None
    ]
    if not found:
        return None
    name, value = found[0]
    if not graph.is_json(value):
        raise JobInvalid(f"'{name}' cannot be used: {graph.NOT_JSON}", field=name)
    try:
        bucket = _of_block(value) if name == "s3" else _of_config(value)
    except ValidationError as exc:
        error = exc.errors(include_input=False, include_context=False, include_url=False)[0]
        path = ".".join([name, *map(str, error["loc"])])
        needs = "access_key_id, secret_access_key and bucket_name" if name == "s3" else "all four of its keys"
        raise JobInvalid(
            f"'{path}': {error['msg']}. A job's bucket needs {needs}; the worker's are never mixed in",
            field=path,
        ) from None
    problems = s3.check(bucket)
    if problems:
        raise JobInvalid(f"'{name}': {problems[0]}", field=name)
    return bucket


def _of_config(value: Any) -> Bucket:
    given = S3Config.model_validate(value)
    return Bucket(
        given.endpointUrl,
        given.accessId,
        given.accessSecret,
        given.bucketName,
        given.prefix,
        given.region,
        given.sessionToken,
    )


def _of_block(value: Any) -> Bucket:
    given = S3Block.model_validate(value)
    return Bucket(
        given.endpoint_url,
        given.access_key_id,
        given.secret_access_key,
        given.bucket_name,
        given.prefix,
        given.region,
        given.session_token,
    )


def secrets_of(raw: Any, envelope: Mapping[str, Any]) -> Iterator[str]:
    """
    Yield every secret text in a raw job, valid or not, so that it can be masked before anything is said about it.

    In the workflow these are the texts of inputs that are called `api_key`, `token` and the like.
    """
    sources = [envelope.get("s3Config")]
    if isinstance(raw, str):
        try:
            raw = orjson.loads(raw)
        except ValueError:
            raw = None
    if isinstance(raw, dict):
        sources += [raw.get("s3Config"), raw.get("s3")]
        yield from (
            raw[key] for key in ("comfy_org_api_key", "api_key_comfy_org") if isinstance(raw.get(key), str)
        )
        yield from _secrets_of_nodes(raw.get("workflow"))
        yield from _secrets_of_nodes({"params": {"inputs": raw.get("params")}})
    for source in sources:
        if isinstance(source, dict):
            yield from (source[name] for name in SECRET_KEYS if isinstance(source.get(name), str))


def _secrets_of_nodes(workflow: Any) -> Iterator[str]:
    for node in workflow.values() if isinstance(workflow, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for name, value in inputs.items() if isinstance(inputs, dict) else ():
            if isinstance(value, str) and SECRET_NAME.search(str(name)):
                yield value
