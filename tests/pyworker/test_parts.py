"""
The parts of the PyWorker that need no SDK: reasons, waits with an end, reports, the child, the certificate, its Python.
"""

import ast
import asyncio
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.control_plane import wait_until
from support.http_desk import HttpDesk
from support.vast_autoscaler import Autoscaler

from comfy_worker.pyworker import certificate, lifecycle, public_key, report, runner, sdk, sessions
from comfy_worker.pyworker.config import Identity
from comfy_worker.pyworker.model_server import ModelServer, last_words

ROOT = Path(__file__).resolve().parents[2]
PYWORKER = sorted((ROOT / "src" / "comfy_worker" / "pyworker").glob("*.py"))
PROGRAMS = [*PYWORKER, ROOT / "src" / "comfy_worker" / "__init__.py", ROOT / "worker.py"]


@pytest.mark.parametrize(
    ("body", "reason", "final"),
    [
        (
            '{"gpu": {"unrecoverable": true, "reason": "illegal memory access"}}',
            "illegal memory access",
            True,
        ),
        ('{"gpu": {"unrecoverable": true, "reason": null}}', "the GPU failed", True),
        ('{"backends": [{"http_error": "refused"}], "gpu": {"unrecoverable": false}}', "refused", False),
        ('{"backends": [{"http_ok": true, "websocket_error": "closed"}]}', "closed", False),
        ('{"message": "starting"}', "/health answered 503: starting", False),
        ("[]", "/health answered 503: gives no reason", False),
        ("<html>", "/health answered 503: gives no reason", False),
    ],
)
def test_reason_of_a_bad_health_is_found(body: str, reason: str, final: bool) -> None:
    """
    Whatever a model server says of its health, one reason comes of it.
    """
    assert lifecycle.unhealthy(body, 503) == (reason, final)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            '{"message": "Node 4: no such checkpoint", "error": {"message": "other"}}',
            "Node 4: no such checkpoint.",
        ),
        ('{"error": {"message": "it broke!"}}', "it broke!"),
        (
            '{"error": "there was an error in the workflow", "detail": "node 12: no unet"}',
            "node 12: no unet.",
        ),
        ("plain", "plain."),
        ("", "no reason was given."),
    ],
)
def test_reason_of_a_failed_job_is_a_sentence(body: str, reason: str) -> None:
    """
    The text of any failed reply ends up as one sentence.
    """
    assert lifecycle.failure(body) == reason


@pytest.mark.slow
def test_key_that_never_comes_is_a_problem() -> None:
    """
    The wait for the key ends, and says what the addresses answered.
    """
    with Autoscaler() as autoscaler:
        autoscaler.fail("/pubkey/", 1000, 502)
        key = public_key.PublicKey([autoscaler.url], wait_s=1.5)

        asyncio.run(key.fetch())

    assert key.problem == f"No public key came within 2 s: {autoscaler.url}/pubkey/ answered 502"


def test_answer_that_is_no_key_is_not_taken() -> None:
    """
    A page of somebody else is not the key.
    """
    with HttpDesk() as desk:
        desk.put("/pubkey/", b"<html>")
        key = public_key.PublicKey([desk.url], wait_s=0.1)

        asyncio.run(key.fetch())

    assert "something that is no key" in key.problem


def test_sdk_without_the_private_name_is_taken_to_have_the_key() -> None:
    """
    A newer SDK is not waited for in vain.
    """
    assert asyncio.run(public_key.reached(SimpleNamespace()))
    assert asyncio.run(public_key.reached(SimpleNamespace(_pubkey="key")))


def test_failed_start_is_reported_for_a_while_only() -> None:
    """
    The report ends by itself, and at once when told to; an address that is down is passed over.
    """
    told = threading.Event()
    with Autoscaler() as autoscaler:
        who = Identity(7, ("http://127.0.0.1:9", autoscaler.url), "https://203.0.113.9:1", "token")

        report.failed_launch(who, "it broke", told, for_s=0.0)
        told.set()
        report.failed_launch(who, "it broke", told)

    assert [status["error_msg"] for status in autoscaler.statuses] == [
        "Worker Server failed to launch: it broke"
    ] * 2
    assert autoscaler.last["mtoken"] == "token"


def test_report_has_the_fields_of_the_sdks() -> None:
    """
    The router finds every field that it knows.
    """
    with Autoscaler() as autoscaler:
        who = Identity(7, (autoscaler.url,), "https://203.0.113.9:1", "token")
        report.failed_launch(who, "it broke", threading.Event(), for_s=0.0)

    assert set(autoscaler.last) == {
        *("id", "mtoken", "version", "loadtime", "cur_load", "rej_load", "new_load", "error_msg", "max_perf"),
        *("cur_perf", "cur_capacity", "max_capacity", "num_requests_working", "num_requests_recieved"),
        *("additional_disk_usage", "disk_usage", "working_request_idxs", "url"),
    }


def child(text: str) -> ModelServer:
    """
    Start a Python program as the model server.
    """
    return ModelServer([sys.executable, "-u", "-c", text], {})


def test_end_of_the_model_server_has_its_last_words(capfd: pytest.CaptureFixture[str]) -> None:
    """
    The line with the error is the reason, whatever was printed after it; all of it is passed on.
    """
    made = child("print('INFO a'); print('12:00 ERROR Port is taken'); print('bye'); raise SystemExit(3)")
    wait_until(lambda: made.ended())

    assert made.ended() == "The model server ended with exit code 3: Port is taken"
    assert capfd.readouterr().err.splitlines() == ["INFO a", "12:00 ERROR Port is taken", "bye"]


def test_model_server_is_told_to_stop_and_killed_if_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    SIGTERM first; one that does not listen is killed, and is gone in both cases.
    """
    monkeypatch.setattr("comfy_worker.pyworker.model_server.KILL_AFTER_S", 0.5)
    ready = "import signal, time; {}; print('ready'); time.sleep(60)"
    good, bad = child(ready.format("pass")), child(ready.format("signal.signal(15, signal.SIG_IGN)"))
    wait_until(lambda: good._lines and bad._lines)

    assert good.ended() is None
    good.stop(5.0)
    bad.stop(0.0)

    assert (good.ended(), bad.ended()) == (
        "The model server ended by signal 15: ready",
        "The model server ended by signal 9: ready",
    )


def test_last_words_of_silence_are_none() -> None:
    """
    Nothing said is no reason, and a last line without an error is one.
    """
    assert last_words([]) == ""
    assert last_words(["", "  ", "starting", " "]) == "starting"


def test_last_words_are_all_that_went_wrong() -> None:
    """
    The reason and what followed from it stand together, without the lines between them.
    """
    lines = ["INFO a", "ERROR   ComfyUI ended.", "Traceback", "12:00 CRITICAL It said: no torch", "INFO b"]

    assert last_words(lines) == "ComfyUI ended. It said: no torch"


def sign(request: bytes, folder: Path) -> bytes:
    """
    Sign a certificate request as Vast's console does.
    """
    (folder / "csr").write_bytes(request)
    command = f"openssl req -in {folder}/csr -noout -text -verify"
    shown = subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout
    assert "CN = pyworker.vast.ai" in shown or "CN=pyworker.vast.ai" in shown
    assert "IP Address:0.0.0.0" in shown
    ca = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=root -keyout {folder}/ca.key -out {folder}/ca.crt"
    subprocess.run(ca.split(), check=True, capture_output=True)
    command = f"openssl x509 -req -in {folder}/csr -CA {folder}/ca.crt -CAkey {folder}/ca.key -CAcreateserial"
    return subprocess.run(command.split(), check=True, capture_output=True).stdout


def test_certificate_is_made_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Key and request are made, signed by the console, kept for the owner only, and used by the next start as they are.
    """
    signed: list[bytes] = []

    def console(url: str, request: bytes) -> tuple[bytes, str]:
        assert url == "http://console/sign_cert/?instance_id=7"
        signed.append(request)
        return sign(request, tmp_path), ""

    monkeypatch.setattr(certificate, "_sign", console)
    crt, key = tmp_path / "instance.crt", tmp_path / "instance.key"

    for _ in range(2):
        certificate.context(crt, key, 7, "http://console/sign_cert/")

    assert len(signed) == 1
    assert key.stat().st_mode & 0o777 == 0o600


def test_certificate_that_nobody_signs_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    After five attempts the start fails with what the console said, and leaves no certificate that is none.
    """
    monkeypatch.setattr(certificate, "PAUSE_S", 0.0)
    crt = tmp_path / "instance.crt"
    with HttpDesk() as desk:
        desk.put("/sign_cert/", b'{"error": "no such instance"}')
        with pytest.raises(certificate.NoCertificate) as caught:
            certificate.context(crt, tmp_path / "instance.key", 7, f"{desk.url}/sign_cert/")
        assert len(desk.seen) == certificate.ATTEMPTS
        assert desk.seen[0].body.startswith(b"-----BEGIN CERTIFICATE REQUEST")

    assert "answered something that is no certificate" in str(caught.value)
    assert not crt.exists()


GRANT = {"cost": 100, "endpoint": "e", "reqnum": 1, "request_idx": 2, "signature": "s", "url": "u"}


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ([], "error"),
        ({}, "auth_data"),
        ({"auth_data": GRANT}, "payload"),
        ({"auth_data": {**GRANT, "cost": True}, "payload": {}}, "cost"),
        ({"auth_data": {**GRANT, "cost": -1}, "payload": {}}, "cost"),
        ({"auth_data": {"cost": 1}, "payload": {}}, "signature"),
        ({"auth_data": GRANT, "payload": {"lifetime": "long"}}, "lifetime"),
        ({"auth_data": GRANT, "payload": {"on_close_route": 5}}, "on_close_route"),
        ({"auth_data": GRANT, "payload": {"on_close_route": "http://[::"}}, "on_close_route"),
        ({"auth_data": GRANT, "payload": {"on_close_route": "http://host@evil.example"}}, "on_close_route"),
    ],
)
def test_session_that_cannot_be_is_refused_by_its_field(body: Any, where: str) -> None:
    """
    What is wrong with a request for a session is named.
    """
    assert where in str(sessions.problems_of(body, 1000.0, frozenset({"host"})))


def test_session_with_a_listed_hook_has_no_problem() -> None:
    """
    A plausible cost and a hook to a listed host are fine; no hook is fine too.
    """
    for hook in ("http://host/path", "https://HOST:8443/", None):
        body = {"auth_data": GRANT, "payload": {"lifetime": 60, "on_close_route": hook}}
        assert sessions.problems_of(body, 1000.0, frozenset({"host"})) == {}


def test_log_is_put_right_after_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The root logger is back at its level, and the access log, which has callers' keys in it, is off.
    """
    root, access = logging.getLogger(), logging.getLogger("aiohttp.access")
    before = root.level, access.disabled, [(each, each.level) for each in root.handlers]
    root.setLevel(logging.DEBUG)
    try:
        sdk.set_up_log("INFO")
        assert (root.level, access.disabled) == (logging.INFO, True)
    finally:
        root.setLevel(before[0])
        access.disabled = before[1]
        for handler, level in before[2]:
            handler.setLevel(level)


def test_sdk_that_is_missing_is_named() -> None:
    """
    Without the SDK the text says what to install.
    """
    if sdk.importlib.util.find_spec("vastai") is not None:
        pytest.skip("the SDK is in this environment")

    with pytest.raises(sdk.SdkMissing, match=r"comfy-worker\[vast\]"):
        sdk.load()


def test_sdk_without_tracking_is_noticed() -> None:
    """
    An SDK without the one private function is run by its own server instead.
    """
    assert not runner.can_track(SimpleNamespace(backend=SimpleNamespace()))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_pyworker_is_python_3_10(path: Path) -> None:
    """
    Vast's start script runs Python 3.10: its grammar and its modules, and nothing of ours beside the folder itself.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        )
    }
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    ours = {name for name in imported if name.startswith("comfy_worker")}
    assert all(name == "comfy_worker" or name.startswith("comfy_worker.pyworker") for name in ours)
    assert not imported & {"tomllib", "pydantic", "requests"}
    assert not names & {"timeout_at", "TaskGroup", "Runner", "UTC", "StrEnum", "ExceptionGroup"}
