"""
Nodes that write pictures and text for the client. Sound and video are in `nodes_media`, other files in `nodes_files`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_worker.standin import naming, picture_files
from comfy_worker.standin.node import Context, Folders, Input, Node, Returned
from comfy_worker.standin.pixels import Array

HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def prefix_input(default: str = "ComfyUI", **options: Any) -> Input:
    """
    Return the `filename_prefix` input of a save node.
    """
    return Input("filename_prefix", "STRING", {"default": default, **options})


def item(name: str, subfolder: str, kind: str = "output") -> dict[str, str]:
    """
    Return a file as the client hears of it.
    """
    return {"filename": name, "subfolder": subfolder, "type": kind}


def chosen(class_type: str, inputs: Mapping[str, Any], formats: Sequence[Mapping[str, Any]]) -> str:
    """
    Return the key chosen in the dynamic choice `format`.

    Raises:
        TypeError: there is no such key; the engine drops an input whose choice it does not know (ComfyUI 0.27.0).
    """
    key: str = inputs["format"]
    if key not in [known["key"] for known in formats]:
        raise TypeError(f"{class_type}.execute() missing 1 required positional argument: 'format'")
    return key


def write_pngs(images: Array, prefix: str, root: Path, kind: str, context: Context) -> list[dict[str, str]]:
    """
    Write one PNG per picture of the batch and return their items.
    """
    target = naming.target(prefix, root, images.shape[2], images.shape[1])
    info = picture_files.png_text(context)
    items = []
    for index, image in enumerate(images):
        name = target.name(index, "png")
        data = picture_files.png(image, 4 if kind == "output" else 1, info)
        (target.folder / name).write_bytes(data)
        items.append(item(name, target.subfolder, kind))
    return items


def _save_image(inputs: Mapping[str, Any], context: Context) -> Returned:
    images = inputs["images"]
    items = write_pngs(images, inputs["filename_prefix"], context.folders.output, "output", context)
    return Returned((images,), {"images": items})


def _preview_image(inputs: Mapping[str, Any], context: Context) -> Returned:
    images = inputs["images"]
    items = write_pngs(images, naming.temp_prefix(), context.folders.temp, "temp", context)
    return Returned((images,), {"images": items})


def _compare(inputs: Mapping[str, Any], context: Context) -> Returned:
    prefix = naming.temp_prefix("comfy.compare.a"), naming.temp_prefix("comfy.compare.b")
    pairs = zip(("a", "b"), prefix, strict=True)
    ui = {
        f"{side}_images": write_pngs(inputs[f"image_{side}"], stem, context.folders.temp, "temp", context)
        for side, stem in pairs
        if inputs.get(f"image_{side}") is not None
    }
    return Returned((), ui)


def _send_images(inputs: Mapping[str, Any], context: Context) -> Returned:
    images = inputs["images"]
    for index, image in enumerate(images):
        # Before picture k of n goes the tick k/n; n/n is never reported (ComfyUI 0.27.0).
        context.progress(index, len(images))
        context.send_image(picture_files.png(image, 4), "image/png")
    return Returned()


def _now(_inputs: Mapping[str, Any], _folders: Folders) -> float:
    return time.time()


def _preview_any(inputs: Mapping[str, Any], _context: Context) -> Returned:
    text = _shown(inputs["source"])
    return Returned((text,), {"text": (text,)})


def _shown(value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return str(value)
    try:
        return json.dumps(value, indent=4)
    except (TypeError, ValueError):
        return str(value)


SAVE_NODES = (
    Node(
        "SaveImage",
        _save_image,
        inputs=(Input("images", "IMAGE"), prefix_input()),
        outputs=("IMAGE",),
        output_names=("images",),
        hidden=HIDDEN,
        output_node=True,
        display_name="Save Image",
        category="image",
    ),
    Node(
        "PreviewImage",
        _preview_image,
        inputs=(Input("images", "IMAGE"),),
        outputs=("IMAGE",),
        output_names=("images",),
        hidden=HIDDEN,
        output_node=True,
        display_name="Preview Image",
        category="image",
    ),
    Node(
        "ImageCompare",
        _compare,
        inputs=(
            Input("compare_view", "IMAGECOMPARE", {"socketless": True}),
            Input("image_a", "IMAGE", optional=True),
            Input("image_b", "IMAGE", optional=True),
        ),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Compare Images",
        category="image",
        python_module="comfy_extras.nodes_image_compare",
    ),
    Node(
        "SaveImageWebsocket",
        _send_images,
        inputs=(Input("images", "IMAGE"),),
        output_node=True,
        display_name="Save Image (Websocket)",
        category="image",
        python_module="custom_nodes.websocket_image_save",
        fingerprint=_now,
    ),
    Node(
        "PreviewAny",
        _preview_any,
        inputs=(Input("source", "*"),),
        outputs=("STRING",),
        output_node=True,
        display_name="Preview as Text",
        category="utilities",
        python_module="comfy_extras.nodes_preview_any",
    ),
)
