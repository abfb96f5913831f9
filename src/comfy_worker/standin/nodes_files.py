"""
Nodes that write pictures and latents in further formats: animations, 16-bit PNG, latents.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin import naming, picture_files, safetensors
from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.nodes_save import HIDDEN, item, prefix_input

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


FILE_NODES = (
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
