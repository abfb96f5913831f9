"""
The one websocket: who gets which message, what happens when it is lost, and that nothing blocks it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from support.cutting_proxy import CuttingProxy
from support.pictures import empty_workflow

from comfy_worker.comfy import messages
from comfy_worker.comfy.mailbox import PICTURE_LIMIT, Mailbox, SocketLost
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.standin.thread import EngineThread

PROMPT = "11111111-2222-5333-8444-555555555555"


@pytest.fixture
def opened() -> Iterator[Callable[..., EventSocket]]:
    """
    Make sockets that are closed at the end.
    """
    sockets: list[EventSocket] = []

    def make(url: str, **options: float) -> EventSocket:
        socket = EventSocket(url, delay_s=0.05, **options)  # type: ignore[arg-type]
        sockets.append(socket)
        return socket

    yield make
    for socket in sockets:
        socket.close()


def until(check: Callable[[], object], seconds: float = 5.0) -> None:
    """
    Wait until `check()` holds.
    """
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def mail_of(box: Mailbox, seconds: float = 5.0) -> list[object]:
    """
    Return what arrives until the null event, or until nothing comes any more.
    """
    found: list[object] = []
    while (mail := box.get(seconds)) is not None:
        found.append(mail[1])
        if isinstance(mail[1], messages.Executing) and mail[1].node is None:
            break
    return found


def post(url: str, prompt_id: str, client_id: str, colour: int) -> None:
    """
    Queue a small prompt.
    """
    body = {"prompt": empty_workflow(colour), "prompt_id": prompt_id, "client_id": client_id}
    requests.post(f"{url}/prompt", json=body, timeout=5).raise_for_status()


def test_messages_of_a_prompt_reach_its_mailbox_only(
    engine: EngineThread, opened: Callable[..., EventSocket]
) -> None:
    """A job must see its own prompt's messages, and none of another's."""
    socket = opened(engine.url)
    mine, other = Mailbox(), Mailbox()
    client_id = socket.ensure(5)
    socket.subscribe(PROMPT, mine)
    socket.subscribe(PROMPT[:-1] + "6", other)

    post(engine.url, PROMPT, client_id, 0x010203)

    kinds = {type(mail) for mail in mail_of(mine)}
    assert {messages.Started, messages.Executed, messages.Executing, messages.Succeeded} <= kinds
    assert {type(mail) for mail in mail_of(other, 0.2)} <= {messages.Status}


def test_new_socket_has_a_new_client_id(engine: EngineThread, opened: Callable[..., EventSocket]) -> None:
    """After a loss the socket must come back under another id, and the jobs must be told."""
    with CuttingProxy(engine.url, cut_after=3) as proxy:
        socket = opened(proxy.url)
        before = socket.ensure(5)
        box = Mailbox()
        socket.subscribe(PROMPT, box)
        post(engine.url, PROMPT, before, 0x020304)

        until(lambda: proxy.cuts == 1 and socket.connected and socket.ensure(5) != before)

        found = []
        while (mail := box.get(0.5)) is not None:
            found.append(mail[1])
        assert any(isinstance(mail, SocketLost) for mail in found)
        socket.close()


def test_ensure_returns_in_time_when_nothing_listens(opened: Callable[..., EventSocket]) -> None:
    """Without a ComfyUI `ensure` must come back with a client id, so that a job can go on by polling."""
    socket = opened("http://127.0.0.1:9", attempts=0)

    assert len(socket.ensure(5)) == 32
    assert not socket.connected


def test_idle_socket_is_back_for_the_next_job(tmp_path: Path, opened: Callable[..., EventSocket]) -> None:
    """After a ComfyUI was away for longer than all attempts, the next job must have a socket again."""
    with EngineThread(tmp_path / "one") as first:
        socket = opened(first.url, attempts=1)
        socket.ensure(5)
        port = int(first.url.rsplit(":", 1)[1])
    until(lambda: not socket.connected)
    time.sleep(0.3)

    with EngineThread(tmp_path / "two", port=port):
        socket.ensure(5)

        assert socket.connected
        socket.close()


def test_close_ends_the_thread(engine: EngineThread) -> None:
    """`close` must end the reader, connected or not, and may be called twice."""
    before = threading.active_count()
    socket = EventSocket(engine.url)
    socket.ensure(5)

    socket.close()
    socket.close()

    until(lambda: threading.active_count() <= before)


def test_mailbox_drops_previews_and_never_text() -> None:
    """A job that does not read must cost previews only."""
    box = Mailbox(frozenset({"9"}))
    preview = messages.Picture(PROMPT, "5", "image/jpeg", memoryview(b"x"))
    result = messages.Picture(PROMPT, "9", "image/png", memoryview(b"y"))
    for _ in range(PICTURE_LIMIT + 50):
        box.put(preview)
        box.put(result)
        box.put(messages.Succeeded(PROMPT))

    found = [mail[1] for mail in iter(lambda: box.get(0), None)]

    assert found.count(preview) == PICTURE_LIMIT
    assert found.count(result) == PICTURE_LIMIT + 50
    assert found.count(messages.Succeeded(PROMPT)) == PICTURE_LIMIT + 50


def test_mailbox_wakes_its_reader() -> None:
    """`wake` must end a wait at once, also when it comes first."""
    box = Mailbox()
    box.wake()

    assert box.get(60) is None


def test_unread_mailbox_does_not_stop_another_job(
    engine: EngineThread, opened: Callable[..., EventSocket]
) -> None:
    """A mailbox that nobody reads must not keep messages from another one."""
    socket = opened(engine.url)
    client_id = socket.ensure(5)
    unread, mine = Mailbox(), Mailbox()
    for _ in range(20_000):
        unread.put(messages.Status(1))
    socket.subscribe("unread", unread)
    socket.subscribe(PROMPT, mine)

    post(engine.url, PROMPT, client_id, 0x040506)

    assert any(isinstance(mail, messages.Succeeded) for mail in mail_of(mine))
