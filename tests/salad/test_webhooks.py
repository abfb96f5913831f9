"""
Asynchronous requests and the webhooks at their end, verified with the receivers' own library.
"""

import time
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook
from support.http_desk import Answer, HttpDesk, Seen
from support.pictures import b64, empty_workflow, invert_workflow, node, png
from support.salad_fixtures import WEBHOOK_SECRET, ServeSalad
from support.served import Served

from comfy_worker.webhook.sender import pause_s

STATS = {
    "comfy_execution",
    "preprocess_time",
    "comfy_round_trip_time",
    "postprocess_time",
    "upload_time",
    "total_time",
}


def verified(hook: Seen, secret: str = WEBHOOK_SECRET) -> Any:
    """
    Return the body of a webhook whose signature is right.
    """
    return Webhook(secret).verify(hook.body, hook.headers)


def failing(seed: int) -> dict[str, Any]:
    """
    Return a graph with a node that raises.
    """
    prompt = empty_workflow(seed)
    prompt["9"] = node("StandinRaise", message="on purpose", any=("1", 0))
    prompt["8"] = node("SaveImage", images=("9", 0), filename_prefix="late")
    return prompt


def test_v2_sends_one_signed_event(served: Served, desk: HttpDesk) -> None:
    """A 202 with the staged graph at once, then `prompt.complete` with everything of a 200."""
    body = {
        "id": "w2",
        "prompt": invert_workflow(b64(png((4, 4), (1, 2, 3)))),
        "webhook_v2": f"{desk.url}/v2",
    }

    reply = served.post("/prompt", body)
    [hook] = desk.wait(1)

    accepted, sent = reply.json(), verified(hook)
    assert reply.status_code == 202
    assert (accepted["id"], accepted["status"], accepted["webhook_v2"]) == ("w2", "ok", f"{desk.url}/v2")
    assert accepted["prompt"]["1"]["inputs"]["image"].startswith("cw-")
    assert not {"images", "filenames", "stats"} & set(accepted)
    assert hook.headers["webhook-id"] == "w2"
    assert (sent["type"], sent["id"], sent["filenames"]) == ("prompt.complete", "w2", ["w2_out_00001_.png"])
    assert sent["timestamp"].endswith("Z")
    assert sent["prompt"] == accepted["prompt"]
    assert set(sent["stats"]) == STATS
    assert len(sent["images"]) == 1


def test_v1_sends_one_event_per_output(served: Served, desk: HttpDesk) -> None:
    """The deprecated webhook gets `output.complete` for each file, and storage blocks beside it are ignored."""
    prompt = empty_workflow(0x111)
    prompt["1"]["inputs"]["batch_size"] = 3
    body = {
        "id": "w1",
        "prompt": prompt,
        "webhook": f"{desk.url}/v1",
        "http_upload": {"url_prefix": f"{desk.url}/up"},
    }

    reply = served.post("/prompt", body)
    hooks = [hook.json() for hook in desk.wait(3)]

    assert reply.status_code == 202
    assert {hook["event"] for hook in hooks} == {"output.complete"}
    assert sorted(hook["filename"] for hook in hooks) == [f"w1_out_{n:05}_.png" for n in (1, 2, 3)]
    assert all(set(hook) == {"event", "image", "filename", "id", "prompt", "stats"} for hook in hooks)
    assert not [seen for seen in desk.seen if seen.method == "PUT"]


def test_rejected_graph_is_accepted_then_failed(served: Served, desk: HttpDesk) -> None:
    """As in the peer, ComfyUI's refusal of an asynchronous request comes by webhook."""
    prompt = empty_workflow(1)
    prompt["1"]["inputs"]["width"] = 0

    reply = served.post("/prompt", {"id": "rej", "prompt": prompt, "webhook_v2": desk.url})
    [hook] = desk.wait(1)

    sent = verified(hook)
    assert reply.status_code == 202
    assert set(sent) == {"type", "timestamp", "id", "prompt", "error"}
    assert sent["type"] == "prompt.failed"
    assert sent["error"].startswith("Failed to queue prompt: ")


def test_empty_webhook_counts_as_absent(served: Served) -> None:
    """An empty text makes nothing asynchronous."""
    assert (
        served.post("/prompt", {"prompt": empty_workflow(2), "webhook": "", "webhook_v2": ""}).status_code
        == 200
    )


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "whsec_"])
def test_salad_s66_secret_with_or_without_its_prefix(
    serve_salad: ServeSalad, desk: HttpDesk, prefix: str
) -> None:
    """Both spellings of a secret sign alike."""
    served = serve_salad(webhook_secret=SecretStr(prefix + WEBHOOK_SECRET))

    served.post("/prompt", {"prompt": empty_workflow(3), "webhook_v2": desk.url})

    assert verified(desk.wait(1)[0])["type"] == "prompt.complete"


@pytest.mark.slow
def test_salad_s67_webhook_is_tried_again_under_the_same_id(served: Served, desk: HttpDesk) -> None:
    """A receiver that fails gets the message again, with the same id and a right signature."""
    desk.answers["/flaky"] = [Answer(status=503, headers={"Retry-After": "1"}), Answer()]

    served.post("/prompt", {"id": "s67", "prompt": empty_workflow(4), "webhook_v2": f"{desk.url}/flaky"})
    hooks = desk.wait(2, timeout_s=30)

    assert {hook.headers["webhook-id"] for hook in hooks} == {"s67"}
    assert len({hook.body for hook in hooks}) == 1
    assert all(verified(hook) for hook in hooks)


@pytest.mark.slow
def test_salad_s67_attempts_are_counted(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """A receiver that fails is asked as often as PROMPT_WEBHOOK_RETRIES says, and each attempt may take 30 s."""
    served = serve_salad(prompt_webhook_retries=2)
    desk.answers["/broken"] = Answer(status=503)
    sender = served.worker.web.webhooks  # type: ignore[attr-defined]

    served.post("/prompt", {"id": "s67b", "prompt": empty_workflow(5), "webhook_v2": f"{desk.url}/broken"})
    desk.wait(2, timeout_s=30)
    end = time.monotonic() + 20
    while sender.pending:
        assert time.monotonic() < end
        time.sleep(0.02)

    assert [seen.headers["webhook-id"] for seen in desk.seen] == ["s67b", "s67b"]
    assert sender._attempt_s == 30.0


def test_salad_s67_pauses_grow_and_vary() -> None:
    """The pause after each attempt is longer than before, and not the same for everybody."""
    pauses = {attempt: [pause_s(attempt) for _ in range(50)] for attempt in (1, 2, 3)}

    assert max(pauses[1]) < min(pauses[2])
    assert max(pauses[2]) < min(pauses[3])
    assert all(len(set(found)) > 1 for found in pauses.values())


def test_salad_s68_failure_is_told_to_every_webhook(served: Served, desk: HttpDesk) -> None:
    """With v1 and v2 given, both hear of a failure."""
    body = {"id": "s68", "prompt": failing(5), "webhook": f"{desk.url}/v1", "webhook_v2": f"{desk.url}/v2"}

    served.post("/prompt", body)
    hooks = {hook.path: hook.json() for hook in desk.wait(2)}

    assert hooks["/v1"]["event"] == hooks["/v2"]["type"] == "prompt.failed"
    assert set(hooks["/v1"]) == {"event", "id", "prompt", "error"}
    assert hooks["/v1"]["error"] == hooks["/v2"]["error"]


def test_both_webhooks_fire_on_success(served: Served, desk: HttpDesk) -> None:
    """v2 carries base64 when v1 is there too."""
    body = {"prompt": empty_workflow(6), "webhook": f"{desk.url}/v1", "webhook_v2": f"{desk.url}/v2"}

    served.post("/prompt", body)
    hooks = {hook.path: hook.json() for hook in desk.wait(2)}

    assert hooks["/v1"]["image"] == hooks["/v2"]["images"][0]


def test_salad_s58_failure_after_the_202_is_told(served: Served, desk: HttpDesk) -> None:
    """An upload that fails after the 202 ends in `prompt.failed`, with provider, file and status."""
    desk.answers["/up/s58_out_00001_.png"] = Answer(status=403)
    body = {
        "id": "s58",
        "prompt": empty_workflow(7),
        "http_upload": {"url_prefix": f"{desk.url}/up", "async": True},
        "webhook_v2": f"{desk.url}/hook",
    }

    reply = served.post("/prompt", body)
    [hook] = desk.wait(1)

    assert reply.status_code == 202
    assert hook.json()["type"] == "prompt.failed"
    assert "Upload failed with status 403: Forbidden" in hook.json()["error"]
    assert "s58_out_00001_.png" in hook.json()["error"]


def test_salad_s69_refusal_is_answered_and_not_posted(served: Served, desk: HttpDesk) -> None:
    """A request that is refused at once is a 400; its webhook hears nothing."""
    body = {"prompt": invert_workflow(f"{desk.url}/none.png"), "webhook_v2": f"{desk.url}/hook"}

    reply = served.post("/prompt", body)

    assert reply.status_code == 400
    assert [seen.method for seen in desk.seen] == ["GET"]


@pytest.mark.parametrize("field", ["webhook", "webhook_v2"])
@pytest.mark.parametrize("url", ["not a url", "ftp://x/y", "http://u:p@example.com/x"])
def test_webhook_that_cannot_be_posted_to_is_refused(served: Served, field: str, url: str) -> None:
    """A URL that can never be told anything is a 400 and not a silence after a 202."""
    reply = served.post("/prompt", {"prompt": empty_workflow(8), field: url})

    assert (reply.status_code, reply.json()["location"]) == (400, field)


def test_private_webhook_is_refused_unless_it_is_trusted(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """Without ALLOW_PRIVATE_URLS, a receiver in the private network must be named in HTTP_TRUSTED_ORIGINS."""
    body = {"prompt": empty_workflow(9), "webhook_v2": desk.url}

    closed = serve_salad(allow_private_urls=False).post("/prompt", body)
    trusting = serve_salad(allow_private_urls=False, http_trusted_origins=(desk.url,)).post("/prompt", body)

    assert (closed.status_code, closed.json()["location"]) == (400, "webhook_v2")
    assert trusting.status_code == 202
    assert verified(desk.wait(1)[0])["type"] == "prompt.complete"


@pytest.mark.slow
def test_same_request_twice_at_once_is_answered_twice(served: Served, desk: HttpDesk) -> None:
    """A repetition that joins the running one gets its 202 soon, and both send their webhook."""
    body = {
        "id": "twice",
        "prompt": {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=22),
            "2": node("StandinSleep", seconds=2.0, steps=40, any=("1", 0)),
            "3": node("SaveImage", images=("2", 0), filename_prefix="slow"),
        },
        "webhook_v2": desk.url,
    }

    replies = [served.post("/prompt", body) for _ in range(2)]

    hooks = [hook.json() for hook in desk.wait(2)]
    assert [reply.status_code for reply in replies] == [202, 202]
    assert [hook["type"] for hook in hooks] == ["prompt.complete"] * 2
    assert all(hook["prompt"]["3"]["inputs"]["filename_prefix"] == "twice_slow" for hook in hooks)
    assert sum(reply.elapsed.total_seconds() for reply in replies) < 10
