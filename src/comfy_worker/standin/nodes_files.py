"""
Nodes that write pictures and latents in further formats: animations, 16-bit PNG, latents.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin import deep_files, naming, picture_files, safetensors
from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.nodes_save import HIDDEN, chosen, item, prefix_input
from comfy_worker.standin.pixels import Array

_EFFORT = {"default": 4, "fastest": 0, "slowest": 6}
_SPEED = Input("fps", "FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01})


def _save_webp(inputs: Mapping[str, Any], context: Context) -> Returned:
    images = inputs["images"]
    data = picture_files.animation(
        images,
        "WEBP",
        inputs["fps"],
        lossless=inputs["lossless"],
        quality=inputs["quality"],
        method=_EFFORT[inputs["method"]],
        exif=picture_files.webp_exif(context),
    )
    return _written(images, "webp", data, inputs, context)


def _save_apng(inputs: Mapping[str, Any], context: Context) -> Returned:
    images = inputs["images"]
    info = picture_files.apng_text(context)
    data = picture_files.animation(
        images, "PNG", inputs["fps"], compress_level=inputs["compress_level"], pnginfo=info
    )
    return _written(images, "png", data, inputs, context)


def _written(
    images: Any, extension: str, data: bytes, inputs: Mapping[str, Any], context: Context
) -> Returned:
    height, width = images.shape[1:3]
    target = naming.target(inputs["filename_prefix"], context.folders.output, width, height)
    name = target.literal_name(extension)
    (target.folder / name).write_bytes(data)
    ui: dict[str, Any] = {"images": (item(name, target.subfolder),)}
    return Returned((images,), {**ui, "animated": (True,)} if len(images) > 1 else ui)


def _save_latent(inputs: Mapping[str, Any], context: Context) -> Returned:
    samples = np.ascontiguousarray(inputs["samples"]["samples"], np.float32)
    tensors = {"latent_tensor": samples, "latent_format_version_0": np.zeros(0, np.float32)}
    target = naming.target(inputs["filename_prefix"], context.folders.output)
    name = target.literal_name("latent")
    (target.folder / name).write_bytes(safetensors.packed(tensors, picture_files.metadata(context)))
    return Returned((inputs["samples"],), {"latents": (item(name, target.subfolder),)})


def _save_advanced(inputs: Mapping[str, Any], context: Context) -> Returned:
    images, extension = inputs["images"], chosen("SaveImageAdvanced", inputs, _FORMATS)
    height, width = images.shape[1:3]
    target = naming.target(inputs["filename_prefix"], context.folders.output, width, height)
    items = []
    for index, image in enumerate(images):
        name = target.name(index, extension, tail="")
        (target.folder / name).write_bytes(_advanced(image, inputs, context))
        items.append(item(name, target.subfolder))
    return Returned((images,), {"images": items})


def _advanced(image: Array, inputs: Mapping[str, Any], context: Context) -> bytes:
    if inputs["format"] == "exr":
        color_space = inputs["format.input_color_space"]
        return deep_files.exr(image, color_space, picture_files.metadata(context))
    if inputs["format.bit_depth"] == "16-bit":
        return deep_files.png16(image, 4, picture_files.metadata(context))
    return picture_files.png(image, 4, picture_files.png_text(context))


def _format(key: str, depths: tuple[str, ...], color_spaces: tuple[str, ...]) -> dict[str, Any]:
    depth = {"advanced": True, "default": depths[0], "multiselect": False, "options": list(depths)}
    space = {"advanced": True, "default": "sRGB", "multiselect": False, "options": list(color_spaces)}
    return {
        "key": key,
        "inputs": {"required": {"bit_depth": ["COMBO", depth], "input_color_space": ["COMBO", space]}},
    }


_FORMATS = [
    _format("png", ("8-bit", "16-bit"), ("sRGB",)),
    _format("exr", ("32-bit float",), ("sRGB", "HDR", "linear")),
]

FILE_NODES = (
    Node(
        "SaveImageAdvanced",
        _save_advanced,
        inputs=(
            Input("images", "IMAGE"),
            prefix_input(multiline=False),
            Input("format", "COMFY_DYNAMICCOMBO_V3", {"options": _FORMATS}),
        ),
        outputs=("IMAGE",),
        output_names=("images",),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Save Image (Advanced)",
        category="image",
        python_module="comfy_extras.nodes_images",
    ),
    Node(
        "SaveAnimatedWEBP",
        _save_webp,
        inputs=(
            Input("images", "IMAGE"),
            prefix_input(multiline=False),
            _SPEED,
            Input("lossless", "BOOLEAN", {"default": True}),
            Input("quality", "INT", {"default": 80, "min": 0, "max": 100}),
            Input("method", tuple(_EFFORT)),
        ),
        outputs=("IMAGE",),
        output_names=("images",),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Save Animated WEBP",
        category="image",
        python_module="comfy_extras.nodes_images",
    ),
    Node(
        "SaveAnimatedPNG",
        _save_apng,
        inputs=(
            Input("images", "IMAGE"),
            prefix_input(multiline=False),
            _SPEED,
            Input("compress_level", "INT", {"advanced": True, "default": 4, "min": 0, "max": 9}),
        ),
        outputs=("IMAGE",),
        output_names=("images",),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Save Animated PNG",
        category="image",
        python_module="comfy_extras.nodes_images",
    ),
    Node(
        "SaveLatent",
        _save_latent,
        inputs=(Input("samples", "LATENT"), prefix_input("latents/ComfyUI")),
        outputs=("LATENT",),
        output_names=("samples",),
        hidden=HIDDEN,
        output_node=True,
        display_name="Save Latent",
        category="model/latent",
    ),
)
