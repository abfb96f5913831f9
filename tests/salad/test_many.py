"""
Many requests at once, a third of which go away.
"""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import psutil
import pytest
from support.pictures import empty_workflow, node
from support.salad_fixtures import ServeSalad
from support.served import Served

COUNT = 200
MOST_KEPT_MB = 200.0
"""Stacks and arenas of 200 threads of the test's own clients among it: 1 MB for each request."""


def rss_mb() -> float:
    """
    Return the memory of this process.
    """
    return float(psutil.Process().memory_info().rss) / (1 << 20)


def body_of(number: int) -> dict[str, Any]:
    """
    Return a request that makes three pictures of its own.
    """
    prompt = empty_workflow(0x700000 + number)
    prompt["1"]["inputs"]["batch_size"] = 3
    prompt["1"]["inputs"]["width"] = prompt["1"]["inputs"]["height"] = 8
    prompt["9"] = node("StandinNeverCached", any=("1", 0))
    return {"id": f"m{number}", "prompt": prompt}


def leave(served: Served, number: int) -> None:
    """
    Send a request and hang up.
    """
    content = orjson.dumps(body_of(number))
    head = f"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), 10) as sock:
        sock.sendall(head.encode() + content)
        time.sleep(0.02)


@pytest.mark.slow
def test_requests_that_stay_are_right_while_others_leave(serve_salad: ServeSalad) -> None:
    """Of 200 requests a third hang up; the rest get their own files in order, and nothing is left waiting."""
    served = serve_salad(worker_concurrency=8)

    before = rss_mb()

    def one(number: int) -> dict[str, Any] | None:
        if number % 3 == 0:
            leave(served, number)
            return None
        reply = served.post("/prompt", body_of(number))
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    with ThreadPoolExecutor(COUNT) as pool:
        replies = list(pool.map(one, range(COUNT)))

    for number, reply in enumerate(replies):
        if reply is not None:
            assert reply["filenames"] == [f"m{number}_out_{index:05}_.png" for index in (1, 2, 3)]
            assert len(set(reply["images"])) == 1
    assert len({reply["images"][0] for reply in replies if reply}) == len(
        [reply for reply in replies if reply]
    )
    end = time.monotonic() + 20
    client = served.worker.engine.client  # type: ignore[attr-defined]
    pool_ = served.worker.pool  # type: ignore[attr-defined]
    while pool_.busy or client.queued() != (frozenset(), frozenset()):
        assert time.monotonic() < end
        time.sleep(0.05)
    del replies
    while rss_mb() - before > MOST_KEPT_MB:  # threads of the pool let go of their last one late
        assert time.monotonic() < end, f"{rss_mb() - before:.0f} MB are still held"
        time.sleep(0.1)
