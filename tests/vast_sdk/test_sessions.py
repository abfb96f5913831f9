"""
Sessions opened on purpose: made for signed grants with a plausible cost only.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from support.vast_autoscaler import Autoscaler, Signer
from support.vast_model_server import ModelServer
from support.vast_pyworker import PYTHON, PyWorker, act, free_port
from support.worker_process import ROOT
from vast_sdk.conftest import PyWorkerFactory

from comfy_worker.pyworker import signature

CLIENT = ROOT / "tests" / "vast_sdk" / "official_client.py"


@pytest.fixture
def worker(make_pyworker: PyWorkerFactory) -> PyWorker:
    """
    A loaded PyWorker with room for two sessions, whose hooks may call one host.
    """
    environ = {"VAST_SESSIONS": "2", "VAST_SESSION_HOSTS": "127.0.0.1", "WORKER_HTTP_PORT": str(free_port())}
    made: PyWorker = make_pyworker(**environ).loaded()
    made.plain_url = f"http://127.0.0.1:{environ['WORKER_HTTP_PORT']}"  # type: ignore[attr-defined]
    return made


def create(worker: PyWorker, payload: dict[str, Any] | None = None, **over: Any) -> requests.Response:
    """
    Ask for a session.
    """
    body = worker.envelope({"lifetime": 30, **(payload or {})}, **over)
    return worker.send("/session/create", {name: body[name] for name in ("auth_data", "payload")})


def test_session_serves_and_ends(worker: PyWorker, autoscaler: Autoscaler, model_server: ModelServer) -> None:
    """
    Its cost counts while it is open, requests name it, and it ends by the plain door too.
    """
    envelope = worker.envelope({"lifetime": 30})
    opened = worker.send("/session/create", envelope)
    session = opened.json()["session_id"]
    autoscaler.wait(lambda: autoscaler.last["cur_load"] == 100)

    served = worker.send("/generate/sync", {**worker.envelope(act()), "session_id": session})
    ended = requests.post(
        f"{worker.plain_url}/session/end",  # type: ignore[attr-defined]
        json={"session_id": session, "session_auth": envelope["auth_data"]},
        timeout=10,
    )

    assert (opened.status_code, served.status_code, ended.status_code) == (201, 200, 200)
    autoscaler.wait(lambda: autoscaler.last["cur_load"] == 0)


def test_only_so_many_sessions_are_open(worker: PyWorker) -> None:
    """
    One more than VAST_SESSIONS is 429.
    """
    assert [create(worker).status_code for _ in range(3)] == [201, 201, 429]


@pytest.mark.parametrize(
    ("payload", "over", "status"),
    [
        ({}, {"signature": "garbage"}, 401),
        ({}, {"url": "http://203.0.113.1:1"}, 401),
        ({}, {"cost": 999_999}, 422),
        ({}, {"cost": "many"}, 422),
        ({}, {"cost": float("nan")}, 422),
        ({}, {"reqnum": "first"}, 422),
        ({"lifetime": -1}, {}, 422),
        ({"on_close_route": "http://169.254.169.254/latest"}, {}, 422),
        ({"on_close_route": "file:///etc/passwd"}, {}, 422),
    ],
)
def test_vast_33_session_is_not_for_everybody(
    worker: PyWorker, autoscaler: Autoscaler, payload: dict[str, Any], over: dict[str, Any], status: int
) -> None:
    """
    Without the router's signature, with an absurd cost or a hook to anywhere there is no session, and no load.
    """
    reply = create(worker, payload, **over)

    assert reply.status_code == status
    assert create(worker).status_code == 201
    autoscaler.wait(lambda: autoscaler.last["cur_load"] == 100)


def test_hook_calls_a_listed_host(worker: PyWorker, model_server: ModelServer) -> None:
    """
    A session's end is told to a host of the list.
    """
    hook = {"on_close_route": f"{model_server.url}/result", "on_close_payload": {"mine": 1}}
    envelope = worker.envelope({"lifetime": 30, **hook})
    session = worker.send("/session/create", envelope).json()["session_id"]

    worker.send("/session/end", {"session_id": session, "session_auth": envelope["auth_data"]})

    assert model_server.seen[-1][:2] == ("/result", {"mine": 1, "session_id": session})


def test_official_client_uses_a_session(worker: PyWorker, autoscaler: Autoscaler) -> None:
    """
    The SDK's own client opens one, sends a request in it and closes it.
    """
    asked = json.dumps({"route": "/generate/sync", "payload": act(), "session": True})

    ran = subprocess.run(
        [str(PYTHON), str(CLIENT), autoscaler.url, asked],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert json.loads(ran.stdout)["response"]["status"] == "completed", ran.stderr


def test_signature_holds_for_its_own_message_only(vast_python: Path) -> None:
    """
    What the key signed is accepted, of each generation; other texts, other keys and garbage are not.
    """
    signer, other = Signer(), Signer()
    grant = {"cost": 100, "endpoint": "e", "reqnum": 7, "request_idx": 1, "url": "http://203.0.113.9:1"}
    texts = [signature.message(name, grant) for name in signature.FIELDS]
    garbage: list[Any] = ["", "garbage", "ä", None, 5]
    cases = [(signer.public, text, signer.sign(text)) for text in texts]
    cases += [(signer.public, "another text", signer.sign(texts[0]))]
    cases += [(other.public, texts[0], signer.sign(texts[0]))]
    cases += [(signer.public, texts[0], each) for each in garbage]
    program = (
        f"import sys, json; sys.path.insert(0, {str(ROOT / 'src')!r});"
        "from comfy_worker.pyworker.signature import holds;"
        "print([holds(*case) for case in json.load(sys.stdin)])"
    )

    ran = subprocess.run(
        [str(PYTHON), "-c", program], input=json.dumps(cases), capture_output=True, text=True, check=False
    )

    assert ran.stdout.strip() == str([True] * 3 + [False] * 7), ran.stderr
