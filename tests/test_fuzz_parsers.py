"""
Everything that comes from outside, as garbage: what we read of it is a value or an error of ours, in bounded time.

Elsewhere: frames one by one (tests/comfy/test_messages.py), refusals (test_refusals.py), values of classes
(test_validate.py), outputs (test_collect.py), requests (test_fuzz_request.py, salad/test_fuzz.py, http/test_malformed.py).
More examples: `FUZZ_EXAMPLES=5000 pytest tests/test_fuzz_parsers.py`.
"""

import io
import json
import os
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr
from support import garbage
from support.garbage import Garbage
from support.pictures import png

from comfy_worker import convert, fetch_file, kinds, picture
from comfy_worker.collect import collect
from comfy_worker.comfy import crashes, messages, signature
from comfy_worker.comfy.catalog import Catalog
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.output import Reader, failed_import
from comfy_worker.comfy.progress import PromptState, verdict
from comfy_worker.comfy.submit import submit
from comfy_worker.comfy.validate import validate
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ConfigInvalid, DeliveryFailed, InputUnavailable, JobFailed, WorkerError
from comfy_worker.fetch_guard import Guard
from comfy_worker.job import Bucket, Conversion, Workflow
from comfy_worker.models import manifest
from comfy_worker.settings import Settings, fields, load, names_of
from comfy_worker.storage.endpoint import check, hints, region_of
from comfy_worker.storage.s3 import Patience, Stores
from comfy_worker.templates.load import Templates
from comfy_worker.webhook.post import Body, Poster, retry_after_s

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", settings.default.max_examples))
DAY_S = 86_400

fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=5_000,  # ms: no input may take long
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = (0, -1, 2**63, 2**64, 10**400, 1e308, -0.0, float("nan"), float("inf"))
TEXTS = (
    "",
    "\x00",
    "\ud800",
    "../x",
    "9" * 5000,
    "a" * 300,
    "success",
    "execution_error",
    "p",
    "1",
    "output",
)
LEAVES = st.none() | st.booleans() | st.sampled_from((*NUMBERS, *TEXTS)) | st.text(max_size=6) | st.integers()
KEYS = st.sampled_from(
    (
        *("outputs", "status", "messages", "completed", "status_str", "execution_status", "images", "text"),
        *(
            "filename",
            "subfolder",
            "type",
            "format",
            "animated",
            "prompt_id",
            "node_id",
            "nodes",
            "error",
            "p",
        ),
        *("input", "required", "optional", "output", "options", "template", "min", "max", "names", "prefix"),
        *(
            "node_errors",
            "errors",
            "message",
            "details",
            "name",
            "queue_running",
            "queue_pending",
            "1",
            "system",
        ),
    )
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=14,
)
SAID = st.lists(
    st.tuples(st.sampled_from(("execution_success", "execution_error", "execution_cached")), JSON)
)
HISTORY = JSON | st.fixed_dictionaries(
    {"outputs": JSON, "status": JSON | st.fixed_dictionaries({"messages": JSON | SAID})}
)
GRAPH: Workflow = {"1": {"class_type": "SaveImage", "inputs": {}}}


def as_bytes(value: Any) -> bytes:
    """
    Return JSON as Python's own module writes it, with NaN and half surrogate pairs.
    """
    return json.dumps(value).encode()


BODIES = (
    JSON.map(as_bytes)
    | st.binary(max_size=60)
    | st.sampled_from(
        (b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"\xef\xbb\xbf{}", b'"' + b"\\ud800" * 9)
    )
)
REPLIES = (
    BODIES.map(garbage.http)
    | st.tuples(BODIES, st.sampled_from((b"404 x", b"500 x", b"301 x", b"400 x", b"99 x", b"1000 x"))).map(
        lambda pair: garbage.http(*pair)
    )
    | st.binary(max_size=80)
    | st.binary(max_size=30).map(lambda noise: b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n{}")
    | st.sampled_from(
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate, br\r\n\r\n{}",
            b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n{}",
            b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n{}",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
            b"",
        )
    )
)


@pytest.fixture(scope="module")
def world() -> Iterator[Garbage]:
    """
    A server that answers with garbage.
    """
    with garbage.served() as world:
        yield world


@fuzzing
@given(HISTORY)
def test_any_history_is_a_verdict(entry: Any) -> None:
    """Whatever an entry of the history holds must be read as a verdict, and its outputs as artifacts."""
    found = verdict(entry if isinstance(entry, Mapping) else {})

    assert found.kind in {"succeeded", "failed", "interrupted"}
    collected = collect(found.outputs, GRAPH, [], locate=lambda *_: None, job_folder="job", include_temp=True)
    assert "".join(collected.missing).isprintable() or collected.missing


@fuzzing
@given(
    st.lists(st.binary(max_size=40) | st.tuples(KEYS, JSON).map(as_bytes) | JSON.map(as_bytes), max_size=6)
)
def test_any_frames_are_steps(frames: list[bytes]) -> None:
    """Whatever arrives on the socket, as text or binary, must be read and never end a prompt by an exception."""
    state = PromptState("p", GRAPH)

    for frame in frames:
        for message in (messages.parse_text(frame), messages.parse_binary(frame)):
            assert state.feed(message).look in {"no", "soon", "now"}


@fuzzing
@given(JSON, JSON)
def test_any_object_info_is_a_signature(info: Any, values: Any) -> None:
    """Whatever a class says of itself must be read, and a workflow judged by it."""
    entry = info if isinstance(info, dict) else {"input": info}
    inputs = values if isinstance(values, dict) else {}

    assert all(isinstance(row.label, str) for row in signature.declared_inputs(entry, inputs))
    judged = validate({"1": {"class_type": "C", "inputs": inputs}}, {"C": {**entry, "output_node": True}})

    assert json.dumps(judged.node_errors, default=str)


METHODS: tuple[tuple[str, Callable[[Client], Any]], ...] = (
    ("history", lambda client: client.history("p")),
    ("object_info", lambda client: client.object_info("p")),
    ("all classes", lambda client: client.object_info()),
    ("catalog", lambda client: Catalog(client)("p")),
    ("queued", lambda client: client.queued()),
    ("whereabouts", lambda client: client.whereabouts("p")),
    ("cancel", lambda client: client.cancel("p")),
    ("stats", lambda client: client.system_stats()),
    ("models", lambda client: (client.model_types(), client.models("p"))),
    ("answers", lambda client: client.answers()),
    (
        "submit",
        lambda client: submit(client, {"prompt": GRAPH, "prompt_id": "p"}, Deadline(1.0), lambda _: {}),
    ),
)


@pytest.mark.parametrize("name", [name for name, _ in METHODS])
@settings(parent=fuzzing, max_examples=max(EXAMPLES // 3, 1), deadline=10_000)
@given(reply=REPLIES)
def test_any_reply_of_comfyui_is_read_or_ours(world: Garbage, name: str, reply: bytes) -> None:
    """Whatever ComfyUI answers to a request must be a value or an error of ours."""
    world.answer = reply
    client = Client(world.url, timeout_s=5.0, probe_timeout_s=5.0)
    try:
        with suppress(WorkerError):
            dict(METHODS)[name](client)
    finally:
        client.close()


@fuzzing
@given(reply=REPLIES, name=st.text(max_size=8))
def test_any_file_of_comfyui_is_had_or_ours(world: Garbage, reply: bytes, name: str, tmp_path: Path) -> None:
    """A view, and an upload, that are answered with garbage must be files, a no, or an error of ours."""
    world.answer = reply
    source = tmp_path / "in"
    source.write_bytes(b"x")
    client = Client(world.url, timeout_s=5.0, probe_timeout_s=5.0)
    try:
        with suppress(WorkerError):
            assert client.view(name, "", "output", tmp_path / "out") in {True, False}
        with suppress(WorkerError):
            assert isinstance(client.upload("in.png", source), str)
    finally:
        client.close()


RECEIVED = REPLIES | st.sampled_from(
    tuple(
        b"HTTP/1.1 503 x\r\nContent-Length: 0\r\nRetry-After: " + text + b"\r\n\r\n"
        for text in (
            b"9" * 400,
            b"-1",
            b"nan",
            b"inf",
            b"Wed, 99 Foo 9999 99:99:99 GMT",
            b"\xff",
            b"1e999",
            b"0x1",
        )
    )
)


@fuzzing
@given(RECEIVED)
def test_any_reply_to_a_webhook_is_an_answer(world: Garbage, reply: bytes) -> None:
    """Whatever a receiver answers must be an answer: delivered, or why not in words of ours."""
    world.answer = reply
    poster = Poster(Guard(allow_private=True))
    try:
        answer = poster.post(f"{world.url}/hook", {}, Body(b"{}"), 5.0)
    finally:
        poster.rest()

    assert answer.problem is None or answer.problem.isprintable()
    assert answer.again_s >= 0


def test_reply_with_an_absurd_length_is_delivered_once(world: Garbage) -> None:
    """A 200 counts, however long the receiver says that its reply is."""
    world.answer = b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
    before, poster = world.requests, Poster(Guard(allow_private=True))
    try:
        answer = poster.post(f"{world.url}/hook", {}, Body(b"{}"), 5.0)
    finally:
        poster.rest()

    assert answer.problem is None
    assert world.requests == before + 1


@fuzzing
@given(st.text(max_size=40) | st.sampled_from(("0, 0 0 ", "Mon, 1 Jan 1 1:1:1 +99999999999", "9" * 5000)))
def test_any_retry_after_is_seconds(text: str) -> None:
    """Whatever stands in Retry-After must be a number of seconds."""
    assert 0 <= retry_after_s(text, now=0.0) < float("inf")


S3_BODIES = st.binary(max_size=60) | st.sampled_from(
    (
        b"<Error><Code>NoSuchKey</Code></Error>",
        b"<Error><Code>\xff</Code>",
        b"<Error>" * 5000,
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(12))
        + b"]><Error><Code>&m;</Code></Error>",
        b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><Error><Code>&f;</Code></Error>',
        b"",
    )
)
S3_HEADERS = (
    *(b"Last-Modified: yesterday", b"x-amz-expiration: \xff", b"ETag: ", b"x-amz-meta-\xff: 1", b"A: b"),
    *(b"x-amz-bucket-region: ../x", b"Location: http://127.0.0.1:1/", b"x-amz-server-side-encryption: 5"),
)
S3_REPLIES = REPLIES | st.tuples(
    S3_BODIES,
    st.sampled_from((b"200 OK", b"400 x", b"403 x", b"404 x", b"301 x", b"307 x", b"503 x")),
    st.sampled_from(S3_HEADERS),
).map(lambda parts: garbage.http(*parts))


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    """
    Clients of S3 that try once.
    """
    stores = Stores(Patience(connect_timeout_s=5.0, read_timeout_s=5.0, retries=0))
    yield stores
    stores.close()


# urllib3 leaves the connection of a reply that it cannot parse to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@fuzzing
@given(reply=S3_REPLIES)
def test_any_answer_of_s3_is_a_sentence(world: Garbage, stores: Stores, reply: bytes, tmp_path: Path) -> None:
    """Whatever an object store answers must be a link or a file, or an error of ours in one printable line."""
    world.answer = reply
    store = stores(Bucket(world.url, "key", SecretStr("secret"), "bucket", region="us-east-1"))
    for act in (
        lambda: store.put("key", b"x", "image/png"),
        lambda: store.read("s3://bucket/key", tmp_path / "out", 1000),
        lambda: store.probe("s3://bucket/key"),
    ):
        try:
            act()
        except (DeliveryFailed, InputUnavailable) as exc:
            assert str(exc).isprintable()
            assert "root:" not in str(exc)


@fuzzing
@given(
    st.text(max_size=30)
    | st.sampled_from(("http://[::1", "http://a:b:c", "https://h:99999999/", "//", "s3."))
)
def test_any_endpoint_is_judged(url: str) -> None:
    """Whatever is given as the address of a bucket must be judged without an exception."""
    bucket = Bucket(url, "", SecretStr(""), url, region=None, public_url=url)

    assert all(isinstance(text, str) for text in (region_of(url), *check(bucket), *hints(bucket)))


def response(disposition: str, url: str = "http://h/a/b.png") -> requests.Response:
    """
    Return a reply with that Content-Disposition.
    """
    reply = requests.Response()
    reply.url = url
    reply.headers["Content-Disposition"] = disposition
    return reply


PARTS = (
    "attachment",
    ";",
    " filename",
    "*",
    "0",
    "1",
    "=",
    '"',
    "utf-8''",
    "x''",
    "%ff",
    "%2e%2e%2f",
    "../",
    "a",
    "\\",
)


@fuzzing
@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join) | st.text(max_size=40))
@example("attachment; filename*=utf-8''%2e%2e%2f..%2fx")
@example("attachment; filename*0*=a; filename*x=b")
def test_any_content_disposition_is_a_name(text: str) -> None:
    """Whatever names a downloaded file must be read as a text."""
    assert isinstance(fetch_file._name_in(response(text)), str)


def spoilt(data: bytes) -> st.SearchStrategy[bytes]:
    """
    Return strategies of one file with some of its bytes changed, or cut.
    """
    places = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)

    def change(changes: list[tuple[int, int]], cut: int) -> bytes:
        changed = bytearray(data)
        for place, value in changes:
            changed[place] = value
        return bytes(changed[:cut])

    return st.builds(change, places, st.integers(0, len(data)) | st.just(len(data)))


def encoded(format: str) -> bytes:
    """
    Return a small picture of a format.
    """
    out = io.BytesIO()
    frames = [Image.new("RGB", (5, 4), (9, 9, n)) for n in range(3)]
    moving = {"save_all": True, "append_images": frames[1:]} if format in {"GIF", "WEBP", "PNG"} else {}
    frames[0].save(out, format, **moving)
    return out.getvalue()


PICTURES = st.one_of(
    *(spoilt(encoded(format)) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO")),
    st.binary(max_size=80),
    st.sampled_from((b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"\xff\xd8\xff", b"GIF89a")),
)


@fuzzing
@given(PICTURES, st.sampled_from(("png", "jpeg", "webp")))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_a_picture_or_not(data: bytes, format: Any) -> None:
    """Whatever is said to be a picture must be converted, stripped and named, or refused by an error of ours."""
    assert picture.image_problem(data) is None or picture.image_problem(data)
    assert kinds.by_bytes(data)
    with suppress(JobFailed):
        assert len(picture.strip(data)) <= len(data)
    with suppress(JobFailed):
        assert convert.convert(data, Conversion(format, keep_metadata=True)).data


YAML = (
    st.text(alphabet=string.printable, max_size=60)
    | JSON.map(lambda value: json.dumps(value))
    | st.sampled_from(
        (
            "!!python/object/apply:os.system ['true']",
            "a: &a [*a]",
            "a: &a {b: *a}",
            "? [a, b] : c",
            "graph: ../../etc/passwd",
            "graph: {1: {class_type: X, inputs: {}}}",
            "parameters: {a: {type: int, into: 1.x, minimum: .nan}}",
            "[" * 3000,
            "{a: " * 3000,
            "\x00",
            "2024-99-99",
            "a: 2024-01-01\nparameters: 5",
            "1e400: .inf",
        )
    )
)


@fuzzing
@given(YAML | st.binary(max_size=40).map(lambda data: data.decode("latin-1")))
def test_any_template_is_one_or_a_problem(text: str) -> None:
    """Whatever stands in a template's file must be a template or a problem with its name."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
        (Path(folder) / "one.json").write_text(text, encoding="utf-8", errors="surrogateescape")

        found = Templates.load([Path(folder)])

    assert all(problem.file and problem.text for problem in found.problems)
    assert not [problem for problem in found.problems if "it raised" in problem.text]


def test_nested_aliases_of_yaml_cost_no_memory(tmp_path: Path) -> None:
    """Ten levels of ten aliases must be refused or read, and never written out."""
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for one, other in zip("abcdefghi", "bcdefghij", strict=True):
        rows.append(f"{other}: &{other} [{', '.join([f'*{one}'] * 9)}]")
    (tmp_path / "bomb.yaml").write_text("\n".join(rows))

    found = Templates.load([tmp_path])

    assert [problem.file for problem in found.problems] == ["bomb.yaml"]
    assert len(found.problems[0].text) < 5000


@fuzzing
@given(YAML)
def test_any_manifest_is_one_or_refused(text: str) -> None:
    """Whatever stands in a manifest of models must be one or be refused in words."""
    with suppress(ConfigInvalid, WorkerError):
        manifest.parse(text, "models.yaml")


NAMES = sorted(name for entry in fields(Settings) for name in names_of(entry))
VALUES = st.text(max_size=12) | st.sampled_from(
    (*TEXTS, "1e999", "nan", "-inf", "0x10", "١", "http://[", "http://h:99999", "a,b;c", "{}", "[]", "~", "'")
)


@fuzzing
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_any_environment_is_settings_or_refused(environ: dict[str, str]) -> None:
    """Whatever the environment holds must be settings, or be refused with the names of the variables."""
    clean = {name: value.replace("\x00", "") for name, value in environ.items()}
    try:
        assert isinstance(load(clean), Settings)
    except ConfigInvalid as exc:
        assert any(name in str(exc) for name in clean)


@fuzzing
@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(-64, 255))
def test_any_output_of_a_process_is_lines(lines: list[bytes], exit_code: int) -> None:
    """Whatever ComfyUI prints before it ends must be lines of a log and a reason."""
    reader = Reader()
    read = [found[1] for line in lines if (found := reader.read(line))]

    assert all(text.isprintable() or "\t" in text or not text.isascii() for text in read)
    assert crashes.classify(exit_code, read).sentence
    assert all(failed_import(text) is None or failed_import(text) for text in read)


def test_png_is_what_the_strategies_spoil() -> None:
    """The pictures that are spoilt must be good before."""
    assert [picture.image_problem(encoded(format)) for format in ("PNG", "JPEG", "WEBP", "GIF")] == [None] * 4
    assert picture.image_problem(png((3, 3), (1, 2, 3))) is None
