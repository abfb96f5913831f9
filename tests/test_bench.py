"""
The bench: its arithmetic, and one small run through every way on the built-in engine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.worker_process import KEPT

from comfy_worker.bench import graphs, report
from comfy_worker.bench.budgets import Budget, of_cases
from comfy_worker.bench.graphs import BenchJob
from comfy_worker.bench.measure import Case, Figures, in_turns
from comfy_worker.standin.thread import EngineThread

FACES = "runpod,salad,vast"


class Fake:
    """
    A way that returns as many files as told to, or raises.
    """

    def __init__(self, name: str, files: int) -> None:
        self.name = name
        self.files = files
        self.seen: list[BenchJob] = []

    def run(self, job: BenchJob) -> int:
        """
        Return how many files came.
        """
        self.seen.append(job)
        return self.files

    def close(self) -> None:
        """
        Nothing to end.
        """


def test_ways_take_turns_on_jobs_that_no_cache_has_seen() -> None:
    """Each way must run each round, each time with a workflow of its own."""
    ways = [Fake("one", 1), Fake("two", 1)]

    case = in_turns("case", ways, graphs.saving, rounds=4, warm=1)

    assert [len(figures.times) for figures in case.figures] == [4, 4]
    seen = [json.dumps(job.workflow) for way in ways for job in way.seen]
    assert len(set(seen)) == len(seen) == 10


def test_way_that_loses_a_file_is_a_failure_not_a_fast_one() -> None:
    """A way that returns fewer files than the job makes must have errors and no times."""
    case = in_turns("case", [Fake("whole", 1), Fake("lossy", 0)], graphs.saving, rounds=5, warm=0)

    assert case.figures[0].errors == []
    assert case.figures[1].times == []
    assert "0 files came back, not 1" in case.figures[1].errors[0]
    assert case.ratio(case.figures[1]) is None


def test_budgets_are_read_from_the_cases() -> None:
    """A pipeline that takes longer than the bare client must be over its budget."""
    trivial = Case("trivial job", [Figures("bare client", [10.0]), Figures("pipeline", [12.0])])
    gap = Case(
        "idle gap of ComfyUI, jobs of about 1 s, 2 threads", [Figures("pipeline, 2 threads", [1.0, 2.0, 3.0])]
    )

    first, second = of_cases([trivial, gap])

    assert (first.value, first.most) == (pytest.approx(1.2), 1.0)
    assert "OVER" in str(first)
    assert (second.value, second.most) == (2.0, 10.0)
    assert "met" in str(second)


def test_picture_and_video_are_new_each_time_and_readable() -> None:
    """Two numbers must give different bytes of the same picture, about as large as asked."""
    first, second = (graphs.picture(number, 0.3) for number in (1, 2))

    assert first != second
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert 0.25e6 < len(first) < 0.35e6
    assert graphs.video(1, 0.2) != graphs.video(2, 0.2)
    assert graphs.video(1, 0.2)[4:8] == b"ftyp"


def test_report_holds_every_figure(tmp_path: Path) -> None:
    """The written table and JSON must have the budgets, the times and the errors of a run."""
    case = Case("trivial job", [Figures("bare client", [10.0]), Figures("pipeline", [], errors=["it broke"])])
    about = {"ComfyUI": "0.0", "cores": "2"}

    paths = report.write([case], about, [Budget("idle memory", 84.0, 100.0, "MB")], tmp_path)

    text = (tmp_path / "bench-0.0.md").read_text()
    assert "| bare client | 10.0 |" in text
    assert "it broke" in text
    assert "| idle memory | <= 100 MB | 84.00 MB | met |" in text
    assert json.loads((tmp_path / "bench-0.0.json").read_text())["cases"][0]["ways"][0]["ms"] == [10.0]
    assert {path.suffix for path in paths} == {".md", ".json", ".png", ".svg"}


@pytest.mark.slow
def test_bench_runs_every_way_to_its_files(engine: EngineThread, tmp_path: Path) -> None:
    """A small run through the command line must bring every way's files back, and leave no process behind."""
    command = [sys.executable, "-m", "comfy_worker", "bench", "small", "--share", "0.01", "--faces", FACES]
    command += ["--comfyui", engine.url, "--output", str(tmp_path)]
    own = {name: os.environ[name] for name in KEPT if name in os.environ}

    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**own, "HOME": str(tmp_path)}, check=False
    )

    assert ran.returncode == 0, ran.stderr
    [found] = tmp_path.glob("bench-*.json")
    case = json.loads(found.read_text())["cases"][0]
    assert [row["way"] for row in case["ways"]] == [
        "bare client",
        "pipeline",
        "runpod SDK",
        *(f"{face} face" for face in FACES.split(",")),
        "bare client, one websocket",
    ]
    assert all(len(row["ms"]) == 3 and not row["errors"] for row in case["ways"]), case


def test_unknown_case_is_named(tmp_path: Path) -> None:
    """A case that does not exist must be refused with the names of those that do."""
    ran = subprocess.run(
        [sys.executable, "-m", "comfy_worker", "bench", "nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )

    assert ran.returncode == 2
    assert "nonsense" in ran.stderr
