"""
The options that only libvips has: each changes the file, none changes what the picture shows.
"""

import io
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from comfy_worker import convert_vips
from comfy_worker.convert import convert, unheeded
from comfy_worker.job import Conversion

needs_vips = pytest.mark.skipif(convert_vips.library() is None, reason="the extra `vips` is not installed")
JPEG: list[dict[str, Any]] = [
    {"mozjpeg": True},
    {"trellisQuantisation": True},
    {"overshootDeringing": True},
    {"optimizeScans": True},
    {"quantisationTable": 3},
]
WEBP: list[dict[str, Any]] = [{"nearLossless": True}, {"smartSubsample": True}, {"preset": "drawing"}]
CASES = [*(("jpeg", options) for options in JPEG), *(("webp", options) for options in WEBP)]
NAMES = [f"{format}-{next(iter(options))}" for format, options in CASES]


def drawn(mode: str = "RGB") -> Image.Image:
    """
    Return a picture with soft slopes, sharp edges near white and some noise.
    """
    slope = Image.linear_gradient("L")
    noise = Image.blend(slope, Image.effect_noise(slope.size, 20), 0.2)
    image = Image.merge("RGB", (slope, noise, slope.rotate(90)))
    image.paste((255, 255, 255), (40, 40, 120, 120))
    image.paste((0, 0, 0), (60, 60, 90, 90))
    if mode == "RGBA":
        image.putalpha(slope)
    return image.convert(mode)


def png(image: Image.Image, **options: Any) -> bytes:
    """
    Return a PNG.
    """
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def converted(source: bytes, format: str, options: dict[str, Any], **fields: Any) -> bytes:
    """
    Return the bytes of a converted picture.
    """
    return convert(source, Conversion(format, options, **fields)).data  # type: ignore[arg-type]


def difference(data: bytes, image: Image.Image) -> float:
    """
    Return how far the pixels are from those of `image`: the root mean square of 0 to 255.
    """
    with Image.open(io.BytesIO(data)) as got:
        return max(ImageStat.Stat(ImageChops.difference(got.convert("RGB"), image.convert("RGB"))).rms)


@needs_vips
@pytest.mark.parametrize(("format", "options"), CASES, ids=NAMES)
def test_salad_s53_option_changes_the_file_and_keeps_the_picture(
    format: str, options: dict[str, Any]
) -> None:
    """Each option is heeded: other bytes than libvips' own without it, and pixels as near as the default's."""
    image = drawn()
    plain = converted(png(image), format, {})

    data = converted(png(image), format, options)

    bare = convert_vips.encode([image], format, {**defaults(format), **follows(options)}, {}, {})
    assert data != bare
    assert difference(data, image) < difference(plain, image) * 1.5 + 2
    assert unheeded(Conversion(format, options)) == ()  # type: ignore[arg-type]


def defaults(format: str) -> dict[str, Any]:
    """
    Return every option of a format at its default.
    """
    from comfy_worker.convert import with_defaults

    return with_defaults(format, {})


def follows(options: dict[str, Any]) -> dict[str, Any]:
    """
    Return what an option brings along that Pillow has too, so that it is not taken for the option's own effect.
    """
    return {"progressive": True} if {"mozjpeg", "optimizeScans"} & set(options) else {}


@needs_vips
def test_salad_s53_mozjpeg_makes_smaller_files() -> None:
    """What mozjpeg is for: fewer bytes at the same quality."""
    source = png(drawn())

    assert len(converted(source, "jpeg", {"mozjpeg": True})) < len(converted(source, "jpeg", {}))


@needs_vips
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize(("format", "options"), [("jpeg", JPEG[0]), ("webp", WEBP[0])])
def test_libvips_takes_every_mode(mode: str, format: str, options: dict[str, Any]) -> None:
    """Grey, colour and alpha arrive as they do from Pillow; alpha is black in JPEG."""
    out = io.BytesIO()
    drawn(mode).save(out, "TIFF")

    data = converted(out.getvalue(), format, options)

    with Image.open(io.BytesIO(converted(out.getvalue(), format, {}))) as expected:
        assert difference(data, expected) < 12
        with Image.open(io.BytesIO(data)) as got:
            assert (got.format, got.size) == (format.upper(), expected.size)
            assert ("A" in got.mode) == ("A" in expected.mode)


@needs_vips
def test_libvips_keeps_an_animation() -> None:
    """A moving WebP keeps its frames and durations."""
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    out = io.BytesIO()
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=[100, 200, 300], loop=3, lossless=True
    )

    data = converted(out.getvalue(), "webp", {"preset": "icon"})

    with Image.open(io.BytesIO(data)) as got:
        assert (got.n_frames, got.info["loop"], got.size) == (3, 3, (32, 24))  # type: ignore[attr-defined]
        for number, (frame, milliseconds) in enumerate(zip(frames, (100, 200, 300), strict=True)):
            got.seek(number)
            got.load()
            assert got.info["duration"] == milliseconds
            assert max(ImageStat.Stat(ImageChops.difference(got.convert("RGB"), frame)).rms) < 12


@needs_vips
@pytest.mark.parametrize(("format", "options"), [("jpeg", JPEG[0]), ("webp", WEBP[2])])
def test_libvips_keeps_metadata_only_when_asked(format: str, options: dict[str, Any]) -> None:
    """The workflow of a picture stays in EXIF with `keep_metadata`, and is nowhere in the file without."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", '{"mark": 1}')
    source = png(drawn(), pnginfo=info)

    kept = converted(source, format, options, keep_metadata=True)
    bare = converted(source, format, options)

    with Image.open(io.BytesIO(kept)) as image:
        assert image.getexif()[0x010F] == 'workflow:{"mark": 1}'
    assert b"mark" not in bare


@pytest.mark.parametrize(("format", "options"), CASES, ids=NAMES)
def test_options_are_harmless_without_libvips(
    monkeypatch: pytest.MonkeyPatch, format: str, options: dict[str, Any]
) -> None:
    """Without the extra the file is made all the same, by Pillow."""
    monkeypatch.setattr(convert_vips, "library", lambda: None)

    assert difference(converted(png(drawn()), format, options), drawn()) < 30
