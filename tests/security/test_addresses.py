"""
Nothing that a job says makes the worker connect to a private address: inputs, buckets, uploads, webhooks, on each face.

How an address is judged, redirects, pinning, odd spellings for inputs: tests/test_fetch.py. Models: tests/models/test_download.py.
"""

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from storage import sigv4
from support.every_face import FACES, Entrance
from support.http_desk import HttpDesk
from support.pictures import invert_workflow, node, png

from comfy_worker.buckets import Buckets
from comfy_worker.deadline import Deadline
from comfy_worker.errors import DeliveryFailed, InputUnavailable, JobInvalid
from comfy_worker.fetch import Fetcher
from comfy_worker.fetch_guard import Guard, is_public
from comfy_worker.job import Bucket, HttpTarget
from comfy_worker.storage.s3 import Patience, Stores
from comfy_worker.webhook.post import Body, Poster

PORT = "{port}"
HOSTS = (
    *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.0.0.1.", "127.1", "2130706433", "0x7f000001"),
    *("0177.0.0.1", "017700000001", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *(
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "[fe80::1]",
    ),
    *("169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "10.0.0.1", "100.100.100.200"),
    *(
        "１２７.0.0.1",
        "127。0。0。1",
        "ⓛocalhost",
        "loca\u00adlhost",
        "%31%32%37.0.0.1",
        "127.0.0.1%00.example",
    ),
)


class Listener:
    """
    A port of loopback, IPv4 and IPv6, that counts who connects.
    """

    def __init__(self) -> None:
        self.connections = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self._threads = [threading.Thread(target=self._serve, args=(one,)) for one in self._sockets]
        for thread in self._threads:
            thread.start()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        """
        End it.
        """
        for one in self._sockets:
            one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """
    Something private that must not be reached.
    """
    listener = Listener()
    yield listener
    listener.close()


def urls(port: int) -> list[str]:
    """
    Return every way to name the listener in a URL.
    """
    plain = [f"http://{host}:{port}/a.png" for host in HOSTS]
    tricks = ["http://1.1.1.1:{0}@127.0.0.1:{0}/a.png", "http://127.0.0.1:{0}#@1.1.1.1/a.png"]
    tricks += [
        "http://127.0.0.1:{0}\\@1.1.1.1/a.png",
        "http:127.0.0.1:{0}/a.png",
        "http:///127.0.0.1:{0}/a.png",
    ]
    tricks += ["HTTP://127.0.0.1:{0}/a.png", " http://127.0.0.1:{0}/a.png", "http://\t127.0.0.1:{0}/a.png"]
    tricks += [
        "ftp://127.0.0.1:{0}/a",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{0}/",
        "dict://127.0.0.1:{0}/",
    ]
    return plain + [text.format(port) for text in tricks]


@pytest.mark.slow
def test_no_input_reaches_a_private_address(entrance: Entrance, listener: Listener) -> None:
    """However a private host is spelled in the URL of an input, the job must fail and nothing must be connected to."""
    good = [
        url
        for url in urls(listener.port)
        if not entrance.send(invert_workflow(url), f"in-{hash(url) % 10**8}").failed
    ]

    assert good == []
    assert listener.connections == 0


def test_metadata_of_a_cloud_is_not_read(entrance: Entrance) -> None:
    """The address of a cloud's metadata must be refused by name, not merely unreachable."""
    said = entrance.send(invert_workflow("http://169.254.169.254/latest/meta-data/"))

    assert said.failed
    assert "not a public address" in said.text


HOOKED = [face for face in FACES if face.hook is not None]


@pytest.mark.slow
@pytest.mark.parametrize("face", HOOKED, ids=lambda face: face.name)
def test_no_webhook_reaches_a_private_address(face: Any, open_entrance: Any, listener: Listener) -> None:
    """However a private host is spelled in the URL of a webhook, nothing must be connected to."""
    entrance = open_entrance(face)
    graph = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }
    for number, url in enumerate(urls(listener.port)):
        entrance.send(graph, f"hook-{number}", **{face.hook: url})

    entrance.worker.web.webhooks.close(0.5)
    assert listener.connections == 0


@pytest.mark.parametrize("host", HOSTS)
def test_poster_of_webhooks_judges_the_host(host: str, listener: Listener) -> None:
    """The one who posts must judge for itself, whoever checked before."""
    poster = Poster(Guard())
    answer = poster.post(f"http://{host}:{listener.port}/", {}, Body(b"{}"), 5.0)
    poster.rest()

    assert answer.problem
    assert listener.connections == 0


def test_buckets_of_jobs_are_public(open_entrance: Any, listener: Listener) -> None:
    """However a private host is spelled as the endpoint of a job's own bucket, the job must be refused."""
    entrance = open_entrance(FACES[0])
    keys = {"accessId": "a", "accessSecret": "b", "bucketName": "c"}
    good = [
        host
        for host in HOSTS
        if not entrance.send(
            invert_workflow(), s3Config={**keys, "endpointUrl": f"http://{host}:{listener.port}"}
        ).failed
    ]

    assert good == []
    assert listener.connections == 0


@pytest.mark.slow
def test_uploads_of_jobs_are_public(open_entrance: Any, listener: Listener) -> None:
    """The same for an upload by PUT, which the Salad face offers."""
    entrance = open_entrance(next(face for face in FACES if face.name == "salad"))
    graph = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }
    good = [
        url
        for number, url in enumerate(urls(listener.port))
        if not entrance.send(graph, f"put-{number}", http_upload={"url_prefix": url}).failed
    ]

    assert good == []
    assert listener.connections == 0


class Rebinding:
    """
    A name server that says something public first, and something private from then on.
    """

    def __init__(self, private: str = "127.0.0.1") -> None:
        self._answers = itertools.chain(["1.1.1.1"], itertools.repeat(private))
        self.asked = 0

    def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.asked += 1
        return [next(self._answers)]


BUCKET = Bucket("http://rebinds.example:1", "key", SecretStr("secret"), "bucket", region="us-east-1")


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_bucket_that_rebinds_is_not_reached(listener: Listener, tmp_path: Path, style: Any) -> None:
    """A bucket's host that was public when the job was taken must be judged again when it is connected to."""
    resolver = Rebinding()
    bucket = Bucket(
        f"http://rebinds.example:{listener.port}", "key", SecretStr("s"), "bucket", addressing_style=style
    )
    stores = Stores(Patience(5.0, 5.0, 0))
    buckets = Buckets(stores, Guard(resolve=resolver), None)
    buckets.admit(bucket)
    reader = buckets.reader(bucket)
    assert reader is not None

    with pytest.raises(DeliveryFailed):
        buckets.store(bucket).put("key", b"x", "image/png", lambda: None)
    with pytest.raises(InputUnavailable):
        reader("s3://bucket/key", tmp_path / "x", 100, lambda: None)
    with pytest.raises(InputUnavailable):
        buckets.prober(bucket)("s3://bucket/key", lambda: None)
    stores.close()

    assert resolver.asked >= 4
    assert listener.connections == 0


def test_bucket_of_a_job_is_reached_at_the_judged_address() -> None:
    """A guarded client must go where the guard was told, or the test before would hold for a broken client too."""
    keys = {"key": "secret"}
    with sigv4.served(sigv4.SigV4(sigv4.sink, keys)) as url:
        port = url.rpartition(":")[2]
        stores = Stores(Patience(5.0, 5.0, 0))
        guard = Guard(allow_private=True, resolve=lambda _host, _port: ["127.0.0.1"])
        bucket = Bucket(
            f"http://nowhere.example:{port}", "key", SecretStr("secret"), "bucket", region="us-east-1"
        )

        link = Buckets(stores, guard, None).store(bucket).put("key", b"x", "image/png", lambda: None)
        stores.close()

    assert link.startswith(f"http://nowhere.example:{port}/bucket/key?")


def test_bucket_of_the_operator_may_be_private() -> None:
    """The endpoint of the settings must not be judged, nor a job's bucket that has the same endpoint."""

    def refuse(_host: str, _port: int) -> Sequence[str]:
        raise AssertionError("nobody asks for the operator's endpoint")

    with sigv4.served(sigv4.SigV4(sigv4.sink, {"key": "secret"})) as url:
        stores = Stores(Patience(5.0, 5.0, 0))
        operator = Bucket(url, "key", SecretStr("secret"), "bucket")
        buckets = Buckets(stores, Guard(resolve=refuse), operator)

        assert buckets.store(operator).put("key", b"x", "image/png", lambda: None)
        assert buckets.store(Bucket(url, "key", SecretStr("secret"), "other")).put(
            "k", b"x", "image/png", lambda: None
        )
        stores.close()


def test_redirects_of_an_object_store_are_not_followed(listener: Listener, tmp_path: Path) -> None:
    """A store that sends a request on, by Location or by a region, must be asked once and not be followed."""
    with HttpDesk() as desk:
        inside = f"http://127.0.0.1:{listener.port}/x"
        stores = Stores(Patience(5.0, 5.0, 0))
        store = stores(Bucket(desk.url, "key", SecretStr("s"), "bucket", region="us-east-1"))
        for status in (301, 302, 307, 308):
            headers = {"Location": inside, "x-amz-bucket-region": "eu-west-1"}
            desk.put("/bucket/key", b"", status=status, headers=headers)
            with pytest.raises(InputUnavailable):
                store.read("s3://bucket/key", tmp_path / "x", 100)
        stores.close()

    assert len(desk.seen) == 4
    assert listener.connections == 0


@pytest.mark.parametrize(
    "region", ["x.evil.example/#", "../x", "a b", "x\r\nHost: y", "evil.example", "@evil.example"]
)
def test_region_cannot_become_a_host(region: str) -> None:
    """The region of a job is put into a host name by boto3, and must be one label of it."""
    stores = Stores(Patience(1.0, 1.0, 0))
    store = stores(
        Bucket(None, "key", SecretStr("s"), "bucket", region=region), Guard(resolve=lambda *_: ["127.0.0.1"])
    )

    with pytest.raises(DeliveryFailed, match=r"region|connection"):
        store.put("key", b"x", "image/png")
    stores.close()


def test_upload_that_rebinds_is_not_reached(listener: Listener) -> None:
    """Each attempt of a PUT must be judged."""
    buckets = Buckets(Stores(), Guard(resolve=Rebinding("::1")), None)
    buckets._guard.addresses("up.example", 80)

    with pytest.raises(DeliveryFailed, match="not a public address"):
        buckets.store(HttpTarget(f"http://up.example:{listener.port}")).put(
            "k", b"x", "image/png", lambda: None
        )
    assert listener.connections == 0


def test_input_that_rebinds_between_attempts_is_not_reached(listener: Listener, tmp_path: Path) -> None:
    """The second attempt of a download must be judged as the first was."""
    resolver = Rebinding()
    fetcher = Fetcher(resolve=resolver, connect_timeout_s=0.2, pauses_s=(0.0, 0.0))

    with pytest.raises(InputUnavailable):
        fetcher.fetch(
            f"http://x.example:{listener.port}/a", tmp_path / "a", Deadline(10.0), field="f", max_bytes=9
        )
    assert resolver.asked >= 1
    assert listener.connections == 0


@pytest.mark.parametrize("name", ["s3://b/k", "S3://b/k"])
def test_keys_of_the_operator_read_its_own_bucket_only(open_entrance: Any, name: str) -> None:
    """An s3 URL of a job must not be read with the operator's keys from another bucket."""
    with sigv4.served(sigv4.SigV4(sigv4.sink, {"key": "secret"})) as url:
        entrance = open_entrance(
            FACES[0],
            bucket_endpoint_url=url,
            bucket_access_key_id="key",
            bucket_secret_access_key=SecretStr("secret"),
            bucket_name="mine",
        )
        said = entrance.send(invert_workflow(name))

    assert said.failed
    assert "its own bucket only" in said.text


def test_job_cannot_use_the_keys_of_the_machine() -> None:
    """A job's bucket without keys must be refused: boto3 would sign with the machine's, for any endpoint."""
    from comfy_worker.parse_bucket import own_bucket

    for keys in (
        {},
        {"accessId": "", "accessSecret": ""},
        {"accessId": " ", "accessSecret": "x"},
        {"accessId": "x", "accessSecret": " "},
    ):
        with pytest.raises(JobInvalid):
            own_bucket({}, {"endpointUrl": "https://1.1.1.1", "bucketName": "b", **keys})


@pytest.mark.parametrize(
    "address", ["fe80::1%lo", "::ffff:0:7f00:1", "64:ff9b:1:7f00::1", "2001:10::1", "100::1", "5f00::1"]
)
def test_further_ranges_are_closed(address: str) -> None:
    """Zones, translated, benchmark, discard and segment-routing ranges must be closed as well."""
    assert not is_public(address)


def test_picture_of_a_public_host_would_be_taken(tmp_path: Path) -> None:
    """What is refused above must be refused for its address, not because nothing can be fetched."""
    with HttpDesk() as desk:
        desk.put("/a.png", png((2, 2), (1, 2, 3)))
        fetched = Fetcher(allow_private=True).fetch(
            f"{desk.url}/a.png", tmp_path / "a", Deadline(10.0), field="f", max_bytes=9999
        )
    assert fetched.size_bytes
