"""
The official client of Vast, by way of the router to the model server and back.
"""

import json
import subprocess
from typing import Any

import pytest
from support.vast_autoscaler import Autoscaler
from support.vast_pyworker import PYTHON, act
from support.worker_process import ROOT
from vast_sdk.conftest import PyWorkerFactory, Stack

CLIENT = ROOT / "tests" / "vast_sdk" / "official_client.py"


def ask(autoscaler: Autoscaler, route: str, payload: Any, **options: Any) -> dict[str, Any]:
    """
    Send one request with the official client and return what its caller gets.
    """
    asked = json.dumps({"route": route, "payload": payload, **options})
    ran = subprocess.run(
        [str(PYTHON), str(CLIENT), autoscaler.url, asked],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_official_client_gets_its_result(shared: Stack) -> None:
    """
    The client finds the worker by the router and returns the body as it is.
    """
    answer = ask(shared.autoscaler, "/generate/sync", act())

    assert (answer["ok"], answer["status"], answer["response"]["status"]) == (True, 200, "completed")


def test_official_client_streams(shared: Stack) -> None:
    """
    Events come as JSON, heartbeats do no harm.
    """
    answer = ask(shared.autoscaler, "/generate/stream", act(pings=2), stream=True)

    assert [event["status"] for event in answer["response"]] == ["queued", "final_result"]


@pytest.mark.parametrize("status", [409, 422, 499])
def test_official_client_does_not_repeat_what_will_fail_again(shared: Stack, status: int) -> None:
    """
    A deterministic failure comes back at once with its reason; the job ran once.
    """
    payload = act(status=status, message="Node 4: no such checkpoint")
    before = len(shared.model_server.began)

    answer = ask(shared.autoscaler, "/generate/sync", payload)

    assert (answer["ok"], answer["status"]) == (False, status)
    assert answer["response"]["message"] == "Node 4: no such checkpoint"
    assert len(shared.model_server.began) == before + 1


def test_official_client_comes_again_after_503(shared: Stack) -> None:
    """
    A transient failure is repeated by the client until it is over.
    """
    shared.model_server.act = {"status": 503}
    before = len(shared.model_server.began)

    def recover() -> bool:
        if len(shared.model_server.began) > before:
            shared.model_server.act = {}
        return not shared.model_server.act

    asked = json.dumps({"route": "/generate/sync", "payload": act()})
    client = subprocess.Popen(
        [str(PYTHON), str(CLIENT), shared.autoscaler.url, asked], stdout=subprocess.PIPE, text=True
    )
    shared.autoscaler.wait(recover)
    text, _ = client.communicate(timeout=60)

    assert json.loads(text)["status"] == 200
    assert len(shared.model_server.began) == before + 2


def test_official_client_waits_for_a_worker(make_pyworker: PyWorkerFactory, autoscaler: Autoscaler) -> None:
    """
    Asked before there is one, it is served by the first that is loaded.
    """
    worker = make_pyworker()

    answer = ask(autoscaler, "/generate/sync", act())

    assert answer["status"] == 200
    assert len({body["endpoint"] for body in autoscaler.routed}) == 1
    assert worker.text
