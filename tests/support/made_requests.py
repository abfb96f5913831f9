"""
Requests that schemathesis makes from the OpenAPI document of a face, right ones and wrong ones.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
TIMEOUT_S = 20.0


def hold(url: str, mode: GenerationMode, examples: int) -> set[str]:
    """
    Send made-up requests to every operation of the document at `url`; return the operations that were tried.

    Raises:
        BaseExceptionGroup: a 5xx that is not named, a status, type or shape that the document does not name, or no answer.
    """
    document = schemathesis.openapi.from_url(url)
    tried: set[str] = set()
    for found in document.get_all_operations():
        operation: Any = found.ok()
        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with it
            _holding(operation, mode, examples)()
            tried.add(operation.label)
    return tried


def _holding(operation: Any, mode: GenerationMode, examples: int) -> Callable[[], None]:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case) -> None:
        # What fits a schema may still be refused: a graph must hold nodes, a body one of two fields.
        case.call_and_validate(timeout=TIMEOUT_S, excluded_checks=[positive_data_acceptance])

    made: Callable[[], None] = holds
    return made
