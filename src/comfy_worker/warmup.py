"""
The job that runs before the first one: models are loaded and code is compiled before somebody waits for it.

It takes the very way of any job; what it makes is thrown away.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_worker.deadline import Deadline
from comfy_worker.errors import WorkerError
from comfy_worker.fetch import Fetcher
from comfy_worker.job import Job, Observer, ignore
from comfy_worker.parse import Rules, parse
from comfy_worker.pool import Ticket

logger = logging.getLogger(__name__)

JOB_ID = "warm-up"
NO_LIMIT = 1 << 62
MAX_BYTES = 64 << 20
FETCH_S = 60.0


class Unusable(Exception):
    """
    WARMUP_WORKFLOW leads to nothing that could be run; the text says why.
    """


def warm_up(given: str, submit: Callable[[Job, Observer], Ticket], rules: Rules, fetcher: Fetcher) -> bool:
    """
    Run the workflow of WARMUP_WORKFLOW and wait for its end; return whether it succeeded. Failures are logged.
    """
    try:
        job = parse(JOB_ID, _input(given, fetcher), replace(rules, bucket=None, limit_bytes=NO_LIMIT))
        result = _finished(submit(job, ignore))
    except (Unusable, WorkerError) as exc:
        logger.error("The warm-up failed: %s", exc)
        return False
    logger.info("The warm-up made %d outputs in %.1f s.", len(result.outputs), result.timings.total / 1000)
    return True


def _finished(ticket: Ticket) -> Any:
    try:
        return ticket.future.result()
    except BaseException:
        ticket.cancel()  # told to stop meanwhile: nobody waits for it any more
        raise


def _input(given: str, fetcher: Fetcher) -> Mapping[str, Any]:
    """
    Return `input` of the job that `given` stands for.
    """
    try:
        found = json.loads(_text(given, fetcher))
    except ValueError as exc:
        raise Unusable(f"WARMUP_WORKFLOW does not lead to JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise Unusable("WARMUP_WORKFLOW must lead to an object: a workflow in API format, or a job.")
    inner = found.get("input")
    return inner if isinstance(inner, dict) and "class_type" not in found else {"workflow": found}


def _text(given: str, fetcher: Fetcher) -> str:
    if given.lstrip().startswith("{"):
        return given
    if given.lower().startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory(prefix="comfy-worker-") as folder:
            target = Path(folder) / "warmup.json"
            fetcher.fetch(given, target, Deadline(FETCH_S), field="WARMUP_WORKFLOW", max_bytes=MAX_BYTES)
            return target.read_text(encoding="utf-8")
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except OSError as exc:
        raise Unusable(f"WARMUP_WORKFLOW cannot be read: {exc.strerror or 'no such file'}.") from exc
    except (UnicodeDecodeError, RuntimeError) as exc:
        raise Unusable("WARMUP_WORKFLOW does not lead to a text file.") from exc
