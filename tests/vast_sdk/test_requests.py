"""
Requests through the PyWorker: who is let in, what is passed on, and what comes back as it was.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import requests
from support.vast_model_server import ModelServer
from support.vast_pyworker import API_KEY, MASTER_TOKEN, act
from vast_sdk.conftest import PyWorkerFactory, Stack

PROMPT = {"prompt": "a fox", "width": 512, "height": 512, "steps": 20, "seed": 1}
LEGACY = ("/prompt", "/custom-workflow", "/custom_workflow")


def test_signed_request_is_served_and_what_it_says_is_passed_on(shared: Stack) -> None:
    """
    A grant of the router lets a request in; the model server gets the payload and nothing else of the envelope.
    """
    payload = {"input": {"request_id": "mine", "workflow_json": {"1": {}}}}

    reply = shared.worker.post("/generate/sync", payload)

    route, body, headers = shared.model_server.seen[-1]
    assert (reply.status_code, reply.json()["id"]) == (200, "mine")
    assert (route, body) == ("/generate/sync", payload)
    assert API_KEY not in str(headers)


def test_grant_can_be_used_again(shared: Stack) -> None:
    """
    The signature is admission, not accounting: the same grant, and one with other numbers, is served (vastai 1.9.1).
    """
    envelope = shared.worker.envelope(act())
    other = shared.worker.envelope(act(), cost=1, endpoint="other", reqnum=-500)

    replies = [shared.worker.send("/generate/sync", body).status_code for body in (envelope, envelope, other)]

    assert replies == [200, 200, 200]


@pytest.mark.parametrize("case", ["altered url", "legacy", "interim", "garbage", "empty"])
def test_request_without_a_signature_of_the_router_is_refused(shared: Stack, case: str) -> None:
    """
    Only the router's signature over the url lets in: 401 with an empty body, and the model server hears nothing.
    """
    over: dict[str, dict[str, Any]] = {
        "altered url": {"url": "http://203.0.113.1:1"},
        "legacy": {"generation": "legacy"},
        "interim": {"generation": "interim"},
        "garbage": {"signature": "garbage"},
        "empty": {"signature": ""},
    }
    before = len(shared.model_server.seen)

    reply = shared.worker.post("/generate/sync", act(), **over[case])

    assert (reply.status_code, reply.content) == (401, b"")
    assert len(shared.model_server.seen) == before


@pytest.mark.parametrize(
    ("drop", "detail"),
    [
        ("request_idx", {"auth_data": {"request_idx": "missing parameter"}}),
        ("signature", {"auth_data": {"signature": "missing parameter"}}),
        ("payload", {"payload": "field missing"}),
        ("auth_data", {"auth_data": "field missing"}),
    ],
)
def test_incomplete_envelope_is_refused_by_name(shared: Stack, drop: str, detail: dict[str, Any]) -> None:
    """
    What is missing is named with 422.
    """
    envelope = shared.worker.envelope(act())
    del (envelope if drop in envelope else envelope["auth_data"])[drop]

    reply = shared.worker.send("/generate/sync", envelope)

    assert (reply.status_code, reply.json()) == (422, detail)


def test_envelope_of_another_type_is_refused(shared: Stack) -> None:
    """
    Bad JSON and a payload that is no object are 422.
    """
    bad = shared.worker.send("/generate/sync", "{bad")
    listed = shared.worker.post("/generate/sync", [1])

    assert (bad.status_code, bad.json()) == (422, {"error": "invalid JSON"})
    assert (listed.status_code, listed.json()) == (
        422,
        {"payload": {"data": "payload must be a dictionary"}},
    )


HOSTILE = [
    "[]",
    "5",
    "null",
    '{"auth_data": null, "payload": {}}',
    '{"auth_data": [], "payload": {}}',
    '{"auth_data": "cost endpoint reqnum request_idx signature url", "payload": {}}',
    b"\xff\xfe",
    "[" * 100_000,
    "1" * 5000,
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_body_of_no_known_form_is_refused(shared: Stack, body: Any) -> None:
    """
    Whatever is sent, the answer is 422 and no traceback.
    """
    reply = requests.post(f"{shared.worker.url}/generate/sync", data=body, timeout=10)

    assert reply.status_code == 422
    assert "Traceback" not in shared.worker.text


@pytest.mark.parametrize(
    ("over", "session"),
    [
        ({"request_idx": []}, None),
        ({"request_idx": {}}, None),
        ({"request_idx": "1"}, None),
        ({"request_idx": float("nan")}, None),
        ({"reqnum": []}, None),
        ({"reqnum": "req_789xyz"}, None),
        ({"reqnum": None}, None),
        ({}, []),
        ({}, {}),
    ],
)
def test_number_that_is_none_ends_no_worker(shared: Stack, over: dict[str, Any], session: Any) -> None:
    """
    Without a signature too such a request is 422, and the reports go on: a list in a grant would end the SDK's loop.
    """
    for signature in ({}, {"signature": "garbage"}):
        envelope = {**shared.worker.envelope(act(), **over, **signature), "session_id": session}
        assert shared.worker.send("/generate/sync", envelope).status_code == 422

    good = shared.worker.envelope(act())
    assert shared.worker.send("/generate/sync", good).status_code == 200
    index = good["auth_data"]["request_idx"]
    shared.autoscaler.wait(lambda: shared.autoscaler.ended.get(index) == "Success")


def test_unknown_session_is_gone(shared: Stack) -> None:
    """
    A request of a session that nobody opened is 410.
    """
    envelope = {**shared.worker.envelope(act()), "session_id": "nope"}

    reply = shared.worker.send("/generate/sync", envelope)

    assert (reply.status_code, reply.json()) == (410, {"error": "invalid session"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate/sync", 405),
        ("POST", "/generate/async", 404),
        ("GET", "/", 404),
        ("GET", "/health", 404),
        ("POST", "/view", 404),
    ],
)
def test_nothing_but_the_table_is_open(shared: Stack, method: str, path: str, status: int) -> None:
    """
    Other methods are 405, other paths 404.
    """
    assert requests.request(method, shared.worker.url + path, timeout=10).status_code == status


def test_ping_is_answered(shared: Stack) -> None:
    """
    `/ping` says `pong`, as the older workers did.
    """
    assert requests.get(f"{shared.worker.url}/ping", timeout=10).text == "pong"


@pytest.mark.parametrize("path", ["create", "end", "get", "health"])
def test_vast_33_session_routes_do_not_exist(shared: Stack, path: str) -> None:
    """
    Nobody can raise the load or have the worker POST anywhere: no session route, and none that updates the worker.
    """
    body = {"auth_data": {"cost": 999_999, "reqnum": 1, "request_idx": 1}, "payload": {"lifetime": 5}}

    opened = shared.worker.send(f"/session/{path}", body)
    updated = requests.post(f"{shared.worker.url}/pyworker/update", timeout=10)

    assert (opened.status_code, updated.status_code) == (404, 404)
    assert shared.autoscaler.last["cur_load"] < 999_999


@pytest.mark.parametrize("route", ["/result", "/cancel", "/queue-info"])
def test_questions_are_answered_beside_the_line(shared: Stack, route: str) -> None:
    """
    Asking after a job, or taking it back, does not wait for the job that runs.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(shared.worker.post, "/generate/sync", act(seconds=1.0))
        shared.autoscaler.wait(lambda: shared.autoscaler.last.get("num_requests_working"))

        asked = shared.worker.post(route, {"request_id": "mine"})

        assert not running.done()
        assert asked.json() == {"asked": route, "request_id": "mine"}
        assert running.result().status_code == 200


def test_failed_job_comes_back_whole(shared: Stack) -> None:
    """
    Status, body, length and headers of the model server's refusal are the caller's.
    """
    reply = shared.worker.post("/generate/sync", act(status=422, message="Node 4: no such checkpoint"))

    assert reply.status_code == 422
    assert reply.json()["message"] == "Node 4: no such checkpoint"
    assert reply.headers["X-Own"] == "kept"
    assert int(reply.headers["Content-Length"]) == len(reply.content)


def test_request_that_is_too_large_is_refused(
    make_pyworker: PyWorkerFactory, model_server: ModelServer
) -> None:
    """
    Beyond VAST_MAX_BODY_MB it is 413, and the model server is spared.
    """
    worker = make_pyworker(VAST_MAX_BODY_MB="0.01").loaded()
    before = len(model_server.began)

    small = worker.post("/generate/sync", act(text="x" * 5_000))
    large = worker.post("/generate/sync", act(text="x" * 20_000))

    assert (small.status_code, large.status_code) == (200, 413)
    assert len(model_server.began) == before + 1


def test_busy_model_server_says_when_to_come_again(shared: Stack) -> None:
    """
    503 keeps its `Retry-After` through the PyWorker.
    """
    reply = shared.worker.post("/generate/sync", act(status=503, headers={"Retry-After": "5"}))

    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "5")


def test_compressed_reply_can_be_read(shared: Stack) -> None:
    """
    What the model server packs is unpacked for the caller, and nobody says otherwise.
    """
    reply = shared.worker.post("/generate/sync", act(zip=True, headers={"Content-Encoding": "gzip"}))

    assert reply.json()["status"] == "completed"
    assert "Content-Encoding" not in reply.headers


def test_stream_that_breaks_off_ends_with_an_event(shared: Stack) -> None:
    """
    When the model server dies in the middle, the reader is told so instead of being left with half a stream.
    """
    reply = shared.worker.post("/generate/stream", act(breaks=True))

    last = [line for line in reply.text.splitlines() if line.startswith("data: {")][-1]
    assert json.loads(last.removeprefix("data: "))["status"] == "error"
    assert shared.worker.post("/generate/sync", act()).status_code == 200


def test_requests_run_side_by_side_where_that_is_asked_for(
    make_pyworker: PyWorkerFactory, model_server: ModelServer
) -> None:
    """
    With WORKER_CONCURRENCY=2 the model server has two jobs at once; the benchmark has one.
    """
    worker = make_pyworker(WORKER_CONCURRENCY="2").loaded()
    benchmark = len(model_server.began)
    done = len(model_server.ran)

    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(worker.post, "/generate/sync", act(seconds=1.5)) for _ in range(2)]
        worker.autoscaler.wait(lambda: len(model_server.began) == benchmark + 2)
        assert len(model_server.ran) == done
        assert [reply.result().status_code for reply in replies] == [200, 200]

    assert benchmark == 1 + 3


def test_stream_is_passed_on_as_it_comes(shared: Stack) -> None:
    """
    The first event is there before the job ends, heartbeats come in between, and the last event is whole.
    """
    envelope = shared.worker.envelope(act(seconds=0.4, pings=3, size=500_000))
    began = time.monotonic()

    with requests.post(
        f"{shared.worker.url}/generate/stream", json=envelope, stream=True, timeout=30
    ) as reply:
        lines = reply.iter_lines(chunk_size=None)
        first = next(lines)
        first_s = time.monotonic() - began
        rest = [line for line in lines if line]

    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert b'"queued"' in first
    assert first_s < 1.0
    assert rest[:3] == [b": ping"] * 3
    assert len(rest[3]) > 500_000


def test_caller_that_leaves_while_running_cancels_the_job(shared: Stack) -> None:
    """
    A closed connection reaches the model server, the next job runs, and the router hears `Cancelled`.
    """
    envelope = shared.worker.envelope(act(seconds=30, mark="left while running"))

    with suppress(requests.Timeout):
        shared.worker.send("/generate/sync", envelope, timeout_s=0.3)
    after = shared.worker.post("/generate/sync", act())

    index = envelope["auth_data"]["request_idx"]
    shared.autoscaler.wait(lambda: envelope["payload"] in shared.model_server.left)
    shared.autoscaler.wait(lambda: shared.autoscaler.ended.get(index) == "Cancelled")
    assert after.status_code == 200


def test_caller_that_leaves_while_waiting_takes_its_place_along(shared: Stack) -> None:
    """
    A request that left the line never reaches the model server, and the one behind it is served.
    """
    waiting = shared.worker.envelope(act(mark="left while waiting"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(shared.worker.post, "/generate/sync", act(seconds=1.5))
        shared.autoscaler.wait(lambda: shared.model_server.began[-1:] == [act(seconds=1.5)])

        with suppress(requests.Timeout):
            shared.worker.send("/generate/sync", waiting, timeout_s=0.3)
        after = shared.worker.post("/generate/sync", act())

        assert (running.result().status_code, after.status_code) == (200, 200)
    index = waiting["auth_data"]["request_idx"]
    shared.autoscaler.wait(lambda: shared.autoscaler.ended.get(index) == "Cancelled")
    assert waiting["payload"] not in shared.model_server.began


def test_caller_that_leaves_a_stream_cancels_the_job(shared: Stack) -> None:
    """
    A stream that nobody reads any more ends the job behind it.
    """
    envelope = shared.worker.envelope(act(seconds=1, pings=60, mark="left a stream"))

    with requests.post(
        f"{shared.worker.url}/generate/stream", json=envelope, stream=True, timeout=30
    ) as reply:
        lines = reply.iter_lines()  # kept: one that is dropped closes the connection
        next(lines)

    shared.autoscaler.wait(lambda: envelope["payload"] in shared.model_server.left)
    assert shared.worker.post("/generate/sync", act()).status_code == 200


def test_line_is_as_long_as_the_score_allows(make_pyworker: PyWorkerFactory) -> None:
    """
    With a score of 50 and 10 s, a request comes in while those before it add up to at most 500: six of twelve.
    """
    worker = make_pyworker(score=50.0).loaded()

    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: worker.post("/generate/sync", act(seconds=0.5)), range(12)))

    statuses = sorted(reply.status_code for reply in replies)
    assert statuses == [200] * 6 + [429] * 6
    assert {reply.content for reply in replies if reply.status_code == 429} == {b""}


@pytest.mark.parametrize("route", [*LEGACY, *(f"{route}/" for route in LEGACY)])
def test_vast_39_grant_without_request_idx_is_taken_on_legacy_routes(shared: Stack, route: str) -> None:
    """
    Clients of the 2024 template send no `request_idx`: every spelling of its routes serves them all the same.
    """
    payload = PROMPT if route.startswith("/prompt") else {"custom_fields": {}, "workflow": {"1": {}}}
    envelope = shared.worker.envelope(payload)
    for name in ("request_idx", "__request_id"):
        del envelope["auth_data"][name]

    reply = shared.worker.send(route, envelope)

    assert reply.status_code == 200, reply.text
    assert shared.model_server.seen[-1][:2] == (route.rstrip("/"), payload)


@pytest.mark.parametrize(
    ("route", "payload", "problems"),
    [
        (
            "/prompt",
            {"prompt": "x", "width": 1},
            {"height": "missing parameter", "seed": "missing parameter"},
        ),
        ("/prompt", {**PROMPT, "width": "wide"}, {"width": "must be a whole number"}),
        ("/prompt", {**PROMPT, "prompt": 5}, {"prompt": "must be a string"}),
        ("/custom-workflow", {"workflow": {}}, {"custom_fields": "missing parameter"}),
        ("/custom-workflow", {"workflow": [], "custom_fields": {}}, {"workflow": "must be an object"}),
    ],
)
def test_legacy_payload_is_refused_with_every_problem(
    shared: Stack, route: str, payload: dict[str, Any], problems: dict[str, str]
) -> None:
    """
    Missing and wrong fields are named with 422 under `payload`; nothing reaches the model server.
    """
    before = len(shared.model_server.seen)

    reply = shared.worker.post(route, payload)

    assert (reply.status_code, reply.json()) == (422, {"payload": problems})
    assert len(shared.model_server.seen) == before


def test_legacy_prompt_without_steps_is_served(shared: Stack) -> None:
    """
    `steps` may be left out, as the documentation says.
    """
    payload = {name: value for name, value in PROMPT.items() if name != "steps"}

    assert shared.worker.post("/prompt", payload).status_code == 200


def test_vast_32_no_log_holds_a_secret(make_pyworker: PyWorkerFactory) -> None:
    """
    Keys of callers, of storage and of the router, and prompts, stand in no line that the PyWorker writes.
    """
    worker = make_pyworker(LOG_LEVEL="DEBUG").loaded()
    secrets = {"s3": {"secret_access_key": "s3-secret-of-the-job"}, "prompt": "prompt-of-the-job"}

    worker.post("/generate/sync", {"input": {**secrets, "workflow_json": {}}})
    worker.post("/generate/sync", {"input": secrets}, signature="garbage")
    worker.post("/generate/sync", {"input": {**secrets, "act": {"status": 500}}})
    worker.post("/generate/sync", {"input": secrets}, reqnum="a text")
    worker.tell()

    assert worker.wait() == 0
    assert "benchmark" in worker.text
    for secret in (API_KEY, MASTER_TOKEN, MASTER_TOKEN[:7], "s3-secret-of-the-job", "prompt-of-the-job"):
        assert secret not in worker.text
