"""
What the address of an S3 endpoint says: its region, whether a bucket stands in it, and what is wrong with it. Pure.
"""

import ipaddress
import re
from urllib.parse import urlsplit, urlunsplit

from comfy_worker.job import Bucket

DEFAULT_REGION = "us-east-1"
MOST_EXPIRY_S = 604_800
_BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
_S3_LABEL = re.compile(r"s3(?:-(?P<region>[a-z0-9-]+))?")


def region_of(endpoint_url: str | None) -> str:
    """
    Return the region that requests to this endpoint are signed for.

    `s3.<region>.<provider>` in any position, Spaces' `<region>.digitaloceanspaces.com`, `auto` on R2, else us-east-1.
    """
    host = _host(endpoint_url)
    labels = host.split(".")
    if host.endswith(".r2.cloudflarestorage.com"):
        return "auto"
    if host.endswith(".digitaloceanspaces.com"):
        return labels[-3]
    for place, label in enumerate(labels):
        match = _S3_LABEL.fullmatch(label)
        if match:
            rest = [name for name in labels[place + 1 :] if name != "dualstack"]
            # Behind the region there is at least `provider.tld`.
            return match["region"] or (rest[0] if len(rest) > 2 else DEFAULT_REGION)
    return DEFAULT_REGION


def without_bucket(endpoint_url: str, bucket: str) -> str:
    """
    Return the endpoint without the bucket's name in front of its host, as `https://<bucket>.s3.<region>...` has it.
    """
    parts = urlsplit(endpoint_url)
    host = parts.netloc.removeprefix(f"{bucket}.")
    return urlunsplit(parts._replace(netloc=host)) if host.count(".") else endpoint_url


def check(bucket: Bucket) -> list[str]:
    """
    Return what is wrong with a bucket's configuration, one sentence each; nothing is asked over the network.
    """
    problems = []
    if bucket.endpoint_url is None and bucket.bucket is None:
        problems.append(
            "the endpoint URL is missing: without a bucket name there is no layout but the legacy one"
        )
    if bucket.endpoint_url is not None and not _is_http(bucket.endpoint_url):
        problems.append("the endpoint must be an http(s) URL with a host, without user, password or query")
    if bucket.public_url is not None and not _is_http(bucket.public_url):
        problems.append("the public URL must be an http(s) URL with a host, without user, password or query")
    if not bucket.access_key.strip():
        problems.append("the access key is missing")
    if not bucket.secret_key.get_secret_value().strip():
        problems.append("the secret key is missing")
    if bucket.bucket is not None and not _BUCKET_NAME.fullmatch(bucket.bucket):
        problems.append("the bucket name may have letters, digits, dots, dashes and underscores only")
    if not 1 <= bucket.expiry_s <= MOST_EXPIRY_S:
        problems.append(
            f"the life of a link must be 1 to {MOST_EXPIRY_S} seconds (7 days), S3 refuses longer ones"
        )
    if bucket.addressing_style not in {"auto", "path", "virtual"}:
        problems.append("the addressing style must be auto, path or virtual")
    return problems


def hints(bucket: Bucket) -> list[str]:
    """
    Return what is not wrong with a bucket's configuration and yet is hardly what was meant.
    """
    host = _host(bucket.endpoint_url)
    if bucket.bucket is not None or not host or not _is_bare(host):
        return []
    return [
        f"No bucket is set and none stands in the host name {host}: the month (`MM-YY`) is used as the bucket. "
        "Set BUCKET_NAME."
    ]


def _is_bare(host: str) -> bool:
    labels = host.split(".")
    if len(labels) == 1 or _is_ip(host) or _S3_LABEL.fullmatch(labels[0]) or host == "storage.googleapis.com":
        return True
    if host.endswith(".r2.cloudflarestorage.com"):
        return len(labels) == 4 or (len(labels) == 5 and labels[1] in {"eu", "fedramp"})
    return host.endswith(".digitaloceanspaces.com") and len(labels) == 3


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host(url: str | None) -> str:
    try:
        return (urlsplit(url or "").hostname or "").lower()
    except ValueError:
        return ""


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and has_host
        and not ("@" in parts.netloc or parts.query or parts.fragment)
    )
