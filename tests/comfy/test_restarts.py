"""
How often a dead ComfyUI is started again: growing pauses, a bound that they cannot hide, and a fresh start for a long life.
"""

import pytest

from comfy_worker.comfy.restarts import Deaths, Restarts


def test_pause_grows_and_has_a_bound() -> None:
    """Each further rapid death must double the pause, up to a minute."""
    deaths = Deaths(Restarts(5.0, 100, 60.0), 600.0)
    pauses = []
    for _ in range(6):
        deaths.add(1.0, answered=True)
        pauses.append(deaths.delay_s)

    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_pause_that_is_asked_for_is_never_cut() -> None:
    """A pause above a minute must stay what the operator set, and none must stay none."""
    slow, quick = Deaths(Restarts(90.0), 1.0), Deaths(Restarts(0.0), 1.0)
    for deaths in (slow, quick):
        deaths.add(0.0, answered=True)
        deaths.add(0.0, answered=True)

    assert (slow.delay_s, quick.delay_s) == (90.0, 0.0)


def test_rapid_deaths_in_a_row_are_too_many() -> None:
    """At the limit it must be given up, however long the pauses between the deaths were."""
    deaths = Deaths(Restarts(5.0, 3, 60.0), 600.0)

    found = []
    for _ in range(3):
        deaths.add(59.0, answered=True)
        found.append(deaths.are_too_many)

    assert found == [False, False, True]


def test_long_life_makes_good_for_earlier_deaths() -> None:
    """A ComfyUI that lived long and answered must count as a first death again."""
    deaths = Deaths(Restarts(5.0, 3, 60.0), 600.0)
    for lived_s in (1.0, 1.0, 3600.0):
        deaths.add(lived_s, answered=True)

    assert not deaths.are_too_many
    assert deaths.delay_s == 5.0


@pytest.mark.parametrize(("lived_s", "too_many"), [(200.0, True), (700.0, False)])
def test_slow_boot_that_fails_is_a_rapid_death(lived_s: float, too_many: bool) -> None:
    """One that never answered must count as rapid within its boot limit, though it lived for minutes."""
    deaths = Deaths(Restarts(5.0, 2, 60.0), 600.0)
    deaths.add(lived_s, answered=False)
    deaths.add(lived_s, answered=False)

    assert deaths.are_too_many is too_many
