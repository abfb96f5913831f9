"""
An account of Azure Blob Storage, and how the variables that name one are read. Pure, without Azure's library.

The rules are Azure's for connection strings: `name=value` with semicolons between, names in any case.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import SecretStr

SUFFIX = "core.windows.net"


@dataclass(frozen=True, slots=True)
class AzureAccount:
    """
    `base` is the URL of its blobs, without a slash behind it. With neither `key` nor `sas` Azure's default chain is asked.
    """

    name: str
    base: str
    key: SecretStr | None = None
    sas: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class AzureTarget:
    """
    A container that takes files as blobs `<prefix><file name>`.
    """

    account: AzureAccount
    container: str
    prefix: str = ""


def account_of(
    connection: SecretStr | None, name: str | None, key: SecretStr | None, sas: SecretStr | None
) -> AzureAccount | None:
    """
    Return the account: of the connection string, else of name and key, else of name and SAS token, else of the name alone.
    """
    if connection is not None:
        return _connected(_parts(connection.get_secret_value()))
    if name is None:
        return None
    home = f"https://{name}.blob.{SUFFIX}"
    if key is not None:
        return AzureAccount(name, home, key=key)
    return AzureAccount(name, home, sas=_bare(sas.get_secret_value()) if sas is not None else None)


def connection_string(text: str) -> SecretStr:
    """
    Check a connection string.

    Raises:
        ValueError: what it must hold; never what it held.
    """
    parts = _parts(text)
    if not {"accountname", "blobendpoint"} & parts.keys() or not (
        {"accountname", "accountkey"} <= parts.keys() or "sharedaccesssignature" in parts
    ):
        raise ValueError("a connection string with AccountName and AccountKey, or with SharedAccessSignature")
    if "accountkey" in parts:
        account_key(parts["accountkey"])
    scheme, _, host = parts.get("blobendpoint", f"https://{SUFFIX}").partition("://")
    if scheme not in {"http", "https"} or not host:
        raise ValueError("a connection string whose BlobEndpoint is an http(s) URL")
    return SecretStr(text)


def account_name(text: str) -> str:
    """
    Check the name of an account: 3 to 24 letters and digits.
    """
    if not re.fullmatch(r"[a-z0-9]{3,24}", text):
        raise ValueError("the name of an account: 3 to 24 lower-case letters and digits")
    return text


def account_key(text: str) -> SecretStr:
    """
    Check the key of an account: base64.
    """
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the key of an account, in base64") from None
    return SecretStr(text)


def secrets_in(connection: SecretStr | None) -> Iterator[str]:
    """
    Yield the secret parts of a connection string, for masking.
    """
    parts = _parts(connection.get_secret_value()) if connection is not None else {}
    yield from (parts[name] for name in ("accountkey", "sharedaccesssignature") if parts.get(name))


def _parts(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.strip().split(";") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _connected(parts: dict[str, str]) -> AzureAccount:
    name = parts.get("accountname", "")
    scheme, suffix = parts.get("defaultendpointsprotocol", "https"), parts.get("endpointsuffix", SUFFIX)
    home = parts.get("blobendpoint", f"{scheme}://{name}.blob.{suffix}").rstrip("/")
    if name and "accountkey" in parts:
        return AzureAccount(name, home, key=SecretStr(parts["accountkey"]))
    return AzureAccount(name, home, sas=_bare(parts["sharedaccesssignature"]))


def _bare(sas: str) -> SecretStr:
    return SecretStr(sas.removeprefix("?"))
