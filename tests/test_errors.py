"""
The tree of errors: what its docstring draws is what there is, codes are unique, statuses mean what they say.
"""

import re

import pytest

from comfy_worker import errors
from comfy_worker.comfy.http_errors import NotListening
from comfy_worker.errors import ConfigInvalid, WorkerError, every_error

ROWS = re.findall(r"^ +[│ ]*[├└]── (\w+) +(\d{3})", errors.__doc__ or "", re.MULTILINE)
RETRYABLE = {"OutOfMemory", "PromptLost", "DeliveryFailed", "WorkerBusy", "ComfyUnavailable", "DiskFull"}


def descendants(kind: type[WorkerError]) -> set[type[WorkerError]]:
    """
    Return all errors below one.
    """
    return {kind}.union(*(descendants(child) for child in kind.__subclasses__()))


def test_drawn_tree_is_the_real_one() -> None:
    """The tree in the module's docstring must hold every error, with its status and its parent."""
    real = {kind.__name__: kind.http_status for kind in every_error().values() if kind is not WorkerError}

    assert {name: int(status) for name, status in ROWS} == real
    for line in re.findall(r"^ +(│   )?[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        kind = getattr(errors, line[1])
        assert (kind.__base__ is WorkerError) == (not line[0])


def test_codes_are_unique_and_spelled_like_their_class() -> None:
    """Every error must have a code of its own, which clients can rely on."""
    found = every_error()

    assert len(found) == len(ROWS) + 1
    for code, kind in found.items():
        assert code == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
        assert "code" in vars(kind)


def test_special_cases_share_the_code_of_their_parent() -> None:
    """An error that only the inside tells apart must look like its parent to a caller."""
    ours = {kind for kind in descendants(WorkerError) if kind.__module__.startswith("comfy_worker.")}
    inside = ours - set(every_error().values())

    assert NotListening in inside
    assert {kind: kind.code for kind in inside} == {kind: kind.__mro__[1].code for kind in inside}


@pytest.mark.parametrize("kind", every_error().values(), ids=list(every_error()))
def test_status_and_retry_agree(kind: type[WorkerError]) -> None:
    """A 4xx must say that the same job fails again: never retryable. What is retryable must be a 5xx."""
    assert 400 <= kind.http_status < 600
    assert not (kind.retryable and kind.http_status < 500)
    assert kind.retryable == (kind.__name__ in RETRYABLE)


@pytest.mark.parametrize("kind", every_error().values(), ids=list(every_error()))
def test_error_carries_sentence_and_details(kind: type[WorkerError]) -> None:
    """Every error must be its sentence, with the given details and nothing partial."""
    error = kind("a sentence", field="workflow", more=1)

    assert (str(error), error.details, error.partial) == (
        "a sentence",
        {"field": "workflow", "more": 1},
        None,
    )
    assert (kind.__doc__ or "").strip()


def test_wrong_configuration_lists_every_problem() -> None:
    """The text must hold all problems, one per line."""
    error = ConfigInvalid(["A must be 1", "B must be 2"])

    assert str(error) == "The configuration is invalid:\n  - A must be 1\n  - B must be 2"
    assert error.problems == ("A must be 1", "B must be 2")
