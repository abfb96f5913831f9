"""
Tests of deliver: what the caller gets of each artifact, and what happens when it cannot be handed over.
"""

import base64
import io
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydantic import SecretStr

from comfy_worker.deadline import Deadline
from comfy_worker.deliver import Delivered, base64_of, deliver, inline_bytes
from comfy_worker.errors import DeliveryFailed, JobCancelled, JobTimedOut, ReplyTooLarge
from comfy_worker.job import Artifact, Bucket, Conversion, Delivery
from comfy_worker.storage import keys

BUCKET = Bucket("http://s3.example", "key", SecretStr("secret"), bucket="results")


class Shelf:
    """
    A store in memory; `put` does first what `before` does.
    """

    def __init__(self, before: Callable[[str], None] = lambda key: None) -> None:
        self.before = before
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.buckets: list[Bucket] = []

    def __call__(self, bucket: Bucket) -> "Shelf":
        self.buckets.append(bucket)
        return self

    def put(self, key: str, content: Path | bytes, mime: str, check: Callable[[], None]) -> str:
        self.before(key)
        check()
        self.objects[key] = (content if isinstance(content, bytes) else content.read_bytes(), mime)
        return f"https://s3.example/{key}"


def artifact(filename: str = "a.png", content: Any = b"data", **more: Any) -> Artifact:
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    values: dict[str, Any] = {
        "node_id": "9",
        "key": "images",
        "kind": "image",
        "subfolder": "",
        "type": "output",
        "mime": "image/png",
        "size_bytes": size,
    }
    return Artifact(filename=filename, content=content, **(values | more))


def text(content: str) -> Artifact:
    return artifact("", content, kind="text", key="text", mime="text/plain")


def png(colour: str = "red", workflow: str = "") -> bytes:
    info = PngImagePlugin.PngInfo()
    if workflow:
        info.add_text("workflow", workflow)
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def delivered(artifacts: list[Artifact], *, shelf: Shelf | None = None, **delivery: Any) -> Delivered:
    return deliver("job-1", artifacts, Delivery(**delivery), Deadline(30), store=shelf or Shelf(), threads=4)


def test_deliver_encodes_files_and_passes_text_on(tmp_path: Path) -> None:
    """Files and bytes become base64, text stays text, all in the order they came and with what is known of them."""
    path = tmp_path / "x"
    path.write_bytes(b"from disk")

    result = delivered(
        [artifact("b.png", path, subfolder="sub"), text("häß"), artifact("c.mp4", b"\0\xff", kind="video")]
    )

    assert [(o.type, o.data) for o in result.outputs] == [
        ("base64", base64.b64encode(b"from disk").decode()),
        ("text", "häß"),
        ("base64", "AP8="),
    ]
    first = result.outputs[0]
    assert (
        first.node_id,
        first.key,
        first.kind,
        first.filename,
        first.subfolder,
        first.mime,
        first.size_bytes,
    ) == (
        *("9", "images", "image", "b.png", "sub", "image/png"),
        9,
    )
    assert result.warnings == ()


def test_deliver_of_nothing_is_nothing() -> None:
    """No artifact, no output, no error, with and without a bucket."""
    assert delivered([]) == Delivered() and delivered([], bucket=BUCKET) == Delivered()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100))
def test_base64_of_a_file_is_that_of_its_bytes(data: bytes) -> None:
    """Chunk by chunk or at once, the text is the same, at every length around the chunk's."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()

        assert (
            base64_of(Path(file.name), chunk_bytes=12) == base64_of(data) == base64.b64encode(data).decode()
        )


def test_runpod_14_24_base64_needs_at_most_three_times_the_file(tmp_path: Path) -> None:
    """The peak while a file is encoded stays below three times its size."""
    path = tmp_path / "big"
    size = 12_000_000
    path.write_bytes(bytes(size))

    tracemalloc.start()
    try:
        encoded = base64_of(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(encoded) == 16_000_000 and peak <= 3 * size


def test_deliver_uploads_when_there_is_a_bucket() -> None:
    """With a bucket each file becomes a URL, text stays inline, and the store gets key, bytes and MIME type."""
    shelf = Shelf()

    result = delivered(
        [artifact("a.png", b"1"), text("t"), artifact("b.mp4", b"2", mime="video/mp4")],
        shelf=shelf,
        bucket=BUCKET,
    )

    assert [(o.type, o.data) for o in result.outputs] == [
        ("s3_url", "https://s3.example/job-1/a.png"),
        ("text", "t"),
        ("s3_url", "https://s3.example/job-1/b.mp4"),
    ]
    assert shelf.objects == {"job-1/a.png": (b"1", "image/png"), "job-1/b.mp4": (b"2", "video/mp4")}
    assert shelf.buckets == [BUCKET]


def test_runpod_14_25_uploads_run_at_once_and_keep_their_order() -> None:
    """Uploads overlap up to the bound, and the outputs stand in the order of the artifacts whoever ends first."""
    together = threading.Barrier(4)

    def before(key: str) -> None:
        together.wait(20)

    result = delivered([artifact(f"{n}.png") for n in range(8)], shelf=Shelf(before), bucket=BUCKET)

    assert [output.filename for output in result.outputs] == [f"{n}.png" for n in range(8)]


def test_runpod_14_22_a_reply_over_the_limit_goes_to_the_bucket() -> None:
    """What would not fit as base64 is uploaded, all of it, and a warning says so."""
    shelf = Shelf()

    result = delivered(
        [artifact("a.png", bytes(60_000)), artifact("b.png", b"1"), text("t")],
        shelf=shelf,
        spill=BUCKET,
        limit_bytes=50_000,
    )

    assert [output.type for output in result.outputs] == ["s3_url", "s3_url", "text"]
    assert "bucket" in result.warnings[0] and "0.05 MB" in result.warnings[0]


def test_runpod_14_22_a_reply_over_the_limit_fails_without_a_bucket() -> None:
    """Without a bucket the job fails and the text names size, limit and every way out."""
    with pytest.raises(ReplyTooLarge) as caught:
        delivered([artifact("a.png", bytes(60_000))], limit_bytes=50_000)

    error = caught.value
    assert error.details["limit_bytes"] == 50_000 and error.details["size_bytes"] > 80_000
    for word in ("0.08 MB", "0.05 MB", "BUCKET_ENDPOINT_URL", "s3Config", "convert_output", "/runsync"):
        assert word in str(error)


def test_runpod_14_22_text_alone_can_be_too_large() -> None:
    """Text cannot go to a bucket: too much of it fails the job, bucket or not."""
    for bucket in ({"spill": BUCKET}, {"bucket": BUCKET}, {}):
        with pytest.raises(ReplyTooLarge):
            delivered([text("x" * 60_000), artifact()], limit_bytes=50_000, **bucket)  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.integers(0, 200), max_size=6),
    names=st.text('aé"\\\n\u2028😀', min_size=1, max_size=30),
    words=st.text('a"\n\u0001é', max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_runpod_14_22_the_estimate_is_never_below_the_reply(sizes: list[int], names: str, words: str) -> None:
    """What is added up before encoding is at least what the encoded outputs have in the end."""
    artifacts = [artifact(names, bytes(size), subfolder=names) for size in sizes] + [text(words)]

    outputs = delivered(artifacts, limit_bytes=1 << 30).outputs

    reply = orjson.dumps({"images": [{f: getattr(o, f) for f in o.__slots__} for o in outputs]})
    assert sum(inline_bytes(one) for one in artifacts) + 2048 >= len(reply)


def test_runpod_14_47_one_failed_upload_fails_the_job_and_keeps_the_others() -> None:
    """The error names the file and the reason, and carries the outputs that were handed over."""

    def before(key: str) -> None:
        if key.endswith("b.png"):
            raise DeliveryFailed("HTTP 403 SignatureDoesNotMatch")

    with pytest.raises(DeliveryFailed) as caught:
        delivered(
            [artifact("a.png"), artifact("b.png", subfolder="s"), text("t"), artifact("c.png")],
            shelf=Shelf(before),
            bucket=BUCKET,
        )

    error = caught.value
    assert "s/b.png: HTTP 403 SignatureDoesNotMatch" in str(error)
    assert error.details == {"failures": [{"filename": "b.png", "reason": "HTTP 403 SignatureDoesNotMatch"}]}
    assert [output.data for output in error.partial] == [
        "https://s3.example/job-1/a.png",
        "t",
        "https://s3.example/job-1/c.png",
    ]


def test_deliver_fails_when_a_file_is_gone(tmp_path: Path) -> None:
    """A file that vanished is a failed delivery with the finished ones kept, and no path of the machine in the text."""
    gone = artifact("b.png", b"12")
    gone = Artifact(**{name: getattr(gone, name) for name in gone.__slots__} | {"content": tmp_path / "gone"})

    with pytest.raises(DeliveryFailed) as caught:
        delivered([artifact("a.png"), gone])

    assert "b.png" in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert [output.filename for output in caught.value.partial] == ["a.png"]


@pytest.mark.slow
def test_runpod_14_3_a_cancel_ends_an_upload_that_hangs() -> None:
    """A cancel during an upload ends the delivery although the store does not answer."""
    deadline, hanging, release = Deadline(60), threading.Event(), threading.Event()

    def before(key: str) -> None:
        hanging.set()
        release.wait(60)

    canceller = threading.Thread(target=lambda: (hanging.wait(60), deadline.cancel()))
    canceller.start()
    with pytest.raises(JobCancelled):
        deliver("j", [artifact()], Delivery(bucket=BUCKET), deadline, store=Shelf(before), threads=2)
    release.set()
    canceller.join(60)


def test_deliver_checks_the_deadline_between_files(tmp_path: Path) -> None:
    """Nothing is encoded once the time is over, and the error names the stage."""
    with pytest.raises(JobTimedOut) as caught:
        deliver("j", [artifact()], Delivery(), Deadline(0), store=Shelf(), threads=2)

    assert caught.value.details["stage"] == "delivering"


def test_runpod_14_27_deliver_converts_images_only(tmp_path: Path) -> None:
    """Images are re-encoded and renamed, other files are left alone without a warning."""
    path = tmp_path / "p"
    path.write_bytes(png())

    result = delivered(
        [artifact("a.b.png", path), artifact("v.mp4", b"video", kind="video", mime="video/mp4"), text("t")],
        conversion=Conversion("webp", {"quality": 50}),
    )

    image, video, _ = result.outputs
    assert (image.filename, image.mime) == ("a.b.webp", "image/webp")
    data = base64.b64decode(image.data)
    assert Image.open(io.BytesIO(data)).format == "WEBP" and image.size_bytes == len(data)
    assert (video.filename, base64.b64decode(video.data)) == ("v.mp4", b"video")
    assert result.warnings == ()


def test_salad_a7_deliver_leaves_what_cannot_be_converted_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broken image goes out as it is, the next one is converted, and a warning names the broken one."""
    monkeypatch.setattr("comfy_worker.convert_vips.library", lambda: None)
    result = delivered(
        [artifact("bad.exr", b"broken"), artifact("good.png", png())],
        conversion=Conversion("jpeg", {"mozjpeg": True}),
    )

    assert [output.filename for output in result.outputs] == ["bad.exr", "good.jpeg"]
    assert base64.b64decode(result.outputs[0].data) == b"broken"
    assert len(result.warnings) == 2 and any("bad.exr" in warning for warning in result.warnings)
    assert any("mozjpeg" in warning for warning in result.warnings)


def test_deliver_measures_what_conversion_left() -> None:
    """The budget counts the converted size, so that a conversion can make a reply fit."""
    noise = Image.effect_noise((200, 200), 90)
    out = io.BytesIO()
    noise.save(out, "PNG")

    result = delivered(
        [artifact("n.png", out.getvalue())], conversion=Conversion("webp", {"quality": 5}), limit_bytes=20_000
    )

    assert result.outputs[0].type == "base64"
    with pytest.raises(ReplyTooLarge):
        delivered([artifact("n.png", out.getvalue())], limit_bytes=20_000)


def test_runpod_14_26_deliver_strips_metadata_when_told() -> None:
    """The workflow leaves the PNG, a broken PNG is named, other files stay byte for byte."""
    result = delivered(
        [
            artifact("a.png", png(workflow="SECRET")),
            artifact("b.png", b"\x89PNG\r\n\x1a\nxx"),
            artifact("c.gif", b"GIF89a", mime="image/gif"),
        ],
        strip_metadata=True,
    )

    data = [base64.b64decode(output.data) for output in result.outputs]
    assert b"SECRET" not in data[0] and Image.open(io.BytesIO(data[0])).size == (32, 32)
    assert data[1:] == [b"\x89PNG\r\n\x1a\nxx", b"GIF89a"]
    assert result.warnings == ("b.png was not freed of its metadata: the file is broken",)


def plan(bucket: Bucket, *artifacts: Artifact, job_id: str = "job-1") -> list[str]:
    return keys.plan(bucket, job_id, artifacts, random_id=lambda: "0123456789abcdef")


def test_runpod_14_44_keys_keep_the_original_names() -> None:
    """A key is prefix, job, subfolder and ComfyUI's own name; a second file of a name gets its node in front."""
    bucket = Bucket(None, "k", SecretStr("s"), bucket="b", prefix="/a/b/")

    names = plan(
        bucket,
        artifact("x.png", subfolder="s/t"),
        artifact("x.png", subfolder="s/t", node_id="12"),
        artifact("x.png", subfolder="s/t", node_id="12"),
        artifact("é x.png"),
    )

    assert names == [
        "a/b/job-1/s/t/x.png",
        "a/b/job-1/s/t/12_x.png",
        "a/b/job-1/s/t/2_12_x.png",
        "a/b/job-1/é x.png",
    ]


def test_runpod_14_44_keys_of_the_legacy_layout() -> None:
    """Without a bucket name the key is the job and eight random digits with the extension as it was."""
    bucket = Bucket("https://b.s3.eu-west-1.amazonaws.com", "k", SecretStr("s"))

    assert plan(bucket, artifact("a.PNG"), artifact("noext")) == ["job-1/01234567.PNG", "job-1/01234567.png"]


TEXTS = st.text(st.sampled_from("ab./\\\0\n é\u202e"), max_size=8) | st.sampled_from(
    ["..", "../..", "/", "C:\\x"]
)


@given(job_id=TEXTS, prefix=TEXTS, files=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=6))
def test_keys_are_unique_and_plain_whatever_the_names(
    job_id: str, prefix: str, files: list[tuple[str, str, str]]
) -> None:
    """No key has an empty, `.` or `..` part or a control character, and no two are alike."""
    bucket = Bucket(None, "k", SecretStr("s"), bucket="b", prefix=prefix)

    found = plan(bucket, *(artifact(f, subfolder=s, node_id=n) for f, s, n in files), job_id=job_id)

    assert len(set(found)) == len(files)
    for key in found:
        assert not {"", ".", ".."} & set(key.split("/")) and key.isprintable() and "\\" not in key
