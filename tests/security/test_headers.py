"""
Line breaks and other tricks in what becomes a header or a line of the log: names, keys, ids, tokens, URLs.
"""

import io
import logging
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from pydantic import SecretStr
from storage import sigv4
from support.every_face import FACES, Entrance
from support.http_desk import HttpDesk
from support.pictures import node
from support.receiver import receiving
from support.served import Served

from comfy_worker import log
from comfy_worker.errors import DeliveryFailed, JobInvalid
from comfy_worker.faces import salad
from comfy_worker.fetch_guard import Guard
from comfy_worker.job import Bucket, HttpTarget
from comfy_worker.standin.thread import EngineThread
from comfy_worker.storage.http_put import HttpPut
from comfy_worker.storage.s3 import Patience, Stores
from comfy_worker.webhook.post import Body, Poster, checked_url

BREAKS = (
    "\r\nX-Evil: 1",
    "\nX-Evil: 1",
    "\rX-Evil: 1",
    "\x00X-Evil: 1",
    "\u2028X-Evil: 1",
    "\x85X-Evil: 1",
    "%0d%0aX-Evil: 1",
)


def graph(prefix: str = "out") -> dict[str, Any]:
    """
    Return a small picture that is saved.
    """
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", images=("1", 0), filename_prefix=prefix),
    }


@pytest.mark.slow
@pytest.mark.parametrize("text", BREAKS)
def test_reply_has_no_header_of_the_caller(entrance: Entrance, text: str) -> None:
    """A line break in an id or a name must not become a header of the reply."""
    for said in (entrance.send(graph(), f"id{text}"), entrance.send(graph(f"out{text}"), "name")):
        assert "x-evil" not in said.headers.lower().replace("%0d%0ax-evil", "")


@pytest.mark.parametrize("text", BREAKS)
def test_id_of_a_request_is_no_header(http_entrance: Entrance, text: str) -> None:
    """A request id that is sent back must be the caller's only when it cannot break a header."""
    assert http_entrance.served is not None
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", http_entrance.served.port, timeout=20)
    connection.putrequest("GET", "/health")
    try:
        connection.putheader("X-Request-ID", f"id{text}".encode())
        connection.endheaders()
        headers = connection.getresponse().getheaders()
    except ValueError:
        return  # Python's own client does not send it
    finally:
        connection.close()
    assert "x-evil" not in {name.lower() for name, _ in headers}
    assert not [value for name, value in headers if name.lower() == "x-request-id" and "X-Evil" in value]


@pytest.mark.slow
@pytest.mark.parametrize("text", BREAKS)
def test_key_of_an_object_is_encoded(text: str) -> None:
    """A key with a line break must reach the store as a key, and break neither headers nor a signed link."""
    with sigv4.served(sigv4.SigV4(sigv4.sink, {"key": "secret"})) as url:
        stores = Stores(Patience(5.0, 5.0, 0))
        store = stores(Bucket(url, "key", SecretStr("secret"), "bucket", plain=True, links=True))
        try:
            link = store.put(f"a{text}.png", b"x", "image/png")
        except DeliveryFailed:
            return
        finally:
            stores.close()

    assert link.isprintable()
    assert "X-Evil" not in link.partition("?")[2]
    assert requests.Request("GET", link).prepare().url


@pytest.mark.slow
@pytest.mark.parametrize("mime", [f"image/png{text}" for text in BREAKS])
def test_type_of_an_object_breaks_no_request(mime: str) -> None:
    """A MIME type with a line break, which a node may have named, must not add a header to an upload."""
    app = sigv4.SigV4(sigv4.sink, {"key": "secret"})
    with sigv4.served(app) as url:
        stores = Stores(Patience(5.0, 5.0, 0))
        try:
            stores(Bucket(url, "key", SecretStr("secret"), "bucket")).put("k", b"x", mime)
        except DeliveryFailed as exc:
            assert str(exc).isprintable()
        stores.close()

    assert not [seen for seen in app.seen if "x-evil" in {name.lower() for name in seen.headers}]


@pytest.mark.parametrize("text", BREAKS)
def test_upload_has_no_header_of_a_name(text: str) -> None:
    """A name, a type, a URL or a token with a line break must not add a header to a PUT."""
    with HttpDesk() as desk:
        for target, key, mime in (
            (HttpTarget(desk.url), f"k{text}", "image/png"),
            (HttpTarget(desk.url), "k", f"image/png{text}"),
            (HttpTarget(f"{desk.url}/a{text}"), "k", "image/png"),
            (HttpTarget(desk.url, (("Authorization", SecretStr(f"t{text}")),)), "k", "image/png"),
        ):
            try:
                HttpPut(target, Guard(allow_private=True), lambda _: None).put(key, b"x", mime, lambda: None)
            except DeliveryFailed as exc:
                assert str(exc).isprintable()

        assert not [seen for seen in desk.seen if "x-evil" in seen.headers]


@pytest.mark.parametrize("text", BREAKS)
def test_webhook_has_no_header_of_the_caller(text: str) -> None:
    """A header's value or a URL with a line break must be refused, or sent without becoming a header."""
    with receiving() as receiver:
        poster = Poster(Guard(allow_private=True))
        for url, headers in ((receiver.url, {"webhook-id": f"a{text}"}), (f"{receiver.url}/{text}", {})):
            poster.post(url, headers, Body(b"{}"), 5.0)
        poster.rest()

        assert not [seen for seen in receiver.received if "x-evil" in {name.lower() for name in seen.headers}]


@pytest.mark.parametrize("text", ["\r\nX: 1", "\n", " a", "\t"])
def test_url_of_a_webhook_has_no_break_in_its_host(text: str) -> None:
    """A line break within the host of a webhook must be refused before anything is posted."""
    with pytest.raises(JobInvalid):
        checked_url(f"http://h{text}.example/", "webhook")


@pytest.fixture
def lines() -> Any:
    """
    What is logged, as a stream of lines.
    """
    stream = io.StringIO()
    former = (log.logger.handlers[:], log.logger.level, log.logger.propagate)
    log.configure("DEBUG", as_json=False, stream=stream)
    yield stream
    log.logger.handlers[:], log.logger.propagate = former[0], former[2]
    log.logger.setLevel(former[1])


@pytest.mark.parametrize("as_json", [True, False])
def test_log_has_one_line_per_event(lines: io.StringIO, as_json: bool, open_entrance: Any) -> None:
    """No id, name, title or text of a job may begin a line of the log that looks like one of ours."""
    log.configure("DEBUG", as_json=as_json, stream=lines)
    forged = "\n2026-01-01 00:00:00 ERROR forged line\r\n\x1b[31mforged line\u2028forged line"
    entrance = open_entrance(FACES[0])
    bad = {**graph(), "3": {"class_type": f"No{forged}", "inputs": {}, "_meta": {"title": forged}}}

    for said in (
        entrance.send(graph(), f"id{forged}"),
        entrance.send(graph(f"out{forged}")),
        entrance.send(bad),
    ):
        assert said.text
    logging.getLogger("comfy_worker.test").warning("a name: %s", forged)

    text = lines.getvalue()
    assert not [
        line for line in text.split("\n") if line.lstrip("\r").startswith("2026-01-01 00:00:00 ERROR forged")
    ]


def test_file_of_a_reply_is_named_safely(engine: EngineThread, make_worker: WorkerFactory) -> None:
    """A file that an HTTP face serves or describes must not take headers from its name."""
    served = Served(salad.app_of(make_worker(launch_of(engine), shutdown_grace_s=0.2)))
    try:
        reply = served.post("/prompt", {"id": "a", "prompt": graph('a"; filename="evil.html')})
        assert "evil.html" not in str(reply.headers)
    finally:
        served.close()
