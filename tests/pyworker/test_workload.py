"""
How much work a request is.
"""

import math
from typing import Any

import pytest

from comfy_worker.pyworker import workload

TABLE = [
    (1024, 1024, 28, 4600.00, 1200.00),
    (1024, 1024, 20, 3650.82, 952.39),
    (768, 1344, 28, 6650.96, 1735.03),
    (512, 512, 28, 1523.57, 397.45),
    (512, 512, 20, 1209.19, 315.44),
    (2048, 2048, 28, 16905.73, 4410.19),
]


@pytest.mark.parametrize(("width", "height", "steps", "flux", "sd3"), TABLE)
def test_legacy_job_counts_by_its_size(width: int, height: int, steps: int, flux: float, sd3: float) -> None:
    """
    The formula of the 2024 template gives its known values, to the cent.
    """
    fields = {"width": width, "height": height, "steps": steps}

    assert workload.sized("flux", fields) == pytest.approx(flux, abs=0.005)
    assert workload.sized("sd3", fields) == pytest.approx(sd3, abs=0.005)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": None},
        {"width": "wide", "height": [], "steps": {}},
        {"steps": True},
        {"steps": math.nan},
        {"steps": math.inf},
        {"width": "1e999"},
        None,
        [],
        "x",
    ],
)
def test_what_is_no_number_takes_the_default(fields: Any) -> None:
    """
    A job whose size is not known counts as 1024 x 1024 in 28 steps.
    """
    assert workload.sized("flux", fields) == pytest.approx(4600)


@pytest.mark.parametrize("value", [0, -5, 0.2, "-7"])
def test_less_than_one_counts_as_one(value: Any) -> None:
    """
    A size below 1 is taken as 1, so nothing counts as nothing.
    """
    fields = {"width": value, "height": value, "steps": value}

    assert workload.sized("sd3", fields) == workload.sized("sd3", {"width": 1, "height": 1, "steps": 1}) > 0


@pytest.mark.parametrize("value", [1e308, 10**400])
def test_absurd_size_stays_a_number(value: float) -> None:
    """
    No request makes the sum of all load infinite.
    """
    assert math.isfinite(workload.sized("flux", {"width": value, "height": value, "steps": value}))


def test_one_unit_per_worker() -> None:
    """
    Without the legacy mode every job counts 100, legacy ones too; with it every job counts in the formula's unit.
    """
    assert workload.unit(None) == workload.sized(None, {"width": 4096}) == 100
    assert workload.unit("flux") == pytest.approx(4600)
    assert workload.unit("sd3") == pytest.approx(1200)
    assert workload.unit("the operator's own") > 0
