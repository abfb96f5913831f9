"""
Take the times: the ways run the same jobs in turns, and each round begins with another one.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from comfy_worker.bench.graphs import BenchJob
from comfy_worker.bench.process import Program, Used
from comfy_worker.bench.ways import Way

MOST_ERRORS = 3


@dataclass(slots=True)
class Figures:
    """
    What one way took for one case: milliseconds per job; processor milliseconds per job and the megabytes above its idle
    memory at the highest, where it is a process of its own; jobs per second where several ran at once.
    """

    way: str
    times: list[float] = field(default_factory=list)
    cpu_ms: float | None = None
    peak_mb: float | None = None
    jobs_per_s: float | None = None
    errors: list[str] = field(default_factory=list)

    def at(self, share: float) -> float:
        """
        Return the time that this share of the jobs did not exceed.
        """
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    @property
    def median(self) -> float:
        """
        The median time.
        """
        return statistics.median(self.times)


@dataclass(slots=True)
class Case:
    """
    One case, measured. The first of `figures` is what the others are held against.
    """

    title: str
    figures: list[Figures] = field(default_factory=list)

    def ratio(self, figures: Figures) -> float | None:
        """
        Return a way's median over that of the first way; None where one has none.
        """
        if not figures.times or not self.figures[0].times:
            return None
        return figures.median / self.figures[0].median


@contextmanager
def resting(ways: Sequence[Way]) -> Iterator[None]:
    """
    Stop the processes of the ways for the block: each hears of every prompt, which takes time from who is measured.
    """
    programs = [program for program in map(program_of, ways) if program is not None]
    for program in programs:
        program.rest()
    try:
        yield
    finally:
        for program in programs:
            program.go()


@contextmanager
def turn(way: Way) -> Iterator[None]:
    """
    Let the process of a resting way go on for the block.
    """
    program = program_of(way)
    if program is None:
        yield
        return
    program.go()
    try:
        yield
    finally:
        program.rest()


def program_of(way: Way) -> Program | None:
    """
    Return the process of a way; None for one in this process.
    """
    found = getattr(way, "program", None)
    return found if isinstance(found, Program) else None


@contextmanager
def watched(way: Way, figures: Figures) -> Iterator[None]:
    """
    Add up the processor time of what runs in the block, and see its highest memory.
    """
    program = program_of(way)
    used = program.used if program is not None else Used(os.getpid())
    idle, cpu = used.mark(), used.cpu_s()
    yield
    spent = (used.cpu_s() - cpu) * 1000
    figures.cpu_ms = (figures.cpu_ms or 0.0) + spent
    figures.peak_mb = max(figures.peak_mb or 0.0, used.peak_mb() - idle)


def in_turns(
    title: str, ways: Sequence[Way], make: Callable[[int], BenchJob], rounds: int, warm: int = 2
) -> Case:
    """
    Run a job of each way in turns, `rounds` times after `warm` that do not count; no two jobs have the same number.
    """
    case = Case(title, [Figures(way.name) for way in ways])
    with resting(ways):
        for index in range(-warm, rounds):
            for offset in range(len(ways)):
                place = (offset + index) % len(ways)
                _take_turn(ways[place], make(fresh()), case.figures[place], counts=index >= 0)
    return _per_job(case)


def _per_job(case: Case) -> Case:
    for figures in case.figures:
        if figures.cpu_ms is not None and figures.times:
            figures.cpu_ms /= len(figures.times)
    return case


def _take_turn(way: Way, job: BenchJob, figures: Figures, *, counts: bool) -> None:
    if len(figures.errors) >= MOST_ERRORS:
        return
    with turn(way):
        if not counts:
            _timed(way, job, Figures(way.name))
            return
        with watched(way, figures):
            _timed(way, job, figures)


def _timed(way: Way, job: BenchJob, figures: Figures) -> None:
    began = time.perf_counter()
    try:
        count = way.run(job)
        if count != job.outputs:
            raise RuntimeError(f"{count} files came back, not {job.outputs}")
    except Exception as exc:  # noqa: BLE001 - a way that fails is a row of the table, and the others go on
        figures.errors.append(f"{type(exc).__name__}: {exc}"[:300])
        return
    figures.times.append((time.perf_counter() - began) * 1000)


def at_once(
    title: str, ways: Sequence[Way], make: Callable[[int], BenchJob], jobs: int, clients: int
) -> Case:
    """
    Run `jobs` jobs, `clients` of them at once, one way after the other.
    """
    case = Case(title, [Figures(way.name) for way in ways])
    with resting(ways):
        for way, figures in zip(ways, case.figures, strict=True):
            made = [make(fresh()) for _ in range(jobs)]
            with turn(way), watched(way, figures), ThreadPoolExecutor(clients, "bench-client") as pool:
                began = time.perf_counter()
                for job in made:
                    pool.submit(_timed, way, job, figures)
                pool.shutdown(wait=True)
                figures.jobs_per_s = len(figures.times) / (time.perf_counter() - began)
    return _per_job(case)


_numbers = iter(range(int(time.time()) % 1_000_000 * 16, 1 << 62))


def fresh() -> int:
    """
    Return a number that no job of this run, and hardly one of an earlier run, had.
    """
    return next(_numbers)
