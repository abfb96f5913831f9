"""
What happens before this worker is loaded: the public key, a model server that is ready, one good run of the benchmark.

Everything that goes wrong here is raised as one sentence that names the reason; the SDK reports it as
`Lifecycle startup failed: <sentence>` until the worker is stopped.
"""

import asyncio
import json
import logging
import time
from types import TracebackType
from typing import Any

import aiohttp

from comfy_worker.pyworker import public_key
from comfy_worker.pyworker.benchmark import Benchmark
from comfy_worker.pyworker.config import Config
from comfy_worker.pyworker.model_server import ModelServer

logger = logging.getLogger(__name__)

HEALTH = "/health"
POLL_S = 0.5
HEALTH_S = 10.0
ATTEMPTS = 3
RETRY_S = 5.0
REASON_LIMIT = 800
FAILED_HEALTH = "gives no reason"


class NotReady(Exception):
    """
    This worker cannot serve; `str()` is the reason, for the router and whoever reads its logs.
    """


class Lifecycle:
    """
    The SDK's lifecycle: entered, the worker is ready for the benchmark; left, it takes no more requests.

    `measured` is the score of an earlier start that still holds: then the benchmark does not run at all.
    """

    def __init__(
        self,
        config: Config,
        benchmark: Benchmark,
        key: public_key.PublicKey,
        model_server: ModelServer | None,
        measured: float | None,
    ) -> None:
        self._config = config
        self._benchmark = benchmark
        self._key = key
        self._model_server = model_server
        self._measured = measured
        self.backend: Any = None
        """The SDK's, once the `Worker` is made."""

    async def __aenter__(self) -> "Lifecycle":
        """
        Wait until jobs can be served.

        Raises:
            NotReady: they cannot.
        """
        if not self._config.unsecured:
            if self._key.problem:
                raise NotReady(self._key.problem)
            if not await public_key.reached(self.backend):
                raise NotReady("The SDK could not read the public key")
        async with aiohttp.ClientSession(
            self._config.model_server_url, timeout=aiohttp.ClientTimeout(total=None)
        ) as http:
            await self._until_ready(http)
            if self._measured is None:
                logger.info("The benchmark: %s", self._benchmark.source)
                self._limit_runs(await self._warm_up(http))
            else:
                logger.info("The benchmark is not run again: its score was %.2f", self._measured)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logger.info("This worker takes no more requests.")

    async def _until_ready(self, http: aiohttp.ClientSession) -> None:
        until = time.monotonic() + self._config.ready_timeout_s
        while True:
            reason, hopeless = await self._health(http)
            if not reason:
                return
            ended = self._model_server.ended() if self._model_server is not None else None
            if ended is not None:
                raise NotReady(ended)
            if hopeless:
                raise NotReady(f"The model server cannot serve any more: {reason}")
            if time.monotonic() > until:
                raise NotReady(
                    f"The model server was not ready within {self._config.ready_timeout_s:.0f} s: {reason}"
                )
            await asyncio.sleep(POLL_S)

    async def _health(self, http: aiohttp.ClientSession) -> tuple[str, bool]:
        """
        Ask once. Returns why it is not ready ("" when it is), and whether that is final.
        """
        try:
            async with http.get(HEALTH, timeout=aiohttp.ClientTimeout(total=HEALTH_S)) as reply:
                if reply.status == 200:
                    return "", False
                return unhealthy(await reply.text(), reply.status)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as exc:
            return f"{self._config.model_server_url} does not answer ({type(exc).__name__})", False

    async def _warm_up(self, http: aiohttp.ClientSession) -> float:
        """
        Run the benchmark's job once, loading its models; return the seconds it took.
        """
        for attempt in range(1, ATTEMPTS + 1):
            began = time.monotonic()
            status, text = await self._run(http)
            if status == 200:
                return time.monotonic() - began
            # 503 means: not now, or not here. ComfyUI may be starting again.
            if status != 503 or attempt == ATTEMPTS:
                break
            await asyncio.sleep(RETRY_S)
        raise NotReady(
            f"The benchmark ({self._benchmark.source}) failed with HTTP {status}: {failure(text)} "
            "BENCHMARK_JSON_PATH or VAST_BENCHMARK_TEMPLATE names another one."
        )

    async def _run(self, http: aiohttp.ClientSession) -> tuple[int, str]:
        limit = aiohttp.ClientTimeout(total=self._config.ready_timeout_s)
        try:
            async with http.post(
                self._benchmark.route, json=self._benchmark.payload(), timeout=limit
            ) as reply:
                return reply.status, await reply.text()
        except asyncio.TimeoutError:
            return 504, f"it did not end within {self._config.ready_timeout_s:.0f} s."
        except aiohttp.ClientError as exc:
            ended = self._model_server.ended() if self._model_server is not None else None
            return 502, ended or f"the model server broke the connection ({type(exc).__name__})."

    def _limit_runs(self, warm_up_s: float) -> None:
        """
        Do fewer runs of a slow workflow, at least one. The warm-up loaded models, so it is the longest of them.
        """
        handler: Any = self.backend.benchmark_handler
        allowed = int(self._config.benchmark_max_s / max(warm_up_s, 0.001))
        handler.benchmark_runs = max(1, min(self._config.benchmark_runs, allowed))
        logger.info("The warm-up took %.1f s; %d runs follow.", warm_up_s, handler.benchmark_runs)


def unhealthy(text: str, status: int) -> tuple[str, bool]:
    """
    Return the reason in a body of `/health`, and whether it is final: a fault of the GPU stays until a new start.
    """
    body = _object(text)
    gpu = body.get("gpu")
    if isinstance(gpu, dict) and gpu.get("unrecoverable"):
        return str(gpu.get("reason") or "the GPU failed")[:REASON_LIMIT], True
    backends = body.get("backends")
    for backend in backends if isinstance(backends, list) else []:
        for name in ("http_error", "websocket_error"):
            if isinstance(backend, dict) and backend.get(name):
                return str(backend[name])[:REASON_LIMIT], False
    said = body.get("reason") or body.get("message") or body.get("error") or FAILED_HEALTH
    return f"{HEALTH} answered {status}: {said}"[:REASON_LIMIT], False


def failure(text: str) -> str:
    """
    Return the reason in the body of a failed job, as a sentence.
    """
    body = _object(text)
    error = body.get("error")
    said = body.get("detail") or body.get("message")
    if not said and isinstance(error, dict):
        said = error.get("message")
    said = str(said or error or text.strip() or "no reason was given")[:REASON_LIMIT]
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
