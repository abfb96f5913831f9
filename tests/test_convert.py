"""
Tests of convert and picture: what the encoded image is, which options are taken, what stays when metadata goes.
"""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from comfy_worker import convert_vips
from comfy_worker.convert import OPTIONS, check_options, convert, unheeded, with_defaults
from comfy_worker.errors import JobFailed, JobInvalid
from comfy_worker.job import Conversion
from comfy_worker.picture import image_problem, strip

FORMATS = ["png", "jpeg", "jpg", "webp", "avif"]


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def converted(source: bytes, format: str, keep: bool = False, **options: Any) -> Image.Image:
    return decoded(convert(source, Conversion(format, check_options(format, options), keep)).data)  # type: ignore[arg-type]


def photo(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    image = Image.radial_gradient("L").resize(size)
    return Image.merge("RGB", (image, image.rotate(90), image.rotate(180))).convert(mode)


def near(pixel: Any, wanted: tuple[int, ...], by: int = 6) -> bool:
    return len(pixel) == len(wanted) and all(abs(a - b) <= by for a, b in zip(pixel, wanted, strict=True))


def film(format: str, **options: Any) -> bytes:
    frames = [Image.new("RGBA", (16, 16), (80 * number, 10, 10, 255)) for number in range(3)]
    more = {"save_all": True, "append_images": frames[1:], "duration": [100, 200, 300], **options}
    return encoded(frames[0], format, **more)


@pytest.mark.parametrize("format", FORMATS)
def test_runpod_14_27_convert_makes_the_format_asked_for(format: str) -> None:
    """Each format gives an image of that format and size, its MIME type, and the extension as it was spelled."""
    result = convert(encoded(photo()), Conversion(format))  # type: ignore[arg-type]

    image = decoded(result.data)
    real = "jpeg" if format == "jpg" else format
    assert (image.format, image.size) == (real.upper(), (64, 48))
    assert (result.mime, result.extension) == (f"image/{real}", format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "CMYK", "PA"])
def test_convert_takes_every_mode(mode: str, format: str) -> None:
    """Whatever the mode of the source, the result is 8-bit grey, RGB or RGBA and shows the same colour."""
    grey = Image.new("L", (8, 8), 128)
    source = {
        "I;16": lambda: Image.new("I;16", (8, 8), 32768),
        "I": lambda: Image.new("I", (8, 8), 32768),
        "CMYK": lambda: grey.convert("RGB").convert("CMYK"),
        "1": lambda: Image.new("1", (8, 8), 1),
    }.get(mode, lambda: grey.convert(mode))()
    container = "TIFF" if mode in {"CMYK", "PA", "I"} else "PNG"
    if mode == "PA":
        source = grey.convert("LA")

    image = converted(encoded(source, container), format)

    assert image.mode in {"L", "RGB", "RGBA"}
    assert near(image.convert("RGB").getpixel((4, 4)), (255,) * 3 if mode == "1" else (128,) * 3)


def test_convert_flattens_alpha_on_black_for_jpeg_only() -> None:
    """A half transparent red is dark red in JPEG and stays half transparent elsewhere."""
    source = encoded(Image.new("RGBA", (16, 16), (200, 0, 0, 128)))

    assert near(converted(source, "jpeg").getpixel((5, 5)), (100, 0, 0))
    for format in ("png", "webp", "avif"):
        assert near(converted(source, format).getpixel((5, 5)), (200, 0, 0, 128))


def test_convert_heeds_palette_transparency() -> None:
    """A transparent palette entry becomes alpha, and black in JPEG."""
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 0, 250, 0])
    source = encoded(image, "PNG", transparency=1)

    assert converted(source, "webp", lossless=True).getpixel((3, 3))[3] == 0  # type: ignore[index]
    assert near(converted(source, "jpeg").getpixel((3, 3)), (0, 0, 0))


@pytest.mark.parametrize("source", ["GIF", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("format", ["webp", "avif", "png"])
def test_salad_s55_convert_keeps_an_animation(source: str, format: str) -> None:
    """An animated image stays animated, with its frames and their times."""
    image = converted(film(source), format)

    times = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        image.load()
        times.append(round(image.info["duration"]))
        assert near(image.convert("RGB").getpixel((8, 8)), (80 * number, 10, 10), by=20)
    assert times == [100, 200, 300]


def test_salad_s55_convert_takes_the_first_frame_for_jpeg() -> None:
    """An animation becomes its first frame in JPEG."""
    image = converted(film("GIF"), "jpeg")

    assert near(image.getpixel((8, 8)), (0, 10, 10))


@pytest.mark.parametrize("loop", [0, 3])
def test_convert_keeps_how_often_an_animation_runs(loop: int) -> None:
    """The loop count of a GIF is the loop count of the WebP."""
    assert converted(film("GIF", loop=loop), "webp").info["loop"] == loop


def test_convert_moves_colours_into_srgb() -> None:
    """A picture with another colour profile is brought to sRGB, and the profile is dropped."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same profile with the colorants of red and green exchanged.
    exchanged = srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    image = Image.new("RGB", (8, 8), (120, 60, 30))

    result = converted(encoded(image, icc_profile=exchanged), "png")

    assert near(converted(encoded(image, icc_profile=srgb), "png").getpixel((1, 1)), (120, 60, 30), by=1)
    assert near(result.getpixel((1, 1)), (60, 120, 30), by=3) and "icc_profile" not in result.info


def test_convert_turns_a_picture_upright_when_it_drops_the_orientation() -> None:
    """A rotated photograph looks the same once its EXIF is gone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    source = encoded(Image.new("RGB", (32, 16), "red"), "JPEG", exif=exif.tobytes())

    assert converted(source, "webp").size == (16, 32)


def test_runpod_14_26_convert_drops_metadata_unless_asked() -> None:
    """The workflow in a PNG is gone after a conversion, whatever the target."""
    source = with_workflow()

    for format in FORMATS:
        data = convert(source, Conversion(format)).data  # type: ignore[arg-type]
        assert b"KSampler" not in data and b"exif" not in data.lower()


def test_runpod_14_26_convert_keeps_metadata_when_asked() -> None:
    """With `keep_metadata` the workflow is PNG text in PNG, and EXIF as ComfyUI reads it in the others."""
    source = with_workflow()

    assert converted(source, "png", keep=True).text["prompt"] == '{"3": "KSampler é"}'  # type: ignore[attr-defined]
    for format in ("jpeg", "webp", "avif"):
        exif = converted(source, format, keep=True).getexif()
        assert exif[0x0110].startswith('prompt:{"3": "KSampler') and exif[0x010F] == "workflow:{}"


def test_convert_keeps_exif_xmp_and_profile_when_asked() -> None:
    """EXIF, XMP and the colour profile of a JPEG are in the WebP made from it."""
    exif = Image.Exif()
    exif[0x0131] = "camera"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = encoded(photo(), "JPEG", exif=exif.tobytes(), xmp=b"<x:xmpmeta/>", icc_profile=icc)

    image = converted(source, "webp", keep=True)

    assert image.getexif()[0x0131] == "camera"
    assert (image.info["xmp"], image.info["icc_profile"]) == (b"<x:xmpmeta/>", icc)


def test_convert_makes_a_jpeg_even_when_the_workflow_is_too_large_for_it() -> None:
    """A workflow that no JPEG segment can hold is dropped instead of failing the conversion."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 100_000)

    image = converted(encoded(photo(), pnginfo=info), "jpeg", keep=True)

    assert image.size == (64, 48)


@pytest.mark.parametrize(
    ("format", "small", "large"),
    [
        ("jpeg", {"quality": 20}, {"quality": 95}),
        ("jpeg", {"chromaSubsampling": "4:2:0"}, {"chromaSubsampling": "4:4:4"}),
        ("jpeg", {"optimizeCoding": True}, {"optimizeCoding": False}),
        ("webp", {"quality": 20}, {"quality": 95}),
        ("webp", {"quality": 80}, {"lossless": True}),
        ("png", {"compressLevel": 9}, {"compressLevel": 0}),
        ("avif", {"quality": 20}, {"quality": 90}),
        ("avif", {"chromaSubsampling": "4:2:0"}, {"chromaSubsampling": "4:4:4"}),
    ],
)
def test_salad_s52_convert_heeds_the_options_of_the_format(
    format: str, small: dict[str, Any], large: dict[str, Any]
) -> None:
    """An option changes the size of the file in the direction it promises."""
    noise = Image.effect_noise((128, 128), 90)
    source = encoded(Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180))))

    sizes = [len(convert(source, Conversion(format, options)).data) for options in (small, large)]  # type: ignore[arg-type]

    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("options", "progressive"),
    [
        ({}, False),
        ({"progressive": True}, True),
        ({"mozjpeg": True}, True),
        ({"optimizeScans": True}, True),
        ({"mozjpeg": True, "progressive": False}, False),
    ],
)
def test_salad_s53_convert_does_the_best_it_can_for_mozjpeg(
    options: dict[str, Any], progressive: bool
) -> None:
    """mozjpeg and optimizeScans mean progressive, unless the caller said otherwise."""
    image = converted(encoded(photo()), "jpeg", **options)

    assert bool(image.info.get("progressive")) is progressive


def test_convert_names_the_options_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, options that the encoder lacks are named in one warning, those at their default are not."""
    monkeypatch.setattr(convert_vips, "library", lambda: None)
    options = {"mozjpeg": True, "trellisQuantisation": True, "quantisationTable": 0, "quality": 50}

    (warning,) = unheeded(Conversion("jpeg", options))

    assert "mozjpeg" in warning and "trellisQuantisation" in warning and "quantisationTable" not in warning
    assert unheeded(Conversion("webp", {"lossless": True})) == ()


@pytest.mark.parametrize(
    ("format", "name", "value", "accepted"),
    [
        ("jpeg", "quality", 0, "a number from 1 to 100"),
        ("jpeg", "quality", "80", "a number from 1 to 100"),
        ("jpeg", "quality", float("nan"), "a number from 1 to 100"),
        ("jpeg", "progressive", 1, "true or false"),
        ("jpeg", "chromaSubsampling", "4:1:1", '"4:2:0", "4:4:4"'),
        ("jpg", "quantisationTable", 9, "a whole number from 0 to 8"),
        ("webp", "quality", 80.5, "a whole number from 1 to 100"),
        ("webp", "quality", True, "a whole number from 1 to 100"),
        ("webp", "effort", 7, "a whole number from 0 to 6"),
        ("webp", "preset", "film", '"photo"'),
        ("webp", "mozjpeg", True, "alphaQuality"),
        ("png", "compressLevel", 10, "a whole number from 0 to 9"),
        ("avif", "speed", -1, "a whole number from 0 to 10"),
        ("avif", "qualty", 50, "quality, speed"),
    ],
)
def test_salad_s54_check_options_names_the_option_and_its_range(
    format: str, name: str, value: Any, accepted: str
) -> None:
    """An option that is unknown, of a wrong type or out of range is refused by its full name with what is accepted."""
    with pytest.raises(JobInvalid) as caught:
        check_options(format, {name: value})

    assert caught.value.details["field"] == f"convert_output.options.{name}"
    assert f"'convert_output.options.{name}'" in str(caught.value) and accepted in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_check_options_takes_its_own_defaults(format: str) -> None:
    """The defaults of a format are options that the format takes, and an image is made with them."""
    options = with_defaults(format, {})

    assert check_options(format, options) == options and set(options) == set(OPTIONS[format])
    assert converted(encoded(photo()), format, **options).size == (64, 48)


def test_check_options_refuses_an_unknown_format() -> None:
    """A format that cannot be made is refused by name."""
    with pytest.raises(JobInvalid, match="png, jpeg, jpg, webp, avif"):
        check_options("bmp", {})


@pytest.mark.parametrize(
    "source",
    [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_convert_refuses_what_is_no_image(source: bytes) -> None:
    """Bytes that are no image fail by one error, and not by Pillow's."""
    with pytest.raises(JobFailed, match="not an image"):
        convert(source, Conversion("webp"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_convert_refuses_a_truncated_image(format: str) -> None:
    """Half an image is an error."""
    data = encoded(photo(size=(300, 200)), format)

    with pytest.raises(JobFailed):
        convert(data[: len(data) // 2], Conversion("png"))


def test_convert_refuses_more_pixels_than_are_safe() -> None:
    """A few bytes that would become gigabytes are refused before they are decoded."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + zlib.crc32(header).to_bytes(4, "big")
    bomb += b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")

    with pytest.raises(JobFailed, match="too many pixels"):
        convert(bomb, Conversion("webp"))
    assert "pixels" in str(image_problem(bomb))


def test_convert_fails_when_the_format_cannot_hold_the_image() -> None:
    """A picture wider than WebP can be is an error, not a broken file."""
    with pytest.raises(JobFailed):
        convert(encoded(Image.new("L", (17_000, 1))), Conversion("webp"))


def test_convert_reads_a_file(tmp_path: Path) -> None:
    """A path is as good as bytes, and a file that is gone is our own error."""
    (tmp_path / "a.png").write_bytes(encoded(photo()))

    assert decoded(convert(tmp_path / "a.png", Conversion("webp")).data).format == "WEBP"
    with pytest.raises(JobFailed, match="gone"):
        convert(tmp_path / "b.png", Conversion("webp"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_image_problem_finds_none_in_an_image(format: str) -> None:
    """An image that ComfyUI could load has no problem."""
    assert image_problem(encoded(photo(), format)) is None


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_image_problem_finds_none_in_an_animation(format: str) -> None:
    """An animation is an image."""
    assert image_problem(film(format)) is None


def test_image_problem_names_what_is_wrong(tmp_path: Path) -> None:
    """Text, SVG and a PNG with a wrong checksum are told from images, without a path in the reason."""
    broken = bytearray(encoded(photo()))
    broken[-20] ^= 0xFF
    (tmp_path / "a.png").write_bytes(b"hello")

    assert image_problem(b"<svg/>") == "it is not an image of a known format"
    assert image_problem(bytes(broken)) is not None
    reason = image_problem(tmp_path / "a.png")
    assert reason is not None and str(tmp_path) not in reason


def with_workflow(format: str = "PNG") -> bytes:
    texts = {"prompt": json.dumps({"3": "KSampler é"}, ensure_ascii=False), "workflow": "{}"}
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            info.add_itxt(key, text) if key == "prompt" else info.add_text(key, text, zip=True)
        return encoded(photo(), "PNG", pnginfo=info)
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{texts['prompt']}"
    return encoded(photo(), format, exif=exif.tobytes(), xmp=b"<x>KSampler</x>")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_runpod_14_26_strip_drops_the_metadata_and_keeps_every_pixel(format: str) -> None:
    """The workflow is gone, the format is the same, and the pixels are those of before."""
    source = with_workflow(format)

    stripped = strip(source)

    before, after = decoded(source), decoded(stripped)
    assert b"KSampler" in source and b"KSampler" not in stripped and b"workflow" not in stripped
    assert (after.format, after.tobytes()) == (before.format, before.tobytes())
    assert not after.getexif() and "xmp" not in after.info


def test_strip_keeps_an_animation_and_drops_what_comfyui_hid_in_it() -> None:
    """An APNG keeps its frames and loses the chunk in which ComfyUI keeps the workflow."""
    info = PngImagePlugin.PngInfo()
    info.add(b"comf", b"workflow\0{}", after_idat=True)

    stripped = strip(film("PNG", pnginfo=info))

    assert getattr(decoded(stripped), "n_frames", 1) == 3 and b"workflow" not in stripped


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_strip_keeps_the_colour_profile(format: str) -> None:
    """The colour profile is no metadata: without it the picture looks different."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert decoded(strip(encoded(photo(), format, icc_profile=icc))).info["icc_profile"] == icc


def test_strip_leaves_other_files_as_they_are() -> None:
    """A file of another kind comes back byte for byte."""
    data = encoded(photo(), "GIF")

    assert strip(data) == data


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_strip_refuses_a_broken_file(format: str) -> None:
    """Where the chunks do not add up, nothing is returned that may still hold the workflow."""
    with pytest.raises(JobFailed, match="broken"):
        strip(with_workflow(format)[:40])
