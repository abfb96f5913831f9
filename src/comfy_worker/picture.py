"""
What can be asked of and taken from an image without re-encoding it: is it one, open it, drop its metadata.

The one place where Pillow's exceptions become ours. Encoding is in `convert`.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageCms, UnidentifiedImageError

from comfy_worker.errors import JobFailed

# What Pillow may do without running another program or reading another file.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "ICO", "TGA", "PPM", "PCX"),
    *("JPEG2000", "DDS", "QOI", "SGI", "PSD"),
)
# Every way in which Pillow 11 and 12 report bytes that are no good image, or an image that a format cannot hold.
PILLOW_FAILURES = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # raised only where warnings are errors
    ImageCms.PyCMSError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)

TOO_MANY_PIXELS = "it has too many pixels"
MOST_PIXELS = 1 << 29
"""Of all frames of an animation together: 2 GiB of memory. Pillow counts those of one frame only."""

STRIPPABLE = frozenset({"image/png", "image/apng", "image/webp", "image/jpeg"})

_PNG = b"\x89PNG\r\n\x1a\n"
# `comf` is ComfyUI's own: SaveAnimatedPNG keeps prompt and workflow in it.
_PNG_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"comf"})
_WEBP_METADATA = frozenset({b"EXIF", b"XMP "})
_VP8X_METADATA_FLAGS = 0x08 | 0x04
_JPEG_METADATA = frozenset({0xE1, 0xED, 0xFE})  # Exif and XMP, IPTC, comment


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """
    Open an image for as long as the block runs; what goes wrong in the block is translated too.

    Raises:
        JobFailed: Pillow cannot read it, or it has more pixels than Pillow takes for safe.
    """
    try:
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as image:
            yield image
    except PILLOW_FAILURES as exc:
        raise JobFailed(_reason(exc)) from exc


def image_problem(source: Path | bytes) -> str | None:
    """
    Return why these bytes are not an image that ComfyUI could load, or None when they are one.

    Looks at the header and the checksums, not at every pixel. SVG is not an image here: ComfyUI cannot load it.
    """
    try:
        with opened(source) as image:
            image.verify()
    except JobFailed as error:
        return str(error)
    return None


def strip(source: Path | bytes) -> bytes:
    """
    Return the same image without text, EXIF and XMP; not one pixel is encoded again, the colour profile stays.

    Knows PNG (APNG too), WebP and JPEG; any other file is returned as it is. An EXIF orientation goes with the rest.

    Raises:
        JobFailed: the file is broken, so what is metadata in it cannot be told.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        if data.startswith(_PNG):
            return _strip_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _strip_webp(data)
        return _strip_jpeg(data) if data.startswith(b"\xff\xd8\xff") else data
    except (OSError, LookupError, struct.error) as exc:
        raise JobFailed("the file is broken") from exc


def _reason(exc: BaseException) -> str:
    if isinstance(exc, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(exc, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return TOO_MANY_PIXELS
    if isinstance(exc, MemoryError):
        return "it needs too much memory"
    if isinstance(exc, FileNotFoundError):
        return "the file is gone"
    return f"it could not be read or written as an image ({type(exc).__name__})"


def _strip_png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise IndexError("a chunk ends beyond the file")
        if name not in _PNG_METADATA:
            kept.append(data[at:end])
        at = end
        if name == b"IEND":
            break
    return b"".join(kept)


def _strip_webp(data: bytes) -> bytes:
    kept, at = [b"WEBP"], 12
    while at < len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if at + 8 + length > len(data):
            raise IndexError("a chunk ends beyond the file")
        chunk = data[at:end]
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_VP8X_METADATA_FLAGS & 0xFF]) + chunk[9:]
        if name not in _WEBP_METADATA:
            kept.append(chunk)
        at = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _strip_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] not in _JPEG_METADATA:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    # From the first scan on there are pixels only.
    return b"".join([*kept, data[at:]])
