"""
Files to a repository of Hugging Face, with `huggingface_hub` (the extra `models`). A `store.Store`.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from comfy_worker.errors import DeliveryFailed
from comfy_worker.job import HfTarget

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "https://huggingface.co"
NO_LIBRARY = "Uploads to Hugging Face need huggingface_hub: install comfy-worker[models]."

_turn = threading.Lock()
"""Each file is a commit, and two commits at once on one branch refuse each other."""


class HfStore:
    """
    One repository, revision and folder.
    """

    def __init__(self, target: HfTarget) -> None:
        self._target = target

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> str:  # noqa: ARG002
        """
        Commit `content` as `<directory>/<key>`; return the URL that resolves it.

        Raises:
            DeliveryFailed: the Hub did not take it, or the library is not there.
        """
        target = self._target
        path = "/".join(part for part in (target.directory.strip("/"), key) if part)
        api = self._api()
        from huggingface_hub import errors

        with _turn:
            check()
            try:
                api.upload_file(
                    path_or_fileobj=content,
                    path_in_repo=path,
                    repo_id=target.repo,
                    repo_type=target.repo_type,
                    revision=target.revision,
                )
            except errors.HfHubHTTPError as exc:
                status = exc.response.status_code if exc.response is not None else 0
                raise DeliveryFailed(
                    f"Upload failed with status {status}: Hugging Face refused the file"
                ) from exc
            except (OSError, ValueError) as exc:
                # What its HTTP library raises are OSErrors, whichever library that is in this release.
                raise DeliveryFailed(f"The file could not be sent: {type(exc).__name__}") from exc
        return url_of(target, path)

    def _api(self) -> "HfApi":
        try:
            from huggingface_hub import HfApi  # optional, and a second to import
        except ImportError as exc:
            raise DeliveryFailed(NO_LIBRARY) from exc
        return HfApi(endpoint=self._target.endpoint or HUB, token=self._target.token.get_secret_value())


def url_of(target: HfTarget, path: str) -> str:
    """
    Return where a file of a repository is fetched from; every part of its path is percent-encoded.
    """
    kind = "datasets/" if target.repo_type == "dataset" else ""
    return f"{HUB}/{kind}{target.repo}/resolve/{quote(target.revision, safe='')}/{quote(path)}"
