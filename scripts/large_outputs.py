"""
What large outputs cost an HTTP face: its peak memory, and how long `/health` takes while they are handed over.

Runs `comfy-worker serve` as a process of its own against the built-in engine of this one: jobs that save one noise picture
each, `--concurrency` at a time, answered as base64. `--face runpod` or `--face salad`.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from comfy_worker.standin.thread import EngineThread

MEGABYTE = 1_000_000
BODIES = {"runpod": ("/runsync?wait=300000", "workflow"), "salad": ("/prompt", "prompt")}


def noise(path: Path, megabytes: float) -> None:
    """
    Write a PNG of about so many megabytes that does not compress.
    """
    side = int((megabytes * MEGABYTE / 3) ** 0.5)
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG", compress_level=1)


def memory_mb(pid: int, field: str) -> float:
    """
    Return a field of a process's memory, `VmHWM` (its peak) or `VmRSS`, in megabytes.
    """
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024 / MEGABYTE


def free_port() -> int:
    """
    Return a port that is free now.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(base: str, face: str, number: int) -> tuple[float, float]:
    """
    Run one job; return its seconds and the megabytes of its answer.
    """
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"n{number}"}},
    }
    path, key = BODIES[face]
    body: dict[str, Any] = {key: workflow}
    began = time.perf_counter()
    answer = requests.post(base + path, json={"input": body} if face == "runpod" else body, timeout=600)
    size = len(answer.content) / MEGABYTE
    if answer.status_code != 200 or b'"FAILED"' in answer.content[-2000:]:
        raise SystemExit(f"{answer.status_code}: {answer.text[:500]}")
    return time.perf_counter() - began, size


class Probe:
    """
    Asks for `/health` again and again while its block runs, on one connection.
    """

    def __init__(self, base: str) -> None:
        self.times_ms: list[float] = []
        self._base = base
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._end.wait(0.01):
                began = time.perf_counter()
                session.get(f"{self._base}/health", timeout=60)
                self.times_ms.append((time.perf_counter() - began) * 1000)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)


def measured(base: str, pid: int, options: argparse.Namespace) -> None:
    """
    Run the jobs and print what they cost.
    """
    asked(base, options.face, -1) if options.warm else None
    idle = memory_mb(pid, "VmRSS")
    with Probe(base) as probe, ThreadPoolExecutor(options.concurrency) as clients:
        jobs = list(clients.map(lambda number: asked(base, options.face, number), range(options.jobs)))
    times = sorted(probe.times_ms)
    print(
        f"{options.jobs} jobs, {options.concurrency} at once, answers of {jobs[0][1]:.0f} MB ({options.face})"
    )
    print(f"a job            median {statistics.median(took for took, _ in jobs):.2f} s")
    print(f"memory           idle {idle:.0f} MB, peak {memory_mb(pid, 'VmHWM'):.0f} MB")
    print(
        f"/health          {len(times)} asked: median {statistics.median(times):.1f} ms, "
        f"p99 {times[int(len(times) * 0.99)]:.0f} ms, most {times[-1]:.0f} ms"
    )
    time.sleep(2)
    print(f"memory after     {memory_mb(pid, 'VmRSS'):.0f} MB")


def main() -> None:
    """
    Run the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--face", choices=sorted(BODIES), default="runpod")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--concurrency", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--warm", action="store_true", help="one job before the measured ones")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="comfy-worker-large-") as folder,
        EngineThread(Path(folder) / "engine") as engine,
    ):
        noise(engine.folders.input / "noise.png", options.megabytes)
        port = free_port()
        environ = {
            **os.environ,
            "COMFYUI_URL": engine.url,
            "COMFY_INPUT_DIR": str(engine.folders.input),
            "COMFY_OUTPUT_DIR": str(engine.folders.output),
            "WORKER_CONCURRENCY": str(options.concurrency),
            "REPLY_LIMIT_MB": "1000",
            "REPLY_LIMIT_SYNC_MB": "1000",
            "LOG_LEVEL": "WARNING",
        }
        command = [
            sys.executable,
            "-m",
            "comfy_worker",
            "serve",
            "--face",
            options.face,
            "--port",
            str(port),
        ]
        process = subprocess.Popen(command, env=environ, cwd=folder)
        base = f"http://127.0.0.1:{port}"
        try:
            wait_ready(base, process)
            measured(base, process.pid, options)
        finally:
            process.terminate()
            process.wait(60)


def wait_ready(base: str, process: "subprocess.Popen[bytes]") -> None:
    """
    Wait until the face is ready.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if requests.get(f"{base}/ready", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise SystemExit("comfy-worker serve did not become ready.")


if __name__ == "__main__":
    main()
