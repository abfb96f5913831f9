"""
The webhook of RunPod's API: sent at every end, tried again, and never to an address it may not reach.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.control_plane import wait_until
from support.pictures import empty_workflow
from support.served import Served

from comfy_worker.faces.runpod_webhook import Webhooks
from comfy_worker.fetch_guard import Guard


class Receiver:
    """
    A web server that answers with `statuses` in turn, 200 after the last, and keeps what it was sent.
    """

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                receiver.bodies.append(json.loads(self.rfile.read(size)))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?token=t0ken-secret"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """
        End it.
        """
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """
    Return a receiver that lives as long as the test.
    """
    made = Receiver()
    yield made
    made.close()


def sent(url: str, guard: Guard, timeout_s: float = 10.0) -> None:
    """
    Send one webhook and wait for the end of its tries.
    """

    async def go() -> None:
        webhooks = Webhooks(guard, pause_s=0.01)
        webhooks.send(url, b'{"id": "a"}')
        async with asyncio.timeout(timeout_s):
            while webhooks.pending:
                await asyncio.sleep(0.01)
        await webhooks.close(timeout_s)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("statuses", "posts"), [([], 1), ([500], 2), ([500, 302], 3), ([500, 201, 500, 200], 3)]
)
def test_webhook_is_tried_three_times_until_200(receiver: Receiver, statuses: list[int], posts: int) -> None:
    """Anything but 200 must be tried again, twice at most."""
    receiver.statuses = list(statuses)

    sent(receiver.url, Guard(allow_private=True))

    assert len(receiver.bodies) == posts


def test_end_makes_the_next_try_the_last(receiver: Receiver) -> None:
    """At the end of the server a webhook that failed must be tried once more, without its pause."""
    receiver.statuses = [500, 500, 500]

    async def go() -> None:
        webhooks = Webhooks(Guard(allow_private=True), pause_s=60.0)
        webhooks.send(receiver.url, b"{}")
        while not receiver.bodies:
            await asyncio.sleep(0.01)
        await webhooks.close(10.0)

    asyncio.run(asyncio.wait_for(go(), 20))
    assert len(receiver.bodies) == 2


def test_webhook_to_a_private_address_is_not_sent(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job must not make the worker post into its own network; the log says why, without the URL's secret."""
    monkeypatch.setattr("comfy_worker.log.logger.propagate", True)

    sent(receiver.url, Guard())

    assert receiver.bodies == []
    assert "ALLOW_PRIVATE_URLS" in caplog.text
    assert "t0ken-secret" not in caplog.text


def test_ended_job_is_posted_as_status_shows_it(
    serve_runpod: Callable[..., Served], receiver: Receiver
) -> None:
    """The body must be what /status says of the job, for a good one and a cancelled one."""
    served = serve_runpod(allow_private_urls=True)
    job = {"input": {"workflow": empty_workflow()}, "webhook": receiver.url}

    view = served.post("/runsync", job).json()

    wait_until(lambda: receiver.bodies, 10.0)
    assert receiver.bodies == [view]
