"""
A PyWorker as a process of its own, in the Python that has the `vastai` SDK, and how to call it.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

import requests

from comfy_worker import __version__
from comfy_worker.pyworker import benchmark
from support.vast_autoscaler import Autoscaler
from support.worker_process import ROOT, WorkerProcess

GIVEN = os.environ.get("VAST_PYTHON")  # before the environment is cleaned
PYTHON = Path(GIVEN) if GIVEN else ROOT / ".venv-vast" / "bin" / "python"
MASTER_TOKEN = "master-token-of-the-test"
API_KEY = "api-key-of-the-caller"


def free_port() -> int:
    """
    Return a port that nobody listens on.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PyWorker(WorkerProcess):
    """
    A PyWorker and how to call it.
    """

    def __init__(
        self,
        folder: Path,
        autoscaler: Autoscaler,
        environ: dict[str, str],
        *arguments: str,
        program: tuple[str, ...] = ("-u", str(ROOT / "worker.py")),
        python: str = str(PYTHON),
        port: int | None = None,
    ) -> None:
        self.autoscaler = autoscaler
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            folder,
            {
                "CONTAINER_ID": "7",
                "REPORT_ADDR": autoscaler.url,
                "MASTER_TOKEN": MASTER_TOKEN,
                "PUBLIC_IPADDR": "127.0.0.1",
                "WORKER_HOST": "127.0.0.1",
                "WORKER_PORT": str(self.port),
                f"VAST_TCP_PORT_{self.port}": str(self.port),
                "SHUTDOWN_GRACE_S": "20",
                **environ,
            },
            *arguments,
            program=program,
            python=python,
        )

    def loaded(self) -> "PyWorker":
        """
        Wait until the router hears that it is loaded.
        """
        self.autoscaler.wait_loaded()
        return self

    def envelope(self, payload: Any, generation: str = "sdk", **over: Any) -> dict[str, Any]:
        """
        Return a request as the official client sends it; `over` changes the grant after it was signed.
        """
        grant = self.autoscaler.grant(self.url, generation, **over)
        return {"auth_data": grant, "session_id": None, "payload": payload}

    def post(self, route: str, payload: Any, timeout_s: float = 60.0, **over: Any) -> requests.Response:
        """
        Send one signed request.
        """
        return self.send(route, self.envelope(payload, **over), timeout_s)

    def send(self, route: str, body: Any, timeout_s: float = 60.0) -> requests.Response:
        """
        Send any body, with a key in the query as the official client has it.
        """
        text = body if isinstance(body, str) else json.dumps(body)
        return requests.post(
            f"{self.url}{route}",
            params={"api_key": API_KEY},
            data=text,
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"},
            timeout=timeout_s,
        )


def act(**fields: Any) -> dict[str, Any]:
    """
    Return the payload of a job that does as it is told.
    """
    return {"input": {"workflow_json": {}, "act": fields}}


def put_score(folder: Path, score: float) -> None:
    """
    Leave the score of an earlier start, of the default benchmark.
    """
    chosen = benchmark.choose(benchmark.Sources(), None, __version__)
    (folder / "cwd").mkdir(parents=True)
    (folder / "cwd" / ".has_benchmark").write_text(str(score))
    (folder / "cwd" / ".has_benchmark.fingerprint").write_text(chosen.fingerprint)
