"""
ComfyUI over HTTP: one short method per route.

No rule about prompts lives here (see `progress`, `watch`, `cancel`); only what a route takes and gives.
Source of all routes and replies: ComfyUI 0.27.0 and 0.3.64 as observed.
"""

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import orjson
import requests

from comfy_worker.comfy.http_errors import translated
from comfy_worker.errors import ComfyUnavailable, InputUnavailable

CHUNK = 1 << 20

Whereabouts = Literal["queued", "running", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class Reply:
    """
    Status and body of a reply that is not an error by itself.
    """

    status: int
    body: bytes

    def json(self) -> Any:
        """
        Return the body as JSON, or None if it is not. A NaN becomes None, as ComfyUI 0.27.0 may send one; half surrogate
        pairs are kept, for they name files whose names are no UTF-8.
        """
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(self.body)
        with suppress(ValueError, RecursionError):
            return json.loads(self.body, parse_constant=lambda _: None)
        return None


class Client:
    """
    One ComfyUI at `url`. Thread-safe: each thread has its own keep-alive session.

    Every method raises `ComfyUnavailable` when there is no answer within `timeout_s`, and `NotListening` (one of those)
    when nothing was sent.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, probe_timeout_s: float = 5.0) -> None:
        self.url = url.rstrip("/")
        self.address = urlsplit(url).netloc
        self._timeout_s = timeout_s
        self._probe_timeout_s = probe_timeout_s
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._has_jobs_api: bool | None = None

    def close(self) -> None:
        """
        Close the sessions of all threads.
        """
        for session in self._sessions:
            session.close()

    def queue(self, body: Mapping[str, Any]) -> Reply:
        """
        POST /prompt with `{"prompt", "prompt_id", "client_id", "extra_data"}`; every status is the caller's to judge.
        """
        return self._send(
            "POST", "/prompt", data=orjson.dumps(body), headers={"Content-Type": "application/json"}
        )

    def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """
        Return the history entry of a prompt, None before its end and for unknown ids.
        """
        found = self._json("GET", f"/history/{prompt_id}").get(prompt_id)
        return found if isinstance(found, dict) else None

    def whereabouts(self, prompt_id: str) -> Whereabouts:
        """
        Return where a prompt is now; `unknown` must be seen twice before it means anything.

        One call of the Jobs API where there is one (0.27), else /queue and then /history: a prompt only moves from
        pending to running to history, so this order cannot overlook it.
        """
        if self._has_jobs_api is not False:
            reply = self._send("GET", f"/api/jobs/{prompt_id}", timeout_s=self._probe_timeout_s)
            state = self._of_jobs_api(reply)
            if state is not None:
                return state
        running, pending = self.queued()
        if prompt_id in running:
            return "running"
        if prompt_id in pending:
            return "queued"
        return "ended" if self.history(prompt_id) else "unknown"

    def _of_jobs_api(self, reply: Reply) -> Whereabouts | None:
        body = reply.json()
        if not isinstance(body, dict):
            # An empty 404 is an older ComfyUI without the route; a 500 somebody's odd extra_pnginfo: ask the old way.
            if reply.status == 404:
                self._has_jobs_api = False
            return None
        self._has_jobs_api = True
        if reply.status == 404:
            return "unknown"
        states: dict[Any, Whereabouts] = {"pending": "queued", "in_progress": "running"}
        return states.get(body.get("status"), "ended") if reply.status == 200 else None

    def queued(self) -> tuple[frozenset[str], frozenset[str]]:
        """
        Return the ids of the running and of the pending prompts.
        """
        body = self._json("GET", "/queue", timeout_s=self._probe_timeout_s)
        return _ids(body.get("queue_running")), _ids(body.get("queue_pending"))

    def cancel(self, prompt_id: str) -> bool | None:
        """
        Ask the Jobs API to cancel; True when it acted, False when there was nothing to act on, None without that API.
        """
        if self._has_jobs_api is False:
            return None
        body = self._send("POST", f"/api/jobs/{prompt_id}/cancel", timeout_s=self._probe_timeout_s).json()
        return bool(body.get("cancelled")) if isinstance(body, dict) else None

    def dequeue(self, prompt_id: str) -> None:
        """
        Remove a pending prompt; a running one and an unknown one are left alone.
        """
        self._post("/queue", {"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """
        Interrupt this prompt if it is the running one; never anybody else's.
        """
        self._post("/interrupt", {"prompt_id": prompt_id})

    def forget(self, prompt_ids: Sequence[str]) -> None:
        """
        Delete the history entries of these prompts.
        """
        self._post("/history", {"delete": list(prompt_ids)})

    def free(self) -> None:
        """
        Unload the models and drop the node cache before the next prompt (`free_memory` alone includes both).
        """
        self._post("/free", {"free_memory": True})

    def system_stats(self) -> Mapping[str, Any]:
        """
        Return `{"system": {...}, "devices": [...]}`.
        """
        return self._json("GET", "/system_stats", timeout_s=self._probe_timeout_s)

    def answers(self) -> bool:
        """
        Return whether ComfyUI answers at all. Where nobody listens yet, that costs next to nothing: ComfyUI needs the processor
        for its boot.
        """
        place = urlsplit(self.url)
        port = place.port or (443 if place.scheme == "https" else 80)
        try:
            socket.create_connection((place.hostname or "", port), self._probe_timeout_s).close()
        except (OSError, UnicodeError):  # a host that cannot be a name is nobody
            return False
        try:
            return self._send("GET", "/prompt", timeout_s=self._probe_timeout_s).status == 200
        except ComfyUnavailable:
            return False

    def object_info(self, class_type: str | None = None) -> Mapping[str, Any]:
        """
        Return the entry of one class (empty when ComfyUI has none), or all of them by class.
        """
        if class_type is None:
            return self._json("GET", "/object_info")
        found = self._json("GET", f"/object_info/{quote(class_type, safe='')}").get(class_type)
        return found if isinstance(found, dict) else {}

    def model_types(self) -> list[str]:
        """
        Return the categories of models.
        """
        body = self._send("GET", "/models", timeout_s=self._probe_timeout_s).json()
        return [str(name) for name in body] if isinstance(body, list) else []

    def models(self, category: str) -> list[str]:
        """
        Return the names of a category's files, none for a category that ComfyUI does not know.
        """
        body = self._send("GET", f"/models/{quote(category, safe='')}").json()
        return [str(name) for name in body] if isinstance(body, list) else []

    def upload(self, name: str, source: Path, *, overwrite: bool = False) -> str:
        """
        Put a file into ComfyUI's input folder; return the name a node must use.

        The folder goes apart from the name: within it, one that does not exist yet is a 500 (0.27.0).

        Raises:
            InputUnavailable: ComfyUI refused the file.
        """
        folder, _, last = name.rpartition("/")
        fields = {"subfolder": folder, "overwrite": str(overwrite).lower()}
        with source.open("rb") as file:
            # ComfyUI appends " (1)" when a different file has the name: its answer wins.
            part = {"image": (last, file, "application/octet-stream")}
            reply = self._send("POST", "/upload/image", files=part, data=fields)
        body = reply.json()
        if reply.status != 200 or not isinstance(body, dict) or not isinstance(body.get("name"), str):
            hint = " (larger than its --max-upload-size)" if reply.status == 413 else ""
            raise InputUnavailable(f"Error uploading {name}: ComfyUI answered {reply.status}{hint}")
        return f"{body['subfolder']}/{body['name']}" if body.get("subfolder") else str(body["name"])

    def view(self, filename: str, subfolder: str, type_: str, target: Path) -> bool:
        """
        Stream an output file to `target`; False when ComfyUI no longer has it.
        """
        asked = {"filename": filename, "subfolder": subfolder, "type": type_}
        # A name that is no UTF-8 cannot be had by this route, which is not a fault of ours.
        params = {name: value.encode(errors="surrogatepass") for name, value in asked.items()}
        url = f"{self.url}/view"
        with (
            translated(self.address),
            self._session().get(
                url, params=params, stream=True, timeout=60.0, allow_redirects=False
            ) as reply,
            target.open("wb") as file,
        ):
            if reply.status_code != 200:
                return False
            for chunk in reply.iter_content(CHUNK):
                file.write(chunk)
        return True

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        self._send("POST", path, data=orjson.dumps(body), timeout_s=self._probe_timeout_s)

    def _json(self, method: str, path: str, *, timeout_s: float | None = None) -> Mapping[str, Any]:
        reply = self._send(method, path, timeout_s=timeout_s)
        body = reply.json()
        if reply.status != 200 or not isinstance(body, dict):
            raise ComfyUnavailable(f"HTTP communication error with ComfyUI: {path} answered {reply.status}")
        return body

    def _send(self, method: str, path: str, *, timeout_s: float | None = None, **options: Any) -> Reply:
        with translated(self.address):
            reply = self._session().request(
                method,
                self.url + path,
                timeout=timeout_s or self._timeout_s,
                allow_redirects=False,
                **options,
            )
            return Reply(reply.status_code, reply.content)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False  # a proxy of the environment is not meant for loopback
            self._local.session = session
            self._sessions.append(session)
        return session


def _ids(items: Any) -> frozenset[str]:
    rows = items if isinstance(items, list) else []
    return frozenset(str(row[1]) for row in rows if isinstance(row, list) and len(row) > 1)
