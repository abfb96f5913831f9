"""
Counts and times of the jobs of a process, in the text format that Prometheus reads (version 0.0.4).

Written here because the format is a page of code; a client library would bring a registry of the whole process with it.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from comfy_worker.deadline import Deadline
from comfy_worker.errors import WorkerError
from comfy_worker.job import Job, Observer, Result

Run = Callable[[Job, Deadline, Observer], Result]

BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MOST_CLASSES = 200
"""Node classes with a series of their own; the rest share one."""

OTHER = "other"
STAGES = ("staged", "queued", "executed", "delivered", "total")


@dataclass(slots=True)
class Histogram:
    """
    Counts of seconds at or under each of `BUCKETS_S`.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """
        Count one value.
        """
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def lines(self, name: str, label: str) -> Iterator[str]:
        """
        Yield the samples of one series; `label` is `key="value"`.
        """
        count = 0
        for bound, number in zip((*BUCKETS_S, float("inf")), self.counts, strict=True):
            count += number
            edge = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{name}_bucket{{{label},le="{edge}"}} {count}'
        yield f"{name}_sum{{{label}}} {self.total_s:.6f}"
        yield f"{name}_count{{{label}}} {count}"


@dataclass(frozen=True, slots=True)
class Gauge:
    """
    One number of the moment: `labels` is empty, or `{device="0"}`.
    """

    name: str
    text: str
    value: float
    labels: str = ""
    kind: str = "gauge"


class Metrics:
    """
    The numbers of one process. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._stages: dict[str, Histogram] = {stage: Histogram() for stage in STAGES}
        self._nodes: dict[str, Histogram] = {}
        self._cached = 0
        self._ran = 0

    def measured(self, run: Run) -> Run:
        """
        Return `run`, counted and timed.
        """

        def measure(job: Job, deadline: Deadline, observe: Observer) -> Result:
            began = time.monotonic()
            outcome, result = WorkerError.code, None
            try:
                result = run(job, deadline, observe)
                outcome = "completed"
                return result
            except WorkerError as exc:
                outcome, result = exc.code, exc.partial
                raise
            finally:
                self.count(outcome, job, result, time.monotonic() - began)

        return measure

    def count(self, outcome: str, job: Job, result: object, seconds: float) -> None:
        """
        Count one job that ended; `result` is a `Result` where it ran at all.
        """
        with self._lock:
            self._outcomes[outcome] += 1
            if not isinstance(result, Result):
                self._stages["total"].add(seconds)
                return
            for stage in STAGES:
                self._stages[stage].add(getattr(result.timings, stage) / 1000)
            for node_id, milliseconds in result.timings.nodes.items():
                self._node(job, node_id).add(milliseconds / 1000)
            self._ran += len(result.timings.nodes)
            self._cached += result.cached_nodes

    def _node(self, job: Job, node_id: str) -> Histogram:
        node = job.workflow.get(node_id)
        name = node.get("class_type", OTHER) if isinstance(node, dict) else OTHER
        if name not in self._nodes and len(self._nodes) >= MOST_CLASSES:
            name = OTHER
        return self._nodes.setdefault(name, Histogram())

    def exposition(self, gauges: Iterable[Gauge]) -> str:
        """
        Return everything as text, `gauges` included.
        """
        with self._lock:
            lines = [
                *_series(
                    "comfy_worker_jobs_total",
                    "counter",
                    "Jobs that ended, by outcome: completed, or the code of the error.",
                    _counted("comfy_worker_jobs_total", "outcome", self._outcomes),
                ),
                *_series(
                    "comfy_worker_nodes_total",
                    "counter",
                    "Nodes of workflows, by whether ComfyUI ran them or had their results cached.",
                    _counted(
                        "comfy_worker_nodes_total", "result", {"ran": self._ran, "cached": self._cached}
                    ),
                ),
                *self._histograms(
                    "comfy_worker_stage_seconds", "stage", "Seconds of each stage.", self._stages
                ),
                *self._histograms(
                    "comfy_worker_node_seconds", "class_type", "Seconds of each node that ran.", self._nodes
                ),
            ]
        lines.extend(_gauges(gauges))
        return "\n".join(lines) + "\n"

    def _histograms(self, name: str, key: str, text: str, found: Mapping[str, Histogram]) -> Iterator[str]:
        samples = [
            line for value, item in found.items() for line in item.lines(name, f'{key}="{_escaped(value)}"')
        ]
        return _series(name, "histogram", text, samples)


def _series(name: str, kind: str, text: str, samples: Iterable[str]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    yield from samples


def _counted(name: str, key: str, counts: Mapping[str, int]) -> Iterator[str]:
    return (f'{name}{{{key}="{_escaped(value)}"}} {number}' for value, number in counts.items())


def _gauges(gauges: Iterable[Gauge]) -> Iterator[str]:
    named: dict[str, list[Gauge]] = {}
    for gauge in gauges:
        named.setdefault(gauge.name, []).append(gauge)
    for name, group in named.items():
        samples = [f"{name}{gauge.labels} {_number(gauge.value)}" for gauge in group]
        yield from _series(name, group[0].kind, group[0].text, samples)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
