"""
Picture files with more than 8 bits per level, written by hand since Pillow writes none: 16-bit PNG and 32-bit EXR.
"""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

from comfy_worker.standin.pixels import Array

_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}
_EXR_CHANNELS = {1: "Y", 3: "RGB", 4: "RGBA"}
_FLOAT = 2
# The curve of hybrid log-gamma, BT.2100.
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073


def png16(image: Array, compress_level: int, text: Mapping[str, str]) -> bytes:
    """
    Return one picture [height, width, channels] as a 16-bit PNG with these text chunks.
    """
    height, width, channels = image.shape
    levels = np.clip(image * np.float32(65535), 0, 65535).astype(">u2").reshape(height, -1)
    # Each row begins with its filter, 0 for none.
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLORS[channels], 0, 0, 0)
    texts = (_chunk(b"tEXt", f"{key}\0{value}".encode("latin-1", "replace")) for key, value in text.items())
    parts = (
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", header),
        *texts,
        _chunk(b"IDAT", zlib.compress(rows, compress_level)),
        _chunk(b"IEND", b""),
    )
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exr(image: Array, color_space: str, text: Mapping[str, str]) -> bytes:
    """
    Return one picture as an uncompressed EXR of linear floats; `color_space`, what it is in now, is a key of `LINEAR`.
    """
    height, width, channels = image.shape
    # Channels are in alphabetical order, in the header and in each row.
    names = sorted(_EXR_CHANNELS[channels])
    linear = linearised(image, color_space)
    planes = np.stack([linear[..., _EXR_CHANNELS[channels].index(name)] for name in names], axis=1)
    header = _exr_header(width, height, names, text)
    size = width * channels * 4
    first = len(header) + height * 8
    places = struct.pack(f"<{height}Q", *(first + row * (size + 8) for row in range(height)))
    rows = (struct.pack("<ii", y, size) + row.astype("<f4").tobytes() for y, row in enumerate(planes))
    return header + places + b"".join(rows)


def _exr_header(width: int, height: int, names: list[str], text: Mapping[str, str]) -> bytes:
    channels = b"".join(name.encode() + b"\0" + struct.pack("<iiii", _FLOAT, 0, 1, 1) for name in names)
    window = struct.pack("<iiii", 0, 0, width - 1, height - 1)
    attributes = (
        ("channels", "chlist", channels + b"\0"),
        ("compression", "compression", b"\0"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<ff", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
        *((key, "string", value.encode()) for key, value in text.items()),
    )
    packed = (
        f"{name}\0{kind}\0".encode() + struct.pack("<i", len(data)) + data for name, kind, data in attributes
    )
    return struct.pack("<ii", 20000630, 2) + b"".join(packed) + b"\0"


def linearised(image: Array, color_space: str) -> Array:
    """
    Return the picture's light, with sRGB's or hybrid log-gamma's curve undone; a fourth channel stays as it is.
    """
    if color_space == "linear":
        return image
    color, rest = image[..., :3], image[..., 3:]
    light = _from_srgb(color) if color_space == "sRGB" else _from_hlg(color)
    return np.concatenate([light, rest], axis=-1).astype(np.float32)


def _from_srgb(color: Array) -> Array:
    curve = ((np.maximum(color, 0) + np.float32(0.055)) / np.float32(1.055)) ** np.float32(2.4)
    light: Array = np.where(color <= 0.04045, color / np.float32(12.92), curve)
    return light


def _from_hlg(color: Array) -> Array:
    # Between 0.5 and this floor ComfyUI 0.27.0 writes one level.
    upper = np.maximum(color, np.float32(_HLG_C)).astype(np.float64)
    curve = (np.exp((upper - _HLG_C) / _HLG_A) + _HLG_B) / 12
    light: Array = np.where(color <= 0.5, color * color / np.float32(3), curve).astype(np.float32)
    return light
