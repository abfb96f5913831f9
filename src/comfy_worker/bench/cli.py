"""
`comfy-worker bench`: its options. What it runs is imported only when it is called.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from comfy_worker.bench.budgets import Budget
    from comfy_worker.comfy.launch import Launch

console = Console(stderr=True)

KEPT = ("PATH", "LANG", "LC_ALL", "HOME", "VIRTUAL_ENV", "COMFYUI_PATH", "COMFYUI_ARGS", "COMFYUI_PYTHON")
FOLDERS = ("COMFY_INPUT_DIR", "COMFY_OUTPUT_DIR")
MEGABYTES = 100
BOOTS = 11


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            help="Of small, pictures, inputs, queued, storage, video, gaps, budgets; all by default."
        ),
    ] = None,
    comfyui: Annotated[
        str | None, typer.Option(help="URL of a running ComfyUI; by default one is started, as `run` does.")
    ] = None,
    share: Annotated[float, typer.Option(min=0.01, max=100, help="Share of the usual rounds.")] = 1.0,
    faces: Annotated[
        str, typer.Option(help="HTTP faces to compare, with commas between them.")
    ] = "runpod,salad,vast",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the results go.")] = Path(
        "bench/results"
    ),
) -> None:
    """
    Measure what the worker costs on top of ComfyUI: the same jobs through a bare client and through every way into it.

    Give the folders of a running ComfyUI in COMFY_INPUT_DIR and COMFY_OUTPUT_DIR when its disk is this machine's.
    """
    from comfy_worker.bench.cases import FACES, NAMES

    asked = cases or [*NAMES, "budgets"]
    wrong = [name for name in asked if name not in (*NAMES, "budgets")]
    chosen_faces = [name.strip() for name in faces.split(",") if name.strip()]
    wrong += [name for name in chosen_faces if name not in FACES]
    if wrong:
        raise typer.BadParameter(
            f"{', '.join(wrong)}: cases are {', '.join((*NAMES, 'budgets'))}, faces {', '.join(FACES)}"
        )
    _run(asked, comfyui, share, chosen_faces, output)


def _run(asked: list[str], comfyui: str | None, share: float, faces: list[str], output: Path) -> None:
    from comfy_worker import entry, settings
    from comfy_worker.bench import budgets, report
    from comfy_worker.bench import cases as bench_cases
    from comfy_worker.faces.runpod_sdk import exit_on_sigterm

    environ = {name: os.environ[name] for name in (*KEPT, *FOLDERS) if name in os.environ}
    environ |= {
        "LOG_LEVEL": "ERROR",
        "ALLOW_PRIVATE_URLS": "true",
        "REPLY_LIMIT_MB": "1000",
        "REPLY_LIMIT_SYNC_MB": "1000",
        "OUTPUT_BASE64_MAX_BYTES": "1000000000",
        "MAX_BODY_SIZE_MB": "1000",
    }
    exit_on_sigterm()
    with ExitStack() as stack:
        if comfyui:
            own = {"COMFYUI_URL": comfyui}
        else:
            # Gigabytes go through ComfyUI: a person's own input and output folders must not keep them.
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="comfy-worker-bench-"))
            own = {
                "COMFY_PORT": "0",
                "COMFY_INPUT_DIR": f"{place}/input",
                "COMFY_OUTPUT_DIR": f"{place}/output",
            }
        worker = entry.started(settings.load({**environ, **own}), builtin=True)
        stack.callback(worker.close)
        worker.engine.wait_ready()
        launch = worker.engine.launch
        about = report.machine(worker.engine.client.system_stats())
        at = {**environ, **_address(launch)}
        done = []
        for case in bench_cases.run(launch, at, asked, share, faces):
            done.append(case)
            print("\n".join(report.table(case)), flush=True)
        lines = list(budgets.of_cases(done))
        if "budgets" in asked:
            lines.append(budgets.staging(launch, at, max(3, round(10 * share))))
    if "budgets" in asked:
        lines += _alone(environ, comfyui, share)
    for path in report.write(done, about, lines, output):
        console.print(f"{path}", highlight=False)
    print("\n".join(report.verdicts(lines)))


def _address(launch: "Launch") -> Mapping[str, str]:
    found = {"COMFYUI_URL": launch.url}
    if launch.input is not None and launch.output is not None:
        found |= {"COMFY_INPUT_DIR": str(launch.input), "COMFY_OUTPUT_DIR": str(launch.output)}
    return found


def _alone(environ: Mapping[str, str], comfyui: str | None, share: float) -> Iterator["Budget"]:
    from comfy_worker.bench import budgets

    yield from budgets.memory(MEGABYTES)
    if comfyui is None:
        yield from budgets.boot(environ, max(3, round(BOOTS * share)))
