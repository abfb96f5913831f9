"""
The Vast face behind a real server on the built-in engine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import launch_of
from support.salad_fixtures import desk, s3_server
from support.served import Served
from support.vast_fixtures import ServeVast, serving

from comfy_worker.comfy.launch import Launch
from comfy_worker.standin.thread import EngineThread

__all__ = ["desk", "s3_server"]


@pytest.fixture(scope="module")
def served(engine: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """
    The face over a worker on the built-in engine, shared by the tests of a file.
    """
    running = serving(launch_of(engine), tmp_path_factory.mktemp("vast"))
    yield running
    running.close()


@pytest.fixture
def serve_vast(engine: EngineThread, tmp_path: Path) -> Iterator[ServeVast]:
    """
    Serve the Vast face, `serve_vast(launch=..., max_queue_size=3, ...)`, until the test ends.
    """
    running: list[Served] = []

    def serve(launch: Launch | None = None, **fields: Any) -> Served:
        running.append(serving(launch or launch_of(engine), tmp_path, **fields))
        return running[-1]

    yield serve
    for server in running:
        server.close()
