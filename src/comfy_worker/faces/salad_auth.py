"""
Who may read a URL: a request's `credentials`, the user part of the URL, or the operator's header. Pure.

The rules are those of SaladTechnologies/comfyui-api 1.18.0; the operator's header goes to named origins only, as in 1.19.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import SecretStr

from comfy_worker.errors import JobInvalid
from comfy_worker.faces.salad_models import (
    BasicAuth,
    BearerAuth,
    Credential,
    HeaderAuth,
    QueryAuth,
    S3Auth,
)
from comfy_worker.job import Bucket, UrlAuth

AnyAuth = BearerAuth | BasicAuth | HeaderAuth | QueryAuth | S3Auth

REDACTED = "[redacted]"
OPEN_FIELDS = frozenset({"type", "header_name", "query_param", "region", "endpoint"})
"""What an echo may show of a credential."""

PORTS = {"http": 80, "https": 443}
HUGGING_FACE = "https://huggingface.co"
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Trust:
    """
    What the operator shows by itself, and to whom: one header for named origins, the token of Hugging Face, and what
    `azure` says of the URLs of its own account.
    """

    header: tuple[str, SecretStr] | None = None
    origins: frozenset[str] = frozenset()
    hf_token: SecretStr | None = None
    region: str | None = None
    azure: Callable[[str], UrlAuth | None] | None = None


def glob_matches(pattern: str, url: str) -> bool:
    """
    Tell whether a pattern fits the whole URL: `*` is a run without a slash, `**` anything, `?` one character.
    """
    return _compiled(pattern).fullmatch(url) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*{2,}|\*|\?)", pattern)
    words = {"*": "[^/]*", "?": "."}
    return re.compile(
        "".join(".*" if part.startswith("**") else words.get(part, re.escape(part)) for part in parts), re.S
    )


def origin_of(url: str) -> str:
    """
    Return scheme, host and port of a URL, in lower case and with the port written out; empty when it has none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme.lower())
    except ValueError:
        return ""
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{port}" if parts.hostname else ""


def without_user(url: str) -> tuple[str, SecretStr | None]:
    """
    Return the URL without its user part, and that part as the value of a Basic header.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url, None
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    return urlunsplit(parts._replace(netloc=host)), _basic(unquote(user))


def resolved(url: str, credentials: Sequence[Credential], trust: Trust) -> tuple[str, UrlAuth | None]:
    """
    Return the URL to ask and what to show: the request's own credential alone, else the URL's user, else the operator's.
    """
    bare, user = without_user(url)
    own = next((entry.auth for entry in credentials if glob_matches(entry.url_pattern, url)), None)
    is_s3 = url[:5].lower() == "s3://"
    if own is not None:
        return bare, auth_of(own, trust) if is_s3 == isinstance(own, S3Auth) else None
    if is_s3:
        return url, None
    if user is not None:
        return bare, UrlAuth((("Authorization", user),))
    if trust.header is not None and origin_of(url) in trust.origins:
        return bare, UrlAuth((trust.header,))
    if trust.hf_token is not None and origin_of(url) == origin_of(HUGGING_FACE):
        return bare, UrlAuth((("Authorization", _bearer(trust.hf_token)),))
    return bare, trust.azure(bare) if trust.azure is not None else None


def auth_of(auth: AnyAuth, trust: Trust) -> UrlAuth:
    """
    Translate one credential.

    Raises:
        JobInvalid: it cannot be sent.
    """
    match auth:
        case BearerAuth():
            return UrlAuth((("Authorization", _bearer(auth.token)),))
        case BasicAuth():
            pair = f"{auth.username.get_secret_value()}:{auth.password.get_secret_value()}"
            return UrlAuth((("Authorization", _basic(pair)),))
        case HeaderAuth():
            if not HEADER_NAME.fullmatch(auth.header_name):
                raise JobInvalid("'header_name' must be the name of a header.", field="credentials")
            return UrlAuth(((auth.header_name, _sendable(auth.header_value)),))
        case QueryAuth():
            return UrlAuth(query=((auth.query_param, auth.query_value),))
    return UrlAuth(bucket=_keys(auth, trust.region))


def _keys(auth: S3Auth, region: str | None) -> Bucket:
    return Bucket(
        auth.endpoint or None,
        auth.access_key_id.get_secret_value(),
        auth.secret_access_key,
        bucket="-",
        region=auth.region or region,
        session_token=auth.session_token,
        addressing_style="path",
        plain=True,
    )


def _bearer(token: SecretStr) -> SecretStr:
    return _sendable(SecretStr(f"Bearer {token.get_secret_value()}"))


def _basic(pair: str) -> SecretStr:
    pair = pair if ":" in pair else f"{pair}:"
    return SecretStr(f"Basic {base64.b64encode(pair.encode(errors='replace')).decode()}")


def _sendable(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise JobInvalid("A credential holds characters that no header can carry.", field="credentials")
    return value


def redacted(credentials: Sequence[Credential]) -> list[dict[str, Any]]:
    """
    Return the credentials as an echo shows them: every key, the pattern, and no secret.
    """
    return [{"url_pattern": entry.url_pattern, "auth": _redacted(entry.auth)} for entry in credentials]


def _redacted(auth: AnyAuth) -> dict[str, Any]:
    given = auth.model_dump(exclude_none=True)
    return {name: value if name in OPEN_FIELDS else REDACTED for name, value in given.items()}


def secrets_of(request: Any) -> Iterator[str]:
    """
    Yield every secret text of a raw request, also of one that is invalid: what stands in `auth`, and users in URLs.
    """
    if not isinstance(request, Mapping):
        return
    entries = request.get("credentials")
    blocks = (
        [entry.get("auth") for entry in entries if isinstance(entry, Mapping)]
        if isinstance(entries, list)
        else []
    )
    for block in (*blocks, request.get("auth")):
        for name, value in block.items() if isinstance(block, Mapping) else ():
            if name not in OPEN_FIELDS and isinstance(value, str):
                yield value
