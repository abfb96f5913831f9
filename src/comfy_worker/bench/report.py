"""
Write a run down: a table for people, JSON for programs, and a plot where matplotlib is installed.
"""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from comfy_worker import __version__
from comfy_worker.bench.budgets import Budget
from comfy_worker.bench.measure import Case, Figures

HEAD = ("way", "median ms", "p95", "p99", "to bare", "CPU ms/job", "peak MB", "jobs/s", "failed")


def machine(stats: Mapping[str, Any]) -> dict[str, str]:
    """
    Return what was measured on, from ComfyUI's `/system_stats` and this machine.
    """
    system = stats.get("system", {})
    devices = ", ".join(str(device.get("name")) for device in stats.get("devices", ()))
    return {
        "comfy-worker": __version__,
        "ComfyUI": str(system.get("comfyui_version")),
        "PyTorch": str(system.get("pytorch_version")),
        "devices": devices or "none named",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def table(case: Case) -> Iterator[str]:
    """
    Yield a case as a table in Markdown.
    """
    yield f"### {case.title}"
    yield ""
    yield "| " + " | ".join(HEAD) + " |"
    yield "|---" + "|---:" * (len(HEAD) - 1) + "|"
    for figures in case.figures:
        yield "| " + " | ".join(_cells(case, figures)) + " |"
    for figures in case.figures:
        for text in figures.errors[:1]:
            yield f"\n{figures.way}: {text}"
    yield ""


def _cells(case: Case, figures: Figures) -> Iterator[str]:
    yield figures.way
    if figures.times:
        yield from (f"{figures.median:.1f}", f"{figures.at(0.95):.1f}", f"{figures.at(0.99):.1f}")
    else:
        yield from ("-", "-", "-")
    ratio = case.ratio(figures)
    yield "-" if ratio is None else f"{ratio:.2f}x"
    for value, digits in ((figures.cpu_ms, 1), (figures.peak_mb, 0), (figures.jobs_per_s, 1)):
        yield "-" if value is None else f"{value:.{digits}f}"
    yield str(len(figures.errors))


def verdicts(budgets: Sequence[Budget]) -> Iterator[str]:
    """
    Yield the budgets as a table in Markdown.
    """
    if budgets:
        yield from ("| measure | budget | measured | | |", "|---|---|---|---|---|", *map(str, budgets), "")


def write(
    cases: Sequence[Case], about: Mapping[str, str], budgets: Sequence[Budget], folder: Path
) -> list[Path]:
    """
    Write the run into a folder, as `bench-<ComfyUI's version>.md`, `.json` and, with matplotlib, `.png` and `.svg`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / f"bench-{about['ComfyUI']}"
    lines = [
        "# comfy-worker bench",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        *verdicts(budgets),
    ]
    for case in cases:
        lines += table(case)
    written = [base.with_name(f"{base.name}.{kind}") for kind in ("md", "json")]
    written[0].write_text("\n".join(lines), encoding="utf-8")
    written[1].write_text(
        json.dumps(
            {"about": about, "budgets": list(map(asdict, budgets)), "cases": list(map(_as_dict, cases))},
            indent=1,
        ),
        encoding="utf-8",
    )
    return [*written, *_plots(cases, about, base)]


def _as_dict(case: Case) -> dict[str, Any]:
    rows = [
        {
            "way": figures.way,
            "ms": [round(value, 3) for value in figures.times],
            "cpu_ms": figures.cpu_ms,
            "peak_mb": figures.peak_mb,
            "jobs_per_s": figures.jobs_per_s,
            "errors": figures.errors,
        }
        for figures in case.figures
    ]
    return {"title": case.title, "ways": rows}


def _plots(cases: Sequence[Case], about: Mapping[str, str], base: Path) -> Iterator[Path]:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [case for case in cases if len(case.figures) > 1 and case.figures[0].times]
    if not shown:
        return
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(9, 1.9 * len(shown)), squeeze=False)
    for axis, case in zip(axes[:, 0], shown, strict=True):
        rows = [figures for figures in case.figures if figures.times][::-1]
        bare = case.figures[0].median
        middles = [figures.median / bare for figures in rows]
        ends = [figures.at(0.95) / bare - middle for figures, middle in zip(rows, middles, strict=True)]
        low = [0.0] * len(rows)
        colours = ["#888888" if figures.way.startswith("bare") else "#2b6cb0" for figures in rows]
        axis.barh(
            [figures.way for figures in rows],
            middles,
            xerr=[low, [max(0.0, end) for end in ends]],
            color=colours,
            ecolor="#444444",
        )
        axis.axvline(1.0, color="#888888", linewidth=0.8)
        axis.set_title(f"{case.title} (bare client: {bare:.1f} ms)", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("times the bare client: median, and p95 as a line", fontsize=8)
    figure.suptitle(f"comfy-worker on ComfyUI {about['ComfyUI']}, {about['cores']} cores", fontsize=10)
    figure.tight_layout()
    for kind in ("png", "svg"):
        path = base.with_name(f"{base.name}.{kind}")
        figure.savefig(path, dpi=110)
        yield path
    pyplot.close(figure)
