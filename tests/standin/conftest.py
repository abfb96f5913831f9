"""
An engine with a gate, a client of it, and both ended after each test.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_worker.standin.thread import EngineThread

from .client import Client
from .gate import Gate


@pytest.fixture
def gate() -> Iterator[Gate]:
    """
    A gate that is open at the end, whatever the test did.
    """
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def engine(tmp_path: Path, gate: Gate) -> Iterator[EngineThread]:
    """
    A running engine that knows the nodes of the gate.
    """
    with EngineThread(tmp_path, gate.nodes(), seed=0) as engine:
        yield engine
        gate.open.set()


@pytest.fixture
def client(engine: EngineThread) -> Iterator[Client]:
    """
    A client of that engine.
    """
    with Client(engine.url) as client:
        yield client
