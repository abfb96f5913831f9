"""
Secrets of the operator and of a job, on every face: none comes out in a reply, an error, an event, a webhook, or the log.

The map of every place and every way to end, for the RunPod face: tests/test_secrets.py.
"""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from support.every_face import FACES, Face
from support.http_desk import HttpDesk
from support.pictures import node

from comfy_worker import log

OPERATOR = {
    "comfy_org_api_key": "operator-comfy-org-5f1c22",
    "runpod_ai_api_key": "operator-runpod-91dd33",
    "webhook_secret": "b3BlcmF0b3Itd2ViaG9vay1zZWNyZXQtMTIzNDU2Nzg=",
    "bucket_secret_access_key": "operator-secret-access-0b3e44",
    "aws_secret_access_key": "operator-aws-secret-77aa55",
    "hf_token": "hf_operatortoken88bb66",
}
JOB = {
    "url user": "job-url-password-57aa",
    "url query": "job-url-signature-13bb",
    "node key": "sk-node-api-key-1a2b3ccc",
    "hook query": "job-hook-token-24dd",
    "credential": "job-credential-token-68ee",
}


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """
    Everything that is logged, at DEBUG.
    """
    stream = io.StringIO()
    former = (log.logger.handlers[:], log.logger.level, log.logger.propagate)
    log.configure("DEBUG", as_json=True, stream=stream)
    yield stream
    log.logger.handlers[:], log.logger.propagate = former[0], former[2]
    log.logger.setLevel(former[1])
    logging.getLogger("comfy_worker").debug("over")


def graphs(web: str) -> dict[str, dict[str, Any]]:
    """
    Return graphs that end in different ways, each with secrets in it.
    """
    picture = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    picture["inputs"]["api_key"] = JOB["node key"]
    good = {
        "1": picture,
        "2": node("PreviewImage", images=("1", 0)),
        "3": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }
    host = web.removeprefix("http://")
    user = f"http://u:{JOB['url user']}@{host}/a.png"
    query = f"{web}/a.png?X-Amz-Signature={JOB['url query']}"
    return {
        "good": good,
        "no class": {**good, "4": node("NoSuchNode", api_key=JOB["node key"])},
        "wrong value": {
            **good,
            "4": node("EmptyImage", width="x", height=8, batch_size=1, color=0, api_key=JOB["node key"]),
            "5": node("SaveImage", images=("4", 0), filename_prefix="y"),
        },
        "user in url": {
            **good,
            "4": node("LoadImage", image=user),
            "5": node("SaveImage", images=("4", 0), filename_prefix="y"),
        },
        "query in url": {
            **good,
            "4": node("LoadImage", image=query),
            "5": node("SaveImage", images=("4", 0), filename_prefix="y"),
        },
    }


def fields_of(face: Face, web: str) -> dict[str, Any]:
    """
    Return a webhook, and credentials where the face takes them.
    """
    found: dict[str, Any] = {face.hook: f"{web}/hook?token={JOB['hook query']}"} if face.hook else {}
    if face.name == "salad":
        auth = {"type": "bearer", "token": JOB["credential"]}
        found["credentials"] = [{"url_pattern": f"{web}/**", "auth": auth}]
    return found


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
@pytest.mark.parametrize("private", [True, False])
def test_no_secret_comes_out(face: Face, private: bool, open_entrance: Any, logged: io.StringIO) -> None:
    """Whatever a job ends with, nothing that leaves the worker may hold a key of the operator or of the job."""
    secrets = {name: SecretStr(value) for name, value in OPERATOR.items()}
    with HttpDesk() as desk:
        desk.put("/a.png", b"<Error>denied</Error>", status=403)
        entrance = open_entrance(face, allow_private_urls=private, **secrets)
        said = [
            entrance.send(graph, name.replace(" ", "-"), **fields_of(face, desk.url)).text
            for name, graph in graphs(desk.url).items()
        ]
        entrance.worker.web.webhooks.close(3.0)
        hooks = [seen.body.decode("utf-8", "replace") for seen in desk.seen if seen.path.startswith("/hook")]

    everything = {"reply": said, "log": [logged.getvalue()], "webhook": hooks}
    leaks = [
        (channel, name)
        for channel, texts in everything.items()
        for name, secret in {**OPERATOR, **JOB}.items()
        for text in texts
        if secret in text and not _is_echo(face, channel, name)
    ]
    assert sorted(set(leaks)) == []
    assert json.dumps(said)


def _is_echo(face: Face, channel: str, name: str) -> bool:
    # By contract the Salad face sends the caller its own request back, and the Vast face ComfyUI's record of the prompt:
    # to nobody but the one who sent these.
    echoed = {"salad": {"node key", "hook query"}, "vast": {"node key"}}
    return channel in {"reply", "webhook"} and name in echoed.get(face.name, set())
