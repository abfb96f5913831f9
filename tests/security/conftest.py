"""
A worker behind each face, with private addresses closed as in production.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from support.every_face import FACES, HTTP_FACES, Entrance, Face

from comfy_worker import entry, wiring
from comfy_worker.settings import Settings
from comfy_worker.standin.thread import EngineThread

OpenEntrance = Callable[..., Entrance]
USUAL: dict[str, Any] = {"shutdown_grace_s": 0.2, "job_timeout_s": 30.0}


@pytest.fixture
def open_entrance(engine: EngineThread, make_worker: WorkerFactory) -> Iterator[OpenEntrance]:
    """
    Open faces over workers of their own, `open_entrance(face, allow_private_urls=True, ...)`, until the test ends.
    """
    opened: list[Entrance] = []

    def open_(face: Face, **fields: Any) -> Entrance:
        opened.append(Entrance(face, make_worker(launch_of(engine), **{**USUAL, **fields})))
        return opened[-1]

    yield open_
    for entrance in opened:
        entrance.close()


@pytest.fixture(scope="session")
def shared_entrance(engine: EngineThread) -> Iterator[Callable[[Face], Entrance]]:
    """
    Each face once, with the settings of an operator who set none.
    """
    opened: dict[str, Entrance] = {}

    def shared(face: Face) -> Entrance:
        if face.name not in opened:
            config, launch = replace(Settings(cancel_grace_s=10.0), **USUAL), launch_of(engine)
            scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-test-"))
            worker = wiring.build(config, launch, scratch, entry.process_of(config, launch)).start()
            opened[face.name] = Entrance(face, worker)
        return opened[face.name]

    yield shared
    for entrance in opened.values():
        entrance.close()
        entrance.worker.close(drain_s=5.0)


@pytest.fixture(params=FACES, ids=lambda face: face.name)
def entrance(request: pytest.FixtureRequest, shared_entrance: Callable[[Face], Entrance]) -> Entrance:
    """
    Every face.
    """
    return shared_entrance(request.param)


@pytest.fixture(params=HTTP_FACES, ids=lambda face: face.name)
def http_entrance(request: pytest.FixtureRequest, shared_entrance: Callable[[Face], Entrance]) -> Entrance:
    """
    Every face that is an HTTP server.
    """
    return shared_entrance(request.param)
