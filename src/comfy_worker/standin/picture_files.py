"""
Pictures as files: reading what Pillow reads into arrays, writing PNG, and the metadata that goes into it.

Arrays are float32 in 0..1: pictures [batch, height, width, channels], masks [batch, height, width].
"""

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from comfy_worker.standin.node import Context
from comfy_worker.standin.pixels import Array, from_bytes, to_bytes

Frame = tuple[Array, Array]

_EIGHT_BIT = frozenset(("rgb24", "rgba", "pal8"))
_OPAQUE = np.zeros((64, 64), np.float32)


def read(path: Path) -> tuple[Array, Array]:
    """
    Return the frames of a picture file as a batch, and their masks (1 where transparent).

    FFmpeg decodes, Pillow what FFmpeg cannot (ComfyUI 0.27.0 does so, and the two differ by some levels).
    Frames of another size than the first are left out. Without an alpha channel each mask is 64 by 64 zeros.

    Raises:
        OSError: neither can read the file (also `PIL.UnidentifiedImageError`).
        av.FFmpegError: a side is under 16 pixels in a format whose levels become floats (grey, GIF, WebP, ...).
    """
    frames = _decoded(path) or _opened(path)
    first = frames[0][0].shape
    alike = [frame for frame in frames if frame[0].shape == first]
    return np.stack([picture for picture, _ in alike]), np.stack([mask for _, mask in alike])


def _decoded(path: Path) -> list[Frame]:
    try:
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
    except (av.FFmpegError, IndexError):
        return []
    return [turned(frame) for frame in frames]


def turned(frame: Any) -> Frame:
    """
    Return a decoded frame, turned as its rotation says, and its mask.

    Raises:
        av.FFmpegError: it is too small, see `read`.
    """
    transparent = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    if frame.format.name in _EIGHT_BIT or frame.format.name.startswith("yuvj"):
        pixels = from_bytes(_converted(frame, "rgba" if transparent else "rgb24"))
    else:
        deep = _converted(_aligned(frame), "gbrapf32le" if transparent else "gbrpf32le")
        pixels = deep[: frame.height, : frame.width]
    # Mirrored pictures (Exif 2, 4, 5, 7) stay mirrored, as in ComfyUI: the rotation is all that it looks at.
    pixels = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return pixels[..., :3], 1 - pixels[..., 3] if transparent else _OPAQUE


def _converted(frame: Any, pixel_format: str) -> Any:
    # One thread: with more, FFmpeg's slices write over each other's edges and the levels vary from run to run.
    return frame.to_ndarray(format=pixel_format, threads=1)


def _aligned(frame: Any) -> Any:
    # So does ComfyUI: FFmpeg converts rows of other lengths in another way. Under 16 pixels the mirror is too short.
    if frame.width % 32 == 0:
        return frame
    right, bottom = -frame.width % 32, -frame.height % 32
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
        ),
        graph.add("pad", f"{frame.width + right}:{frame.height + bottom}"),
        graph.add("fillborders", f"right={right}:bottom={bottom}:mode=mirror"),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull()


def _opened(path: Path) -> list[Frame]:
    with Image.open(path) as file:
        turned = (ImageOps.exif_transpose(frame) for frame in ImageSequence.Iterator(file))
        return [(_floats(frame.convert("RGB")), _mask(frame)) for frame in turned]


def _mask(frame: Image.Image) -> Array:
    return 1 - _floats(frame.getchannel("A")) if "A" in frame.getbands() else _OPAQUE


def _floats(picture: Image.Image) -> Array:
    return from_bytes(np.array(picture))


def picture_of(image: Array) -> Image.Image:
    """
    Return one picture [height, width, channels] as a Pillow image; one channel is grey, four are RGBA.
    """
    levels = to_bytes(image)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def png_text(context: Context) -> PngInfo | None:
    """
    Return the text chunks of a saved PNG: `prompt` and each key of `extra_pnginfo` as JSON; None without metadata.
    """
    if not context.metadata:
        return None
    info = PngInfo()
    for key, value in metadata(context).items():
        info.add_text(key, value)
    return info


def apng_text(context: Context) -> PngInfo:
    """
    Return the metadata of an animated PNG: chunks of type `comf`, key and JSON parted by a zero byte, after the pictures.
    """
    info = PngInfo()
    for key, value in metadata(context).items():
        info.add(b"comf", f"{key}\0{value}".encode(), after_idat=True)
    return info


def webp_exif(context: Context) -> Image.Exif:
    """
    Return the metadata of a WebP as Exif texts `key:JSON`: the prompt as camera model, the others in the tags below.
    """
    exif = Image.Exif()
    for offset, (key, value) in enumerate(metadata(context).items()):
        exif[0x0110 - offset] = f"{key}:{value}"
    return exif


def metadata(context: Context) -> dict[str, str]:
    """
    Return what a saved file tells of its making, each value as JSON; nothing with metadata switched off.
    """
    if not context.metadata:
        return {}
    facts = {"prompt": context.prompt, **(context.extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in facts.items()}


def png(image: Array, compress_level: int, info: PngInfo | None = None) -> bytes:
    """
    Return one picture [height, width, channels] as a PNG.
    """
    buffer = io.BytesIO()
    picture_of(image).save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()


def animation(images: Array, kind: str, fps: float, **options: Any) -> bytes:
    """
    Return the batch as one animated file; `kind` is `WEBP` or `PNG`, `options` are Pillow's.
    """
    frames = [picture_of(image) for image in images]
    buffer = io.BytesIO()
    duration = int(1000 / fps)
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=duration, **options)
    return buffer.getvalue()
