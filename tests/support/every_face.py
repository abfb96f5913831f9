"""
Every way into the worker as one table: the same graph through each face, and all that comes back as one text.

A new face is a row of `FACES`.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from comfy_worker.faces import runpod_http, salad, vast
from comfy_worker.wiring import Worker
from support.served import Served

PATIENCE_S = 60.0
Graph = Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """
    What a face answered: `text` has status, headers and body. `failed` by the face's own words.
    """

    failed: bool
    text: str
    status: int
    headers: str = ""


@dataclass(frozen=True)
class Face:
    """
    One face: `body` of a graph, an id and more fields; `path` it is posted to, None for the handler itself.

    `app` makes the application; `hook` is where the body names a webhook, where it may.
    """

    name: str
    body: Callable[[Graph, str, Mapping[str, Any]], dict[str, Any]]
    path: str | None = None
    app: Callable[[Any], Any] | None = None
    hook: str | None = None


def _runpod(graph: Graph, job_id: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": job_id, "input": {"workflow": graph, **more}}


def _runpod_http(graph: Graph, _job_id: str, more: Mapping[str, Any]) -> dict[str, Any]:
    hook = {"webhook": more["webhook"]} if "webhook" in more else {}
    return {"input": {"workflow": graph, **{key: more[key] for key in more if key != "webhook"}}, **hook}


def _salad(graph: Graph, job_id: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": job_id, "prompt": graph, **more}


def _vast(graph: Graph, job_id: str, more: Mapping[str, Any]) -> dict[str, Any]:
    hook = {"webhook": {"url": more["webhook"]}} if "webhook" in more else {}
    rest = {key: more[key] for key in more if key != "webhook"}
    return {"input": {"workflow_json": graph, "request_id": job_id, **rest, **hook}}


FACES = (
    Face("runpod", _runpod),
    Face("runpod-http", _runpod_http, "/runsync", runpod_http.app_of, "webhook"),
    Face("salad", _salad, "/prompt", salad.app_of, "webhook_v2"),
    Face("vast", _vast, "/generate/sync", vast.app_of, "webhook"),
)
HTTP_FACES = tuple(face for face in FACES if face.path is not None)


class Entrance:
    """
    A worker behind one face.
    """

    def __init__(self, face: Face, worker: Worker) -> None:
        self.face = face
        self.worker = worker
        self.served = Served(face.app(worker)) if face.app is not None else None

    def send(self, graph: Graph, job_id: str = "job-1", **more: Any) -> Said:
        """
        Send a job and wait for what comes back.
        """
        body = self.face.body(graph, job_id, more)
        if self.served is None:
            reply = asyncio.run(asyncio.wait_for(self.worker.face.handle(body), PATIENCE_S))
            return Said("error" in reply, json.dumps(reply), 0)
        return self.post(json.dumps(body).encode())

    def post(self, body: bytes) -> Said:
        """
        Post bytes to an HTTP face.
        """
        assert self.served is not None
        reply = requests.post(
            f"{self.served.url}{self.face.path}",
            body,
            headers={"Content-Type": "application/json"},
            timeout=PATIENCE_S,
        )
        failed = reply.status_code >= 400 or '"FAILED"' in reply.text or '"failed"' in reply.text
        return Said(
            failed,
            f"{reply.status_code}\n{reply.headers}\n{reply.text}",
            reply.status_code,
            str(reply.headers),
        )

    def close(self) -> None:
        """
        End the server.
        """
        if self.served is not None:
            self.served.close()
