"""
Nodes that make, change and measure pictures: one row and one small function each. The arithmetic is elsewhere.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin import naming, pixels, resample
from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.nodes_save import write_pngs

_MODULE = "comfy_extras.nodes_images"


def side(name: str, default: int = 512, lowest: int = 1, **options: Any) -> Input:
    """
    Return an INT input for a width, a height or a place in a picture.
    """
    return Input(name, "INT", {"default": default, "min": lowest, "max": 16384, **options})


def _empty(inputs: Mapping[str, Any], _context: Context) -> Returned:
    color = inputs["color"]
    levels = np.array([color >> 16 & 255, color >> 8 & 255, color & 255], np.uint8)
    shape = (inputs["batch_size"], inputs["height"], inputs["width"], 3)
    image = np.empty(shape, np.float32)
    image[:] = pixels.from_bytes(levels)
    return Returned((image,))


def _scale(inputs: Mapping[str, Any], _context: Context) -> Returned:
    image, width, height = inputs["image"], inputs["width"], inputs["height"]
    if not width and not height:
        return Returned((image,))
    rows, columns = image.shape[1:3]
    width = width or max(1, round(columns * height / rows))
    height = height or max(1, round(rows * width / columns))
    if inputs["crop"] == "center":
        image = resample.crop_to_aspect(image, width, height)
    return Returned((resample.scale(image, inputs["upscale_method"], width, height),))


def _scale_by(inputs: Mapping[str, Any], _context: Context) -> Returned:
    image, factor = inputs["image"], inputs["scale_by"]
    width, height = round(image.shape[2] * factor), round(image.shape[1] * factor)
    return Returned((resample.scale(image, inputs["upscale_method"], width, height),))


def _invert(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((np.float32(1) - inputs["image"],))


def _crop(inputs: Mapping[str, Any], _context: Context) -> Returned:
    region = (inputs[name] for name in ("x", "y", "width", "height"))
    return Returned((pixels.crop(inputs["image"], *region),))


def _crop_region(inputs: Mapping[str, Any], context: Context) -> Returned:
    cropped = pixels.crop(inputs["image"], **inputs["crop_region"])
    items = write_pngs(cropped, naming.temp_prefix(), context.folders.temp, "temp", context)
    return Returned((cropped,), {"images": items, "animated": (False,)})


def _region(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned(({name: inputs[name] for name in ("x", "y", "width", "height")},))


def _batch(inputs: Mapping[str, Any], _context: Context) -> Returned:
    first, second = inputs["image1"], inputs["image2"]
    channels = max(first.shape[3], second.shape[3])
    first, second = pixels.with_channels(first, channels), pixels.with_channels(second, channels)
    if first.shape[1:] != second.shape[1:]:
        height, width = first.shape[1:3]
        second = resample.scale(resample.crop_to_aspect(second, width, height), "bilinear", width, height)
    return Returned((np.concatenate([first, second]),))


def _blur(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((pixels.blur(inputs["image"], inputs["blur_radius"], inputs["sigma"]),))


def _size(inputs: Mapping[str, Any], context: Context) -> Returned:
    count, height, width, _ = inputs["image"].shape
    context.send_text(f"width: {width}, height: {height}\n batch size: {count}")
    return Returned((width, height, count))


_IMAGE = Input("image", "IMAGE")
_METHOD = Input("upscale_method", tuple(resample.METHODS))
_COLOR = {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}
_FACTOR = {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}
_WHOLE = {"x": 0, "y": 0, "width": 512, "height": 512}

IMAGE_NODES = (
    Node(
        "EmptyImage",
        _empty,
        inputs=(
            side("width", step=1),
            side("height", step=1),
            Input("batch_size", "INT", {"default": 1, "min": 1, "max": 4096}),
            Input("color", "INT", _COLOR),
        ),
        outputs=("IMAGE",),
        display_name="Empty Image",
        category="image",
    ),
    Node(
        "ImageScale",
        _scale,
        inputs=(
            _IMAGE,
            _METHOD,
            side("width", lowest=0, step=1),
            side("height", lowest=0, step=1),
            Input("crop", ("disabled", "center")),
        ),
        outputs=("IMAGE",),
        display_name="Upscale Image",
        category="image/upscaling",
    ),
    Node(
        "ImageScaleBy",
        _scale_by,
        inputs=(_IMAGE, _METHOD, Input("scale_by", "FLOAT", _FACTOR)),
        outputs=("IMAGE",),
        display_name="Upscale Image By",
        category="image/upscaling",
    ),
    Node(
        "ImageInvert",
        _invert,
        inputs=(_IMAGE,),
        outputs=("IMAGE",),
        display_name="Invert Image Colors",
        category="image/color",
    ),
    Node(
        "ImageCrop",
        _crop,
        inputs=(
            _IMAGE,
            side("width", step=1),
            side("height", step=1),
            side("x", 0, 0, step=1),
            side("y", 0, 0, step=1),
        ),
        outputs=("IMAGE",),
        v3=True,
        display_name="Crop Image (DEPRECATED)",
        category="image/transform",
        python_module=_MODULE,
    ),
    Node(
        "ImageCropV2",
        _crop_region,
        inputs=(
            _IMAGE,
            Input(
                "crop_region",
                "BOUNDING_BOX",
                {"default": _WHOLE, "socketless": True, "component": "ImageCrop"},
            ),
        ),
        outputs=("IMAGE",),
        intermediate=True,
        v3=True,
        display_name="Crop Image",
        category="image/transform",
        python_module=_MODULE,
    ),
    Node(
        "PrimitiveBoundingBox",
        _region,
        inputs=(side("x", 0, 0), side("y", 0, 0), side("width"), side("height")),
        outputs=("BOUNDING_BOX",),
        v3=True,
        display_name="Bounding Box",
        category="utilities/primitive",
        python_module=_MODULE,
    ),
    Node(
        "ImageBatch",
        _batch,
        inputs=(Input("image1", "IMAGE"), Input("image2", "IMAGE")),
        outputs=("IMAGE",),
        display_name="Batch Images (DEPRECATED)",
        category="image/batch",
    ),
    Node(
        "ImageBlur",
        _blur,
        inputs=(
            _IMAGE,
            Input("blur_radius", "INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
            Input("sigma", "FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
        ),
        outputs=("IMAGE",),
        v3=True,
        display_name="Blur Image",
        category="image/filters",
        python_module="comfy_extras.nodes_post_processing",
    ),
    Node(
        "GetImageSize",
        _size,
        inputs=(_IMAGE,),
        outputs=("INT", "INT", "INT"),
        output_names=("width", "height", "batch_size"),
        hidden={"unique_id": "UNIQUE_ID"},
        v3=True,
        display_name="Get Image Size",
        category="image",
        python_module=_MODULE,
    ),
)
