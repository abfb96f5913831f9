"""
Tests of the S3 store against moto behind a layer that checks signatures as S3 does.
"""

import gc
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import boto3.exceptions
import botocore.exceptions
import pytest
from pydantic import SecretStr
from storage.sigv4 import SigV4, served, sink

from comfy_worker.deadline import Deadline
from comfy_worker.deliver import deliver
from comfy_worker.errors import DeliveryFailed, InputUnavailable, JobCancelled
from comfy_worker.job import Artifact, Bucket, Delivery
from comfy_worker.storage.endpoint import check, hints, region_of, without_bucket
from comfy_worker.storage.reasons import reason
from comfy_worker.storage.s3 import PART_BYTES, Patience, Stores

KEY, SECRET = "AKIATESTKEY", "sEcReT/of+the=tests"
QUICK = Patience(connect_timeout_s=5, read_timeout_s=20, retries=2)


@pytest.fixture(scope="module")
def layer() -> Iterator[tuple[SigV4, str]]:
    from moto.server import DomainDispatcherApplication, create_backend_app

    checked = SigV4(DomainDispatcherApplication(create_backend_app), {KEY: SECRET})
    with served(checked) as url:
        yield checked, url


@pytest.fixture
def s3(layer: tuple[SigV4, str]) -> SigV4:
    checked, _ = layer
    checked.faults, checked.later = 0, timedelta(0)
    checked.seen.clear()
    return checked


@pytest.fixture
def bucket(layer: tuple[SigV4, str], s3: SigV4, stores: Stores, request: pytest.FixtureRequest) -> Bucket:
    """
    A bucket that exists, with a name of its own per test.
    """
    name = "b-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[-50:].strip("-")
    made = Bucket(layer[1], KEY, SecretStr(SECRET), bucket=name)
    stores._client(made).create_bucket(Bucket=name)
    s3.seen.clear()
    return made


@pytest.fixture
def make() -> Iterator[Callable[..., Stores]]:
    """
    Makes stores, and closes their connections when the test is over.
    """
    made: list[Stores] = []

    def stores(**patience: Any) -> Stores:
        made.append(Stores(replace(QUICK, **patience), today=lambda: date(2026, 11, 3)))
        return made[-1]

    yield stores
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    one = Stores(QUICK, today=lambda: date(2026, 11, 3))
    yield one
    one.close()


def get(url: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), answer.headers["Content-Type"]


def status_of(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    return 200


@pytest.mark.parametrize("content", ["bytes", "file"])
def test_s3_put_gives_a_link_to_the_same_bytes(
    bucket: Bucket, tmp_path: Path, content: str, stores: Stores
) -> None:
    """The link downloads what was stored, with the MIME type that was given."""
    path = tmp_path / "x"
    path.write_bytes(b"picture")

    url = stores(bucket).put("job/a.mp4", path if content == "file" else b"picture", "video/mp4")

    assert get(url) == (b"picture", "video/mp4")
    assert "X-Amz-Expires=604800" in url and "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url


@pytest.mark.parametrize(
    "key",
    [
        "job/é ü 日本.png",
        "job/a+b&c=d?e#f%41.png",
        "job/'quoted' (1)~!*.png",
        "sync-1:2/😀.png",
        "a/b/c d/x.png",
    ],
)
def test_s3_takes_any_key(bucket: Bucket, key: str, stores: Stores) -> None:
    """Unicode, blanks and reserved characters in a key survive signing, upload and download."""
    url = stores(bucket).put(key, b"x", "image/png")

    assert get(url)[0] == b"x"
    assert stores._client(bucket).head_object(Bucket=bucket.bucket, Key=key)["ContentLength"] == 1


def test_runpod_14_44_legacy_layout_puts_the_month_first(s3: SigV4, bucket: Bucket, stores: Stores) -> None:
    """Without a bucket name the request is PUT <endpoint>/<MM-YY>/<job_id>/<8 hex><ext>, with the right MIME type."""
    legacy = replace(bucket, bucket=None, addressing_style="virtual")
    stores._client(bucket).create_bucket(Bucket="11-26")
    made = Artifact("9", "images", "video", "v_00001_.mp4", "", "output", "video/mp4", b"film", 4)
    s3.seen.clear()

    delivered = deliver(
        "7f3c-e1",
        [made],
        Delivery(bucket=legacy),
        Deadline(60),
        store=stores,
        threads=2,
    )

    (put,) = s3.seen
    assert put.method == "PUT" and put.headers["content-type"] == "video/mp4"
    month, job, name = put.path.lstrip("/").split("/")
    assert (month, job) == ("11-26", "7f3c-e1")
    assert name.endswith(".mp4") and len(name) == 12 and int(name[:8], 16) >= 0
    url = delivered.outputs[0].data
    assert url.startswith(f"{bucket.endpoint_url}{put.path}?") and get(url)[0] == b"film"


def test_runpod_14_45_requests_carry_no_checksum_that_was_not_asked_for(
    s3: SigV4, bucket: Bucket, tmp_path: Path, stores: Stores
) -> None:
    """A store without checksum support takes single and multipart uploads and hands them out."""
    path = tmp_path / "big"
    path.write_bytes(b"ab" * (PART_BYTES // 2 + 100))
    store = stores(bucket)

    urls = [store.put("small", b"1", "image/png"), store.put("large", path, "video/mp4")]
    store.read(f"s3://{bucket.bucket}/small", tmp_path / "back", 10)

    assert [len(get(url)[0]) for url in urls] == [1, PART_BYTES + 200]
    names = {name for seen in s3.seen for name in seen.headers}
    assert not {name for name in names if "checksum" in name or "trailer" in name}
    assert {seen.code for seen in s3.seen} == {""}


def test_runpod_14_46_each_job_bucket_is_used_with_its_own_credentials(
    s3: SigV4, bucket: Bucket, stores: Stores
) -> None:
    """Stores for two credentials do not share a client, two stores for one do."""
    mine, same = stores._client(bucket), stores._client(replace(bucket, prefix="p", expiry_s=5))
    other = stores._client(replace(bucket, secret_key=SecretStr("other")))

    assert mine is same and mine is not other


def test_s3_clients_of_jobs_do_not_pile_up(bucket: Bucket, stores: Stores) -> None:
    """The clients kept for buckets that jobs brought are bounded."""
    for number in range(18):
        stores._client(replace(bucket, access_key=f"k{number}"))

    assert len(stores._clients) <= 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"secret_key": SecretStr("wrong-SECRET")},
            "HTTP 403 SignatureDoesNotMatch: the secret key is wrong",
        ),
        ({"access_key": "AKIAOTHER"}, "HTTP 403 InvalidAccessKeyId"),
        ({"bucket": "not-there"}, "HTTP 404 NoSuchBucket: there is no bucket of this name"),
        ({"bucket": "no/bucket"}, "the bucket name or the key is not valid"),
        ({"endpoint_url": "http://127.0.0.1:1"}, "it could not be reached"),
        ({"endpoint_url": "no url"}, "the endpoint is not valid"),
    ],
)
def test_runpod_14_48_an_error_names_status_and_code_and_no_secret(
    bucket: Bucket, change: dict[str, Any], expected: str, make: Callable[..., Stores]
) -> None:
    """What went wrong is said with HTTP status and S3 code; no key, secret, signature or query is in the text."""
    broken = replace(bucket, **change)

    with pytest.raises(DeliveryFailed) as caught:
        make(retries=0)(broken).put("job/a.png", b"x", "image/png")

    text = f"{caught.value} {caught.value.details}"
    assert expected in text
    for secret in (SECRET, "wrong-SECRET", KEY, "AKIAOTHER", "SECRET-ECHO", "Signature=", "X-Amz-"):
        assert secret not in text
    assert SECRET not in repr(broken)


@pytest.mark.slow
def test_runpod_14_47_a_transient_failure_is_tried_again(s3: SigV4, bucket: Bucket, stores: Stores) -> None:
    """Two times 503 and then success is a success, from the first byte on."""
    s3.faults = 2

    url = stores(bucket).put("a", b"x", "image/png")

    assert get(url)[0] == b"x"
    assert [seen.code for seen in s3.seen][:3] == ["SlowDown", "SlowDown", ""]


def test_runpod_14_47_a_failure_that_stays_fails_the_job(
    s3: SigV4, bucket: Bucket, make: Callable[..., Stores]
) -> None:
    """A store that is always busy fails the delivery after the retries, naming file, status and code."""
    s3.faults = 1000
    made = Artifact("9", "images", "image", "a.png", "s", "output", "image/png", b"x", 1)

    with pytest.raises(DeliveryFailed) as caught:
        deliver(
            "j",
            [made],
            Delivery(bucket=bucket),
            Deadline(60),
            store=make(retries=1),
            threads=2,
        )

    assert "s/a.png: HTTP 503 SlowDown" in str(caught.value)
    assert len(s3.seen) == 2 and caught.value.retryable


def test_runpod_14_47_a_refusal_is_not_tried_again(s3: SigV4, bucket: Bucket, stores: Stores) -> None:
    """A wrong secret is asked about once."""
    with pytest.raises(DeliveryFailed):
        stores(replace(bucket, secret_key=SecretStr("wrong"))).put("a", b"x", "image/png")

    assert len(s3.seen) == 1


@pytest.mark.parametrize(("size", "requests"), [(PART_BYTES - 1, ["PUT"]), (PART_BYTES, None)])
def test_runpod_14_49_a_file_below_8_mib_is_one_request(
    s3: SigV4, bucket: Bucket, tmp_path: Path, size: int, requests: list[str] | None, stores: Stores
) -> None:
    """Below 8 MiB there is one PUT; from there on the file goes in parts and comes back whole."""
    path = tmp_path / "f"
    path.write_bytes(b"\7" * size)

    url = stores(bucket).put("f", path, "video/mp4")

    methods = [seen.method for seen in s3.seen]
    assert methods == requests if requests else (methods[0], methods[-1]) == ("POST", "POST")
    data, mime = get(url)
    assert (len(data), data.count(7), mime) == (size, size, "video/mp4")


PROGRAM = """
import re, sys
from pathlib import Path
from pydantic import SecretStr
from comfy_worker.job import Bucket
from comfy_worker.storage.s3 import Stores

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

store = Stores()(Bucket(sys.argv[1], sys.argv[2], SecretStr(sys.argv[3]), bucket="b"))
small, large = Path(sys.argv[4]), Path(sys.argv[5])
store.put("small", small, "video/mp4")
before = peak()
store.put("large", large, "video/mp4")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_runpod_14_24_a_large_file_is_streamed_from_disk(tmp_path: Path) -> None:
    """200 MB go to storage in parts, with memory that does not grow with the file."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(9 << 20))
    with large.open("wb") as file:
        file.truncate(200_000_000)
    checked = SigV4(sink, {KEY: SECRET})

    with served(checked) as url:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, url, KEY, SECRET, str(small), str(large)],
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert done.returncode == 0, done.stderr
    assert sum(seen.method == "PUT" and "partNumber" in seen.query for seen in checked.seen) >= 24
    assert {seen.code for seen in checked.seen} == {""}
    assert int(done.stdout) <= 24 << 20


def test_runpod_14_50_the_life_of_a_link_is_a_setting(s3: SigV4, bucket: Bucket, stores: Stores) -> None:
    """A link lives as long as it was told and is refused by the server afterwards."""
    url = stores(replace(bucket, expiry_s=60)).put("a", b"x", "image/png")

    assert "X-Amz-Expires=60" in url and status_of(url) == 200
    s3.later = timedelta(seconds=61)
    assert status_of(url) == 403


def test_s3_public_url_replaces_signing(bucket: Bucket, stores: Stores) -> None:
    """With a public base the URL is base and key, quoted, and carries no signature."""
    public = replace(bucket, public_url="https://cdn.example/x/")
    assert stores(public).put("j/é b.png", b"x", "image/png") == "https://cdn.example/x/j/%C3%A9%20b.png"


@pytest.fixture
def collected() -> Iterator[None]:
    """
    Collect what a test left to the collector before the next test is blamed for it.

    s3transfer leaves the files of parts that it never sent; they live until the test's own frames are gone.
    """
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_s3_upload_ends_at_a_cancel(
    bucket: Bucket, tmp_path: Path, make: Callable[..., Stores], collected: None
) -> None:
    """An upload under way ends with what the check raises, in one piece and in parts."""
    path = tmp_path / "f"
    store = make(retries=0)(bucket)
    for size in (100_000, PART_BYTES * 2):
        path.write_bytes(bytes(size))
        deadline, asked = Deadline(60), []

        def check(deadline: Deadline = deadline, asked: list[int] = asked) -> None:
            asked.append(1)
            if len(asked) == 3:
                deadline.cancel()
            deadline.check("delivering")

        with pytest.raises(JobCancelled):
            store.put("f", path, "video/mp4", check)


def test_s3_put_fails_when_the_file_is_gone(bucket: Bucket, tmp_path: Path, stores: Stores) -> None:
    """A vanished file is a failed delivery whose text holds no path."""
    with pytest.raises(DeliveryFailed) as caught:
        stores(bucket).put("a", tmp_path / "gone", "image/png")

    assert str(caught.value) == "the file can no longer be read"


def test_s3_read_fetches_an_object(bucket: Bucket, tmp_path: Path, stores: Stores) -> None:
    """An s3 address becomes a file, with its MIME type."""
    store = stores(bucket)
    store.put("in/é a.png", b"input", "image/png")

    mime = store.read(f"s3://{bucket.bucket}/in/é a.png", tmp_path / "x", 5)

    assert ((tmp_path / "x").read_bytes(), mime) == (b"input", "image/png")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://{}/nope", "HTTP 404 NoSuchKey: there is no such object"),
        ("s3://{}/big", "more than 4 bytes"),
        ("s3://{}", "s3://bucket/key"),
        ("s3:///key", "s3://bucket/key"),
    ],
)
def test_s3_read_says_why_not(
    bucket: Bucket, tmp_path: Path, url: str, expected: str, stores: Stores
) -> None:
    """What is absent, too large or no address is an input that is unavailable, with the reason."""
    store = stores(bucket)
    store.put("big", b"12345", "image/png")

    with pytest.raises(InputUnavailable) as caught:
        store.read(url.format(bucket.bucket), tmp_path / "x", 4)

    assert expected in str(caught.value)


def test_runpod_14_48_read_with_wrong_credentials_names_no_secret(
    bucket: Bucket, tmp_path: Path, stores: Stores
) -> None:
    """A refused read says status and code and nothing of the credentials."""
    with pytest.raises(InputUnavailable) as caught:
        stores(replace(bucket, secret_key=SecretStr("wrong"))).read(
            f"s3://{bucket.bucket}/a", tmp_path / "x", 4
        )

    assert "HTTP 403" in str(caught.value) and KEY not in str(caught.value)


def test_s3_stores_may_be_used_by_many_threads(bucket: Bucket, stores: Stores) -> None:
    """Clients are made once although many threads ask for one at the same moment."""
    start, made = threading.Barrier(8), []

    def ask() -> None:
        start.wait(20)
        made.append(stores._client(bucket))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(made) == 8 and len({id(one) for one in made}) == 1


def test_importing_the_store_does_not_import_boto3() -> None:
    """The module can be imported where no bucket is used, at no cost."""
    program = "import sys, comfy_worker.storage.s3; sys.exit(any(m.startswith('boto') for m in sys.modules))"

    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def exceptions_of(module: Any) -> list[type[Exception]]:
    return [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Exception)]


@pytest.mark.parametrize(
    "kind",
    exceptions_of(botocore.exceptions) + exceptions_of(boto3.exceptions),
    ids=lambda kind: kind.__name__,
)
def test_every_exception_of_the_client_has_a_reason(kind: type[Exception]) -> None:
    """Whatever class the client raises, there is a reason for it that is not the exception's own text."""
    error = kind.__new__(kind)
    error.args = (SECRET,)

    assert reason(error) and SECRET not in reason(error)


def test_reason_ignores_a_code_that_is_no_code() -> None:
    """A server that puts text where the code belongs does not get it into our error."""
    error = botocore.exceptions.ClientError(
        {"Error": {"Code": f"<b>{SECRET}"}, "ResponseMetadata": {"HTTPStatusCode": 418}}, "PutObject"
    )

    assert reason(error) == "HTTP 418 unknown"


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://b.s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://s3.us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.dualstack.us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3-us-west-1.amazonaws.com", "us-west-1"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://b.s3.amazonaws.com", "us-east-1"),
        ("https://nyc3.digitaloceanspaces.com", "nyc3"),
        ("https://b.nyc3.digitaloceanspaces.com", "nyc3"),
        ("https://s3.us-west-002.backblazeb2.com", "us-west-002"),
        ("https://s3.eu-central-2.wasabisys.com", "eu-central-2"),
        ("https://0123.r2.cloudflarestorage.com", "auto"),
        ("https://storage.googleapis.com", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
        (None, "us-east-1"),
        ("http://[", "us-east-1"),
    ],
)
def test_runpod_14_44_the_region_is_read_from_the_endpoint(endpoint: str | None, region: str) -> None:
    """Each provider's form of address gives the region it signs for."""
    assert region_of(endpoint) == region


def test_s3_signs_for_the_region_that_was_set(bucket: Bucket, stores: Stores) -> None:
    """An explicit region wins over the endpoint's."""
    url = stores(replace(bucket, region="eu-north-1")).put("a", b"x", "image/png")

    assert "eu-north-1" in url and get(url)[0] == b"x"


def test_s3_takes_an_endpoint_with_the_bucket_in_its_host() -> None:
    """The bucket in front of the host is taken off, so that it does not stand in the address twice."""
    assert without_bucket("https://b.s3.eu-west-1.amazonaws.com", "b") == "https://s3.eu-west-1.amazonaws.com"
    assert (
        without_bucket("https://s3.eu-west-1.amazonaws.com/x", "b") == "https://s3.eu-west-1.amazonaws.com/x"
    )
    assert without_bucket("http://minio.local", "minio") == "http://minio.local"


GOOD = Bucket("https://s3.example.com", "key", SecretStr("secret"), bucket="b")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"endpoint_url": "s3.example.com"}, "http(s) URL"),
        ({"endpoint_url": "ftp://s3.example.com"}, "http(s) URL"),
        ({"endpoint_url": "https://"}, "http(s) URL"),
        ({"endpoint_url": "https://u:p@s3.example.com"}, "without user"),
        ({"endpoint_url": "https://h:99999"}, "http(s) URL"),
        ({"endpoint_url": None, "bucket": None}, "endpoint URL is missing"),
        ({"public_url": "cdn"}, "public URL"),
        ({"access_key": ""}, "access key is missing"),
        ({"secret_key": SecretStr(" ")}, "secret key is missing"),
        ({"bucket": "a/b"}, "bucket name"),
        ({"expiry_s": 0}, "604800"),
        ({"expiry_s": 604_801}, "604800"),
        ({"addressing_style": "both"}, "addressing style"),
    ],
)
def test_runpod_14_31_check_names_what_is_missing_or_wrong(change: dict[str, Any], word: str) -> None:
    """A half configured bucket is found before any job, one sentence per fault."""
    (problem,) = check(replace(GOOD, **change))

    assert word in problem


def test_check_finds_nothing_wrong_with_good_buckets() -> None:
    """Named, legacy and AWS buckets pass."""
    buckets = [
        GOOD,
        replace(GOOD, bucket=None),
        replace(GOOD, endpoint_url=None),
        replace(GOOD, expiry_s=604_800),
    ]

    assert [check(bucket) for bucket in buckets] == [[]] * 4


@pytest.mark.parametrize(
    ("endpoint", "is_bare"),
    [
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("https://b.s3.eu-west-1.amazonaws.com", False),
        ("https://acc.r2.cloudflarestorage.com", True),
        ("https://b.acc.r2.cloudflarestorage.com", False),
        ("https://acc.eu.r2.cloudflarestorage.com", True),
        ("https://nyc3.digitaloceanspaces.com", True),
        ("https://b.nyc3.digitaloceanspaces.com", False),
        ("https://storage.googleapis.com", True),
        ("http://10.0.0.5:9000", True),
        ("http://minio:9000", True),
    ],
)
def test_hints_warn_of_a_month_taken_for_a_bucket(endpoint: str, is_bare: bool) -> None:
    """The legacy layout on an endpoint without a bucket gets one warning that names BUCKET_NAME."""
    found = hints(replace(GOOD, bucket=None, endpoint_url=endpoint))

    assert [("BUCKET_NAME" in hint) for hint in found] == [True] * is_bare
    assert hints(replace(GOOD, endpoint_url=endpoint)) == []


FIRST_USES = """
import sys, threading
from pydantic import SecretStr
from comfy_worker.errors import DeliveryFailed
from comfy_worker.job import Bucket
from comfy_worker.storage.s3 import Stores

stores, ends = Stores(), []

def upload():
    store = stores(Bucket(sys.argv[1], "id", SecretStr("key"), "b", attempts=1))
    try:
        store.put("k", b"x", "text/plain")
    except Exception as exc:
        ends.append(type(exc))

class Second:
    thread = None

    def find_spec(self, name, path=None, target=None):
        if name == "s3transfer.manager" and self.thread is None:
            self.thread = threading.Thread(target=upload)
            self.thread.start()
            self.thread.join(1.0)

second = Second()
sys.meta_path.insert(0, second)
upload()
second.thread.join(20.0)
sys.exit(ends != [DeliveryFailed, DeliveryFailed])
"""


@pytest.mark.slow
def test_upload_that_begins_while_another_one_imports_boto3_gets_it_whole() -> None:
    """The first job of a worker sends its outputs at once, and each of them finds boto3 complete."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

        ran = subprocess.run(
            [sys.executable, "-c", FIRST_USES, url], capture_output=True, text=True, timeout=60, check=False
        )

    assert ran.returncode == 0, ran.stderr
