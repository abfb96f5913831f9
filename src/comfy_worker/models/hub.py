"""
What is in a repository of Hugging Face: the commit of a revision and its files, asked with `huggingface_hub`.

The one place where exceptions of huggingface_hub become ours. The files themselves are fetched by `download`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comfy_worker.errors import ModelUnavailable
from comfy_worker.models.plan import Listing, RepoFile
from comfy_worker.models.tokens import HUGGING_FACE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ASK_LIMIT_S = 30.0


def listing(token: str | None, endpoint: str = HUGGING_FACE) -> Listing:
    """
    Return a function that lists repositories, with a token or (also for a blank one) without.
    """

    def listed(repo: str, revision: str, gated: bool) -> tuple[str, Sequence[RepoFile]]:
        if gated and not token:
            raise ModelUnavailable(
                f"{repo} is gated and there is no token: accept the conditions on https://huggingface.co/{repo} and set HF_TOKEN (for a build HUGGINGFACE_ACCESS_TOKEN)."
            )
        return _listed(_api(token, endpoint), repo, revision)

    return listed


def _api(token: str | None, endpoint: str) -> "HfApi":
    try:
        from huggingface_hub import HfApi  # optional, and a second to import
    except ImportError as exc:
        raise ModelUnavailable(
            "A whole repository needs huggingface_hub: install comfy-worker[models]."
        ) from exc
    return HfApi(endpoint=endpoint, token=token or False)


def _listed(api: "HfApi", repo: str, revision: str) -> tuple[str, Sequence[RepoFile]]:
    from huggingface_hub import errors

    others: tuple[type[Exception], ...] = (
        *_wire_failures(errors.HfHubHTTPError),
        errors.OfflineModeIsEnabled,
        OSError,
        ValueError,
    )
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=ASK_LIMIT_S)
    except errors.RepositoryNotFoundError as exc:
        raise ModelUnavailable(
            f"{repo}: Hugging Face does not show this repository: it does not exist, or is private or gated and needs HF_TOKEN."
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelUnavailable(f"{repo}: it has no revision {revision!r}.") from exc
    except others as exc:
        raise ModelUnavailable(f"{repo}: its files could not be listed ({type(exc).__name__}).") from exc
    files = [
        RepoFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or ()
    ]
    return info.sha or revision, files


def _wire_failures(own: type[Exception]) -> tuple[type[Exception], ...]:
    # What its HTTP library raises, whichever that is in this release, is what its own exception is made of.
    return tuple(kind for kind in own.__mro__[:2] if issubclass(kind, Exception))
