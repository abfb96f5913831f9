"""
How much memory large outputs take, and whether the worker answers meanwhile: a worker in a process of its own.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support.pictures import node
from support.served import base_of
from support.worker_process import WorkerProcess

from comfy_worker.standin.thread import EngineThread

OUTPUT_MB = 40
AT_ONCE = 3
MOST_GROWTH_MB = 3 * OUTPUT_MB * AT_ONCE
"""Half of what the peer takes, which holds six times what it sends. Measured: 1.8 times."""

LONGEST_HEALTH_S = 2.0


def peak_mb(pid: int) -> float:
    """
    Return the most memory that a process has held.
    """
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def big(number: int) -> dict[str, Any]:
    """
    Return a request for one large file, which nothing compresses or keeps.
    """
    name = f"big{number}"
    file = node(
        "StandinBigFile", megabytes=float(OUTPUT_MB), key="files", extension="bin", filename_prefix=name
    )
    return {"id": name, "prompt": {"1": file}}


def until_ready(url: str) -> None:
    """
    Wait until the server would run a request.
    """
    end = time.monotonic() + 40
    while requests.get(f"{url}/ready", timeout=10).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.05)


def size_of_reply(url: str, number: int) -> int:
    """
    Run a request and return how long its reply is; nothing of it is kept.
    """
    with requests.post(f"{url}/prompt", json=big(number), timeout=120, stream=True) as reply:
        assert reply.status_code == 200, reply.text[:300]
        return sum(len(piece) for piece in reply.iter_content(1 << 20))


@pytest.mark.slow
def test_salad_s22_large_outputs_take_bounded_memory(engine: EngineThread, tmp_path: Path) -> None:
    """Three outputs of 40 MB at once stay far below what the peer needs, and `/health` answers all the while."""
    process = WorkerProcess(
        tmp_path,
        {"COMFYUI_URL": engine.url, "WORKER_CONCURRENCY": str(AT_ONCE)},
        program=("-m", "comfy_worker", "serve", "--face", "salad", "--host", "127.0.0.1", "--port", "0"),
    )
    over = threading.Event()
    try:
        url = base_of(process)
        until_ready(url)
        idle = peak_mb(process.pid)

        def watched() -> list[float]:
            waits = []
            while not over.wait(0.05):
                began = time.monotonic()
                assert requests.get(f"{url}/health", timeout=30).status_code == 200
                waits.append(time.monotonic() - began)
            return waits

        with ThreadPoolExecutor(AT_ONCE + 1) as pool:
            health = pool.submit(watched)
            try:
                sizes = list(pool.map(lambda number: size_of_reply(url, number), range(AT_ONCE)))
            finally:
                over.set()
            waits = health.result(40)

        grown = peak_mb(process.pid) - idle
        print(f"grown {grown:.0f} MB, health at most {max(waits):.3f} s of {len(waits)}")
        assert min(sizes) > OUTPUT_MB * (1 << 20) * 4 // 3
        assert max(waits) < LONGEST_HEALTH_S
        assert grown < MOST_GROWTH_MB
    finally:
        over.set()
        process.close()
