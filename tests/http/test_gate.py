"""
What every request passes: the key, the bounds of its body in bytes and time, its id, the access log.
"""

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
from pydantic import SecretStr

from comfy_worker.faces.http_gate import PIECE_BYTES, Bodies, Gate
from comfy_worker.faces.http_problem import Json

Message = MutableMapping[str, Any]


def exchanged(
    gate: Callable[..., Gate],
    pieces: list[bytes],
    headers: dict[str, str] | None = None,
    path: str = "/run",
    pause_s: float = 0.0,
    reply: bytes = b"{}",
) -> tuple[int, dict[str, str], bytes, list[bytes]]:
    """
    Send one request, its body in pieces, through a gate to an application that reads all of it.

    Returns the status, the headers and the body of the answer, and the pieces of the body that the application saw.
    """
    left, seen, sent = list(pieces), list[bytes](), list[Message]()

    async def receive() -> Message:
        await asyncio.sleep(pause_s)
        piece = left.pop(0) if left else b""
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": reply})

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=query-secret",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    asyncio.run(gate(app)(scope, receive, send))
    [start, *rest] = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], answered, b"".join(message["body"] for message in rest), seen


def of(**options: Any) -> Callable[[Any], Gate]:
    """
    Make gates with these options.
    """
    return lambda app: Gate(app, **options)


def test_body_that_says_it_is_too_large_is_refused_unread() -> None:
    """A content-length over the limit must be refused before anything of the body is taken."""
    status, _, body, seen = exchanged(of(max_body_bytes=10), [b"x" * 11], {"Content-Length": "11"})

    assert (status, seen) == (413, [])
    assert b"body_too_large" in body


def test_body_that_grows_too_large_is_refused_while_it_streams() -> None:
    """A body without a length must be refused at the piece that breaks the limit, and its bytes given back."""
    bodies = Bodies(1000)
    status, _, _, seen = exchanged(of(max_body_bytes=10, bodies=bodies), [b"x" * 6, b"x" * 6, b"x"])

    assert (status, seen) == (413, [b"x" * 6])
    assert bodies.held_bytes == 0


def test_body_at_the_limit_is_taken() -> None:
    """A body of exactly the limit must pass."""
    status, _, _, seen = exchanged(of(max_body_bytes=12), [b"x" * 6, b"x" * 6], {"Content-Length": "12"})

    assert (status, b"".join(seen)) == (200, b"x" * 12)


def test_body_that_trickles_in_is_refused() -> None:
    """A body slower than the slowest allowed must be answered with 408."""
    status, headers, body, _ = exchanged(of(body_grace_s=0.05), [b"x"] * 1000, pause_s=0.02)

    assert (status, headers["connection"]) == (408, "close")
    assert b"body_too_slow" in body


def test_bodies_beyond_the_memory_for_all_of_them_are_refused() -> None:
    """With the memory for bodies full, another one must be told to come later."""
    bodies = Bodies(10, held_bytes=8)
    status, headers, _, _ = exchanged(of(bodies=bodies), [b"x" * 3])

    assert (status, bodies.held_bytes) == (503, 8)
    assert int(headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer the-key", 200),
        ("bearer  the-key", 200),
        ("the-key", 200),
        ("Bearer the-ke", 401),
        ("Bearer", 401),
        ("", 401),
        ("Basic the-key", 401),
    ],
)
def test_key_is_wanted_where_there_is_one(given: str, status: int) -> None:
    """Only the right key, with or without `Bearer`, must let a request in."""
    gate = of(bearer=SecretStr("the-key"))

    assert exchanged(gate, [b""], {"Authorization": given})[0] == status


@pytest.mark.parametrize(
    ("site", "key", "status"),
    [("cross-site", None, 403), ("same-origin", None, 200), ("cross-site", "the-key", 200)],
)
def test_page_of_another_site_is_refused_where_no_key_keeps_it_out(
    site: str, key: str | None, status: int
) -> None:
    """A page somewhere on the web must not run jobs through the browser of whoever looks at it."""
    headers = {"Sec-Fetch-Site": site, "Authorization": f"Bearer {key}"}

    assert exchanged(of(bearer=SecretStr(key) if key else None), [b""], headers)[0] == status


def test_open_paths_need_no_key() -> None:
    """A probe must be answered without the key, and its neighbours must not."""
    gate = of(bearer=SecretStr("the-key"), open_paths=frozenset({"/health"}))

    assert exchanged(gate, [b""], path="/health")[0] == 200
    assert exchanged(gate, [b""], path="/health/")[0] == 401


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1", True), ("a b", False), ("x" * 200, False), ("ü", False)]
)
def test_request_id_is_the_callers_where_it_can_be_one(given: str, kept: bool) -> None:
    """An id that could break a header or a log line must be replaced by ours, any other kept."""
    answered = exchanged(of(), [b""], {"X-Request-ID": given})[1]["x-request-id"]

    assert (answered == given) is kept
    assert answered


def test_access_log_has_path_status_and_id_and_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request must leave one line, without its query, headers or body."""
    with caplog.at_level(logging.INFO, "comfy_worker.http"):
        monkeypatch.setattr(logging.getLogger("comfy_worker"), "propagate", True)
        exchanged(of(), [b"body-secret"], {"X-Request-ID": "id-1", "Authorization": "Bearer header-secret"})

    [record] = caplog.records
    assert "POST /run 200" in record.getMessage()
    assert record.getMessage().endswith("id-1")
    assert "secret" not in record.getMessage()


def test_fault_of_the_application_is_a_500_that_says_nothing_of_itself() -> None:
    """An exception nobody expected must be answered in the face's words, without its text."""

    def broken(app: Any) -> Gate:
        async def fail(scope: Any, receive: Any, send: Any) -> None:
            raise KeyError("an inner secret")

        return Gate(fail, render=lambda request, problem: Json({"said": problem.message}, problem.status))

    status, _, body, _ = exchanged(broken, [b""])

    assert status == 500
    assert b"inner secret" not in body
    assert b"said" in body


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_large_answers_go_out_in_pieces_and_whole(size: int) -> None:
    """An answer must arrive byte for byte, however it is cut."""
    reply = bytes(index % 251 for index in range(size))

    assert exchanged(of(), [b""], reply=reply)[2] == reply
