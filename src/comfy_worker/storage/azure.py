"""
Files to a container of Azure Blob Storage, with `azure-storage-blob` (the extra `azure`). A `store.Store`.

No text that leaves here holds a key, a SAS token or a signed URL. The library is imported by the first upload.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from comfy_worker.azure import AzureTarget
from comfy_worker.errors import DeliveryFailed
from comfy_worker.storage.azure_access import NO_TOKEN, chain, missing

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError
    from azure.storage.blob import BlobClient

BLOCK_BYTES = 8 << 20
CONNECT_S, REPLY_S = 10, 60
PAUSE_S, RETRIES = 1, 2
HINTS = {
    "AuthenticationFailed": "the key or the SAS token is wrong, or has expired",
    "AuthorizationFailure": "these credentials may not do it",
    "AuthorizationPermissionMismatch": "these credentials may not do it",
    "ContainerNotFound": "there is no container of this name",
    "AccountIsDisabled": "the account is disabled",
}
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")


class AzureStore:
    """
    One container and prefix.
    """

    def __init__(self, target: AzureTarget) -> None:
        self._target = target

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> str:
        """
        Store `content` as the block blob `<prefix><key>`, read from disk in blocks of 8 MiB; return its URL, unsigned.

        `check` is called before each request. Passing failures are tried three times in all.

        Raises:
            DeliveryFailed: the reason, with HTTP status and Azure's error code, without the file's name.
        """
        target = self._target
        lacking = missing(target.account)
        if lacking is not None:
            raise DeliveryFailed(lacking)
        name = f"{target.prefix}{key}"
        check()
        # The whole first, which waits for a thread that imports it: its modules would come to another one half made.
        import azure.storage.blob  # noqa: F401
        from azure.core.exceptions import AzureError

        try:
            _send(target, name, content, mime, check)
        except AzureError as exc:
            check()
            raise DeliveryFailed(reason(exc)) from exc
        except (OSError, ValueError) as exc:
            check()
            raise DeliveryFailed(f"The file could not be sent: {type(exc).__name__}") from exc
        return url_of(target, name)


def _send(
    target: AzureTarget, name: str, content: Path | bytes, mime: str, check: Callable[[], None]
) -> None:
    from azure.storage.blob import ContentSettings

    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    source: Any = nullcontext(content) if isinstance(content, bytes) else content.open("rb")
    with source as body, _client(target, name) as client:
        client.upload_blob(
            body,
            length=size,
            overwrite=True,
            content_settings=ContentSettings(content_type=mime),
            raw_request_hook=lambda _request: check(),
        )


def _client(target: AzureTarget, name: str) -> "BlobClient":
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import BlobClient, LinearRetry

    account = target.account
    credential: Any
    if account.key is not None:
        credential = {"account_name": account.name, "account_key": account.key.get_secret_value()}
    elif account.sas is not None:
        credential = account.sas.get_secret_value()
    else:
        credential = chain()
    return BlobClient(
        account.base,
        target.container,
        name,
        credential=credential,
        max_single_put_size=BLOCK_BYTES,
        max_block_size=BLOCK_BYTES,
        retry_policy=LinearRetry(backoff=PAUSE_S, retry_total=RETRIES, random_jitter_range=0),
        # No proxy, no .netrc: as every other connection of the worker.
        transport=RequestsTransport(
            connection_timeout=CONNECT_S, read_timeout=REPLY_S, use_env_settings=False
        ),
    )


def reason(exc: "AzureError") -> str:
    """
    Say why Azure failed: HTTP status and error code when it answered, never what its message holds.
    """
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    status = exc.status_code if isinstance(exc, HttpResponseError) else None
    if status is None:
        if isinstance(exc, ClientAuthenticationError):
            return NO_TOKEN
        return f"The file could not be sent: {type(exc).__name__}"
    given = getattr(exc, "error_code", None)
    code = str(getattr(given, "value", given))
    code = code if given and _CODE.fullmatch(code) else "no error code"
    hint = f": {HINTS[code]}" if code in HINTS else ""
    return f"Upload failed with status {status}: Azure refused the file ({code}{hint})"


def url_of(target: AzureTarget, name: str) -> str:
    """
    Return where a blob is fetched from; its name is percent-encoded, and no SAS token stands in it.
    """
    return f"{target.account.base}/{target.container}/{quote(name, safe='/~')}"
