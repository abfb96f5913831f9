"""
A short run of the chaos in every test run; `scripts/chaos` runs thousands of jobs.
"""

import sys
from pathlib import Path

import pytest

from chaos.drive import run
from chaos.plan import KINDS, WEATHERS, fate_of, weather_of

SEED, JOBS, EPOCH = 17, 120, 6


def test_seed_decides_everything() -> None:
    """The same seed must give the same jobs and the same weather, another one others; every kind must come up."""
    fates = [fate_of(1, number) for number in range(2000)]

    assert fates == [fate_of(1, number) for number in range(2000)]
    assert fates != [fate_of(2, number) for number in range(2000)]
    assert {fate.kind for fate in fates} == set(KINDS)
    assert {weather_of(1, epoch).name for epoch in range(400)} == {weather.name for weather, _ in WEATHERS}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")
def test_every_job_ends_once_right_or_with_a_true_reason(tmp_path: Path) -> None:
    """In bad weather no job may be lost, end twice, be late, get another's picture, or fail for no reason."""
    report = run(SEED, JOBS, tmp_path, EPOCH)

    assert report.violations == [], "\n".join(report.lines())
    assert sum(report.outcomes.values()) == JOBS
    assert report.outcomes["right"] > JOBS / 3
