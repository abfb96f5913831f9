"""
The report of a worker that could not start, so that the router replaces it instead of waiting for it.

Needs nothing of the SDK, which may be what is broken. The text is the SDK's own; other than the SDK, it ends.
"""

import json
import logging
import threading
import time
import urllib.error
import urllib.request

from comfy_worker.pyworker.config import Identity

logger = logging.getLogger(__name__)

VERSION = "1.1.0"
"""Of the report's form: the SDK's (1.9.1)."""

EVERY_S = 10.0
FOR_S = 600.0
TIMEOUT_S = 10.0


def failed_launch(who: Identity, reason: str, stop: threading.Event, *, for_s: float = FOR_S) -> None:
    """
    Report `reason` every 10 s until `stop` is set, 10 minutes at most.
    """
    until = time.monotonic() + for_s
    while True:
        _post(who, _body(who, f"Worker Server failed to launch: {reason}"))
        if stop.wait(max(0.0, min(EVERY_S, until - time.monotonic()))) or time.monotonic() >= until:
            return


def _post(who: Identity, body: bytes) -> None:
    """
    Send a report to the first address that takes it.
    """
    for address in who.report_addresses:
        request = urllib.request.Request(
            f"{address}/worker_status/", data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except (urllib.error.URLError, OSError, ValueError) as exc:
            logger.debug("%s took no report: %s", address, exc)
    logger.warning("The failed start could not be reported to %s", ", ".join(who.report_addresses))


def _body(who: Identity, error: str) -> bytes:
    zero = dict.fromkeys(
        (
            *(
                "loadtime",
                "cur_load",
                "rej_load",
                "new_load",
                "max_perf",
                "cur_perf",
                "cur_capacity",
                "max_capacity",
            ),
            *("num_requests_working", "num_requests_recieved", "additional_disk_usage", "disk_usage"),
        ),
        0,
    )
    return json.dumps(
        {
            **zero,
            "id": who.container_id,
            "mtoken": who.master_token,
            "version": VERSION,
            "error_msg": error,
            "working_request_idxs": [],
            "url": who.url,
        }
    ).encode()
