"""
The ways into the worker that the bench compares: the pipeline itself, RunPod's SDK, and each HTTP face.

Every way runs the same `BenchJob` in its own dialect and returns how many files came back, so that a way that loses one is
seen.
"""

import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import requests

from comfy_worker import settings, wiring
from comfy_worker.bench.desk import Plane
from comfy_worker.bench.graphs import BenchJob, as_base64
from comfy_worker.bench.process import Program
from comfy_worker.comfy.launch import Launch, free_port
from comfy_worker.job import ignore
from comfy_worker.parse import Rules, parse

WAIT_S = 600.0
START_S = 60.0
LIMIT_BYTES = 10**9
GROUPS = ("images", "videos", "audio", "files")


class Way(Protocol):
    """
    One way to have a job run.
    """

    name: str

    def run(self, job: BenchJob) -> int:
        """
        Run a job; return how many files came of it.
        """

    def close(self) -> None:
        """
        End what was started for it.
        """


class Pipeline:
    """
    The worker in this process: parse, pool, pipeline. As behind `handler.py`, which has its ComfyUI to itself: it need not
    ask whether somebody else queued the same prompt, as the other ways do here.
    """

    name = "pipeline"

    def __init__(self, launch: Launch, environ: Mapping[str, str]) -> None:
        config = settings.load(environ)
        scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-bench-"))
        self.worker = wiring.build(config, replace(launch, command=()), scratch)
        self.rules = Rules(limit_bytes=LIMIT_BYTES, bucket=wiring.bucket_of(config))

    def run(self, job: BenchJob) -> int:
        """
        Run a job; return how many files came of it.
        """
        parsed = parse(uuid.uuid4().hex, as_runpod(job), self.rules)
        result = self.worker.pool.submit(parsed, ignore).future.result(WAIT_S)
        return len(result.outputs)

    def close(self) -> None:
        """
        End the worker.
        """
        self.worker.close()


class SdkLoop:
    """
    `handler.py`: a job of RunPod's queue, taken and answered by the runpod SDK.
    """

    name = "runpod SDK"

    def __init__(self, plane: Plane, environ: Mapping[str, str]) -> None:
        code = "import os, sys; from comfy_worker import entry; sys.exit(entry.serve_runpod(os.environ))"
        self.plane = plane
        self.program = Program((sys.executable, "-c", code), {**plane.environ(), **environ})

    def run(self, job: BenchJob) -> int:
        """
        Run a job; return how many files came of it.
        """
        body = self.plane.run(uuid.uuid4().hex, as_runpod(job), WAIT_S)
        return _counted(body, body.get("output"))

    def close(self) -> None:
        """
        End the worker.
        """
        self.program.close()


class Face:
    """
    `comfy-worker serve --face ...` and a client that keeps its connection.
    """

    def __init__(self, face: str, environ: Mapping[str, str]) -> None:
        self.name = f"{face} face"
        port = free_port()
        command = ("-m", "comfy_worker", "serve", "--face", face, "--host", "127.0.0.1", "--port", str(port))
        self.program = Program((sys.executable, *command), environ)
        self.url = f"http://127.0.0.1:{port}"
        self._local = threading.local()
        self.has_store = "BUCKET_ENDPOINT_URL" in environ
        self._post = {"runpod": self._runpod, "salad": self._salad, "vast": self._vast}[face]
        self._wait()

    @property
    def session(self) -> requests.Session:
        """
        The connections of this thread.
        """
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.trust_env = False
        found: requests.Session = self._local.session
        return found

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.program.popen.poll() is None:
            try:
                if self.session.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.05)
        said = self.program.log[-2000:]
        self.close()
        raise RuntimeError(f"the {self.name} did not start: {said}")

    def run(self, job: BenchJob) -> int:
        """
        Run a job; return how many files came of it.
        """
        return self._post(job)

    def _runpod(self, job: BenchJob) -> int:
        wait = {"wait": str(int(min(WAIT_S, 300) * 1000))}
        body = self._sent("/runsync", {"input": as_runpod(job)}, wait)
        return _counted(body, body.get("output"))

    def _salad(self, job: BenchJob) -> int:
        asked: dict[str, Any] = {"prompt": job.placed(_as_text)}
        if self.has_store:
            asked["s3"] = {"bucket": "bench", "prefix": "salad/", "async": False}
        return len(self._sent("/prompt", asked)["images"])

    def _vast(self, job: BenchJob) -> int:
        asked = {
            "request_id": uuid.uuid4().hex,
            "workflow_json": job.placed(_as_text),
            "return_outputs_as_base64": not self.has_store,
        }
        body = self._sent("/generate/sync", {"input": asked})
        wanted = "url" if self.has_store else "data"
        return sum(1 for item in body["output"] if wanted in item)

    def _sent(self, path: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None) -> Any:
        reply = self.session.post(self.url + path, json=body, params=params, timeout=WAIT_S)
        if reply.status_code != 200:
            raise RuntimeError(f"the {self.name} answered {reply.status_code}: {reply.text[:500]}")
        return reply.json()

    def close(self) -> None:
        """
        End the worker.
        """
        self.program.close()


def as_runpod(job: BenchJob) -> dict[str, Any]:
    """
    Return a job as RunPod's `input`.
    """
    files = [
        {"name": name, "url": content}
        if isinstance(content, str)
        else {"name": name, "data": as_base64(content)}
        for name, content in job.files.items()
    ]
    return {"workflow": job.workflow, **({"files": files} if files else {})}


def _as_text(content: str | bytes) -> str:
    return content if isinstance(content, str) else "data:image/png;base64," + as_base64(content)


def _counted(body: Mapping[str, Any], output: Any) -> int:
    if not isinstance(output, dict) or body.get("error") or output.get("error"):
        raise RuntimeError(f"a job failed: {str(body)[:500]}")
    return sum(len(output.get(group, ())) for group in GROUPS)
