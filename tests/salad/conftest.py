"""
The Salad face behind a real server on the built-in engine.
"""

from collections.abc import Iterator

import pytest
from conftest import launch_of
from support.salad_fixtures import desk, s3_server, serve_salad, serving
from support.served import Served

from comfy_worker.standin.thread import EngineThread

__all__ = ["desk", "s3_server", "serve_salad"]


@pytest.fixture(scope="module")
def served(engine: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """
    The face over a worker on the built-in engine, shared by the tests of a file.
    """
    running = serving(launch_of(engine), tmp_path_factory.mktemp("salad"))
    yield running
    running.close()
