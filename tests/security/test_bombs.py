"""
Small files that would become large: pictures, texts in pictures, compressed replies. Refused, or read within bounds.

More pixels than Pillow takes for safe: tests/test_convert.py. Aliases of YAML: tests/test_fuzz_parsers.py.
"""

import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.every_face import FACES, Entrance
from support.http_desk import HttpDesk
from support.pictures import b64, invert_workflow

from comfy_worker import convert, picture
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobFailed
from comfy_worker.fetch import Fetcher
from comfy_worker.job import Conversion

MIB = 1 << 20
MOST_MEMORY = 64 * MIB


def chunk(name: bytes, data: bytes) -> bytes:
    """
    Return a chunk of a PNG.
    """
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, *extra: bytes, pixels: bytes = b"") -> bytes:
    """
    Return a PNG that says it is of that size.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", pixels or zlib.compress(bytes(1024)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + chunk(b"IEND", b"")


def frames_of(format: str, count: int, side: int) -> bytes:
    """
    Return an animation of many equal frames, which compress to nothing.
    """
    out = io.BytesIO()
    frames = [Image.new("RGB", (side, side), (n % 2 * 200, n * 4, 0)) for n in range(count)]
    frames[0].save(out, format, save_all=True, append_images=frames[1:], duration=10)
    return out.getvalue()


ZEROS = zlib.compress(bytes(200 * MIB), 9)
BOMBS = {
    "huge sides": png_of(2**31 - 1, 2**31 - 1),
    "huge area": png_of(60_000, 60_000),
    "one row": png_of(2**31 - 1, 1),
    "long pixels": png_of(4, 4, pixels=ZEROS),
    "long text": png_of(4, 4, chunk(b"zTXt", b"a\x00\x00" + ZEROS)),
    "long unicode text": png_of(4, 4, chunk(b"iTXt", b"a\x00\x01\x00\x00\x00" + ZEROS)),
    "long profile": png_of(4, 4, chunk(b"iCCP", b"a\x00\x00" + ZEROS)),
    "gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x00;",
    "bmp": b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF\x1e\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00\xff\xff\xff\xff\xff\xff"
    + bytes(12),
    "tiff": b"II*\x00\x08\x00\x00\x00\x02\x00\x00\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\x7f\x01\x01\x04\x00\x01\x00\x00\x00\xff\xff\xff\x7f",
}


def peak_of(act: Callable[[], object]) -> int:
    """
    Return the most memory that Python held at once meanwhile, in bytes.
    """
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def converted(data: bytes) -> None:
    """
    Convert, or be told why not.
    """
    try:
        convert.convert(data, Conversion("webp", keep_metadata=True))
    except JobFailed:
        return


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_looked_at_and_converted_within_bounds(name: str) -> None:
    """A small file must not take much memory when it is checked, stripped or converted."""
    data = BOMBS[name]
    assert len(data) < MIB

    assert peak_of(lambda: picture.image_problem(data)) < MOST_MEMORY
    assert peak_of(lambda: picture.strip(data) if data.startswith(b"\x89PNG") else data) < MOST_MEMORY
    assert peak_of(lambda: converted(data)) < MOST_MEMORY


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["huge sides", "huge area", "gif", "bmp"])
def test_bomb_as_an_input_fails_the_job(name: str, entrance: Entrance) -> None:
    """A picture with more pixels than is safe must fail its job on every face, and the next job must run."""
    assert entrance.send(invert_workflow(f"data:image/png;base64,{b64(BOMBS[name])}"), "bomb").failed

    small = b64(png_of(4, 4, pixels=zlib.compress(bytes(4 * 13))))
    assert not entrance.send(invert_workflow(f"data:image/png;base64,{small}"), "next").failed


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animation_with_too_many_pixels_is_not_converted(format: str) -> None:
    """The frames of an animation must count together: each is small and all of them are kept."""
    data = frames_of(format, 50, 64)

    with pytest.raises(JobFailed, match="too many pixels"):
        convert.convert(data, Conversion("webp"), 20 * 64 * 64)
    assert convert.convert(data, Conversion("webp"), 50 * 64 * 64).data


def test_limit_of_an_animation_is_what_a_worker_can_hold() -> None:
    """Four bytes a pixel must stay within two gigabytes, and a minute of HD video at 8 frames a second must pass."""
    assert 4 * picture.MOST_PIXELS <= 2 << 30
    assert picture.MOST_PIXELS > 480 * 1280 * 720


def test_compressed_reply_is_counted_as_it_comes_out(tmp_path: Path) -> None:
    """A download that is compressed must be bounded by what it becomes, whatever it was asked for."""
    with HttpDesk() as desk:
        body = gzip.compress(bytes(100 * MIB))
        url = desk.put("/bomb", body, headers={"Content-Encoding": "gzip"})

        def fetch() -> None:
            with pytest.raises(InputUnavailable, match="more than"):
                Fetcher(allow_private=True).fetch(
                    url, tmp_path / "x", Deadline(30.0), field="f", max_bytes=MIB
                )

        assert peak_of(fetch) < MOST_MEMORY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip, gzip, gzip, gzip, gzip, gzip"]
)
def test_compressed_request_is_not_unpacked(http_entrance: Entrance, encoding: str) -> None:
    """A body that says it is compressed must be refused or read as it is, and never unpacked."""
    assert http_entrance.served is not None
    import requests

    body = gzip.compress(bytes(100 * MIB))
    reply = requests.post(
        f"{http_entrance.served.url}{http_entrance.face.path}",
        body,
        headers={"Content-Encoding": encoding, "Content-Type": "application/json"},
        timeout=30,
    )

    assert 400 <= reply.status_code < 500


def test_archive_is_no_input_that_is_unpacked(open_entrance: object) -> None:
    """Nothing in the worker unpacks archives: no module of it may import one that does."""
    import ast

    import comfy_worker

    for path in Path(comfy_worker.__file__).parent.rglob("*.py"):
        for found in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in found.names] if isinstance(found, ast.Import) else []
            names += [found.module or ""] if isinstance(found, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {
                "zipfile",
                "tarfile",
                "rarfile",
                "py7zr",
                "bz2",
                "lzma",
            }, path


def test_faces_are_all_there() -> None:
    """The table of faces must name each face that the worker can be started with."""
    assert {face.name for face in FACES} >= {"runpod", "runpod-http", "salad"}
