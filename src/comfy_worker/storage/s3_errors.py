"""
The exceptions of boto3, botocore and s3transfer on their way to ours. Beside `s3`, an importer of boto3.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy_worker.errors import WorkerError
from comfy_worker.storage.reasons import reason


@contextmanager
def translated(error: type[WorkerError], check: Callable[[], None]) -> Iterator[None]:
    """
    The one place where exceptions of boto3, botocore and s3transfer become ours.
    """
    # The whole first, which waits for a thread that imports it: its modules would come to another one half made.
    import boto3  # noqa: F401
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import CancelledError, RetriesExceededError, TransferNotDoneError

    try:
        yield
    except (
        *(ClientError, BotoCoreError, Boto3Error, CancelledError, RetriesExceededError, TransferNotDoneError),
        *(ResponseParserError, OSError, ValueError),
    ) as exc:
        # What `check` raised while bytes were sent comes back wrapped as a failure of the connection.
        check()
        raise error(reason(exc)) from exc


def broken_streams() -> tuple[type[Exception], ...]:
    """
    Return what a download that broke off raises: another attempt may do better.
    """
    from botocore import exceptions

    return (exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.ReadTimeoutError)
