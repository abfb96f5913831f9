"""
Progress to RunPod's `/status`: one ordered sender per job, the latest value wins, none after the result.

The SDK's own `progress_update` starts a thread per call, and its posts overtake the result (SDK 1.12.0).
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import requests

from comfy_worker.job import Event

logger = logging.getLogger(__name__)

Post = Callable[[Mapping[str, Any]], None]

CONNECT_TIMEOUT_S = 1.0
POST_TIMEOUT_S = 2.0
MOST_JOBS = 64
"""Connections kept open: as many as jobs may run at once."""


def to_progress(event: Event) -> dict[str, Any]:
    """
    Return what `/status` shows as `output` while the job runs.
    """
    return {
        "type": "progress",
        "stage": event.kind,
        "percent": round(event.percent, 1),
        "node": event.node_id,
        "title": event.title or event.class_type,
        "value": event.value,
        "max": event.max,
    }


class Progress:
    """
    The progress of one job. Calling it returns at once; `close` waits for the post in flight, if there is one.
    """

    def __init__(self, post: Post, *, interval_s: float = 1.0) -> None:
        self._post = post
        self._interval_s = interval_s
        self._bell = threading.Lock()
        self._latest: Event | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """
        Send `event` within the interval, unless a later one replaces it.
        """
        with self._bell:
            if self._closed.is_set():
                return
            self._latest = event
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="runpod-progress", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """
        Start no further post. Returns at once.
        """
        with self._bell:
            self._closed.set()

    def close(self) -> None:
        """
        Send nothing any more; when this returns, nothing is in flight (bounded by the post's own timeouts).
        """
        self.stop()
        if self._thread is not None:
            self._thread.join(CONNECT_TIMEOUT_S + POST_TIMEOUT_S + 1.0)

    def _send(self) -> None:
        # The wait comes first: a job that is over within the interval needs no progress.
        while not self._closed.wait(self._interval_s):
            with self._bell:
                event, self._latest = self._latest, None
            if event is not None:
                self._post(to_progress(event))


class Poster:
    """
    Posts progress of one worker to the job API, over connections that are kept open. A failing post is logged once per
    job and fails nothing.
    """

    def __init__(self, url: str, key: str | None, pod_id: str | None) -> None:
        self._url = url.replace("$RUNPOD_POD_ID", pod_id or "unknown")
        self._key = key
        self._session = requests.Session()
        self._session.trust_env = False
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=MOST_JOBS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def close(self) -> None:
        """
        Close the connections.
        """
        self._session.close()

    def of(self, job_id: str) -> Post:
        """
        Return the function that posts for one job.

        Source: the wire format of SDK 1.12.0, including its content type.
        """
        url = self._url.replace("$ID", job_id)
        url += ("&" if "?" in url else "?") + "isStream=false"
        headers: dict[str, str | bytes | None] = {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-ID": job_id.encode(errors="replace"),
            **({"Authorization": self._key} if self._key else {}),
        }
        failed = False

        def post(value: Mapping[str, Any]) -> None:
            nonlocal failed
            try:
                self._session.post(
                    url,
                    data=orjson.dumps({"status": "IN_PROGRESS", "output": value}),
                    headers=headers,
                    timeout=(CONNECT_TIMEOUT_S, POST_TIMEOUT_S),
                    allow_redirects=False,
                ).raise_for_status()
            except (requests.RequestException, ValueError, TypeError) as exc:
                # The last two: an id or a title that no header and no JSON can hold.
                if not failed:
                    logger.warning("Progress could not be sent: %s", type(exc).__name__)
                failed = True

        return post
