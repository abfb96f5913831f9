"""
The budgets of the design that no comparison of ways shows: staging, memory, boot. And which of all of them are kept.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from comfy_worker import settings
from comfy_worker.bench import graphs
from comfy_worker.bench.cases import LATE_S, content
from comfy_worker.bench.desk import desk
from comfy_worker.bench.measure import Case, fresh
from comfy_worker.bench.ways import Pipeline, as_runpod
from comfy_worker.comfy import launch
from comfy_worker.comfy.launch import Launch
from comfy_worker.job import ignore
from comfy_worker.parse import parse

PROGRAM_S = 300.0


@dataclass(frozen=True, slots=True)
class Budget:
    """
    One line of the table: what was measured, in `unit`, and the most it may be.
    """

    measure: str
    value: float
    most: float
    unit: str
    detail: str = ""

    def __str__(self) -> str:
        verdict = "met" if self.value <= self.most else "OVER"
        return f"| {self.measure} | <= {self.most:g} {self.unit} | {self.value:.2f} {self.unit} | {verdict} | {self.detail} |"


def of_cases(cases: Sequence[Case]) -> Iterator[Budget]:
    """
    Yield the budgets that the measured cases answer.
    """
    by_title = {case.title: case for case in cases}
    for title, most in (("trivial job", 1.0), ("4 x 1024^2 PNG", 1.05)):
        case = by_title.get(title)
        own = next((row for row in case.figures if row.way == "pipeline"), None) if case else None
        ratio = case.ratio(own) if case and own else None
        if case and own and ratio is not None:
            detail = f"{own.median:.1f} ms / {case.figures[0].median:.1f} ms"
            yield Budget(f"{title}, pipeline over the bare client", ratio, most, "x", detail)
    for case in cases:
        if case.title.startswith("idle gap") and "2 threads" in case.title and case.figures[0].times:
            row = case.figures[0]
            yield Budget(
                "GPU-idle gap, 2 threads, storage at 200 ms",
                row.median,
                10.0,
                "ms",
                f"p95 {row.at(0.95):.0f} ms",
            )


def staging(chosen: Launch, environ: Mapping[str, str], rounds: int) -> Budget:
    """
    Return how long eight inputs by URL take, 200 ms each, over the slowest of them.
    """
    shares = []
    with desk(content) as files:
        files.delay_s = LATE_S
        way = Pipeline(chosen, environ)
        try:
            for _ in range(rounds):
                number = fresh()
                files.seen.clear()
                urls = {f"u{index}.png": f"{files.url}/small/{number}/{index}.png" for index in range(8)}
                job = parse(f"stage-{number}", as_runpod(graphs.loading(number, urls)), way.rules)
                staged = way.worker.pool.submit(job, ignore).future.result(600).timings.staged
                shares.append(staged / (max(end - began for began, end in files.seen) * 1000))
        finally:
            way.close()
    return Budget(
        "8 URL inputs at 200 ms, over the slowest one", statistics.median(shares), 1.5, "x", "staging time"
    )


MEMORY = """
import sys, threading
from pathlib import Path
from pydantic import SecretStr
from comfy_worker import wiring
from comfy_worker.bench.process import Used
from comfy_worker.deadline import Deadline
from comfy_worker.deliver import deliver
from comfy_worker.job import Artifact, Bucket, Delivery
from comfy_worker.storage.s3 import Stores
import os
mode, path, url = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
stores = Stores()
def hand_over(path):
    size = path.stat().st_size
    artifact = Artifact("1", "images", "video", "x.mp4", "", "output", "video/mp4", path, size)
    bucket = Bucket(url, "key", SecretStr("secret-key"), "bucket", addressing_style="path") if mode == "s3" else None
    return deliver("job", [artifact], Delivery(bucket=bucket), Deadline(600), store=stores, threads=4)
small = path.with_suffix(".small")
small.write_bytes(b"x" * 9_000_000 if mode == "s3" else b"x")
if url:
    hand_over(small)
used = Used(os.getpid())
idle = used.mark()
outputs = hand_over(path)
print(used.peak_mb() - idle)
"""


def memory(megabytes: int) -> Iterator[Budget]:
    """
    Yield the peak memory above idle for one large output, to storage and as base64, each in a process of its own.
    """
    with tempfile.TemporaryDirectory() as folder, desk(content) as store:
        path = Path(folder) / "large.mp4"
        path.write_bytes(bytes(range(256)) * (megabytes * 1_000_000 // 256))
        for mode, most in (("s3", 16.0), ("base64", 3.0 * megabytes)):
            command = [sys.executable, "-c", MEMORY, mode, str(path), store.url if mode == "s3" else ""]
            ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROGRAM_S)
            where = "to storage" if mode == "s3" else "as base64"
            yield Budget(f"peak memory above idle, {megabytes} MB {where}", float(ran.stdout), most, "MB")


BOOT = """
import os, sys, time
began = time.monotonic()
from comfy_worker import entry
worker = entry.shared(os.environ)
from comfy_worker.faces.runpod_sdk import Loop, prepare
prepare(os.environ)
loop = Loop(worker.face.handle, 1, False, worker.engine.client.system_stats, entry.close_shared)
loop.load()
worker.engine.wait_ready()
ready = time.monotonic() - began
from comfy_worker.bench.process import Used
print(ready, Used(os.getpid()).mark())
entry.close_shared()
"""


def boot(environ: Mapping[str, str], rounds: int) -> Iterator[Budget]:
    """
    Yield what the worker adds to ComfyUI's own boot until a job can be taken, in turns; and its idle memory.
    """
    own = {**environ, "COMFY_PORT": "0", "LOG_LEVEL": "ERROR", "COMFY_API_AVAILABLE_INTERVAL_MS": "20"}
    together, alone, idle = [], [], []
    # Two boots of the same ComfyUI differ by more than the budget, so each is held against its neighbour.
    for number in range(rounds):
        if number % 2:
            alone.append(_alone(own))
        ready, megabytes = _with_worker(own)
        together.append(ready)
        idle.append(megabytes)
        if not number % 2:
            alone.append(_alone(own))
    added = [both - single for both, single in zip(together, alone, strict=True)]
    detail = (
        f"{statistics.median(together):.2f} s with, {statistics.median(alone):.2f} s without; "
        f"{rounds} pairs, from {min(added):.2f} to {max(added):.2f} s"
    )
    yield Budget("added to ComfyUI's boot until the first job", statistics.median(added), 0.2, "s", detail)
    yield Budget(
        "idle memory of the worker", statistics.median(idle), 100.0, "MB", "with the runpod SDK loaded"
    )


def _with_worker(environ: Mapping[str, str]) -> tuple[float, float]:
    """
    Return the seconds until a job could be taken, and the megabytes that the worker then has.
    """
    ran = subprocess.run(
        [sys.executable, "-c", BOOT],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
        timeout=PROGRAM_S,
    )
    ready, megabytes = map(float, ran.stdout.split())
    return ready, megabytes


def _alone(environ: Mapping[str, str]) -> float:
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-bench-"))
    chosen = launch.choose(settings.load(environ), scratch, builtin=True)
    began = time.monotonic()
    process = subprocess.Popen(
        chosen.command,
        cwd=chosen.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        while time.monotonic() < began + PROGRAM_S:
            try:
                requests.get(f"{chosen.url}/prompt", timeout=5)
                return time.monotonic() - began
            except requests.ConnectionError:
                time.sleep(0.02)
        raise TimeoutError("ComfyUI did not start")
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(scratch, ignore_errors=True)
