"""
The OpenAPI document of RunPod's API, and requests made from it by schemathesis: right ones and wrong ones.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from conftest import WorkerFactory, launch_of
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from support.served import Served

from comfy_worker.faces import runpod_http
from comfy_worker.fetch_guard import Guard
from comfy_worker.standin.thread import EngineThread

EXAMPLES = 10


@pytest.fixture
def nowhere(engine: EngineThread, make_worker: WorkerFactory) -> Iterator[Served]:
    """
    Serve RunPod's API with a guard that knows no address, so that no webhook of a made-up request leaves.
    """
    worker = make_worker(launch_of(engine), shutdown_grace_s=0.2, worker_concurrency=2)
    served = Served(runpod_http.app_of(worker, Guard(resolve=lambda _host, _port: [])))
    yield served
    served.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_document_holds_for_generated_requests(nowhere: Served, mode: GenerationMode) -> None:
    """No request may lead to a 5xx, a hang, or a status, type or shape that the document does not name."""
    document = schemathesis.openapi.from_url(f"{nowhere.url}/openapi.json")
    tried = 0
    # What follows a job is a stream, which has no end while the job has none.
    for found in document.exclude(path_regex="/events$").get_all_operations():
        operation: Any = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(timeout=20)

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with it
            holds()

    assert tried > EXAMPLES
