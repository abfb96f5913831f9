"""
Encode pixels with libvips, for the options of JPEG and WebP that Pillow's encoders lack.

Needs the extra `vips`. libvips sees nothing but raw pixels that Pillow decoded: it never reads a file of a caller.
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from comfy_worker.errors import JobFailed

logger = logging.getLogger(__name__)

# sharp's name -> libvips' name, for every option of the format.
NAMES: Mapping[str, Mapping[str, str]] = {
    "jpeg": {
        "quality": "Q",
        "progressive": "interlace",
        "optimizeCoding": "optimize_coding",
        "trellisQuantisation": "trellis_quant",
        "overshootDeringing": "overshoot_deringing",
        "optimizeScans": "optimize_scans",
        "quantisationTable": "quant_table",
    },
    "webp": {
        "quality": "Q",
        "alphaQuality": "alpha_q",
        "lossless": "lossless",
        "nearLossless": "near_lossless",
        "smartSubsample": "smart_subsample",
        "preset": "preset",
        "effort": "effort",
    },
}
MOZJPEG = {"trellisQuantisation": True, "overshootDeringing": True, "quantisationTable": 3}
"""What `mozjpeg` stands for in sharp, beside progressive optimised scans; a value that the caller gave goes first."""

BLOBS = {"exif": "exif-data", "xmp": "xmp-data", "icc_profile": "icc-profile-data"}
BANDS = {"L": "b-w", "RGB": "srgb", "RGBA": "srgb"}


@lru_cache(maxsize=1)
def library() -> Any:
    """
    Return the module `pyvips`, or None where it is not installed or does not find libvips. Imports it, once.
    """
    try:
        pyvips = importlib.import_module("pyvips")
    except (ImportError, OSError) as exc:
        logger.debug("No libvips: %s", exc)
        return None
    # Its cache of operations would keep the pixels of past jobs.
    pyvips.cache_set_max(0)
    return pyvips


def encode(
    frames: Sequence[Image.Image],
    target: str,
    options: Mapping[str, Any],
    metadata: Mapping[str, bytes],
    timing: Mapping[str, Any],
) -> bytes:
    """
    Encode frames of mode L, RGB or RGBA as "jpeg" or "webp". `options` holds every option, under sharp's names.

    `timing` holds `duration` (milliseconds per frame) and `loop` of an animation.

    Raises:
        JobFailed: libvips is not there, or it failed.
    """
    pyvips = library()
    if pyvips is None:
        raise JobFailed("libvips is not installed")
    try:
        image = _joined(pyvips, frames, timing)
        for name, blob in BLOBS.items():
            if name in metadata:
                image.set_type(pyvips.GValue.blob_type, blob, metadata[name])
        save = image.jpegsave_buffer if target == "jpeg" else image.webpsave_buffer
        return bytes(save(keep="all" if metadata else "none", **_arguments(target, options)))
    except pyvips.Error as exc:
        raise JobFailed(f"libvips cannot encode it: {str(exc).splitlines()[0]}") from exc


def _joined(pyvips: Any, frames: Sequence[Image.Image], timing: Mapping[str, Any]) -> Any:
    moving = len({frame.mode for frame in frames}) > 1
    made = [_image(pyvips, frame.convert("RGBA") if moving else frame) for frame in frames]
    if len(made) == 1:
        return made[0]
    image = pyvips.Image.arrayjoin(made, across=1).copy()
    image.set_type(pyvips.GValue.gint_type, "page-height", frames[0].height)
    image.set_type(pyvips.GValue.array_int_type, "delay", list(timing["duration"]))
    image.set_type(pyvips.GValue.gint_type, "loop", timing["loop"])
    return image


def _image(pyvips: Any, frame: Image.Image) -> Any:
    bands = len(frame.getbands())
    raw = pyvips.Image.new_from_memory(frame.tobytes(), frame.width, frame.height, bands, "uchar")
    return raw.copy(interpretation=BANDS[frame.mode])


def _arguments(target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    found = {theirs: options[name] for name, theirs in NAMES[target].items()}
    for name in ("Q", "alpha_q", "effort", "quant_table"):
        if name in found:
            found[name] = round(found[name])
    if target == "jpeg":
        found["subsample_mode"] = "on" if options["chromaSubsampling"] == "4:2:0" else "off"
        found["interlace"] = found["interlace"] or found["optimize_scans"]
    return found
