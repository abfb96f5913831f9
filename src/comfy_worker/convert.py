"""
Re-encode one image: bytes or a file in, bytes out; and what its options may be.

The options keep the names that sharp gave them (`chromaSubsampling`), because that is what callers send. Which files
are converted, and what happens to one that cannot be, is decided in `deliver`.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageCms, ImageOps, ImageSequence

from comfy_worker import convert_metadata, convert_vips, picture
from comfy_worker.errors import JobFailed, JobInvalid
from comfy_worker.job import Conversion


@dataclass(frozen=True, slots=True)
class Option:
    """
    One option: its type, its range or choices, what it is when absent, and what Pillow calls it (None: it has no such).
    """

    type: Literal["whole", "number", "flag", "choice"]
    default: Any
    pillow: str | None
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()

    @property
    def accepts(self) -> str:
        """
        Say what is accepted, to stand after "must be".
        """
        if self.type == "flag":
            return "true or false"
        if self.type == "choice":
            return "one of " + ", ".join(f'"{name}"' for name in self.choices)
        return f"a {'whole ' if self.type == 'whole' else ''}number from {self.low} to {self.high}"

    def has(self, value: Any) -> bool:
        """
        Tell whether `value` is of the type and within the range.
        """
        if self.type == "flag":
            return isinstance(value, bool)
        if self.type == "choice":
            return isinstance(value, str) and value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return self.low <= value <= self.high and (self.type == "number" or value == int(value))


def _flag(pillow: str | None, default: bool = False) -> Option:
    return Option("flag", default, pillow)


_CHROMA = Option("choice", "4:2:0", "subsampling", choices=("4:2:0", "4:4:4"))
_PRESETS = ("default", "photo", "picture", "drawing", "icon", "text")
_JPEG: Mapping[str, Option] = {
    "quality": Option("number", 80, "quality", 1, 100),
    "progressive": _flag("progressive"),
    "chromaSubsampling": _CHROMA,
    "optimizeCoding": _flag("optimize", default=True),
    "trellisQuantisation": _flag(None),
    "overshootDeringing": _flag(None),
    "optimizeScans": _flag(None),
    "quantisationTable": Option("whole", 0, None, 0, 8),
    "mozjpeg": _flag(None),
}
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "png": {"compressLevel": Option("whole", 6, "compress_level", 0, 9)},
    "jpeg": _JPEG,
    "jpg": _JPEG,
    "webp": {
        "quality": Option("whole", 80, "quality", 1, 100),
        "alphaQuality": Option("whole", 100, "alpha_quality", 0, 100),
        "lossless": _flag("lossless"),
        "nearLossless": _flag(None),
        "smartSubsample": _flag(None),
        "preset": Option("choice", "default", None, choices=_PRESETS),
        "effort": Option("whole", 4, "method", 0, 6),
    },
    "avif": {
        "quality": Option("whole", 75, "quality", 1, 100),
        "speed": Option("whole", 6, "speed", 0, 10),
        "chromaSubsampling": _CHROMA,
    },
}
MIME = {
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "png": "image/png",
    "avif": "image/avif",
}


@dataclass(frozen=True, slots=True)
class Converted:
    """
    A re-encoded image; `extension` is without its dot and as the caller spelled the format.
    """

    data: bytes
    mime: str
    extension: str


def check_options(format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the options of `convert_output` as they were given, once each is known and within its range.

    Raises:
        JobInvalid: the format or an option is unknown, of a wrong type or out of range.
    """
    table = OPTIONS.get(format)
    if table is None:
        raise JobInvalid(
            f"'convert_output.format' must be one of {', '.join(OPTIONS)}.", field="convert_output.format"
        )
    for name, value in options.items():
        path = f"convert_output.options.{name}"
        if name not in table:
            raise JobInvalid(
                f"'{path}' is not an option of {format}; there are {', '.join(table)}.", field=path
            )
        if not table[name].has(value):
            raise JobInvalid(f"'{path}' must be {table[name].accepts}.", field=path)
    return dict(options)


def with_defaults(format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return every option of the format, as given or else by default: what an echo of the request shows.
    """
    return {name: options.get(name, option.default) for name, option in OPTIONS[format].items()}


def unheeded(conversion: Conversion) -> tuple[str, ...]:
    """
    Return one warning that names the options given which this worker's encoder does not have; empty when there are none.
    """
    names = [name for name in _beyond_pillow(conversion) if name != "optimizeScans"]
    if not names or convert_vips.library() is not None:
        return ()
    best = " (mozjpeg: progressive with optimised coding instead)" if "mozjpeg" in names else ""
    return (f"convert_output: {', '.join(names)} had no effect, the encoder has no such option{best}",)


def _beyond_pillow(conversion: Conversion) -> list[str]:
    table = OPTIONS[conversion.format]
    return [
        name
        for name, value in conversion.options.items()
        if table[name].pillow is None and value != table[name].default
    ]


def convert(
    source: Path | bytes, conversion: Conversion, most_pixels: int = picture.MOST_PIXELS
) -> Converted:
    """
    Encode an image anew, as 8-bit sRGB. Alpha becomes black in JPEG; an animation stays one, except in JPEG.

    `conversion.options` were checked by `check_options`. Metadata is dropped unless `keep_metadata` is set.

    Raises:
        JobFailed: the bytes are no image, it has too many pixels, or the format cannot hold it.
    """
    target = "jpeg" if conversion.format == "jpg" else conversion.format
    with picture.opened(source) as image:
        metadata = convert_metadata.kept(image, target) if conversion.keep_metadata else {}
        if target != "jpeg" and _is_animation(image):
            frames, timing = _animation(image, target, metadata, most_pixels)
        else:
            frames = [_pixels(image if metadata else ImageOps.exif_transpose(image), target, metadata)]
            timing = {}
        data = _encoded(frames, target, conversion, metadata, timing)
    return Converted(data, MIME[target], conversion.format)


def _encoded(
    frames: list[Image.Image],
    target: str,
    conversion: Conversion,
    metadata: dict[str, Any],
    timing: dict[str, Any],
) -> bytes:
    if _beyond_pillow(conversion) and convert_vips.library() is not None:
        options = with_defaults(target, _as_mozjpeg(conversion.options))
        return convert_vips.encode(frames, target, options, metadata, timing)
    moving = {"save_all": True, "append_images": frames[1:], **timing} if timing else {}
    out = io.BytesIO()
    frames[0].save(out, target.upper(), **_pillow_options(conversion), **moving, **metadata)
    return out.getvalue()


def _as_mozjpeg(given: Mapping[str, Any]) -> Mapping[str, Any]:
    if not given.get("mozjpeg"):
        return given
    # Optimised scans are progressive ones.
    scans = given.get("progressive", True)
    made = {"progressive": True, "optimizeCoding": True, **convert_vips.MOZJPEG, "optimizeScans": scans}
    return {**made, **given}


def _pillow_options(conversion: Conversion) -> dict[str, Any]:
    given, table = conversion.options, OPTIONS[conversion.format]
    values = with_defaults(conversion.format, given)
    if values.get("mozjpeg"):
        values |= {
            "progressive": given.get("progressive", True),
            "optimizeCoding": given.get("optimizeCoding", True),
        }
    if values.get("optimizeScans"):
        values["progressive"] = True
    return {
        option.pillow: round(values[name]) if option.type in {"whole", "number"} else values[name]
        for name, option in table.items()
        if option.pillow
    }


def _is_animation(image: Image.Image) -> bool:
    # A TIFF or MPO has pages, not frames.
    return image.format in {"GIF", "PNG", "WEBP", "AVIF"} and bool(getattr(image, "is_animated", False))


def _animation(
    image: Image.Image, target: str, metadata: Mapping[str, Any], most_pixels: int
) -> tuple[list[Image.Image], dict[str, Any]]:
    frames: list[Image.Image] = []
    durations: list[int] = []
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        # An APNG may start with a picture that is only for viewers without animation.
        if number == 0 and getattr(image, "default_image", False):
            continue
        if (number + 1) * image.width * image.height > most_pixels:
            raise JobFailed(picture.TOO_MANY_PIXELS)
        frame.load()
        frames.append(_pixels(frame, target, metadata))
        durations.append(round(frame.info.get("duration") or 100))
    once = 1 if image.format == "GIF" else 0
    loop = {} if target == "avif" else {"loop": image.info.get("loop", once)}
    return frames, {"duration": durations, **loop}


def _pixels(image: Image.Image, target: str, metadata: Mapping[str, Any]) -> Image.Image:
    profile = None if "icc_profile" in metadata else image.info.get("icc_profile")
    flat = _eight_bit(image)
    if profile:
        flat = _in_srgb(flat, profile)
    if flat.mode == "CMYK":
        flat = flat.convert("RGB")
    if flat.mode == "RGBA" and target == "jpeg":
        ground = Image.new("RGB", flat.size)
        ground.paste(flat, mask=flat.getchannel("A"))
        flat = ground
    # Pillow's encoders write some of what stands here without being asked.
    flat.info = {}
    return flat


def _eight_bit(image: Image.Image) -> Image.Image:
    """
    Return a copy whose mode is L, RGB, RGBA or CMYK.
    """
    if image.mode.startswith("I"):
        # Pillow 12 cuts values off at 255 when it converts 16 bits to 8.
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in {"1", "L", "F"}:
        return image.convert("L")
    return image.copy() if image.mode in {"RGB", "CMYK"} else image.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        moved = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a profile for another kind of image says nothing about this one
    return moved if moved is not None else image
