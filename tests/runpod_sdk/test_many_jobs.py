"""
Three hundred jobs of every kind through one worker: each gets one result, or none where it was cancelled.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runpod_sdk.conftest import SLOTS, Running
from support.control_plane import PlaneJob, wait_until
from support.lanes import big, failing, queue_of, sleeping
from support.pictures import b64, empty_workflow, invert_workflow, node, opened, png

pytestmark = pytest.mark.slow

COUNT = 300
KINDS = {
    "invalid": 30,
    "refused": 20,
    "failing": 30,
    "large": 20,
    "odd": 15,
    "slow": 3,
    "twice": 20,
    "stop": 24,
}


def colour(number: int) -> tuple[int, int, int]:
    """
    Return a colour that belongs to one job only.
    """
    return number % 16 * 16, number // 16 * 12, 77


def good(number: int) -> dict[str, Any]:
    """
    Return the input of a job that inverts a picture of its own colour; every job calls its picture the same.
    """
    picture = b64(png((8, 8), colour(number)))
    return {"workflow": invert_workflow("in.png"), "images": [{"name": "in.png", "image": picture}]}


def input_of(kind: str, number: int) -> Any:
    """
    Return the input of a job of one kind.
    """
    wrong = [None, "no json", [1], {}, {"workflow": empty_workflow(), "images": "x"}, {"workflow": "\udcff"}]
    inputs: dict[str, Any] = {
        "invalid": wrong[number % len(wrong)],
        "refused": {"workflow": {"1": node("NoSuchNode")}},
        "failing": {"workflow": failing(f"fail-{number}")},
        "large": {"workflow": big(0.2)},
        "odd": {"workflow": {"1": node("SaveOddly")}},
        "slow": {"workflow": sleeping(f"slow-{number}-", seconds=1.5, steps=50)},
        "stop": {"workflow": sleeping(f"stop-{number}-")},
    }
    return inputs.get(kind) or (None if kind == "invalid" else good(number))


def mixed() -> Iterator[tuple[str, str, Any]]:
    """
    Yield (kind, id, input) in an order that is mixed and always the same; a repeated id comes twice in a row.
    """
    kinds = [kind for kind, count in KINDS.items() for _ in range(count // 2 if kind == "twice" else count)]
    kinds += ["good"] * (COUNT - sum(KINDS.values()))
    random.Random(5).shuffle(kinds)
    for number, kind in enumerate(kinds):
        for _ in range(2 if kind == "twice" else 1):
            yield kind, f"{kind}-{number}-e1", input_of(kind, number)


def stop_as_they_come(served: Running, jobs: list[PlaneJob]) -> Counter[str]:
    """
    Cancel each job once ComfyUI has it: those that wait there first, then the one that runs. Return how many of each.
    """
    left = {f"stop-{job.id.split('-')[1]}-": job for job in jobs}
    stopped: Counter[str] = Counter()
    while left:
        running, waiting = "", ""

        def is_there() -> bool:
            nonlocal running, waiting
            running, waiting = queue_of(served.engine)
            return any(label in running for label in left)

        wait_until(is_there, 60.0)
        for where, text in (("waiting", waiting), ("running", running)):
            for label in [label for label in left if label in text]:
                served.plane.cancel(left.pop(label))
                stopped[where] += 1
    return stopped


@dataclass(frozen=True)
class Flood:
    """
    The jobs by their kind, how many were cancelled where, and three whose results the plane did not take at once.

    `left` are the output folders that were not there before, and still are.
    """

    plan: list[tuple[str, str, Any]]
    jobs: list[PlaneJob]
    stopped: Counter[str]
    refused: PlaneJob
    hiccup: PlaneJob
    outage: PlaneJob
    left: set[Path]

    def of(self, *kinds: str) -> list[PlaneJob]:
        """
        Return the jobs of some kinds, in the order they were sent.
        """
        return [job for (kind, *_), job in zip(self.plan, self.jobs, strict=True) if kind in kinds]


@pytest.fixture(scope="session")
def flood(served: Running) -> Flood:
    """
    All jobs, sent at once and over.
    """
    plan, folders = list(mixed()), set(served.engine.folders.output.glob("cw-*"))
    refused, hiccup, outage = (
        served.plane.submit(good(number), **answers)
        for number, answers in ((301, {"answer": 400}), (302, {"answers": (500,)}), (303, {"answer": 500}))
    )
    jobs = served.plane.submit_all([(job_id, {"input": input_}) for _, job_id, input_ in plan])
    flood = Flood(plan, jobs, Counter(), refused, hiccup, outage, set())
    flood.stopped.update(stop_as_they_come(served, flood.of("stop")))
    for job in flood.of(*KINDS.keys() - {"stop", "twice"}, "good"):
        job.wait(60.0)
    for job in flood.of("twice")[1::2]:
        job.wait_until(lambda job: len(job.results) == 2)
    outage.wait_until(lambda job: len(job.results) == 3)
    flood.left.update(set(served.engine.folders.output.glob("cw-*")) - folders)
    return flood


def test_three_hundred_mixed_jobs_get_one_result_each(flood: Flood) -> None:
    """Every job must get exactly one result, and a cancelled one none."""
    assert len(flood.jobs) == COUNT
    assert all(len(job.results) == 1 for job in flood.of(*KINDS.keys() - {"stop", "twice"}, "good"))
    assert not any(job.results for job in flood.of("stop"))
    assert sum(flood.stopped.values()) == KINDS["stop"]
    assert flood.stopped["waiting"] and flood.stopped["running"]


def test_result_that_the_plane_refuses_is_sent_as_often_as_it_may_help(flood: Flood) -> None:
    """A 400 ends a result, a 500 is tried again, and neither costs any other job."""
    assert [post.status for post in flood.refused.results] == [400]
    assert [post.status for post in flood.hiccup.results] == [500, 200]
    assert [post.status for post in flood.outage.results] == [500, 500, 500]


def test_nothing_grows_with_the_jobs(flood: Flood, served: Running) -> None:
    """After hundreds of jobs the worker must hold no more threads and files than its slots need, and no prompt."""
    process = Path(f"/proc/{served.worker.pid}")
    after = served.plane.submit(good(304))

    assert "images" in after.wait()["output"]
    assert queue_of(served.engine) == ("[]", "[]")
    wait_until(lambda: len(list((process / "task").iterdir())) <= 2 * SLOTS)
    wait_until(lambda: len(list((process / "fd").iterdir())) <= 3 * SLOTS + 40)
    assert flood.left == set()


def test_runpod_14_52_progress_only_rises_and_ends_before_the_result(flood: Flood) -> None:
    """No progress may follow a result, whatever the plane did with it, and no percent may fall."""
    for job in [*flood.jobs, flood.outage]:
        percents = [post.body["output"]["percent"] for post in job.progress]
        assert percents == sorted(percents)
        if job.results:
            assert all(post.kind == "progress" for post in job.posts[:-1]) or len(job.results) > 1
            assert job.posts[-1].kind == "result"
    assert sum(len(job.progress) for job in flood.jobs) > SLOTS


def test_each_job_gets_the_answer_to_its_own_question(flood: Flood) -> None:
    """Jobs with inputs of one name, and failures, must not meet each other's."""
    codes = {
        "invalid": {"job_invalid", "workflow_invalid"},
        "refused": {"workflow_invalid"},
        "failing": {"node_failed"},
        "large": {"reply_too_large"},
    }
    for (kind, job_id, _), job in zip(flood.plan, flood.jobs, strict=True):
        for post in job.results:
            output, error = post.body.get("output", {}), post.body.get("error")
            assert error is None if kind in {"good", "twice", "odd", "slow"} else error
            if kind in codes:
                assert output["error_code"] in codes[kind]
            if kind == "failing":
                assert f"no luck with fail-{job_id.split('-')[1]}" in output["details"][0]
            if kind == "odd":
                assert output["images"][0]["filename"] == "odd-\ufffd.png"
            if kind in {"good", "twice"}:
                wanted = [255 - part for part in colour(int(job_id.split("-")[1]))]
                assert opened(output["images"][0]).getpixel((3, 3)) == pytest.approx(wanted, abs=1)
