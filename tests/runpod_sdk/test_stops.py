"""
Cancels that come between the take of a job and its start.
"""

import asyncio

import pytest
from runpod.serverless.modules import rp_job

from comfy_worker.faces.runpod_stops import KEPT_S, Stops


def test_job_that_was_stopped_before_its_start_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that the SDK knows no task for yet must cancel the job when it starts, and no other one."""
    stops = Stops()
    ended = []

    async def told(_session: object) -> list[str]:
        return ["early", "started", "unknown"]

    async def run(job_id: str) -> None:
        with stops.running(job_id):
            await asyncio.sleep(0.05)
        ended.append(job_id)

    async def scene() -> list[object]:
        monkeypatch.setattr(rp_job, "get_stop_signals", told)
        fetch = stops.fetcher()
        assert fetch is not None
        started = asyncio.ensure_future(run("started"))
        await asyncio.sleep(0.01)
        assert await fetch(None) == ["early", "started", "unknown"]
        found = await asyncio.gather(run_as_task("early"), run_as_task("other"), return_exceptions=True)
        await started
        await run("early")  # the same id again, which nobody stopped
        return list(found)

    def run_as_task(job_id: str) -> "asyncio.Task[None]":
        return asyncio.ensure_future(run(job_id))

    found = asyncio.run(scene())

    assert isinstance(found[0], asyncio.CancelledError)
    assert ended == ["started", "other", "early"] or ended == ["other", "started", "early"]


def test_stop_that_is_old_is_for_no_later_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop whose job did not come in time must not take a later run of that id, as a retry is one."""
    stops = Stops()
    now = 1000.0
    monkeypatch.setattr("comfy_worker.faces.runpod_stops.time.monotonic", lambda: now)

    async def told(_session: object) -> list[str]:
        return ["kept", "old"]

    async def run(job_id: str) -> str:
        with stops.running(job_id):
            await asyncio.sleep(0)
        return job_id

    async def later(job_id: str, seconds: float) -> object:
        nonlocal now
        now = 1000.0 + seconds
        [found] = await asyncio.gather(asyncio.ensure_future(run(job_id)), return_exceptions=True)
        return found

    async def scene() -> list[object]:
        monkeypatch.setattr(rp_job, "get_stop_signals", told)
        fetch = stops.fetcher()
        assert fetch is not None
        await fetch(None)
        return [await later("kept", KEPT_S - 1.0), await later("old", KEPT_S + 1.0)]

    kept, old = asyncio.run(scene())

    assert isinstance(kept, asyncio.CancelledError)
    assert old == "old"


def test_sdk_without_stops_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK that asks for no stops must not be given a way to."""
    monkeypatch.delattr(rp_job, "get_stop_signals")

    assert Stops().fetcher() is None
