"""
Log lines: the job's id on every one, secrets masked, RunPod's JSON shape when on RunPod.

`MASK` is the one redaction of the program: log lines and everything that is echoed to a caller go through it.
"""

import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("comfy_worker")
current_job: ContextVar[str | None] = ContextVar("current_job", default=None)

# The scheme is bounded: without that, a long text with dots in it costs the square of its length.
URL = re.compile(
    r"(\b[a-z][a-z0-9+.-]{0,30}://)(?:[^\s/?#\"'<>\\]*@)?([^\s?#\"'<>\\]*)(?:([?#])[^\s\"'<>\\]*)?",
    re.IGNORECASE,
)
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
BEARER = re.compile(r"\b(Bearer\s+)[\w.~+/=-]{16,}", re.IGNORECASE)
SHORTEST_SECRET = 6


class Mask:
    """
    Replaces known secrets, and the user part and query of every URL. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Counter[str] = Counter()

    def add(self, secrets: Iterable[str]) -> None:
        """
        Mask these texts from now on. Texts under 6 characters are left: masking them would garble every line.
        """
        with self._lock:
            self._known.update(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)

    @contextmanager
    def during(self, secrets: Iterable[str]) -> Iterator[None]:
        """
        Mask these texts while the block runs.
        """
        mine = list(secrets)
        self.add(mine)
        try:
            yield
        finally:
            with self._lock:
                self._known -= Counter(secret for secret in mine if len(secret) >= SHORTEST_SECRET)

    def secrets(self, text: str) -> str:
        """
        Return `text` without any known secret.
        """
        with self._lock:
            known = sorted(self._known, key=len, reverse=True)
        for secret in known:
            text = text.replace(secret, "***")
        return text

    def text(self, text: str) -> str:
        """
        Return `text` without any known secret, bearer token, and user, query and fragment of any URL.
        """
        text = BEARER.sub(r"\1***", self.secrets(text))
        return URL.sub(_bare_url, text) if "://" in text else text

    def value(self, value: Any) -> Any:
        """
        Return a copy of JSON `value` with every text in it masked.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value


def _bare_url(match: re.Match[str]) -> str:
    rest = f"{match[3]}***" if match[3] else ""
    return f"{match[1]}{match[2]}{rest}"


MASK = Mask()


class JobFilter(logging.Filter):
    """
    Puts the current job's id on a record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """
        Return True: nothing is dropped.
        """
        record.job_id = current_job.get()
        return True


def one_line(text: str) -> str:
    """
    Return `text` with its line breaks and other control characters written out: ids and names of jobs may hold them.
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """
    `LEVEL  job-id  message`, for people.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """
        Return the message as one line, so that no text of a job can look like a line of ours.
        """
        return one_line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """
        Return one masked line (and the traceback under it, if there is one).
        """
        job = f"{one_line(str(getattr(record, 'job_id', None)))}  " if getattr(record, "job_id", None) else ""
        return MASK.text(f"{record.levelname:<8}{job}{super().format(record)}")


class JsonFormatter(logging.Formatter):
    """
    One JSON object per line, in the shape the RunPod console filters by (SDK 1.12.0): requestId, message, level.
    """

    def format(self, record: logging.LogRecord) -> str:
        """
        Return one masked line.
        """
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        message = MASK.text(super().format(record))
        return json.dumps({"requestId": getattr(record, "job_id", None), "message": message, "level": level})


def configure(level: str, *, as_json: bool, stream: TextIO | None = None) -> None:
    """
    Send the program's log to `stream` (standard error by default), once; calling it again replaces the former set-up.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(JobFilter())
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    former, root = list(logger.handlers), logging.getLogger()
    logger.handlers[:] = [handler]
    if root.handlers == former:  # what other packages log goes the same way, masked
        root.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    for noisy in ("urllib3", "botocore", "boto3", "s3transfer", "websocket", "PIL", "azure"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def also_to(path: Path) -> None:
    """
    Send the log to a file as well, as text, where its folder exists; a file that cannot be written to is told once.
    """
    if not path.parent.is_dir():
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as exc:
        logger.warning("The log cannot be written to %s: %s", path.name, exc.strerror)
        return
    handler.addFilter(JobFilter())
    handler.setFormatter(TextFormatter())
    logger.addHandler(handler)
