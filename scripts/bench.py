"""
What the worker costs on top of ComfyUI: the same jobs through a bare client and through the worker, taken in turns.

Times on a shared machine are noise; the ratios of one run are what counts. Runs on a real ComfyUI where one is found
(COMFYUI_PATH, else comfy-cli's default workspace), else on the built-in engine, and says which.
"""

import argparse
import base64
import http.server
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests
import websocket

from comfy_worker import entry, log, settings, wiring
from comfy_worker.comfy import launch
from comfy_worker.job import ignore
from comfy_worker.parse import Rules, parse
from comfy_worker.wiring import Worker

Rows = list[tuple[str, str, str, str, bool]]


def saving(colour: int, size: int = 64, batch: int = 1) -> dict[str, Any]:
    """
    Return a workflow that saves pictures of one colour.
    """
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": batch, "color": colour},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
    }


class Bare:
    """
    The least a client can do: submit, wait on the websocket, read the history, fetch the files.

    With `persistent` it keeps its websocket over all jobs, which no client of the field does.
    """

    def __init__(self, url: str, *, persistent: bool = False) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.client_id = uuid.uuid4().hex
        self.socket = self._connect() if persistent else None

    def _connect(self) -> websocket.WebSocket:
        socket = websocket.WebSocket(skip_utf8_validation=True)
        socket.connect(f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}", timeout=60)
        return socket

    def run(self, workflow: dict[str, Any]) -> list[str]:
        """
        Run a workflow; return its files as base64.
        """
        socket = self.socket or self._connect()
        body = {"prompt": workflow, "client_id": self.client_id}
        prompt_id = self.session.post(f"{self.url}/prompt", json=body, timeout=60).json()["prompt_id"]
        while True:
            message = socket.recv()
            if isinstance(message, str):
                data = json.loads(message)
                if data["type"] == "executing" and data["data"] == {"node": None, "prompt_id": prompt_id}:
                    break
        entry = self.session.get(f"{self.url}/history/{prompt_id}", timeout=60).json()[prompt_id]
        files = [item for output in entry["outputs"].values() for item in output["images"]]
        found = [self.session.get(f"{self.url}/view", params=item, timeout=60).content for item in files]
        if self.socket is None:
            socket.close()
        return [base64.b64encode(data).decode() for data in found]


class Piped:
    """
    The same through the worker: parse, pool, pipeline.
    """

    def __init__(self, worker: Worker, rules: Rules | None = None) -> None:
        self.worker = worker
        self.rules = rules or Rules(limit_bytes=10**9)

    def run(self, workflow: dict[str, Any], **fields: Any) -> Any:
        """
        Run a workflow; return the pipeline's result.
        """
        job = parse(uuid.uuid4().hex, {"workflow": workflow, **fields}, self.rules)
        return self.worker.pool.submit(job, ignore).future.result(600)


def in_turns(rounds: int, *works: Callable[[int], Any]) -> list[float]:
    """
    Call the works in turns, `rounds` times; return the median milliseconds of each.
    """
    times: list[list[float]] = [[] for _ in works]
    for index in range(rounds + 3):
        for number, work in enumerate(works):
            began = time.perf_counter()
            work(index * 10 + number)
            if index >= 3:
                times[number].append((time.perf_counter() - began) * 1000)
    return [statistics.median(row) for row in times]


def latency(worker: Worker, rounds: int) -> Rows:
    """
    A trivial job, and one with four pictures of 1024 x 1024 pixels.
    """
    url = worker.engine.client.url
    piped, bare, persistent = Piped(worker), Bare(url), Bare(url, persistent=True)
    trivial = in_turns(
        rounds,
        lambda n: bare.run(saving(n + 1)),
        lambda n: piped.run(saving(n + 1)),
        lambda n: persistent.run(saving(n + 1)),
    )
    large = in_turns(
        max(5, rounds // 10),
        lambda n: bare.run(saving(n + 1, 1024, 4)),
        lambda n: piped.run(saving(n + 1, 1024, 4)),
    )
    return [
        ratio("trivial job / bare client", trivial[1], trivial[0], 1.0),
        ratio("trivial job / bare client that keeps its websocket", trivial[1], trivial[2], None),
        ratio("4 x 1024^2 PNG as base64 / bare client", large[1], large[0], 1.05),
    ]


def ratio(name: str, ours: float, theirs: float, budget: float | None) -> tuple[str, str, str, str, bool]:
    """
    Return a row of the table.
    """
    value = ours / theirs
    limit = f"<= {budget:.2f}x" if budget else "-"
    return name, f"{value:.2f}x", limit, f"{ours:.2f} ms / {theirs:.2f} ms", budget is None or value <= budget


@contextmanager
def slow_server(delay_s: float) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """
    Serve pictures, and take uploads, `delay_s` late each; yield the URL and when each request began and ended.
    """
    seen: list[tuple[float, float]] = []
    picture = b"\x89PNG\r\n\x1a\n"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            began = time.monotonic()
            time.sleep(delay_s)
            body = picture + self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            seen.append((began, time.monotonic()))

        def do_PUT(self) -> None:
            began = time.monotonic()
            left = int(self.headers.get("Content-Length", 0))
            while left > 0:
                left -= len(self.rfile.read(min(left, 1 << 20)))
            time.sleep(delay_s)
            self.send_response(200)
            self.send_header("ETag", '"x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            seen.append((began, time.monotonic()))

        def do_POST(self) -> None:
            # Just enough of S3's multipart upload: begin, and complete.
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            name = (
                "InitiateMultipartUploadResult"
                if self.path.endswith("uploads")
                else "CompleteMultipartUploadResult"
            )
            body = f"<{name}><UploadId>1</UploadId><ETag>x</ETag></{name}>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """
            Stay silent.
            """

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def url_inputs(worker: Worker, rounds: int) -> Rows:
    """
    Eight inputs by URL, 200 ms each, against the slowest of them.
    """
    piped = Piped(worker)
    shares: list[float] = []
    with slow_server(0.2) as (url, seen):
        for number in range(max(3, rounds // 20)):
            seen.clear()
            files = [{"name": f"f{index}.bin", "url": f"{url}/{number}/{index}"} for index in range(8)]
            result = piped.run(saving(number + 7000), files=files)
            slowest = max(end - began for began, end in seen) * 1000
            shares.append(result.timings.staged / slowest)
    value = statistics.median(shares)
    return [
        (
            "8 URL inputs at 200 ms / the slowest one",
            f"{value:.2f}x",
            "<= 1.50x",
            "staging time",
            value <= 1.5,
        )
    ]


def idle_gap(base: Worker, jobs: int) -> Rows:
    """
    How long ComfyUI idles between back-to-back jobs, with 2 threads and storage that takes 200 ms per object.

    By ComfyUI's own clock: from the end of one prompt to the start of the next, in its history.
    """
    with slow_server(0.2) as (url, _):
        config = settings.load(
            {
                "WORKER_CONCURRENCY": "2",
                "KEEP_OUTPUTS": "true",
                "BUCKET_ENDPOINT_URL": url,
                "BUCKET_ACCESS_KEY_ID": "key",
                "BUCKET_SECRET_ACCESS_KEY": "secret-key",
            }
        )
        chosen = replace(base.engine.launch, kind="running", command=())
        worker = wiring.build(config, chosen, Path(tempfile.mkdtemp(prefix="comfy-worker-bench-")))
        rules = Rules(limit_bytes=10**9, bucket=wiring.bucket_of(config))
        try:
            parsed = [
                parse(uuid.uuid4().hex, {"workflow": rendering(number)}, rules) for number in range(jobs)
            ]
            tickets = [worker.pool.submit(job, ignore) for job in parsed]
            prompts = [str(ticket.future.result(600).prompt_id) for ticket in tickets]
            spans = sorted(span_of(worker.engine.client.history(prompt_id) or {}) for prompt_id in prompts)
        finally:
            worker.close()
    gaps = sorted(after[0] - before[1] for before, after in pairwise(spans))
    gap, high = statistics.median(gaps), gaps[int(len(gaps) * 0.95)]
    busy = statistics.median(end - start for start, end in spans)
    detail = f"{len(gaps)} gaps, p95 {high} ms, jobs of {busy:.0f} ms"
    return [("GPU-idle gap, 2 threads, storage at 200 ms", f"{gap:.0f} ms", "<= 10 ms", detail, gap <= 10)]


def span_of(entry: Any) -> tuple[int, int]:
    """
    Return when a prompt began and ended, in ComfyUI's milliseconds.
    """
    said = dict(entry["status"]["messages"])
    return said["execution_start"]["timestamp"], said["execution_success"]["timestamp"]


def rendering(number: int) -> dict[str, Any]:
    """
    Return a workflow that keeps ComfyUI busy for some tenths of a second, without a model.
    """
    graph = saving(number + 9000, 768)
    for index in range(3):
        source = f"b{index - 1}" if index else "1"
        inputs = {"image": [source, 0], "blur_radius": 15, "sigma": 5.0}
        graph[f"b{index}"] = {"class_type": "ImageBlur", "inputs": inputs}
    graph["2"]["inputs"]["images"] = ["b2", 0]
    return graph


MEMORY_PROGRAM = """
import resource, sys, threading, time
from pathlib import Path
from comfy_worker.deadline import Deadline
from comfy_worker.deliver import deliver
from comfy_worker.job import Artifact, Bucket, Delivery
from comfy_worker.storage.s3 import Stores
from pydantic import SecretStr
from comfy_worker import wiring
mode, path, url = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
stores = Stores()  # one for the life of a worker
def rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
def hand_over(path):
    size = path.stat().st_size
    artifact = Artifact("1", "images", "video", "x.mp4", "", "output", "video/mp4", path, size)
    bucket = Bucket(url, "key", SecretStr("secret-key"), "bucket", addressing_style="path") if mode == "s3" else None
    return deliver("job", [artifact], Delivery(bucket=bucket), Deadline(600), store=stores, threads=4)
small = path.with_suffix(".small"); small.write_bytes(b"x" * 9_000_000 if mode == "s3" else b"x")
if url: hand_over(small)
before, peak, stop = rss(), 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, rss())
thread = threading.Thread(target=watch); thread.start()
outputs = hand_over(path)
stop.set(); thread.join()
print(peak - before)
"""


def memory(megabytes: int) -> Rows:
    """
    Peak memory above idle for one large output, to storage and as base64, each in a process of its own.
    """
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder, slow_server(0.0) as (url, _):
        path = Path(folder) / "large.mp4"
        path.write_bytes(os.urandom(1_000_000) * megabytes)
        for mode, budget in (("s3", 16.0), ("base64", 3.0 * megabytes)):
            ran = subprocess.run(
                [sys.executable, "-c", MEMORY_PROGRAM, mode, str(path), url if mode == "s3" else ""],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if ran.returncode:
                rows.append(
                    (f"peak memory, {megabytes} MB as {mode}", "failed", "", ran.stderr.strip()[-200:], False)
                )
                continue
            peak = int(ran.stdout) / 1e6
            rows.append(
                (
                    f"peak memory, {megabytes} MB as {mode}",
                    f"{peak:.0f} MB",
                    f"<= {budget:.0f} MB",
                    "above idle",
                    peak <= budget,
                )
            )
    return rows


BOOT_PROGRAM = """
import os, sys, time
began = time.monotonic()
from comfy_worker import entry
worker = entry.shared(os.environ)
started = time.monotonic() - began
from comfy_worker.faces.runpod_sdk import Loop, prepare
prepare(os.environ)
loop = Loop(worker.face.handle, 1, False, worker.engine.client.system_stats, entry.close_shared)
loop.load()
loaded = time.monotonic() - began
worker.engine.wait_ready()
ready = time.monotonic() - began
def rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024 * 1.048576
print(started, loaded, ready, rss())
entry.close_shared()
"""


def boot(rounds: int) -> Rows:
    """
    Start of the worker with its ComfyUI until a job can be taken, over ComfyUI's own start, in turns.
    """
    with_worker, alone, memories = [], [], []
    for _ in range(rounds):
        ran = subprocess.run(
            [sys.executable, "-c", BOOT_PROGRAM], capture_output=True, text=True, check=True,
            env={**os.environ, "COMFY_PORT": "0", "LOG_LEVEL": "ERROR", "COMFY_API_AVAILABLE_INTERVAL_MS": "20"},
        )  # fmt: skip
        *_, ready, rss = map(float, ran.stdout.split())
        with_worker.append(ready)
        memories.append(rss)
        alone.append(boot_alone())
    added = statistics.median(with_worker) - statistics.median(alone)
    detail = f"{statistics.median(with_worker):.2f} s with, {statistics.median(alone):.2f} s without, {rounds} each"
    idle = statistics.median(memories)
    return [
        ("added to ComfyUI's boot", f"{added:.2f} s", "<= 0.20 s", detail, added <= 0.2),
        ("idle memory of the worker", f"{idle:.0f} MB", "<= 100 MB", "with the SDK loaded", idle <= 100),
    ]


def boot_alone() -> float:
    """
    Return the seconds ComfyUI takes by itself until it answers.
    """
    config = settings.load(
        {"COMFY_PORT": "0", **{k: v for k, v in os.environ.items() if k.startswith("COMFYUI_")}}
    )
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-bench-"))
    chosen = launch.choose(config, scratch, builtin=True)
    began = time.monotonic()
    process = subprocess.Popen(
        chosen.command,
        cwd=chosen.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        while True:
            try:
                requests.get(f"{chosen.url}/prompt", timeout=5)
                return time.monotonic() - began
            except requests.ConnectionError:
                time.sleep(0.02)
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """
    Run the cases and print a table.
    """
    cases = ("latency", "urls", "gap", "memory", "boot")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=cases, help=f"of {', '.join(cases)}; all by default")
    parser.add_argument(
        "--rounds", type=int, default=200, help="of the latency case; the others scale with it"
    )
    parser.add_argument("--boots", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    asked = parser.parse_args()
    rows: Rows = []
    if {"latency", "urls", "gap"} & set(asked.cases):
        config = settings.load(
            {"COMFY_PORT": "0", "ALLOW_PRIVATE_URLS": "true", "LOG_LEVEL": "ERROR", **os.environ}
        )
        worker = entry.started(config, builtin=True)
        try:
            worker.engine.wait_ready()
            print(
                f"On {worker.engine.launch.title}, {worker.engine.client.system_stats()['system']['comfyui_version']}."
            )
            if "latency" in asked.cases:
                rows += latency(worker, asked.rounds)
            if "urls" in asked.cases:
                rows += url_inputs(worker, asked.rounds)
            if "gap" in asked.cases:
                rows += idle_gap(worker, max(10, asked.rounds // 5))
        finally:
            worker.close()
    if "memory" in asked.cases:
        rows += memory(asked.megabytes)
    if "boot" in asked.cases:
        rows += boot(asked.boots)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}."
    )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *texts, kept in rows:
        cells = "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
        print(f"{'ok  ' if kept else 'OVER'}  {cells}")
    log.configure("ERROR", as_json=False)
    print(
        f"The bench itself used {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB at its peak."
    )


if __name__ == "__main__":
    main()
