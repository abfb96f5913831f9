"""
A worker that takes one job at a time goes on with the next one as soon as it can, not at the SDK's next look.
"""

import asyncio
import types
from itertools import pairwise

import pytest
from runpod.serverless.modules import rp_scale
from runpod_sdk.conftest import StartWorker
from support.control_plane import ControlPlane, wait_until
from support.pictures import empty_workflow

from comfy_worker.faces.runpod_wake import Pauses
from comfy_worker.standin.thread import EngineThread

JOBS = 20


@pytest.mark.slow
def test_one_slot_takes_the_next_job_at_once(
    plane: ControlPlane, lane: EngineThread, start_worker: StartWorker
) -> None:
    """Twenty short jobs at a concurrency of one must not take a second each, as the SDK's own pauses would have it."""
    worker = start_worker({**plane.environ(), "COMFYUI_URL": lane.url, "WORKER_CONCURRENCY": "1"})
    wait_until(lambda: plane.takes)

    jobs = plane.submit_all([(None, {"input": {"workflow": empty_workflow(0x100 + n)}}) for n in range(JOBS)])
    for job in jobs:
        assert "images" in job.wait()["output"], worker.text

    ends = [job.results[0].at for job in jobs]
    assert sorted(after - before for before, after in pairwise(ends))[JOBS // 2] < 0.5


def test_installed_sdk_has_what_the_pauses_stand_in_for() -> None:
    """The SDK's loop must call asyncio by its name in the module; otherwise the jobs fall back to a grid of a second."""
    assert isinstance(vars(rp_scale).get("asyncio"), types.ModuleType)
    assert rp_scale.asyncio.sleep is not None
    assert "sleep" in rp_scale.JobScaler.get_jobs.__code__.co_names


def test_wake_ends_a_short_pause_and_leaves_a_long_one() -> None:
    """A pause of a second must end at a wake; the five seconds after a 429 must not."""

    async def scene() -> tuple[bool, bool]:
        pauses = Pauses()
        short = asyncio.create_task(pauses.sleep(1.0))
        long = asyncio.create_task(pauses.sleep(5.0))
        await asyncio.sleep(0)
        pauses.wake()
        done, _ = await asyncio.wait({short, long}, timeout=0.5)
        long.cancel()
        return short in done, long in done

    assert asyncio.run(scene()) == (True, False)


def test_module_without_asyncio_is_left_alone() -> None:
    """A module of another make must stay as it is, and the caller be told."""
    module = types.ModuleType("other")

    assert not Pauses().install(module)
    assert not hasattr(module, "asyncio")
