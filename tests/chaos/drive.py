"""
Run the jobs of a seed through the world, turn the weather, and judge every end.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from support.control_plane import PlaneJob, wait_until
from support.lanes import sleeping
from support.pictures import empty_workflow, invert_workflow, node

from chaos.judge import hook_violations, outcome_of, violations
from chaos.plan import Fate, Weather, fate_of, weather_of
from chaos.world import CONCURRENCY, World, world

EPOCH = 40
"""Jobs after which the weather turns, unless a run says otherwise."""

AHEAD = CONCURRENCY * 2
TIMEOUT_S = 30.0
TOO_LATE_S = 0.5
END_S = 120.0
HOOK_S = 40.0
TEND_S = 1.0
LOG_LINES = 200
FIRST_COLOUR = 0x000100


@dataclass
class Report:
    """
    What a run was, and what is wrong with it.
    """

    seed: int
    jobs: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    log: str = ""

    def lines(self) -> Iterator[str]:
        """
        Yield it as text.
        """
        yield f"seed {self.seed}: {self.jobs} jobs in {self.seconds:.0f} s, {len(self.violations)} violations"
        for title, counts in (("jobs", self.kinds), ("faults", self.faults), ("ends", self.outcomes)):
            yield f"\n{title}"
            yield from (f"  {count:6}  {name}" for name, count in sorted(counts.items()))
        yield from (f"\nVIOLATION {text}" for text in self.violations[:20])
        if self.violations:
            yield f"\nthe worker's log ends with\n{self.log}"


@dataclass
class Life:
    """
    A job on its way: from `epoch` to the epoch of its end it has met every weather.
    """

    fate: Fate
    job: PlaneJob
    epoch: int
    since: float = field(default_factory=time.monotonic)
    taken_at: float | None = None
    cancelled: bool = False
    accepted: int = 0


@dataclass
class HookLife:
    """
    A job of the Vast face on its way; its end comes by webhook.
    """

    fate: Fate
    epoch: int
    since: float = field(default_factory=time.monotonic)


def run(seed: int, jobs: int, folder: Path, epoch: int = EPOCH) -> Report:
    """
    Run `jobs` jobs of a seed, with new weather after each `epoch` of them; return what came of it.
    """
    report = Report(seed, jobs)
    began = time.monotonic()
    with world(folder, seed) as place:
        before = _held(place)
        driver = Driver(seed, place, report, epoch)
        driver.run(jobs)
        place.clear_up()
        driver.look_again()
        report.violations += _left_behind(place, before)
        report.faults = place.counts + place.host.counts
        report.log = "\n".join(place.vast.lines[-LOG_LINES:]) + "\n".join(place.worker.lines[-LOG_LINES:])
    if place.worker.leftovers() or place.vast.leftovers():
        report.violations.append("processes are left behind")
    report.seconds = time.monotonic() - began
    return report


class Driver:
    """
    Keeps some jobs more in the queue than the worker takes at once, and judges them as they end.
    """

    def __init__(self, seed: int, place: World, report: Report, epoch: int) -> None:
        self._seed, self._place, self._report, self._epoch = seed, place, report, epoch
        self._ended: list[Life] = []
        self._tended = 0.0
        self._weathers: list[Weather] = []
        self._living: list[Life | HookLife] = []

    def run(self, jobs: int) -> None:
        """
        Run them all.
        """
        for number in range(jobs):
            if number % self._epoch == 0:
                self._weathers.append(weather_of(self._seed, number // self._epoch))
                self._place.turn(self._weathers[-1])
            self._wait_for(AHEAD)
            fate = fate_of(self._seed, number + FIRST_COLOUR)
            self._report.kinds[fate.kind] += 1
            self._living += self._submit(fate)
        self._wait_for(0)

    def _submit(self, fate: Fate) -> list[Life | HookLife]:
        if fate.kind.startswith("hook"):
            return [self._post(fate)]
        answers = (500, 502) if fate.kind == "result_refused" else ()
        name = f"chaos-{fate.number}-e1"
        if fate.kind == "twice":
            self._place.plane.submit(input_of(fate, self._place.host.url), name)
        job = self._place.plane.submit(input_of(fate, self._place.host.url), name, answers=answers)
        return [Life(fate, job, len(self._weathers) - 1)]

    def _post(self, fate: Fate) -> HookLife:
        body = {
            "request_id": f"hook-{fate.number}",
            "workflow_json": empty_workflow(fate.number),
            "return_outputs_as_base64": True,
            "webhook": {"url": f"{self._place.host.url}/{fate.kind}/{fate.number}", "timeout": 5},
        }
        life = HookLife(fate, len(self._weathers) - 1)
        reply = requests.post(f"{self._place.vast_url}/generate", json={"input": body}, timeout=30)
        if reply.status_code != 202:
            self._wrong(life, f"was answered {reply.status_code}: {reply.text[:200]}")
        return life

    def _look_for_hook(self, life: HookLife) -> bool:
        if life.fate.number not in self._place.host.told:
            return False
        bodies = self._place.host.hooks[life.fate.number]
        for text in hook_violations(life.fate, bodies, self._codes(life)):
            self._wrong(life, text)
        seconds = self._place.host.told[life.fate.number] - life.since
        if seconds > TIMEOUT_S + HOOK_S:
            self._wrong(life, f"the webhook came after {seconds:.0f} s")
        self._report.outcomes[f"webhook: {json.loads(bodies[0])['status']}"] += 1
        return True

    def _wait_for(self, most: int) -> None:
        """
        Wait until no more than `most` jobs are on their way.
        """
        while len(self._living) > most:
            self._tend()
            for life in list(self._living):
                is_lost = time.monotonic() - life.since > END_S
                if self._look(life):
                    self._living.remove(life)
                elif is_lost:
                    self._wrong(life, f"has not ended after {END_S:.0f} s")
                    self._living.remove(life)
            if len(self._living) > most:
                time.sleep(0.01)

    def _tend(self) -> None:
        """
        See that the worker lives; one that has ended must have asked for it, and what it had is delivered again.
        """
        if time.monotonic() - self._tended < TEND_S:
            return
        self._tended = time.monotonic()
        ended = self._place.is_replaced()
        if ended is None:
            return
        posts = [post for life in self._ended[-200:] for post in life.job.results]
        if not any(post.body.get("stopPod") for post in posts):
            self._report.violations.append(f"the worker ended by itself with {ended[0]}: {ended[1][-1000:]}")
        for life in self._living:
            if isinstance(life, Life) and life.job.taken.is_set() and not life.job.done.is_set():
                given = input_of(life.fate, self._place.host.url)
                life.job, life.taken_at = self._place.plane.submit(given, life.job.id), None
                life.since, life.cancelled = time.monotonic(), False

    def look_again(self) -> None:
        """
        See that no job was given a further result after the one that was judged, and none that was cancelled a right one.
        """
        for life in self._ended:
            accepted = sum(post.status == 200 for post in life.job.results)
            most = 2 if life.fate.kind == "twice" else max(life.accepted, int(life.fate.kind == "cancelled"))
            if accepted > most:
                self._wrong(life, f"{accepted} results were accepted in the end")
            if life.fate.kind == "cancelled" and outcome_of(life.job) == "right":
                self._wrong(life, "was cancelled, and ran to its end")
        for number, bodies in self._place.host.hooks.items():
            if len(set(bodies)) != 1:
                self._report.violations.append(f"job {number}: different webhooks came in the end")

    def _look(self, life: Life | HookLife) -> bool:
        """
        Look after one job; return whether it is over.
        """
        if isinstance(life, HookLife):
            return self._look_for_hook(life)
        now = time.monotonic()
        if life.taken_at is None and life.job.taken.is_set():
            life.taken_at = now
        due = life.taken_at is not None and now - life.taken_at >= life.fate.delay_s
        if life.fate.kind == "cancelled" and due and not life.cancelled:
            life.cancelled = True
            self._place.plane.cancel(life.job)
        if life.cancelled and not life.job.done.is_set():
            return (
                life.taken_at is not None
                and now - life.taken_at > life.fate.delay_s + 5.0
                and self._judge(life)
            )
        return life.job.done.is_set() and self._judge(life)

    def _judge(self, life: Life) -> bool:
        codes = self._codes(life)
        timeout = TOO_LATE_S if life.fate.kind == "too_late" else TIMEOUT_S
        taken = life.taken_at or time.monotonic()
        for text in violations(life.fate, life.job, codes, self._place.host, timeout, taken):
            self._wrong(life, text)
        self._report.outcomes[outcome_of(life.job)] += 1
        life.accepted = sum(post.status == 200 for post in life.job.results)
        self._ended.append(life)
        life.job.envelope.clear()
        return True

    def _codes(self, life: Life | HookLife) -> frozenset[str]:
        # A kill is felt a little after its weather too.
        met = self._weathers[max(0, life.epoch - 1) :]
        return frozenset[str]().union(*(weather.codes for weather in met))

    def _wrong(self, life: Life | HookLife, text: str) -> None:
        met = ", ".join(weather.name for weather in self._weathers[max(0, life.epoch - 1) :])
        self._report.violations.append(f"job {life.fate.number} ({life.fate.kind}; {met[-200:]}): {text}")


def input_of(fate: Fate, url: str) -> Any:
    """
    Return the input of a job.
    """
    number, base = fate.number, {"timeout_s": TIMEOUT_S}
    if fate.kind == "invalid":
        return [{"workflow": 5}, {"workflow": {}}, {"prompt": "x"}, [], "text", {"workflow": {"1": {}}}][
            number % 6
        ]
    if fate.kind == "unknown_node":
        return {**base, "workflow": {"1": node("NoSuchNode")}}
    if fate.kind == "raises":
        return {**base, "workflow": failing(number)}
    if fate.kind in {"slow", "cancelled", "too_late"}:
        seconds = {"slow": 0.5, "cancelled": 20.0, "too_late": 20.0}[fate.kind]
        graph = sleeping(f"slow-{number}", seconds=seconds, steps=int(seconds * 20))
        graph["1"]["inputs"]["color"] = number
        return {"timeout_s": TOO_LATE_S if fate.kind == "too_late" else TIMEOUT_S, "workflow": graph}
    if fate.kind.startswith("url"):
        how = fate.kind.partition("_")[2] or "good"
        return {**base, "workflow": invert_workflow(f"{url}/{how}/{number}.png")}
    given: dict[str, Any] = {**base, "workflow": empty_workflow(number)}
    if fate.kind.startswith("store"):
        how = fate.kind.partition("_")[2] or "good"
        given["s3Config"] = {
            "endpointUrl": url,
            "bucketName": how,
            "accessId": "key",
            "accessSecret": "secret-of-job",
        }
    return given


def failing(number: int) -> dict[str, Any]:
    """
    Return a workflow whose second node raises.
    """
    graph = empty_workflow(number)
    graph["3"] = node("StandinRaise", message=f"no luck with {number}", any=("1", 0))
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def _held(place: World) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{place.worker.pid}/fd")), _threads(place.worker.pid)


def _threads(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("Threads:")[2].split()[0])


def _left_behind(place: World, before: tuple[int, int]) -> Iterator[str]:
    """
    Yield what is still there though no job is.
    """
    folder = place.folder / "ComfyUI"

    def folders() -> list[Path]:
        scratch = (*place.worker.temp.glob("comfy-worker-[!e]*"), *place.vast.temp.glob("comfy-worker-[!e]*"))
        return [*(folder / "output").glob("cw-*"), *scratch]

    try:
        wait_until(lambda: not folders(), 20.0)
    except TimeoutError:
        yield f"folders of jobs are left behind: {[path.name for path in folders()][:5]}"
    files, threads = _held(place)
    if files > before[0] + 4 * CONCURRENCY + 20:
        yield f"open files grew from {before[0]} to {files}"
    if threads > before[1] + 2 * CONCURRENCY:
        yield f"threads grew from {before[1]} to {threads}"
