"""
Tests of fetch and its guard: what is fetched, what is refused, and that no server can hold the worker.
"""

import gzip
import hashlib
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests.exceptions
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st

from comfy_worker import fetch
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobCancelled, JobFailed, JobTimedOut, WorkerError
from comfy_worker.fetch import Fetched, Fetcher, Item, shown
from comfy_worker.fetch_guard import Guard, is_public

LOOPBACK = "127.0.0.1"
Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """
    Answers each path with the function registered for it.
    """

    protocol_version = "HTTP/1.1"
    server: "Site"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        self.server.answers[self.path.partition("?")[0]](self)

    def send(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class Site(http.server.ThreadingHTTPServer):
    """
    A server on loopback; `over` is set when the test is over, so that slow answers end.
    """

    daemon_threads = False

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__((LOOPBACK, 0), Handler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()
        self.port = self.server_port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """
        Say nothing when a client hangs up.
        """


def served(site: Site) -> Iterator[Site]:
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, name="site")
    thread.start()
    yield site
    site.over.set()
    site.shutdown()
    thread.join(30)
    site.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    yield from served(Site())


@pytest.fixture
def to(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder / "file"


def fetcher(**options: Any) -> Fetcher:
    values: dict[str, Any] = {
        "allow_private": True,
        "pauses_s": (0.01, 0.01),
        "resolve": lambda *_: [LOOPBACK],
    }
    return Fetcher(**(values | options))


def get(
    url: str, to: Path, deadline: Deadline | None = None, max_bytes: int = 1000, **options: Any
) -> Fetched:
    return fetcher(**options).fetch(
        url, to, deadline or Deadline(60), field="images[0].image", max_bytes=max_bytes
    )


def refusal(url: str, to: Path, **options: Any) -> str:
    with pytest.raises(InputUnavailable) as caught:
        get(url, to, **options)
    assert not list(to.parent.iterdir())
    assert caught.value.details["field"] == "images[0].image" and "'images[0].image'" in str(caught.value)
    return str(caught.value)


def test_runpod_14_9_fetch_makes_a_file_of_a_url(site: Site, to: Path) -> None:
    """The bytes are in the file, and its size, MIME type and hash are known."""
    site.answers["/a.png"] = lambda h: h.send(b"picture", Content_Type="Image/PNG; charset=x")

    result = get(f"http://files.example:{site.port}/a.png", to)

    assert result == Fetched(to, 7, "image/png", hashlib.sha256(b"picture").hexdigest(), "a.png")
    assert to.read_bytes() == b"picture" and list(to.parent.iterdir()) == [to]
    (_, headers) = site.requests[0]
    assert headers["Host"] == f"files.example:{site.port}" and headers["Accept-Encoding"] == "identity"


def test_fetch_of_a_chunked_or_compressed_answer_gives_the_content(site: Site, to: Path) -> None:
    """A body in chunks, and one that was compressed although nobody asked, arrive as what they hold."""

    def chunked(h: Handler) -> None:
        h.send(Content_Length="", Transfer_Encoding="chunked")
        h.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    site.answers["/chunked"] = chunked
    site.answers["/gzip"] = lambda h: h.send(gzip.compress(b"z" * 900), Content_Encoding="gzip")

    assert get(f"http://x:{site.port}/chunked", to).size_bytes == 5 and to.read_bytes() == b"abcde"
    assert get(f"http://x:{site.port}/gzip", to).size_bytes == 900 and to.read_bytes() == b"z" * 900


VECTORS_PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1"]
VECTORS_CLOSED = [
    *(
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.127.255.255",
    ),
    *("0.0.0.0", "192.0.2.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1"),
    *(
        "192.0.0.8",
        "192.88.99.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "ff0e::1",
    ),
    *(
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2001:db8::1",
    ),
    *(
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001::1",
        "2001:0:53aa:64c::1",
        "3fff::1",
        "fec0::1",
        "::7f00:1",
        "x",
        "",
    ),
]


@pytest.mark.parametrize("address", VECTORS_PUBLIC)
def test_runpod_14_10_a_public_address_is_public(address: str) -> None:
    """Globally routable unicast addresses are let through."""
    assert is_public(address)


@pytest.mark.parametrize("address", VECTORS_CLOSED)
def test_runpod_14_10_no_other_address_is_public(address: str) -> None:
    """Private, local, shared, reserved, multicast and translated forms are not, whatever Python's `is_global` says."""
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_runpod_14_10_an_ipv4_address_in_ipv6_clothes_is_never_public(address: Any) -> None:
    """Mapped, 6to4 and NAT64 forms of any IPv4 address are refused."""
    high, low = divmod(int(address), 1 << 16)

    for form in (
        f"::ffff:{address}",
        f"2002:{high:x}:{low:x}::1",
        f"64:ff9b::{high:x}:{low:x}",
        f"::{address}",
    ):
        assert not is_public(form)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_runpod_14_10_loopback_is_refused(site: Site, to: Path, host: str) -> None:
    """The system's own resolver is asked, and what it answers is judged."""
    text = refusal(f"http://{host}:{site.port}/a", to, allow_private=False, resolve=fetch.resolve)

    assert "not a public address" in text and site.requests == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
def test_runpod_14_10_odd_spellings_of_loopback_are_refused(site: Site, to: Path, host: str) -> None:
    """Decimal, octal, hexadecimal and short spellings are judged by what the system makes of them, if anything."""
    site.answers["/a"] = lambda h: h.send(b"1")

    text = refusal(
        f"http://{host}:{site.port}/a", to, allow_private=False, resolve=fetch.resolve, pauses_s=()
    )

    assert "not a public address" in text or "could not be reached" in text
    assert site.requests == []


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["169.254.169.254"]]
)
def test_runpod_14_10_one_private_address_refuses_the_host(to: Path, addresses: list[str]) -> None:
    """All addresses of a name are judged, and one that is not public refuses it without naming the address."""
    text = refusal("http://rebind.example/a", to, allow_private=False, resolve=lambda *_: addresses)

    assert "rebind.example is not a public address" in text
    assert not any(address in text for address in addresses)


def test_runpod_14_10_the_connection_goes_to_the_address_that_was_judged(site: Site, to: Path) -> None:
    """A name that changes between two look-ups cannot lead elsewhere: it is looked up once per connection."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return [LOOPBACK if len(asked) == 1 else "127.0.0.2"]

    site.answers["/a"] = lambda h: h.send(b"1")

    get(f"http://rebind.example:{site.port}/a", to, resolve=rebinding)

    assert asked == ["rebind.example"]


def test_runpod_14_10_an_operator_can_allow_a_host(site: Site, to: Path) -> None:
    """A host on the list may be private, by name or by name and port; another one may not."""
    site.answers["/a"] = lambda h: h.send(b"1")
    url = f"http://nas.local:{site.port}/a"

    for allowed in (["NAS.local"], [f"nas.local:{site.port}"]):
        assert get(url, to, allow_private=False, allowed_hosts=allowed).size_bytes == 1
        to.unlink()
    assert "ALLOW_PRIVATE_URLS" in refusal(url, to, allow_private=False, allowed_hosts=["nas.local:1"])


def test_runpod_14_10_each_redirect_is_judged_again(site: Site, to: Path) -> None:
    """A public server cannot send the worker to a private one."""
    site.answers["/a"] = lambda h: h.send(status=302, Location=f"http://inner.example:{site.port}/secret")
    site.answers["/secret"] = lambda h: h.send(b"secret")

    text = refusal(
        f"http://outer.example:{site.port}/a", to, allow_private=False, allowed_hosts=["outer.example"]
    )

    assert "inner.example is not a public address" in text
    assert [path for path, _ in site.requests] == ["/a"]


def test_fetch_follows_redirects_up_to_five(site: Site, to: Path) -> None:
    """Five redirects, relative ones too, lead to the file; the sixth is refused."""
    for number in range(1, 7):
        site.answers[f"/{number}"] = lambda h, n=number: h.send(status=307, Location=f"/{n - 1}")  # type: ignore[misc]
    site.answers["/0"] = lambda h: h.send(b"there")

    assert get(f"http://x:{site.port}/5", to).size_bytes == 5
    to.unlink()
    assert "more than 5 times" in refusal(f"http://x:{site.port}/6", to)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://x/a", "gopher://x", "http://u:p@x/a", "http://", "//"]
)
def test_fetch_does_not_follow_a_redirect_to_anything_else(site: Site, to: Path, location: str) -> None:
    """A redirect to another scheme, to credentials or to nowhere is an error."""
    site.answers["/a"] = lambda h: h.send(status=301, Location=location)

    assert "could not be fetched" in refusal(f"http://x:{site.port}/a", to)


def test_fetch_does_not_read_the_body_of_a_redirect(site: Site, to: Path) -> None:
    """An endless body behind a redirect costs nothing."""

    def endless(h: Handler) -> None:
        h.send(status=302, Location="/b", Content_Length="1000000000000")

    site.answers["/a"] = endless
    site.answers["/b"] = lambda h: h.send(b"1")

    assert get(f"http://x:{site.port}/a", to).size_bytes == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://x/a", "only http, https and s3"),
        ("file:///etc/passwd", "only http, https and s3"),
        ("http://", "could not be fetched"),
        ("//x/a", "could not be fetched"),
        ("http://[::1", "could not be fetched"),
        ("http://x:99999/a", "could not be fetched"),
        ("http://user:pass@x/a", "user or password"),
        ("http://user@x/a", "user or password"),
        ("s3://bucket/key", "s3Config"),
    ],
)
def test_runpod_14_9_fetch_names_what_it_does_not_take(to: Path, url: str, reason: str) -> None:
    """Other schemes, broken addresses and credentials in a URL are refused before anything is asked."""
    text = refusal(url, to, resolve=lambda *_: pytest.fail("looked up"))

    assert reason in text and "pass" not in text.replace("password", "").replace("/etc/passwd", "")


def test_runpod_14_48_an_error_shows_neither_query_nor_credentials(site: Site, to: Path) -> None:
    """A signed URL is shown as host and path, whatever fails."""
    site.answers["/a.png"] = lambda h: h.send(status=403)

    text = refusal(f"http://x:{site.port}/a.png?X-Amz-Signature=SECRET&token=SECRET#SECRET", to)

    assert f"http://x:{site.port}/a.png: the server answered 403" in text and "SECRET" not in text


@given(st.text(max_size=30))
def test_shown_never_shows_a_secret(noise: str) -> None:
    """User, password, query and fragment are left out, whatever the text is."""
    assert "SECRET" not in shown(f"https://SECRET:SECRET@host{noise.replace('/', '')}/p?SECRET#SECRET")
    assert isinstance(shown(noise), str)


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_fetch_asks_once_when_the_server_refuses(site: Site, to: Path, status: int) -> None:
    """A 4xx is final."""
    site.answers["/a"] = lambda h: h.send(status=status)

    assert f"answered {status}" in refusal(f"http://x:{site.port}/a", to)
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_fetch_tries_a_passing_failure_three_times(site: Site, to: Path, status: int) -> None:
    """A 5xx is asked twice more, then it is an error; and a success in between is a success."""
    site.answers["/a"] = lambda h: h.send(status=status)
    site.answers["/b"] = lambda h: h.send(b"1", status=status if len(site.requests) < 6 else 200)

    assert f"answered {status}" in refusal(f"http://x:{site.port}/a", to)
    assert len(site.requests) == 3
    assert get(f"http://x:{site.port}/b", to).size_bytes == 1 and len(site.requests) == 6


def truncated(h: Handler) -> None:
    h.send(b"half", Content_Length="8")


def broken_chunks(h: Handler) -> None:
    h.send(Content_Length="", Transfer_Encoding="chunked")
    h.wfile.write(b"8\r\nhalf")


def no_http(h: Handler) -> None:
    h.wfile.write(b"\0\1\2 nonsense\r\n\r\n")


def hang_up(h: Handler) -> None:
    h.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [truncated, broken_chunks, no_http, hang_up])
def test_fetch_tries_a_broken_answer_again_and_keeps_no_part_of_it(
    site: Site, to: Path, answer: Answer
) -> None:
    """Half a body is not a file: it is asked for again, and nothing is left when it stays broken."""
    site.answers["/a"] = answer
    site.answers["/b"] = lambda h: h.send(b"whole") if len(site.requests) > 4 else answer(h)

    assert "could not be fetched" in refusal(f"http://x:{site.port}/a", to)
    assert len(site.requests) == 3
    assert get(f"http://x:{site.port}/b", to).size_bytes == 5 and to.read_bytes() == b"whole"


def test_fetch_tries_again_when_nobody_answers(to: Path) -> None:
    """A closed port and a name without an address are unreachable, after three attempts."""
    asked: list[int] = []

    def nowhere(host: str, port: int) -> list[str]:
        asked.append(port)
        raise OSError("no such name")

    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        assert "could not be reached" in refusal(f"http://x:{unused.getsockname()[1]}/a", to)
    assert "could not be reached" in refusal("http://nowhere.example/a", to, resolve=nowhere)
    assert asked == [80] * 3


def test_fetch_tries_the_next_address_of_a_host(site: Site, to: Path) -> None:
    """When the first address does not answer, the second one is asked."""
    site.answers["/a"] = lambda h: h.send(b"1")

    assert (
        get(f"http://x:{site.port}/a", to, resolve=lambda *_: ["127.0.0.2", "::1", LOOPBACK]).size_bytes == 1
    )


def test_fetch_refuses_what_is_announced_too_large(site: Site, to: Path) -> None:
    """A Content-Length over the limit is refused before the body is read."""
    site.answers["/a"] = lambda h: h.send(Content_Length="1001")

    assert "more than 1,000 bytes" in refusal(f"http://x:{site.port}/a", to)
    assert len(site.requests) == 1


def test_fetch_counts_what_really_comes(site: Site, to: Path) -> None:
    """A body without a length, and one that unpacks to more than it says, stop at the limit."""

    def endless(h: Handler) -> None:
        h.send(Content_Length="", Connection="close")
        while not h.server.over.is_set():
            h.wfile.write(bytes(500))

    site.answers["/endless"] = endless
    site.answers["/bomb"] = lambda h: h.send(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")

    assert "more than 1,000 bytes" in refusal(f"http://x:{site.port}/endless", to)
    assert "more than 2,000 bytes" in refusal(f"http://x:{site.port}/bomb", to, max_bytes=2000)


def test_fetch_takes_a_file_of_exactly_the_limit(site: Site, to: Path) -> None:
    """The limit itself is allowed, nothing is not a file."""
    site.answers["/a"] = lambda h: h.send(bytes(1000))
    site.answers["/empty"] = lambda h: h.send(b"")

    assert get(f"http://x:{site.port}/a", to).size_bytes == 1000
    to.unlink()
    assert "empty" in refusal(f"http://x:{site.port}/empty", to)


def drip(h: Handler) -> None:
    h.send(Content_Length="100000")
    while not h.server.over.wait(0.02):
        h.wfile.write(b".")


def silent(h: Handler) -> None:
    h.server.over.wait(60)


def half_then_silent(h: Handler) -> None:
    h.send(b"half", Content_Length="8")
    h.server.over.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [drip, silent, half_then_silent])
def test_fetch_ends_with_the_deadline_whatever_the_server_does(site: Site, to: Path, answer: Answer) -> None:
    """A server that drips, never answers, or stops half way cannot hold the job beyond its time."""
    site.answers["/a"] = answer
    started = time.monotonic()

    with pytest.raises(JobTimedOut):
        get(f"http://x:{site.port}/a", to, Deadline(0.3), max_bytes=1 << 20)

    assert time.monotonic() - started < 20 and not list(to.parent.iterdir())


@pytest.mark.parametrize("answer", [drip, silent, half_then_silent])
def test_runpod_14_3_a_cancel_ends_a_download_at_once(site: Site, to: Path, answer: Answer) -> None:
    """A cancel closes the connection under the download, and no thread is left."""
    deadline, reached = Deadline(60), threading.Event()

    def answered(h: Handler) -> None:
        reached.set()
        answer(h)

    site.answers["/a"] = answered
    canceller = threading.Thread(target=lambda: (reached.wait(30), deadline.cancel()))
    canceller.start()
    with pytest.raises(JobCancelled):
        get(f"http://x:{site.port}/a", to, deadline, max_bytes=1 << 20)
    canceller.join(30)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith(fetch.STAGE)]
    assert not list(to.parent.iterdir())


def test_fetch_gives_up_on_a_silent_server(site: Site, to: Path) -> None:
    """The read timeout ends an attempt, and the reason says so."""
    site.answers["/a"] = silent

    assert "did not answer in time" in refusal(f"http://x:{site.port}/a", to, read_timeout_s=0.1)


def test_fetch_uses_neither_proxy_nor_netrc(
    site: Site, to: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the environment changes where a request goes or what it carries."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine files.example login me password SECRET")
    for name, value in {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    monkeypatch.setenv("NETRC", str(netrc))
    site.answers["/a"] = lambda h: h.send(b"1", Set_Cookie="c=1")

    get(f"http://files.example:{site.port}/a", to)

    assert "Authorization" not in site.requests[0][1]


def test_fetch_fails_the_job_when_the_disk_does_not_take_the_file(site: Site, tmp_path: Path) -> None:
    """A disk that is full or gone is the worker's trouble, not the caller's."""
    site.answers["/a"] = lambda h: h.send(b"1")

    with pytest.raises(JobFailed) as caught:
        get(f"http://x:{site.port}/a", tmp_path / "no" / "folder")

    assert not isinstance(caught.value, InputUnavailable) and str(tmp_path) not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A certificate for files.example with its key, valid for an hour.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("files.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from served(Site(context))


def test_runpod_14_10_tls_is_checked_against_the_name_and_not_the_address(
    secure: Site, to: Path, certificate: Path
) -> None:
    """Over the judged address, the certificate must be that of the host name."""
    secure.answers["/a"] = lambda h: h.send(b"1")

    assert get(f"https://files.example:{secure.port}/a", to, ca_bundle=certificate).size_bytes == 1
    to.unlink()
    for url, options in (
        (f"https://other.example:{secure.port}/a", {"ca_bundle": certificate}),
        (f"https://files.example:{secure.port}/a", {}),
    ):
        assert "certificate was not accepted" in refusal(url, to, **options)
    assert len(secure.requests) == 1


def test_fetch_refuses_a_redirect_from_https_to_http(
    secure: Site, site: Site, to: Path, certificate: Path
) -> None:
    """What was asked for over TLS does not come without it."""
    secure.answers["/a"] = lambda h: h.send(status=302, Location=f"http://files.example:{site.port}/a")

    text = refusal(f"https://files.example:{secure.port}/a", to, ca_bundle=certificate)

    assert "less safe" in text and site.requests == []


def test_runpod_14_3_a_cancel_ends_a_download_over_tls(secure: Site, to: Path, certificate: Path) -> None:
    """The connection is closed under TLS as well."""
    deadline = Deadline(60)

    def answer(h: Handler) -> None:
        deadline.cancel()
        h.server.over.wait(30)

    secure.answers["/a"] = answer

    with pytest.raises(JobCancelled):
        get(f"https://files.example:{secure.port}/a", to, deadline, ca_bundle=certificate)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith(fetch.STAGE)]


def items(site: Site, folder: Path, *paths: str) -> list[Item]:
    return [
        Item(f"http://x:{site.port}{path}", folder / f"{number}", f"images[{number}]")
        for number, path in enumerate(paths)
    ]


def test_fetch_all_runs_at_once_and_asks_for_each_url_once(site: Site, tmp_path: Path) -> None:
    """Different URLs overlap; an equal one is downloaded once and is two files."""
    together = threading.Barrier(2)

    def answer(h: Handler) -> None:
        together.wait(30)
        h.send(h.path.encode())

    site.answers = {"/a": answer, "/b": answer}

    failures = fetcher().fetch_all(items(site, tmp_path, "/a", "/b", "/a"), Deadline(60), max_bytes=100)

    assert failures == {}
    assert [(tmp_path / str(number)).read_bytes() for number in range(3)] == [b"/a", b"/b", b"/a"]
    assert sorted(path for path, _ in site.requests) == ["/a", "/b"]


def test_fetch_all_collects_every_failure_under_its_field(site: Site, tmp_path: Path) -> None:
    """Each failed field has its own text, equal URLs too, and what worked is there."""
    site.answers = {"/ok": lambda h: h.send(b"1"), "/no": lambda h: h.send(status=404)}

    failures = fetcher().fetch_all(items(site, tmp_path, "/no", "/ok", "/no"), Deadline(60), max_bytes=100)

    assert list(failures) == ["images[0]", "images[2]"]
    assert all(f"'{field}'" in text and "404" in text for field, text in failures.items())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_fetch_all_of_nothing_is_nothing() -> None:
    """No item, no failure."""
    assert fetcher().fetch_all([], Deadline(60), max_bytes=1) == {}


def test_fetch_reads_s3_with_the_reader_it_is_given(to: Path) -> None:
    """An s3 URL goes to the job's reader, else to the worker's, with the limit and a check."""

    def reader(content: bytes) -> fetch.ReadS3:
        def read(url: str, path: Path, max_bytes: int, check: Callable[[], None]) -> str | None:
            check()
            assert (url, max_bytes) == ("s3://bucket/key", 50)
            path.write_bytes(content)
            return "image/png"

        return read

    ours = fetcher(s3=reader(b"ours"))

    for own, content in ((None, b"ours"), (reader(b"job's"), b"job's")):
        result = ours.fetch("s3://bucket/key", to, Deadline(60), field="f", max_bytes=50, s3=own)
        assert result == Fetched(to, len(content), "image/png", hashlib.sha256(content).hexdigest())


def test_fetch_says_why_s3_did_not_give_the_file(to: Path) -> None:
    """The reader's reason is in the text, with the field and the address, and nothing is left."""

    def read(url: str, path: Path, max_bytes: int, check: Callable[[], None]) -> str | None:
        path.write_bytes(b"half")
        raise InputUnavailable("HTTP 403 AccessDenied")

    text = refusal("s3://bucket/key", to, s3=read)

    assert "s3://bucket/key: HTTP 403 AccessDenied" in text


def test_guard_needs_an_address() -> None:
    """A host without any address is unreachable, not allowed."""
    with pytest.raises(OSError):
        Guard(allow_private=True, resolve=lambda *_: []).addresses("x", 80)


def exceptions_of(module: Any) -> list[type[Exception]]:
    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Exception)]
    return [one for one in found if one.__module__ == module.__name__ and not issubclass(one, Warning)]


@pytest.mark.parametrize(
    "kind",
    exceptions_of(requests.exceptions) + exceptions_of(urllib3.exceptions),
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_every_exception_of_requests_and_urllib3_has_a_row(kind: type[Exception]) -> None:
    """Whatever class they raise, it becomes one of ours with a reason of ours."""
    error = kind.__new__(kind)
    error.args = ("SECRET",)

    with pytest.raises((InputUnavailable, fetch.Again)) as caught, fetch.translated():
        raise error

    assert str(caught.value) and "SECRET" not in str(caught.value)
    assert not isinstance(caught.value, WorkerError) or caught.value.code == "input_unavailable"
