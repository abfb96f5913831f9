"""
The table of routes: which of them wait in the line, what each counts, which one is the benchmark's.
"""

from collections.abc import Callable
from typing import Any

from comfy_worker.pyworker import envelope, legacy, workload
from comfy_worker.pyworker.benchmark import Benchmark
from comfy_worker.pyworker.config import Config
from comfy_worker.pyworker.replies import passed_on
from comfy_worker.pyworker.sdk import Sdk

JOBS = ("/generate/sync", "/generate/stream", "/generate")
QUESTIONS = ("/result", "/cancel", "/queue-info")
"""Answered beside the line and counted as nothing: asking after a job must not wait for it."""

NO_COST = 0.0


def table(sdk: Sdk, config: Config, benchmark: Benchmark) -> list[Any]:
    """
    Return the SDK's `HandlerConfig` of every route.
    """
    return [*_jobs(sdk, config, benchmark), *_questions(sdk), *_legacy(sdk, config, benchmark)]


def _job(sdk: Sdk, config: Config, benchmark: Benchmark, route: str, **fields: Any) -> Any:
    measured = None
    if route == benchmark.route:
        # No warm-up by the SDK: ours, in the lifecycle, can say why it failed. One job per run, also where requests come
        # side by side: the GPU takes one after the other, and a start does not wait for more of them.
        measured = sdk.BenchmarkConfig(
            generator=benchmark.payload,
            runs=config.benchmark_runs,
            concurrency=1,
            do_warmup=False,
        )
    return sdk.HandlerConfig(
        route=route,
        allow_parallel_requests=config.parallel > 1,
        max_queue_time=config.max_queue_time_s,
        benchmark_config=measured,
        response_generator=passed_on,
        **fields,
    )


def _checked(sdk: Sdk, handler: Any, route: str = "", *, legacy: bool = False) -> Any:
    made = envelope.handler_class(sdk, handler, legacy=legacy)
    return sdk.HandlerConfig(route=route or handler.route, handler_class=made)


def _jobs(sdk: Sdk, config: Config, benchmark: Benchmark) -> list[Any]:
    unit = workload.unit(config.legacy_model)
    made = [_job(sdk, config, benchmark, route, workload_calculator=lambda _: unit) for route in JOBS]
    return [_checked(sdk, each) for each in made]


def _questions(sdk: Sdk) -> list[Any]:
    return [
        _checked(
            sdk,
            sdk.HandlerConfig(
                route=route,
                allow_parallel_requests=True,
                max_queue_time=None,
                response_generator=passed_on,
                workload_calculator=lambda _: NO_COST,
            ),
        )
        for route in QUESTIONS
    ]


def _legacy(sdk: Sdk, config: Config, benchmark: Benchmark) -> list[Any]:
    model = config.legacy_model

    def prompt_cost(payload: Any) -> float:
        return workload.sized(model, payload)

    def custom_cost(payload: Any) -> float:
        return workload.sized(model, payload.get("custom_fields"))

    def rows(
        route: str, problems_of: Callable[[Any], dict[str, str]], cost: Callable[[Any], float]
    ) -> list[Any]:
        inner = _job(
            sdk,
            config,
            benchmark,
            route,
            request_parser=legacy.parser(sdk, problems_of),
            workload_calculator=cost,
        )
        # With the slash it is another route of ours, and the same one of the model server. One handler is measured.
        bare = _checked(sdk, inner, legacy=True)
        inner.benchmark_config = None
        return [bare, _checked(sdk, inner, f"{route}/", legacy=True)]

    custom = [row for route in legacy.CUSTOM for row in rows(route, legacy.custom_problems, custom_cost)]
    return [*rows(legacy.PROMPT, legacy.prompt_problems, prompt_cost), *custom]
