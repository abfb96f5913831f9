"""
Fixtures for tests of the Salad face: a server over a worker, a web server beside it, an S3 server with a bucket.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import launch_of
from pydantic import SecretStr
from storage.sigv4 import SigV4, served

from comfy_worker import entry, wiring
from comfy_worker.comfy.launch import Launch
from comfy_worker.faces import salad
from comfy_worker.settings import Settings
from comfy_worker.standin.thread import EngineThread
from support.http_desk import HttpDesk
from support.served import Served

ServeSalad = Callable[..., Served]
KEY, SECRET, BUCKET = "AKIASALADTESTS", "sEcReT/of+salad=tests", "outputs"
WEBHOOK_SECRET = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def serving(launch: Launch, folder: Path, **fields: Any) -> Served:
    """
    Serve the face over a worker of its own, whose files lie in `folder`; closing it ends the worker too.
    """
    quick = {"comfy_restart_delay": 0.1, "websocket_reconnect_delay_s": 0.1, "cancel_grace_s": 10.0}
    usual = {
        "worker_concurrency": 4,
        "cache_dir": folder / "cache",
        "model_dir": folder / "models",
        "allow_private_urls": True,
        "shutdown_grace_s": 0.5,
        "workflow_dir": folder / "workflows",
        "webhook_secret": SecretStr(WEBHOOK_SECRET),
    }
    config = replace(Settings(), **{**quick, **usual, **fields})  # type: ignore[arg-type]
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-test-"))
    worker = wiring.build(config, launch, scratch, entry.process_of(config, launch)).start()
    served = Served(salad.app_of(worker))
    served.worker = worker  # type: ignore[attr-defined]
    return served


@pytest.fixture
def serve_salad(engine: EngineThread, tmp_path: Path) -> Iterator[ServeSalad]:
    """
    Serve the Salad face, `serve_salad(launch=..., max_queue_depth=3, ...)`, until the test ends.
    """
    running: list[Served] = []

    def serve(launch: Launch | None = None, **fields: Any) -> Served:
        running.append(serving(launch or launch_of(engine), tmp_path, **fields))
        return running[-1]

    yield serve
    for server in running:
        server.close()


@pytest.fixture
def desk() -> Iterator[HttpDesk]:
    """
    A web server on loopback that keeps what it is sent and serves what it is told to.
    """
    with HttpDesk() as running:
        yield running


@dataclass
class S3Server:
    """
    An S3 server that checks signatures, with one bucket.
    """

    url: str
    layer: SigV4

    def settings(self) -> dict[str, Any]:
        """
        Return the settings of a worker with keys for it.
        """
        return {
            "aws_region": "us-east-1",
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SecretStr(SECRET),
            "aws_endpoint_url": self.url,
        }

    def client(self) -> Any:
        """
        Return a client with the right keys.
        """
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return closing(boto3.client("s3", endpoint_url=self.url, **keys))

    def put(self, key: str, body: bytes) -> str:
        """
        Store an object; return its s3 URL.
        """
        with self.client() as client:
            client.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> tuple[bytes, str]:
        """
        Return an object and its content type.
        """
        with self.client() as client:
            found = client.get_object(Bucket=BUCKET, Key=key)
            return found["Body"].read(), found["ContentType"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """
    One S3 server for all tests.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app

    layer = SigV4(DomainDispatcherApplication(create_backend_app), {KEY: SECRET})
    layer.checksums = True  # the tests' own client sends them
    with served(layer) as url:
        server = S3Server(url, layer)
        with server.client() as client:
            client.create_bucket(Bucket=BUCKET)
        yield server
