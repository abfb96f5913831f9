"""
Sending webhooks: retries, order, bounds and the end, against real receivers on loopback.
"""

import email.utils
import json
import logging
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook
from support.receiver import huge, receiving, resets, status, trickles

from comfy_worker.errors import JobInvalid
from comfy_worker.fetch_guard import Guard
from comfy_worker.settings import Settings
from comfy_worker.webhook import Message, Sender, SystemEvents, checked_url, key_of
from comfy_worker.webhook.post import IN_MEMORY_BYTES, Body, retry_after_s
from comfy_worker.webhook.sender import pause_s
from comfy_worker.wiring_web import Web

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MakeSender = Callable[..., Sender]


@pytest.fixture
def make_sender() -> Iterator[MakeSender]:
    """
    Make senders that may post to loopback and pause only shortly; closed at the end.
    """
    senders = []

    def make(**options: Any) -> Sender:
        guard = Guard(allow_private=options.pop("allow_private", True))
        sender = Sender(key_of(SECRET), guard, **{"pause": lambda _: 0.01, "attempt_s": 10.0, **options})
        senders.append(sender)
        return sender

    yield make
    for sender in senders:
        sender.close(0.0)


def message(url: str, number: int = 0, **fields: Any) -> Message:
    """
    Return a message whose body is a number.
    """
    return Message(url, json.dumps({"n": number}).encode(), **fields)


def numbers(received: list[Any]) -> list[int]:
    """
    Return the numbers in the bodies.
    """
    return [json.loads(item.body)["n"] for item in received]


def settled(sender: Sender) -> None:
    """
    Wait until nothing is under way any more.
    """
    end = time.monotonic() + 20
    while sender.pending and time.monotonic() < end:
        time.sleep(0.01)
    assert sender.pending == 0


def test_message_arrives_signed(make_sender: MakeSender) -> None:
    """
    One POST of JSON, with headers that the receivers' library verifies.
    """
    with receiving() as receiver:
        make_sender().send(Message(receiver.url, b'{"a":1}', id="job-1"))
        [received] = receiver.wait(1)

    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-id"] == "job-1"
    assert Webhook(SECRET).verify(received.body, received.headers) == {"a": 1}


def test_message_may_go_unsigned(make_sender: MakeSender) -> None:
    """
    The first kind of webhook has no signature.
    """
    with receiving() as receiver:
        make_sender().send(message(receiver.url, signed=False))
        [received] = receiver.wait(1)

    assert not [name for name in received.headers if name.startswith("webhook-")]


@pytest.mark.parametrize("failure", [status(500), status(404), resets, status(302, Location="/elsewhere")])
def test_failed_attempt_is_made_again_with_the_same_id(make_sender: MakeSender, failure: Any) -> None:
    """
    A receiver that fails twice gets the message the third time, signed anew under one id (S67).
    """
    with receiving(failure, failure, status(200)) as receiver:
        sender = make_sender(attempts=3)
        sender.send(message(receiver.url))
        received = receiver.wait(3)
        settled(sender)

    assert len({item.headers["webhook-id"] for item in received}) == 1
    assert {item.path for item in received} == {"/hook"}
    for item in received:
        assert Webhook(SECRET).verify(item.body, item.headers) == {"n": 0}


def test_attempts_are_bounded_and_the_loss_is_logged(
    make_sender: MakeSender, caplog: pytest.LogCaptureFixture
) -> None:
    """
    After the last attempt there is a line with the id and the host, not with what the URL keeps secret.
    """
    with receiving(status(503)) as receiver, caplog.at_level(logging.INFO):
        sender = make_sender(attempts=3)
        sender.send(message(f"{receiver.url}/top-secret?token=hidden-too", id="job-1"))
        settled(sender)

    assert len(receiver.received) == 3
    [lost] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert lost == (
        f"Webhook job-1 to {receiver.url.removesuffix('/hook')}, attempt 3 of 3: it answered 503. It is given up."
    )
    assert "secret" not in caplog.text
    assert "hidden" not in caplog.text


def test_gone_receiver_is_asked_once(make_sender: MakeSender) -> None:
    """
    410 says that nobody wants it.
    """
    with receiving(status(410)) as receiver:
        sender = make_sender(attempts=5)
        sender.send(message(receiver.url))
        settled(sender)

    assert len(receiver.received) == 1


@pytest.mark.slow
def test_retry_after_is_waited_for(make_sender: MakeSender) -> None:
    """
    A receiver that asks for a second gets it, also where the pause would be shorter (S67).
    """
    with receiving(status(429, Retry_After="1"), status(200)) as receiver:
        sender = make_sender()
        sender.send(message(receiver.url))
        first, second = receiver.wait(2)

    assert second.at - first.at >= 0.9


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("soon", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        (email.utils.formatdate(1_000_030, usegmt=True), 30.0),
        (email.utils.formatdate(999_000, usegmt=True), 0.0),
    ],
)
def test_retry_after_is_read(text: str | None, seconds: float) -> None:
    """
    Seconds or a date; nonsense is no wish.
    """
    assert retry_after_s(text, now=1_000_000.0) == seconds


def test_pauses_grow_by_chance_within_bounds() -> None:
    """
    About 1, 4, 16 s and so on, never over 450; two receivers are not asked in step.
    """
    pauses = [[pause_s(attempt) for _ in range(50)] for attempt in (1, 2, 3, 10, 10_000)]

    assert [(min(row) >= low, max(row) <= high) for row, (low, high) in zip(
        pauses, [(0.5, 1.5), (2, 6), (8, 24), (150, 450), (150, 450)], strict=True
    )] == [(True, True)] * 5  # fmt: skip
    assert len(set(pauses[0])) > 10


def test_messages_of_a_job_arrive_in_order(make_sender: MakeSender) -> None:
    """
    Also when one of them fails for a while, the later ones wait behind it.
    """
    with receiving(status(200), status(500), resets, status(200)) as receiver:
        sender = make_sender(attempts=5)
        for number in range(10):
            sender.send(message(receiver.url, number, lane="job-1", weight="event"))
        settled(sender)

    assert numbers(receiver.received) == [0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_order_holds_whatever_fails(make_sender: MakeSender) -> None:
    """
    Twenty jobs, three receivers that fail and reset at random: each job's messages arrive, none after a later one.
    """
    chance = random.Random(5)
    answers = [
        [chance.choice([status(200), status(200), status(500), resets]) for _ in range(300)] for _ in range(3)
    ]
    with receiving(*answers[0]) as a, receiving(*answers[1]) as b, receiving(*answers[2]) as c:
        sender = make_sender(attempts=100, pause=lambda _: chance.random() / 100)

        def run(job: int) -> None:
            for number in range(5):
                for receiver in (a, b, c):
                    sender.send(
                        message(receiver.url, number, id=f"job-{job}", lane=f"job-{job}", weight="event")
                    )

        jobs = [threading.Thread(target=run, args=(job,)) for job in range(20)]
        for thread in jobs:
            thread.start()
        for thread in jobs:
            thread.join(20)
        settled(sender)

    for receiver in (a, b, c):
        for job in range(20):
            mine = [item for item in receiver.received if item.headers["webhook-id"] == f"job-{job}"]
            assert numbers(mine) == sorted(numbers(mine))
            assert set(numbers(mine)) == set(range(5))


def test_jobs_do_not_wait_for_each_other(make_sender: MakeSender) -> None:
    """
    A receiver that answers nobody holds up neither other receivers nor whoever sends.
    """
    with receiving(holds=True) as slow, receiving() as quick:
        sender = make_sender(threads=6, per_host=2)
        for number in range(20):
            assert sender.send(message(slow.url, number))
        for number in range(20):
            assert sender.send(message(quick.url, number))
        received = quick.wait(20)
        slow.wait(2)  # they may still be on their way
        most_at_once = len(slow.received)

    assert sorted(numbers(received)) == list(range(20))
    assert most_at_once == 2


def test_lane_between_attempts_holds_no_thread(make_sender: MakeSender) -> None:
    """
    With one thread, messages pass those that wait for their next attempt.
    """
    with receiving(status(500)) as failing, receiving() as good:
        sender = make_sender(threads=1, pause=lambda _: 30.0)
        for number in range(5):
            sender.send(message(failing.url, number))
        failing.wait(5)
        sender.send(message(good.url))
        good.wait(1)

    assert sender.pending == 5


@pytest.mark.slow
@pytest.mark.parametrize("answer", [trickles, None])
def test_slow_receiver_is_given_up(make_sender: MakeSender, answer: Any) -> None:
    """
    An attempt has an end, whether nothing comes or a byte now and then (S67).
    """
    with receiving(*([answer] if answer else []), holds=answer is None) as receiver:
        sender = make_sender(attempts=2, attempt_s=0.3)
        sender.send(message(receiver.url))
        received = receiver.wait(2)
        settled(sender)

    assert len(received) == 2


def test_endless_reply_is_not_read(make_sender: MakeSender) -> None:
    """
    The status is the answer: what follows it is nobody's business.
    """
    with receiving(huge) as receiver:
        sender = make_sender(attempts=1, attempt_s=30.0)
        for number in range(3):
            sender.send(message(receiver.url, number, lane="job-1"))
        received = receiver.wait(3)
        settled(sender)

    assert numbers(received) == [0, 1, 2]


def test_redirect_is_not_followed(make_sender: MakeSender) -> None:
    """
    A receiver cannot send a message elsewhere.
    """
    with receiving() as elsewhere, receiving(status(307, Location=elsewhere.url)) as receiver:
        sender = make_sender(attempts=1)
        sender.send(message(receiver.url))
        settled(sender)

    assert (len(receiver.received), elsewhere.received) == (1, [])


def test_private_address_is_refused(make_sender: MakeSender, caplog: pytest.LogCaptureFixture) -> None:
    """
    A job cannot make the worker post into its own network; nothing is sent, and it is not tried again.
    """
    with receiving() as receiver, caplog.at_level(logging.INFO):
        sender = make_sender(allow_private=False)
        sender.send(message(receiver.url))
        settled(sender)

    assert receiver.connections == 0
    assert "attempt 1 of 3: 127.0.0.1 is not a public address" in caplog.text
    assert caplog.text.count("attempt") == 1


def test_connection_is_kept_for_messages_in_a_row(make_sender: MakeSender) -> None:
    """
    Twenty messages of a job need one connection.
    """
    with receiving() as receiver:
        sender = make_sender(threads=1)
        for number in range(20):
            sender.send(message(receiver.url, number, lane="job-1"))
        receiver.wait(20)

    assert receiver.connections == 1


def test_large_message_waits_in_a_file_and_arrives_whole(make_sender: MakeSender) -> None:
    """
    Megabytes are sent and signed from a file, on every attempt from its beginning.
    """
    body = json.dumps({"image": "A" * (3 * IN_MEMORY_BYTES)}).encode()
    with receiving(status(500), status(200)) as receiver:
        sender = make_sender()
        sender.send(Message(receiver.url, body))
        received = receiver.wait(2)
        settled(sender)

    assert [item.body == body for item in received] == [True, True]
    Webhook(SECRET).verify(body, received[1].headers, json_parse=False)


def test_waiting_results_do_not_fill_the_memory(make_sender: MakeSender) -> None:
    """
    While a receiver sleeps, twenty results of four megabytes wait on disk.
    """
    with receiving(holds=True) as receiver:
        sender = make_sender()
        tracemalloc.start()
        for number in range(20):
            sender.send(Message(receiver.url, bytes(4 << 20), lane="job-1", id=str(number)))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        sender.close(0.0)

    assert held < 24 << 20


def test_large_body_is_not_in_memory() -> None:
    """
    What is over a megabyte waits on disk, and is gone after `close`.
    """
    body = Body(b"x" * (IN_MEMORY_BYTES + 1))
    stream = body.sendable()

    assert not isinstance(stream, bytes)
    assert sum(map(len, body.pieces())) == IN_MEMORY_BYTES + 1
    body.close()
    assert stream.closed


def test_newer_progress_takes_the_place_of_the_older(make_sender: MakeSender) -> None:
    """
    A slow receiver gets the latest value of what nobody needs twice, and then the end.
    """
    with receiving(holds=True) as receiver:
        sender = make_sender()
        sender.send(message(receiver.url, 0, lane="job-1", weight="progress"))
        receiver.wait(1)
        for number in range(1, 50):
            sender.send(message(receiver.url, number, lane="job-1", weight="progress"))
        sender.send(message(receiver.url, 50, lane="job-1"))
        receiver.release.set()
        settled(sender)

    assert numbers(receiver.received) == [0, 49, 50]


def test_progress_is_tried_once(make_sender: MakeSender) -> None:
    """
    A lost percentage is not worth a second attempt, an event is.
    """
    with receiving(status(500)) as receiver:
        sender = make_sender(attempts=2)
        sender.send(message(receiver.url, 1, lane="job-1", weight="progress"))
        sender.send(message(receiver.url, 2, lane="job-1", weight="event"))
        settled(sender)

    assert numbers(receiver.received) == [1, 2, 2]


def test_full_queue_drops_events_and_keeps_ends(make_sender: MakeSender) -> None:
    """
    The bound is for what may be lost (S70); even ends have one, far away.
    """
    with receiving(holds=True) as receiver:
        sender = make_sender(limit=3, most_terminal=4)
        events = [sender.send(message(receiver.url, 0, lane="job-1", weight="event")) for _ in range(5)]
        ends = [sender.send(message(receiver.url, 1, lane="job-1")) for _ in range(6)]
        receiver.release.set()
        settled(sender)

    assert events == [True, True, True, False, False]
    assert ends == [True] * 4 + [False] * 2
    assert numbers(receiver.received) == [0, 0, 0, 1, 1, 1, 1]
    assert sender.dropped == 4


def test_close_waits_for_what_is_under_way(make_sender: MakeSender) -> None:
    """
    The last results are delivered while the worker shuts down, pauses cut short.
    """
    with receiving(status(500), status(200)) as receiver:
        sender = make_sender(pause=lambda _: 0.3)
        for number in range(10):
            sender.send(message(receiver.url, number))
        sender.close(20.0)

        assert sorted(set(numbers(receiver.received))) == list(range(10))
    assert not sender.send(message(receiver.url))


def test_close_has_an_end_and_names_what_is_lost(
    make_sender: MakeSender, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A receiver that never answers cannot keep the worker alive; no thread is left behind.
    """
    before = {thread.name for thread in threading.enumerate()}
    with receiving(holds=True) as receiver:
        sender = make_sender(attempt_s=60.0)
        sender.send(message(receiver.url, id="job-1"))
        receiver.wait(1)
        sender.close(0.1)

        left = {thread.name for thread in threading.enumerate() if thread.name.startswith("webhook")}
    assert left <= before
    assert "Webhook job-1 to http://127.0.0.1" in caplog.text
    assert "was not delivered before the worker ended" in caplog.text


def test_second_close_has_nothing_to_wait_for(make_sender: MakeSender) -> None:
    """
    What the first call let go of is not waited for again.
    """
    with receiving(holds=True) as receiver:
        sender = make_sender(attempt_s=60.0)
        for number in range(2):
            sender.send(message(receiver.url, number))
        receiver.wait(1)
        sender.close(0.1)

        since = time.monotonic()
        sender.close(30.0)
    assert time.monotonic() - since < 10.0


def test_no_thread_runs_before_the_first_message(make_sender: MakeSender) -> None:
    """
    A worker whose jobs have no webhooks pays nothing for them.
    """
    before = threading.active_count()

    make_sender()

    assert threading.active_count() == before


@pytest.mark.parametrize(
    "url", [None, 5, "", "ftp://example.com/x", "https://", "http://user:pass@example.com/", "example.com/hook", "http://["]
)  # fmt: skip
def test_url_that_cannot_be_one_is_refused(url: Any) -> None:
    """
    The job that names it is told at once, without the URL, which may hold a secret.
    """
    with pytest.raises(JobInvalid, match=r"^'webhook_v2' must be an http or https URL with a host") as caught:
        checked_url(url, "webhook_v2")

    assert "pass" not in str(caught.value).replace("password", "")


def test_url_is_taken() -> None:
    """
    A good one comes back, without blanks around it.
    """
    assert checked_url(" https://example.com/hook?token=1 ", "webhook") == "https://example.com/hook?token=1"


# System events.

EVERY = frozenset({"status", "progress", "progress_state", "executing", "execution_success", "file_deleted"})


def test_system_events_of_a_prompt_arrive_in_order_with_the_job_id(make_sender: MakeSender) -> None:
    """
    ComfyUI's whole message, the id of the job instead of ComfyUI's, and the operator's metadata, in order (S70).
    """
    metadata = {"Site": "A", "salad_machine_id": "m1"}
    with receiving() as receiver:
        events = SystemEvents(make_sender(), receiver.url, EVERY, metadata)
        for node in range(20):
            events.comfy(
                {"type": "executing", "data": {"node": str(node), "prompt_id": "p"}, "sid": "s"}, "job-1"
            )
        events.comfy({"type": "execution_success", "data": {"prompt_id": "p"}}, "job-1")
        received = [json.loads(item.body) for item in receiver.wait(21)]

    assert received[0] == {
        "event": "comfy.executing",
        "data": {"type": "executing", "data": {"node": "0", "prompt_id": "job-1"}, "sid": "s"},
        "metadata": {"Site": "A", "salad_machine_id": "m1"},
    }
    assert [item["data"]["data"].get("node") for item in received] == [*map(str, range(20)), None]


def test_system_event_names_the_job_in_every_node(make_sender: MakeSender) -> None:
    """
    `progress_state` repeats the id in each of its nodes; without a job it stays ComfyUI's.
    """
    data = {"prompt_id": "p", "nodes": {"1": {"value": 1, "prompt_id": "p"}, "2": 5}}
    with receiving() as receiver:
        events = SystemEvents(make_sender(), receiver.url, EVERY)
        events.comfy({"type": "progress_state", "data": data}, "job-1")
        events.comfy({"type": "progress_state", "data": {**data, "prompt_id": "q"}})
        first, second = (json.loads(item.body)["data"]["data"] for item in receiver.wait(2))

    named, plain = sorted((first, second), key=lambda item: str(item["prompt_id"]))
    assert named == {"prompt_id": "job-1", "nodes": {"1": {"value": 1, "prompt_id": "job-1"}, "2": 5}}
    assert plain["nodes"]["1"]["prompt_id"] == "p"
    assert data["nodes"]["1"]["prompt_id"] == "p"  # type: ignore[index]


def test_unwanted_system_event_is_not_sent(make_sender: MakeSender) -> None:
    """
    Only what the operator asked for, and nothing that is not one of the names.
    """
    with receiving() as receiver:
        events = SystemEvents(make_sender(), receiver.url, {"file_deleted"})
        events.comfy({"type": "executing", "data": {}})
        events.comfy({"type": "feature_flags", "data": {}})
        events.storage("file_uploaded", "s3://b/k", "a.png", 3, 0.5)
        events.storage("file_deleted", None, "a.png", 3)
        [received] = receiver.wait(1)

    assert json.loads(received.body) == {
        "event": "storage.file_deleted",
        "data": {"url": "unknown", "local_path": "a.png", "size": 3},
        "metadata": {},
    }
    Webhook(SECRET).verify(received.body, received.headers)


def test_system_event_that_is_no_json_is_dropped(make_sender: MakeSender) -> None:
    """
    Whatever ComfyUI says, the thread that reads it goes on.
    """
    with receiving() as receiver:
        events = SystemEvents(make_sender(), receiver.url, EVERY)
        events.comfy({"type": "status", "data": {"text": "\ud800"}})
        events.comfy({"type": "status", "data": {"text": "fine"}})
        [received] = receiver.wait(1)

    assert json.loads(received.body)["data"]["data"] == {"text": "fine"}


def test_address_of_a_job_is_guarded_and_that_of_the_operator_is_not() -> None:
    """
    As a worker is wired: a private address is refused for webhooks and taken for system events.
    """
    with receiving() as receiver:
        web = Web(
            Settings(
                system_webhook_url=receiver.url, system_webhook_events=EVERY, system_meta=(("site", "a"),)
            )
        )
        assert web.events is not None
        web.webhooks.send(message(receiver.url))
        web.events.comfy({"type": "status", "data": {}})
        [received] = receiver.wait(1)
        settled(web.webhooks)
        web.close()

    assert len(receiver.received) == 1
    assert json.loads(received.body)["metadata"] == {"site": "a"}
