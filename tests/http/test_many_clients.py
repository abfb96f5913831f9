"""
Many clients at once, some of which leave: the rest get their own results, and nothing stays behind.
"""

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.control_plane import wait_until
from support.pictures import empty_workflow, opened
from support.served import Served

CLIENTS = 200


@pytest.mark.slow
def test_200_clients_a_third_of_which_leave(serve_runpod: Callable[..., Served]) -> None:
    """
    Of 200 clients at once every third leaves early. The others must each get their own picture; queue, jobs, threads
    and connections must be back to what they were.
    """
    served = serve_runpod(worker_concurrency=2)
    worker = served.app.state.service.worker
    served.post("/runsync", {"input": {"workflow": empty_workflow()}})
    threads = threading.active_count()

    with ThreadPoolExecutor(CLIENTS) as clients:
        colours = list(clients.map(lambda number: _client(served, number), range(CLIENTS)))

    stayed = [number for number in range(CLIENTS) if number % 3]
    assert [colours[number] for number in stayed] == [_colour(number) for number in stayed]
    wait_until(lambda: worker.pool.busy == 0, 20.0)
    health = served.get("/health").json()["jobs"]
    assert (health["inProgress"], health["inQueue"], health["failed"]) == (0, 0, 0)
    wait_until(lambda: len(served.server.server_state.connections) <= 1, 10.0)
    assert served.app.state.service.bodies.held_bytes == 0
    gc.collect()
    assert threading.active_count() <= threads + 8  # the event loop's own pool, and no thread per client


def _colour(number: int) -> tuple[int, int, int]:
    return (number, 255 - number, 7)


def _client(served: Served, number: int) -> object:
    red, green, blue = _colour(number)
    job = {"input": {"workflow": empty_workflow(red << 16 | green << 8 | blue, prefix=f"c{number}")}}
    try:
        view = requests.post(f"{served.url}/runsync", json=job, timeout=60 if number % 3 else 0.05).json()
    except requests.RequestException:
        return "left"
    return opened(view["output"]["images"][0]).getpixel((0, 0)) if view["status"] == "COMPLETED" else view
