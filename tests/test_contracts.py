"""
The RunPod contract: every file of `contracts/runpod` is a job and the reply it must get.

A case: `says` (what must hold), `job`, `reply` (at least these keys, see `support.matching`), `absent` (keys that must
not be there), and where needed `worker` (settings), `faults` (of the built-in engine), `engine` (`"none"`: nothing
listens; `{"checkpoints": [...]}`: an engine with that loader; `"own"`: one that may die), `bucket` (`"takes"` or
`"refuses"`) and `meanwhile` (`"interrupt"`: somebody else interrupts what runs).
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from pydantic import SecretStr
from storage import sigv4
from support.matching import difference

from comfy_worker.comfy import launch
from comfy_worker.comfy.launch import Launch
from comfy_worker.job import Event
from comfy_worker.standin.node import Input, Node, Returned
from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.nodes_testing import TEST_NODES
from comfy_worker.standin.thread import EngineThread

CASES = sorted((Path(__file__).parent / "contracts" / "runpod").glob("*.json"))
KEYS = {"says", "job", "reply", "absent", "worker", "faults", "engine", "bucket", "meanwhile"}
PASSED_ON = {"error", "status"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """
    What a case starts, ended after it.
    """
    with ExitStack() as opened:
        yield opened


def launch_for(case: dict[str, Any], engine: EngineThread, folder: Path, stack: ExitStack) -> Launch:
    """
    Return the ComfyUI of a case.
    """
    wanted = case.get("engine")
    if wanted == "none":
        return Launch("running", f"http://127.0.0.1:{launch.free_port()}")
    if wanted is not None:
        nodes = {**NODES, **TEST_NODES, "CheckpointLoaderSimple": loader(wanted)}
        return launch_of(stack.enter_context(EngineThread(folder, nodes)))
    requests.post(f"{engine.url}/standin/faults", json=case.get("faults", {}), timeout=5)
    stack.callback(requests.post, f"{engine.url}/standin/faults", json={}, timeout=5)
    return launch_of(engine)


def loader(wanted: Any) -> Node:
    """
    Return a checkpoint loader with these checkpoints to choose from.
    """
    names = tuple(wanted["checkpoints"]) if isinstance(wanted, dict) else ()
    return Node(
        "CheckpointLoaderSimple",
        lambda _inputs, _context: Returned((None, None, None)),
        inputs=(Input("ckpt_name", names),),
        outputs=("MODEL", "CLIP", "VAE"),
    )


def settings_for(case: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """
    Return the settings of a case.
    """
    fields = dict(case.get("worker", {}))
    if case.get("bucket"):
        keys = {"contract-key": "contract-secret"} if case["bucket"] == "takes" else {}
        url = stack.enter_context(sigv4.served(sigv4.SigV4(sigv4.sink, keys)))
        fields |= {
            "bucket_endpoint_url": url,
            "bucket_access_key_id": "contract-key",
            "bucket_secret_access_key": SecretStr("contract-secret"),
            "bucket_name": "pictures",
        }
    return fields


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_contract(
    path: Path, engine: EngineThread, make_worker: WorkerFactory, tmp_path: Path, stack: ExitStack
) -> None:
    """The reply to the job of the case must be the one that its file states."""
    case = json.loads(path.read_text())
    assert set(case) <= KEYS
    launch = launch_for(case, engine, tmp_path, stack)
    worker = make_worker(launch, **settings_for(case, stack))
    if case.get("engine") == "own":
        requests.post(f"{launch.url}/standin/faults", json=case["faults"], timeout=5)

    def meanwhile(event: Event) -> None:
        if case.get("meanwhile") == "interrupt" and event.kind == "running" and event.value:
            requests.post(f"{launch.url}/interrupt", json={}, timeout=5)

    reply = asyncio.run(worker.face.handle({"id": f"contract-{path.stem}", **case["job"]}, meanwhile))

    shown = {key: reply.get(key) for key in {*case["reply"], *(PASSED_ON & set(reply))}}
    assert difference(case["reply"], shown) is None
    assert not set(case.get("absent", ())) & set(reply)
    assert ("error" in reply) == ("error_code" in reply)
