"""
The desk of RunPod's API: what is kept, for how long, and in what bounds; deadlines of a job.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from comfy_worker.errors import WorkerBusy
from comfy_worker.faces.http_events import EventHub
from comfy_worker.faces.runpod_jobs import Desk, Record, Terms
from comfy_worker.faces.runpod_request import JobRequest, Policy, terms_of
from comfy_worker.job import Event, Observer


class Handler:
    """
    A handler whose jobs end when their input is `now`, and else wait; `cancelled` are the ids of those that were told to.
    """

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def __call__(self, raw: Mapping[str, Any], observe: Observer) -> dict[str, Any]:
        observe(Event("staging", 0.0))
        if raw["input"] == "fail":
            return {"error": "no", "error_code": "job_failed", "refresh_worker": True}
        if raw["input"] != "now":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.append(raw["id"])
                raise
        return {"images": ["x" * 100]}


def with_desk(body: Callable[[Desk, Handler], Awaitable[None]], **options: Any) -> list[Record]:
    """
    Run a test on a desk; return the jobs that the desk told of.
    """
    told: list[Record] = []

    async def go() -> None:
        handler = Handler()
        desk = Desk(handler, EventHub(lambda _: 0), told.append, **options)
        try:
            await asyncio.wait_for(body(desk, handler), 20)
        finally:
            await desk.close(0.1)
        assert (len(desk), desk.held_bytes) == (0, 0)

    asyncio.run(go())
    return told


async def ended(record: Record) -> Record:
    """
    Wait for a job's end.
    """
    await asyncio.wait_for(record.done.wait(), 10)
    return record


async def gone(desk: Desk, record: Record) -> None:
    """
    Wait until the desk has dropped a job.
    """
    async with asyncio.timeout(10):
        while desk.get(record.id) is not None:
            await asyncio.sleep(0.01)


def test_job_over_its_execution_timeout_is_timed_out_and_stopped() -> None:
    """A job that runs longer than it may must be TIMED_OUT, with a reason, and its run cancelled."""

    async def body(desk: Desk, handler: Handler) -> None:
        record = await ended(desk.submit({"input": "wait"}, 5, Terms(execution_s=0.05), sync=False))
        await asyncio.sleep(0.05)

        assert record.status == "TIMED_OUT"
        assert "policy.executionTimeout" in record.view("w")["error"]
        assert handler.cancelled == [record.id]

    [told] = with_desk(body)
    assert told.status == "TIMED_OUT"


def test_job_over_its_time_to_live_is_gone_wherever_it_was() -> None:
    """A job older than its `ttl` must be dropped and stopped even while it runs."""

    async def body(desk: Desk, handler: Handler) -> None:
        record = desk.submit({"input": "wait"}, 5, Terms(ttl_s=0.05), sync=False)
        await gone(desk, record)
        await ended(record)
        await asyncio.sleep(0.05)

        assert handler.cancelled == [record.id]

    with_desk(body)


@pytest.mark.parametrize("sync", [False, True])
def test_results_are_dropped_after_their_time(sync: bool) -> None:
    """A result must be kept for its time, which is another one for /runsync, and then be dropped."""

    async def body(desk: Desk, handler: Handler) -> None:
        short = await ended(desk.submit({"input": "now"}, 5, Terms(), sync=sync))
        long = await ended(desk.submit({"input": "now"}, 5, Terms(), sync=not sync))
        await gone(desk, short)

        assert desk.get(long.id) is long

    with_desk(body, kept_s=(60.0, 0.05) if sync else (0.05, 60.0))


def test_old_results_make_room_in_number_and_in_bytes() -> None:
    """With the desk full, the oldest results must go, and a job that has not ended never."""

    async def body(desk: Desk, handler: Handler) -> None:
        waiting = desk.submit({"input": "wait"}, 100, Terms(), sync=False)
        done = [await ended(desk.submit({"input": "now"}, 5, Terms(), sync=False)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(WorkerBusy):
            desk.submit({"input": "now"}, 900, Terms(), sync=False)
        desk.submit({"input": "now"}, 200, Terms(), sync=False)

        assert [desk.get(record.id) is not None for record in done] == [False, False, True]
        assert desk.get(waiting.id) is waiting

    with_desk(body, most_jobs=4, most_bytes=500)


def test_more_jobs_than_may_wait_are_refused() -> None:
    """A job beyond the limit of those that have not ended must be refused."""

    async def body(desk: Desk, handler: Handler) -> None:
        for _ in range(2):
            desk.submit({"input": "wait"}, 1, Terms(), sync=False)

        with pytest.raises(WorkerBusy):
            desk.submit({"input": "wait"}, 1, Terms(), sync=False)

    with_desk(body, most_waiting=2)


def test_failure_is_split_as_the_platform_does() -> None:
    """`error` must be at the top, the rest the output, and what is meant for the platform nowhere."""

    async def body(desk: Desk, handler: Handler) -> None:
        record = await ended(desk.submit({"input": "fail"}, 5, Terms(), sync=False))
        view = record.view("worker-1")

        assert (view["status"], view["error"], view["workerId"]) == ("FAILED", "no", "worker-1")
        assert record.output == b'{"error_code":"job_failed"}'
        assert desk.counts["FAILED"] == 1

    with_desk(body)


def test_terms_of_a_request_are_production_s_unless_it_names_its_own() -> None:
    """Without a policy a job may run for 600 s and lives a day; a policy's numbers are milliseconds."""
    own = Policy(executionTimeout=5000, ttl=20_000, lowPriority=True)

    assert terms_of(JobRequest(input={}, webhook="", policy=None)) == Terms(600.0, 86_400.0, None)
    assert terms_of(JobRequest(input={}, webhook="https://a.example/x", policy=own)) == Terms(
        5.0, 20.0, "https://a.example/x"
    )
    with pytest.raises(ValidationError, match="webhook"):
        JobRequest(input={}, webhook="http://a:99999/", policy=None)
