"""
Where the files of a request to the Vast face go. Pure.

Credentials and endpoint come from one source: a request that names its own store never gets the operator's keys.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from comfy_worker.errors import JobInvalid
from comfy_worker.faces.vast_models import S3Block
from comfy_worker.job import Apart, Bucket, Delivery
from comfy_worker.settings import Settings

LINK_S = 604_800
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Rules:
    """
    The operator's part. `bucket` is the one that is configured, `allowed` are the names that requests may give instead.
    """

    bucket: Bucket | None = None
    allowed: Collection[str] = field(default_factory=frozenset)
    inline_bytes: int = 10_485_760
    keep_local: bool = False
    timeout_s: float = 3600.0
    strict: bool = False
    all_urls: bool = False
    webhook_url: str | None = None
    webhook_secret: SecretStr | None = None
    webhook_timeout_s: float = 30.0
    sessions_url: str | None = None
    comfy_org_api_key: SecretStr | None = None


def rules_of(config: Settings, bucket: Bucket | None) -> Rules:
    """
    Return the operator's part of every request.
    """
    own = None
    if bucket is not None and bucket.bucket is not None:
        own = replace(
            bucket,
            region=bucket.region or DEFAULT_REGION,
            expiry_s=LINK_S,
            plain=True,
            links=True,
            connect_timeout_s=config.s3_connect_timeout,
            attempts=config.s3_connect_attempts,
        )
    allowed = config.s3_allowed_buckets or ((own.bucket or "",) if own else ())
    return Rules(
        own,
        frozenset(allowed),
        config.output_base64_max_bytes,
        config.keep_local_outputs,
        config.job_timeout_s,
        config.strict,
        config.vast_url_inputs == "all",
        config.webhook_url,
        config.webhook_secret,
        config.webhook_timeout,
        _sessions_url(config),
        config.comfy_org_api_key,
    )


def _sessions_url(config: Settings) -> str | None:
    if not config.vast_sessions:
        return None
    return f"http://localhost:{config.worker_http_port or 3001}/session/end"


def delivery_of(block: S3Block | None, key: str, *, as_base64: bool, rules: Rules) -> Delivery:
    """
    Return how the files of a job are handed back; `key` is the first part of their keys.

    Raises:
        JobInvalid: the block names half a store, or a bucket that it may not use.
    """
    bucket = _bucket(block, rules)
    if bucket is not None:
        bucket = replace(bucket, prefix=f"{key}/")
    leave = rules.keep_local or (bucket is None and not as_base64)
    return Delivery(bucket, apart=Apart(rules.inline_bytes if as_base64 else 0, leave))


def _bucket(block: S3Block | None, rules: Rules) -> Bucket | None:
    if block is None:
        return rules.bucket
    if block.access_key_id or block.secret_access_key or block.endpoint_url:
        return _own(block)
    if not block.bucket_name or rules.bucket is None:
        if block.bucket_name:
            raise JobInvalid(
                "'input.s3' names a bucket and no keys, and this worker has none of its own: "
                "send access_key_id and secret_access_key too",
                field="input.s3.access_key_id",
            )
        return rules.bucket
    if block.bucket_name not in rules.allowed:
        raise JobInvalid(
            "'input.s3.bucket_name' is not a bucket that this worker's keys may be used for: "
            "send keys of your own, or have its operator add the bucket to S3_ALLOWED_BUCKETS",
            field="input.s3.bucket_name",
        )
    return replace(rules.bucket, bucket=block.bucket_name, region=block.region or rules.bucket.region)


def _own(block: S3Block) -> Bucket:
    needed = ("access_key_id", "secret_access_key", "bucket_name")
    missing = [name for name in needed if not getattr(block, name)]
    if missing:
        raise JobInvalid(
            f"'input.s3' lacks {', '.join(missing)}: a store of your own needs keys and a bucket, and never gets this worker's",
            field=f"input.s3.{missing[0]}",
        )
    return Bucket(
        block.endpoint_url or None,
        block.access_key_id,
        SecretStr(block.secret_access_key),
        bucket=block.bucket_name,
        region=block.region or DEFAULT_REGION,
        expiry_s=LINK_S,
        plain=True,
        links=True,
        connect_timeout_s=float(min(max(block.connect_timeout, 1), 3600)),
        attempts=min(max(block.connect_attempts, 1), 100),
    )
