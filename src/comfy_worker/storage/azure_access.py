"""
What opens a blob of the worker's own account of Azure Blob Storage to be read, and what must be installed for it.

A key signs a link for one blob, to be read for a day; it does not leave the worker.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from comfy_worker.azure import AzureAccount
from comfy_worker.errors import JobInvalid
from comfy_worker.fetch_file import origin
from comfy_worker.job import UrlAuth

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

NO_LIBRARY = "Azure Blob Storage needs azure-storage-blob: install comfy-worker[azure]."
NO_IDENTITY = (
    "Azure Blob Storage without a key or SAS token needs azure-identity: install it, "
    "or set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN."
)
NO_TOKEN = "Azure gave the worker no token: the default credential chain found no identity that it takes."
SCOPE = "https://storage.azure.com/.default"
VERSION = "2021-08-06"
OPEN = frozenset(
    {
        "x-ms-version",
        "sv",
        "ss",
        "srt",
        "sp",
        "st",
        "se",
        "sr",
        "si",
        "sip",
        "spr",
        "skv",
        "sks",
        "skt",
        "ske",
    }
)
"""What of a SAS token and of the headers beside one is no secret: dates and letters, which logs may hold by chance."""

LINK_LIFE = timedelta(days=1)


def missing(account: AzureAccount) -> str | None:
    """
    Return what has to be installed before the account can be used, if something has.
    """
    if not _is_there("azure.storage.blob"):
        return NO_LIBRARY
    if account.key is None and account.sas is None and not _is_there("azure.identity"):
        return NO_IDENTITY
    return None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@lru_cache(maxsize=1)
def chain() -> "TokenCredential":
    """
    Return the default credential chain of azure-identity; it keeps its tokens, so one serves all.
    """
    from azure.identity import DefaultAzureCredential

    credential: TokenCredential = DefaultAzureCredential()
    return credential


def reading(account: AzureAccount, url: str) -> UrlAuth | None:
    """
    Return what opens the URL of a blob in the account; None for any other URL, and for one that is signed already.

    Raises:
        JobInvalid: a library is not there, or Azure gave no token.
    """
    blob = _blob_in(account, url)
    if blob is None:
        return None
    if account.sas is not None:
        return _by_sas(account.sas.get_secret_value())
    lacking = missing(account)
    if lacking is not None:
        raise JobInvalid(lacking, field="prompt")
    if account.key is not None:
        return _by_sas(_signed(account.name, account.key, *blob))
    return _by_token()


def _blob_in(account: AzureAccount, url: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    root = urlsplit(account.base).path + "/"
    if (
        origin(url) != origin(account.base)
        or not parts.path.startswith(root)
        or "sig" in parse_qs(parts.query)
    ):
        return None
    container, _, blob = unquote(parts.path[len(root) :]).partition("/")
    return (container, blob) if container and blob else None


def _signed(name: str, key: SecretStr, container: str, blob: str) -> str:
    from azure.storage.blob import generate_blob_sas

    until = datetime.now(UTC) + LINK_LIFE
    secret = key.get_secret_value()
    return generate_blob_sas(name, container, blob, account_key=secret, permission="r", expiry=until)


def _by_sas(sas: str) -> UrlAuth:
    return UrlAuth(query=tuple((name, SecretStr(value)) for name, value in parse_qsl(sas)))


def _by_token() -> UrlAuth:
    import azure.storage.blob  # noqa: F401 - the whole first, as in `azure`
    from azure.core.exceptions import AzureError

    try:
        token = chain().get_token(SCOPE).token
    except AzureError as exc:
        raise JobInvalid(NO_TOKEN, field="prompt") from exc
    return UrlAuth((("Authorization", SecretStr(f"Bearer {token}")), ("x-ms-version", SecretStr(VERSION))))
