"""
How a run that did not succeed is told: the data of `execution_error` and of `execution_interrupted`.
"""

import traceback
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from comfy_worker.standin.graph import DependencyCycleError


class Attempt:
    """
    A `with` block that keeps an exception of a node instead of passing it on, as the engine must outlive any node.
    """

    error: Exception | None = None

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
            return True
        return False


def type_name(error: BaseException) -> str:
    """
    Return the qualified name of an exception's type, bare for builtins.
    """
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def shown(value: Any) -> Any:
    """
    Return a value as `current_inputs` shows it: simple ones as they are, the others as text.
    """
    return value if value is None or isinstance(value, int | float | bool | str) else str(value)


def error_data(
    error: Exception,
    node_id: str,
    class_type: str,
    inputs: Mapping[str, Iterable[Any]] | None,
    executed: Iterable[str],
    outputs: Iterable[str],
) -> dict[str, Any]:
    """
    Return the data of an `execution_error`, without prompt_id and timestamp.

    `inputs` (lists per input) is None for what went wrong outside of a node. Source: ComfyUI 0.27.0.
    """
    cycle = isinstance(error, DependencyCycleError)
    return {
        "node_id": node_id,
        "node_type": class_type,
        "executed": list(executed),
        "exception_message": str(error) if cycle else f"{error}\n",
        "exception_type": type_name(error),
        "traceback": [] if cycle else traceback.format_tb(error.__traceback__),
        "current_inputs": []
        if inputs is None
        else {name: [shown(value) for value in row] for name, row in inputs.items()},
        "current_outputs": list(outputs),
    }


def blocked_data(message: str, node_id: str, class_type: str, executed: Iterable[str]) -> dict[str, Any]:
    """
    Return the data of the `execution_error` that a verbose blocker sends.
    """
    return {
        "node_id": node_id,
        "node_type": class_type,
        "executed": list(executed),
        "exception_message": f"Execution Blocked: {message}",
        "exception_type": "ExecutionBlocked",
        "traceback": [],
        "current_inputs": [],
        "current_outputs": [],
    }
