"""
The `vastai` SDK, imported in one place, and kept from the log.

Not from `vastai` itself: when one import inside fails, `vastai.Worker` is silently None (1.9.1).
"""

import importlib
import logging
from dataclasses import dataclass
from typing import Any

MISSING = (
    "The package vastai is not installed ({reason}). Install comfy-worker[vast], or let VAST_PYTHON name a Python that has "
    "it (requirements-vast.txt)."
)


class SdkMissing(Exception):
    """
    The SDK cannot be imported; `str()` says what to install.
    """


@dataclass(frozen=True)
class Sdk:
    """
    The names of the SDK that are used.
    """

    Worker: Any
    WorkerConfig: Any
    HandlerConfig: Any
    BenchmarkConfig: Any
    EndpointHandlerFactory: Any
    JsonDataException: Any


def load() -> Sdk:
    """
    Import the SDK.

    Raises:
        SdkMissing: it is not there, or something that it needs is not.
    """
    try:
        worker = importlib.import_module("vastai.serverless.server.worker")
        types = importlib.import_module("vastai.serverless.server.lib.data_types")
    except ImportError as exc:
        raise SdkMissing(MISSING.format(reason=exc)) from exc
    return Sdk(
        worker.Worker,
        worker.WorkerConfig,
        worker.HandlerConfig,
        worker.BenchmarkConfig,
        worker.EndpointHandlerFactory,
        types.JsonDataException,
    )


def set_up_log(level: str) -> None:
    """
    Give the root logger one handler and this level; call it again after a `Worker` was made.

    Making a `Worker` sets the root logger and all its handlers to DEBUG (1.9.1), where whole reports are written. The
    access log holds the callers' API keys (`?api_key=`) and is never on.
    """
    root = logging.getLogger()
    if not root.handlers:
        stream = logging.StreamHandler()
        stream.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(stream)
    root.setLevel(level)
    for handler in root.handlers:
        handler.setLevel(logging.NOTSET)
    logging.getLogger("aiohttp.access").disabled = True
