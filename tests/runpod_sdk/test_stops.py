"""
Cancels that come before the SDK has started the job.
"""

import asyncio
import types

import pytest
from runpod.serverless.modules import rp_scale

from comfy_worker.faces import runpod_stops
from comfy_worker.faces.runpod_stops import KEPT_S, NAME, Stops


def test_job_that_was_stopped_before_its_start_is_cancelled() -> None:
    """A stop of a job that has not begun must wait for it, cancel it once, and no other one; the SDK hears the rest."""
    stops = Stops()
    module = asking(["early", "begun", "unknown"])
    assert stops.install(module)

    async def scene() -> list[object]:
        begun = asyncio.ensure_future(run(stops, "begun", 0.05))
        await asyncio.sleep(0.01)
        assert await getattr(module, NAME)(None) == ["begun"]
        return [
            await begun,
            *await asyncio.gather(
                *(run(stops, job_id) for job_id in ("early", "other")), return_exceptions=True
            ),
            await run(stops, "early"),  # the same id again, which nobody stopped
        ]

    begun, early, other, again = asyncio.run(scene())

    assert isinstance(early, asyncio.CancelledError)
    assert (begun, other, again) == ("begun", "other", "early")


def test_stop_reaches_the_sdk_until_every_delivery_of_its_job_is_over() -> None:
    """A job that was delivered twice must be stoppable while one of the two runs, and its stop kept after that."""
    stops = Stops()
    module = asking(["twice"])
    stops.install(module)

    async def scene() -> list[list[str]]:
        short, long = (asyncio.ensure_future(run(stops, "twice", seconds)) for seconds in (0.01, 0.2))
        await short
        found = [await getattr(module, NAME)(None)]
        await long
        found.append(await getattr(module, NAME)(None))
        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(run(stops, "twice"))
        return found

    assert asyncio.run(scene()) == [["twice"], []]


def test_stop_that_is_old_is_for_no_later_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop whose job did not come in time must not take a later run of that id, as a retry is one."""
    stops = Stops()
    module = asking(["kept", "old"])
    stops.install(module)
    now = 1000.0
    monkeypatch.setattr(runpod_stops, "time", types.SimpleNamespace(monotonic=lambda: now))

    async def later(job_id: str, seconds: float) -> object:
        nonlocal now
        now = 1000.0 + seconds
        [found] = await asyncio.gather(run(stops, job_id), return_exceptions=True)
        return found

    async def scene() -> list[object]:
        await getattr(module, NAME)(None)
        return [await later("kept", KEPT_S - 1.0), await later("old", KEPT_S + 1.0)]

    kept, old = asyncio.run(scene())

    assert isinstance(kept, asyncio.CancelledError)
    assert old == "old"


def test_sdk_that_stops_no_job_is_left_alone() -> None:
    """An SDK that asks for no stops must not be given a way to."""
    module = types.ModuleType("older")

    assert not Stops().install(module)
    assert not hasattr(module, NAME)


def test_sdk_asks_where_the_stops_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job loop of the SDK must ask through its module, on the platform too, where its config is not heeded."""
    monkeypatch.setattr(rp_scale, NAME, getattr(rp_scale, NAME))  # put back at the end
    monkeypatch.setattr(rp_scale, "IS_LOCAL_TEST", False)

    assert Stops().install(rp_scale)

    assert rp_scale.JobScaler({}).stop_signals_fetcher is getattr(rp_scale, NAME)


def asking(job_ids: list[str]) -> types.ModuleType:
    """
    Return a module like the SDK's, that is told to stop some jobs.
    """
    module = types.ModuleType("asking")

    async def ask(_session: object) -> list[str]:
        return job_ids

    setattr(module, NAME, ask)
    return module


async def run(stops: Stops, job_id: str, seconds: float = 0.01) -> str:
    """
    Be a job of the SDK for some time; return its id at the end.
    """
    stops.begins(job_id)
    await asyncio.sleep(seconds)
    return job_id
