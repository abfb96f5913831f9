"""
How a download may fail: the exceptions of requests and urllib3 as ours, and which of them may pass.
"""

import contextlib
from collections.abc import Iterator

from requests import exceptions as http
from urllib3 import exceptions as wire

from comfy_worker.errors import InputUnavailable, JobFailed

# The first row whose class fits counts. True: it may work when it is tried again.
FAILURES: tuple[tuple[type[Exception], str, bool], ...] = (
    (http.SSLError, "its certificate was not accepted", False),
    (wire.SSLError, "its certificate was not accepted", False),
    (http.ConnectTimeout, "it could not be reached in time", True),
    (http.Timeout, "it did not answer in time", True),
    (wire.TimeoutError, "it did not answer in time", True),
    (http.ConnectionError, "it could not be reached", True),
    (http.ChunkedEncodingError, "the connection broke before the end", True),
    (wire.ProtocolError, "the connection broke before the end", True),
    (http.ContentDecodingError, "its content could not be decoded", False),
    (wire.DecodeError, "its content could not be decoded", False),
    (http.RequestException, "the request failed", False),
    (wire.HTTPError, "the request failed", False),
    (ValueError, "it is not a valid URL", False),
)


class Again(Exception):
    """
    A failure that may pass; its text is the reason.
    """


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """
    Turn what a download raises into `Again`, `InputUnavailable` or, where this machine is at fault, `JobFailed`.
    """
    try:
        yield
    except (http.RequestException, wire.HTTPError, ValueError) as exc:
        text, passes = next((text, passes) for kind, text, passes in FAILURES if isinstance(exc, kind))
        raise (Again if passes else InputUnavailable)(text) from exc
    except OSError as exc:
        raise JobFailed(
            "An input could not be saved: the worker's disk is full or cannot be written to."
        ) from exc
