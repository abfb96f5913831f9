"""
The one place where exceptions of requests and urllib3 become ours, for whoever talks to ComfyUI.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from comfy_worker.errors import ComfyUnavailable


class NotListening(ComfyUnavailable):
    """
    Nothing listens at ComfyUI's address: nothing was sent.
    """


@contextmanager
def translated(address: str) -> Iterator[None]:
    """
    Turn what goes wrong in the block into ours; `address` is ComfyUI's, for the text.

    Raises:
        ComfyUnavailable: there was no answer; `NotListening` (one of those) when nothing was sent.
    """
    try:
        yield
    except requests.ConnectTimeout as exc:
        raise NotListening(f"ComfyUI server ({address}) not reachable: no connection in time.") from exc
    except requests.Timeout as exc:
        raise ComfyUnavailable("HTTP communication error with ComfyUI: no answer in time.") from exc
    except requests.ConnectionError as exc:
        if _refused(exc):
            raise NotListening(f"ComfyUI server ({address}) not reachable: connection refused.") from exc
        raise ComfyUnavailable("HTTP communication error with ComfyUI: connection closed.") from exc
    except (requests.RequestException, HTTPError, ValueError) as exc:
        # requests lets some of urllib3's own pass as they are, and ValueErrors: a chunk of negative size, a Location
        # that is no UTF-8.
        raise ComfyUnavailable(f"HTTP communication error with ComfyUI: {type(exc).__name__}.") from exc


def _refused(exc: BaseException | None) -> bool:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        if isinstance(exc, (ConnectionRefusedError, NewConnectionError)):
            return True
        reason = getattr(exc, "reason", None)
        inner = reason if isinstance(reason, BaseException) else next(iter(exc.args), None)
        exc = inner if isinstance(inner, BaseException) else exc.__cause__ or exc.__context__
    return False
