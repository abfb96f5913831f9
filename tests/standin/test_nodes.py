"""
The nodes that make, change and read pictures and masks. Levels in the tables were recorded from ComfyUI 0.27.0.
"""

import io
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.pixels import from_bytes, to_bytes

from .desk import Desk

GREY = np.array([[0, 40, 200, 255], [90, 255, 10, 120], [30, 60, 90, 130]], np.uint8)

SCALED = {
    ("nearest-exact", 3, 2, "disabled"): [[0, 200, 255], [30, 90, 130]],
    ("nearest-exact", 6, 4, "disabled"): [
        [0, 40, 40, 200, 255, 255],
        [90, 255, 255, 10, 120, 120],
        [90, 255, 255, 10, 120, 120],
        [30, 60, 60, 90, 130, 130],
    ],
    ("nearest-exact", 2, 2, "center"): [[40, 255], [60, 130]],
    ("bilinear", 3, 2, "disabled"): [[34, 123, 209], [55, 89, 117]],
    ("bilinear", 6, 4, "disabled"): [
        [0, 20, 66, 173, 227, 255],
        [56, 115, 158, 96, 125, 170],
        [67, 124, 158, 63, 81, 123],
        [30, 45, 65, 84, 110, 130],
    ],
    ("bilinear", 2, 2, "center"): [[58, 186], [76, 98]],
    ("area", 3, 2, "disabled"): [[96, 126, 146], [108, 103, 87]],
    ("area", 6, 4, "disabled"): [
        [0, 20, 40, 200, 227, 255],
        [45, 96, 147, 105, 146, 187],
        [60, 108, 157, 50, 87, 125],
        [30, 45, 60, 90, 110, 130],
    ],
    ("area", 2, 2, "center"): [[96, 146], [108, 87]],
    ("bicubic", 3, 2, "disabled"): [[31, 125, 215], [56, 89, 113]],
    ("bicubic", 6, 4, "disabled"): [
        [0, 0, 53, 182, 255, 255],
        [52, 143, 190, 82, 106, 176],
        [66, 161, 190, 39, 45, 116],
        [23, 31, 54, 85, 117, 133],
    ],
    ("bicubic", 2, 2, "center"): [[53, 194], [83, 89]],
    ("lanczos", 3, 2, "disabled"): [[63, 129, 185], [88, 97, 90]],
    ("lanczos", 6, 4, "disabled"): [
        [0, 0, 47, 186, 255, 255],
        [46, 134, 188, 88, 116, 187],
        [61, 155, 189, 37, 44, 119],
        [24, 26, 49, 89, 124, 135],
    ],
    ("lanczos", 2, 2, "center"): [[80, 172], [91, 93]],
}

BLURRED = {
    (1, 1.0): [[108, 111, 136, 134], [100, 100, 120, 118], [119, 105, 100, 81]],
    (2, 0.5): [[101, 111, 124, 133], [105, 110, 113, 116], [104, 106, 103, 103]],
}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """
    A desk with empty folders.
    """
    return Desk(tmp_path)


def _picture(levels: npt.NDArray[np.uint8] = GREY) -> Any:
    return from_bytes(np.repeat(levels[None, ..., None], 3, axis=3))


def _levels(image: Any) -> Any:
    return to_bytes(image)[0, ..., 0].tolist()


def _png(levels: npt.NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_every_class_type_is_its_own_key() -> None:
    """
    A node is found under its class type, and runs are told of under the same name.
    """
    assert all(name == node.class_type for name, node in NODES.items())


def test_empty_image_has_the_color_in_every_pixel(desk: Desk) -> None:
    """
    A colour 0xRRGGBB becomes red, green and blue of the whole batch.
    """
    image = desk.value("EmptyImage", width=3, height=2, batch_size=2, color=0x336699)

    assert image.shape == (2, 2, 3, 3)
    assert (to_bytes(image) == [0x33, 0x66, 0x99]).all()


@pytest.mark.parametrize("case", SCALED, ids=str)
def test_image_scale_gives_comfyuis_levels(desk: Desk, case: tuple[str, int, int, str]) -> None:
    """
    Each method, with and without crop, gives the recorded levels.
    """
    method, width, height, crop = case
    sizes = {"width": width, "height": height, "crop": crop}

    scaled = desk.value("ImageScale", image=_picture(), upscale_method=method, **sizes)

    assert _levels(scaled) == SCALED[case]


@pytest.mark.parametrize(
    ("width", "height", "shape"), [(8, 0, (6, 8)), (0, 9, (9, 12)), (0, 0, (3, 4)), (1, 0, (1, 1))]
)
def test_image_scale_keeps_the_aspect_where_a_side_is_zero(
    desk: Desk, width: int, height: int, shape: tuple[int, int]
) -> None:
    """
    A side of 0 follows from the other one, two of them leave the picture alone.
    """
    sizes = {"width": width, "height": height, "crop": "disabled"}

    scaled = desk.value("ImageScale", image=_picture(), upscale_method="nearest-exact", **sizes)

    assert scaled.shape[1:3] == shape


def test_image_scale_by_rounds_the_sides(desk: Desk) -> None:
    """
    A factor applies to both sides, rounded.
    """
    scaled = desk.value("ImageScaleBy", image=_picture(), upscale_method="area", scale_by=1.4)

    assert scaled.shape == (1, 4, 6, 3)


def test_large_bilinear_results_do_not_overshoot_flat_areas(desk: Desk) -> None:
    """
    A flat picture stays flat to the last level: both of torch's kernels add weights up to one.
    """
    flat = _picture(np.full((37, 53), 131, np.uint8))

    small = desk.value("ImageScaleBy", image=flat, upscale_method="bilinear", scale_by=0.7)
    large = desk.value("ImageScaleBy", image=flat, upscale_method="bilinear", scale_by=3.3)

    assert set(np.unique(to_bytes(small))) | set(np.unique(to_bytes(large))) <= {130, 131}


def test_image_invert_is_the_negative(desk: Desk) -> None:
    """
    1 minus the value, cut off: 200 becomes 54 and not 55.
    """
    inverted = desk.value("ImageInvert", image=_picture())

    assert _levels(inverted) == [[255, 215, 54, 0], [165, 0, 245, 135], [225, 195, 165, 124]]


@pytest.mark.parametrize(
    ("region", "levels"), [((2, 1, 9, 9), [[10, 120], [90, 130]]), ((99, 99, 5, 5), [[130]])]
)
def test_image_crop_stays_inside_the_picture(
    desk: Desk, region: tuple[int, int, int, int], levels: list[list[int]]
) -> None:
    """
    What reaches out is left off, and a corner outside moves onto the last pixel.
    """
    box = dict(zip(("x", "y", "width", "height"), region, strict=True))

    cropped = desk.value("ImageCrop", image=_picture(), **box)
    shown = desk.run("ImageCropV2", image=_picture(), crop_region=box)

    assert _levels(cropped) == _levels(shown.values[0]) == levels
    assert shown.ui is not None
    assert shown.ui["animated"] == (False,)


@pytest.mark.parametrize("case", BLURRED, ids=str)
def test_image_blur_gives_comfyuis_levels(desk: Desk, case: tuple[int, float]) -> None:
    """
    The Gaussian and its mirrored edges give the recorded levels.
    """
    blurred = desk.value("ImageBlur", image=_picture(), blur_radius=case[0], sigma=case[1])

    assert _levels(blurred) == BLURRED[case]


def test_image_blur_fails_when_the_picture_is_no_larger_than_the_radius(desk: Desk) -> None:
    """
    Edges cannot be mirrored further than the picture is wide.
    """
    with pytest.raises(RuntimeError, match="Padding size 3"):
        desk.run("ImageBlur", image=_picture(), blur_radius=3, sigma=1.0)


def test_image_batch_fits_the_second_picture_to_the_first(desk: Desk) -> None:
    """
    Sizes are matched by scaling, channels by adding opaque alpha.
    """
    rgba = from_bytes(np.full((1, 2, 2, 4), 128, np.uint8))

    batch = desk.value("ImageBatch", image1=_picture(), image2=rgba)

    assert batch.shape == (2, 3, 4, 4)
    assert (batch[0, ..., 3] == 1).all()
    assert (to_bytes(batch)[1] == 128).all()


def test_get_image_size_tells_the_client(desk: Desk) -> None:
    """
    Width, height and count come out and are sent as a text.
    """
    returned = desk.run("GetImageSize", image=_picture())

    assert returned.values == (4, 3, 1)
    assert desk.texts == ["width: 4, height: 3\n batch size: 1"]


def test_masks_turn_into_pictures_and_back(desk: Desk) -> None:
    """
    Solid, inverted, shown as a grey picture, and read back from one channel.
    """
    mask = desk.value("InvertMask", mask=desk.value("SolidMask", value=0.25, width=3, height=2))
    image = desk.value("MaskToImage", mask=mask)
    again = desk.value("ImageToMask", image=image, channel="green")

    assert image.shape == (1, 2, 3, 3)
    assert (again == mask).all()
    assert (mask == 0.75).all()


def test_mask_preview_is_a_temp_file_that_is_not_animated(desk: Desk) -> None:
    """
    MaskPreview says `animated: [false]` beside its picture.
    """
    shown = desk.run("MaskPreview", mask=np.full((1, 2, 3), 0.5, np.float32))

    assert shown.ui is not None
    assert shown.ui["animated"] == (False,)
    assert np.array(desk.pictures(shown)[0]).tolist() == [[[127] * 3] * 3] * 2


def test_primitives_hand_on_their_value(desk: Desk) -> None:
    """
    Typed-in values come out as they are.
    """
    values = {"PrimitiveString": "a", "PrimitiveInt": 3, "PrimitiveFloat": 0.5, "PrimitiveBoolean": True}

    assert {name: desk.value(name, value=value) for name, value in values.items()} == values


def test_load_image_takes_the_mask_from_alpha(desk: Desk) -> None:
    """
    The mask is 1 where the file is transparent, and the colours stay as they are there.
    """
    rgba = np.array([[[255, 0, 0, 255], [0, 255, 0, 64], [1, 2, 3, 0]]], np.uint8)

    image, mask = desk.run("LoadImage", image=desk.put("a.png", _png(rgba))).values

    assert (to_bytes(image)[0] == rgba[..., :3]).all()
    assert (mask == 1 - from_bytes(rgba[..., 3])).all()


def test_load_image_gives_an_empty_mask_without_alpha(desk: Desk) -> None:
    """
    A file without transparency has a mask of 64 by 64 zeros, whatever its size.
    """
    _, mask = desk.run("LoadImage", image=desk.put("a.png", _png(np.zeros((5, 9, 3), np.uint8)))).values

    assert mask.shape == (1, 64, 64)
    assert not mask.any()


def test_load_image_reads_grey_one_level_darker(desk: Desk) -> None:
    """
    Grey files pass through FFmpeg's floats: every level but 0 comes out one lower.
    """
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)

    image = desk.value("LoadImage", image=desk.put("a.png", _png(grey)))

    assert _levels(image) == np.maximum(grey.astype(int) - 1, 0).tolist()


def test_load_image_scales_sixteen_bit_levels(desk: Desk) -> None:
    """
    65535 is white, 257 is one level.
    """
    levels = np.full((16, 16), 25700, np.uint16)
    levels[0, 0], levels[0, 1] = 65535, 514

    image = desk.value("LoadImage", image=desk.put("a.png", _png(levels)))

    assert _levels(image)[0][:3] == [255, 1, 100]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_load_image_turns_a_photo_upright(desk: Desk, orientation: int, corner: tuple[int, int]) -> None:
    """
    The rotation in the Exif data is applied: the bright corner of the file ends where a viewer shows it.
    """
    levels = np.zeros((32, 48, 3), np.uint8)
    levels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", exif=exif, quality=95)

    image = desk.value("LoadImage", image=desk.put("a.jpg", buffer.getvalue()))

    assert image.shape[1:3] == ((32, 48) if orientation < 5 else (48, 32))
    assert image[0][corner].min() > 0.9
    assert image[0][~np.array(corner)[0], ~np.array(corner)[1]].max() < 0.1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_load_image_makes_a_batch_of_an_animation(desk: Desk, kind: str) -> None:
    """
    Every frame of an animated file is a picture of the batch.
    """
    frames = [Image.new("RGB", (32, 16), color) for color in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100, **options)

    image, mask = desk.run("LoadImage", image=desk.put(f"a.{kind.lower()}", buffer.getvalue())).values

    assert image.argmax(axis=3)[:, 8, 8].tolist() == [0, 1, 2]
    assert len(mask) == 3


def test_load_image_raises_pillows_error_for_a_broken_file(desk: Desk) -> None:
    """
    What neither FFmpeg nor Pillow can read is an OSError, as a client hears of it.
    """
    whole = _png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))

    with pytest.raises(OSError):
        desk.run("LoadImage", image=desk.put("a.png", b"no picture"))
    with pytest.raises(OSError):
        desk.run("LoadImage", image=desk.put("b.png", whole[:60]))


def test_load_image_refuses_a_grey_file_under_sixteen_pixels(desk: Desk) -> None:
    """
    ComfyUI 0.27.0 fails on these, so does the engine.
    """
    with pytest.raises(av.ArgumentError):
        desk.run("LoadImage", image=desk.put("a.png", _png(GREY)))


@pytest.mark.parametrize(("channel", "level"), [("red", 10), ("green", 20), ("blue", 30), ("alpha", 215)])
def test_load_image_mask_reads_one_channel(desk: Desk, channel: str, level: int) -> None:
    """
    Colours are taken as they are, alpha inverted.
    """
    name = desk.put("a.png", _png(np.full((2, 3, 4), (10, 20, 30, 40), np.uint8)))

    mask = desk.value("LoadImageMask", image=name, channel=channel)

    assert (np.rint(mask * 255) == level).all()


@pytest.mark.parametrize(
    "name", ["gone.png", "../outside.png", "/etc/hostname", "link.png", "a.png [output]", "a.png[input]"]
)
def test_loading_nodes_refuse_files_outside_their_folder(desk: Desk, name: str) -> None:
    """
    A file must exist inside the folder it names, symbolic links followed.
    """
    desk.put("a.png", b"x")
    outside = desk.folders.input.parent / "outside.png"
    outside.write_bytes(b"x")
    os.symlink(outside, desk.folders.input / "link.png")
    check = NODES["LoadImage"].check
    assert check is not None

    assert check({"image": "a.png"}, desk.folders) is None
    assert check({"image": "a.png [input]"}, desk.folders) is None
    assert check({"image": name}, desk.folders) == f"Invalid image file: {name}"


@pytest.mark.parametrize("value", [None, 5, ["a.png"]])
def test_loading_nodes_stumble_over_what_is_no_text(desk: Desk, value: Any) -> None:
    """
    A link, which a check sees as nothing, and every other value that is no text end as ComfyUI's own method does.
    """
    check = NODES["LoadImage"].check
    assert check is not None

    with pytest.raises(AttributeError, match="object has no attribute 'endswith'"):
        check({"image": value}, desk.folders)


def test_load_image_lists_the_pictures_of_the_input_folder(desk: Desk) -> None:
    """
    Choices are the picture files, sorted, without folders and other files.
    """
    for name in ("b.PNG", "a.jpg", "text.txt", "sound.wav"):
        desk.put(name, b"x")
    (desk.folders.input / "folder.png").mkdir()
    choices = NODES["LoadImage"].inputs[0].type
    assert callable(choices)

    assert choices(desk.folders) == ["a.jpg", "b.PNG"]


def test_load_image_has_another_fingerprint_after_an_overwrite(desk: Desk) -> None:
    """
    The content decides whether a cached picture may be used again.
    """
    fingerprint = NODES["LoadImage"].fingerprint
    assert fingerprint is not None
    inputs = {"image": desk.put("a.png", b"first")}
    before = fingerprint(inputs, desk.folders)

    desk.put("a.png", b"second")

    assert fingerprint(inputs, desk.folders) != before
