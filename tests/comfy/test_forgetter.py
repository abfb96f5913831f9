"""
The deletion of history entries behind the jobs.
"""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from comfy_worker.comfy.forgetter import Forgetter
from comfy_worker.errors import ComfyUnavailable


class History:
    """
    A history that takes `delay_s` to delete, or fails with `problem`; `asked` is what was deleted together.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.delay_s = 0.0
        self.problem: Exception | None = None
        self.began = threading.Event()

    def delete(self, prompt_ids: Sequence[str]) -> None:
        """
        Delete entries.
        """
        self.began.set()
        time.sleep(self.delay_s)
        if self.problem is not None:
            raise self.problem
        self.asked.append(tuple(prompt_ids))


@pytest.fixture
def history() -> History:
    """
    A history.
    """
    return History()


@pytest.fixture
def forgetter(history: History) -> Iterator[Forgetter]:
    """
    One that is closed at the end.
    """
    made = Forgetter(history.delete)
    yield made
    made.close()


def test_several_are_deleted_at_once(history: History, forgetter: Forgetter) -> None:
    """Prompts that end one after the other must cost ComfyUI one request, and each be named once."""
    for number in range(5):
        forgetter.forget(str(number))
    forgetter.close()

    assert [name for names in history.asked for name in names] == ["0", "1", "2", "3", "4"]
    assert len(history.asked) <= 2


def test_callers_do_not_wait_for_comfyui(history: History, forgetter: Forgetter) -> None:
    """However long the deletion takes, who is done with a prompt must not wait for it."""
    history.delay_s = 0.5
    began = time.monotonic()

    forgetter.forget("a")
    history.began.wait(5.0)
    forgetter.forget("b")

    assert time.monotonic() - began < 0.4
    forgetter.close()
    assert history.asked == [("a",), ("b",)]


def test_settle_waits_until_the_entry_is_gone(history: History) -> None:
    """A prompt id that is used again must wait for its deletion, whether that waits or is under way; others must not."""
    patient = Forgetter(history.delete, pause_s=30.0)
    patient.forget("a")
    patient.settle("b")
    assert history.asked == []

    patient.settle("a")

    assert history.asked == [("a",)]
    patient.close()
    history.asked.clear()
    history.began.clear()
    history.delay_s = 0.2
    prompt = Forgetter(history.delete, pause_s=0.0)
    prompt.forget("c")
    history.began.wait(5.0)
    prompt.settle("c")
    assert history.asked == [("c",)]
    prompt.close()


def test_failure_is_no_end(history: History, forgetter: Forgetter) -> None:
    """ComfyUI that is away must cost nobody anything, and the next deletion must be tried."""
    history.problem = ComfyUnavailable("away")
    forgetter.forget("a")
    forgetter.settle("a")
    history.problem = None

    forgetter.forget("b")
    forgetter.settle("b")

    assert history.asked == [("b",)]


def test_closed_forgetter_takes_no_more(history: History, forgetter: Forgetter) -> None:
    """After the end nothing may start a thread or wait for one."""
    forgetter.close()
    forgetter.forget("a")
    forgetter.settle("a")
    forgetter.close()

    assert history.asked == []
