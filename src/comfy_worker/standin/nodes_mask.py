"""
Nodes that make and change masks: one row and one small function each.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin import naming, pixels
from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.nodes_image import side
from comfy_worker.standin.nodes_save import HIDDEN, write_pngs

_MODULE = "comfy_extras.nodes_mask"
_CHANNELS = ("red", "green", "blue", "alpha")


def _solid(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((np.full((1, inputs["height"], inputs["width"]), inputs["value"], np.float32),))


def _to_image(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((pixels.as_picture(inputs["mask"]),))


def _from_image(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((inputs["image"][..., _CHANNELS.index(inputs["channel"])],))


def _invert(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((np.float32(1) - inputs["mask"],))


def _preview(inputs: Mapping[str, Any], context: Context) -> Returned:
    image = pixels.as_picture(inputs["mask"])
    items = write_pngs(image, naming.temp_prefix(), context.folders.temp, "temp", context)
    return Returned((), {"images": items, "animated": (False,)})


_MASK = Input("mask", "MASK")

MASK_NODES = (
    Node(
        "SolidMask",
        _solid,
        inputs=(
            Input("value", "FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            side("width", step=1),
            side("height", step=1),
        ),
        outputs=("MASK",),
        v3=True,
        display_name="Create Solid Mask",
        category="image/mask",
        python_module=_MODULE,
    ),
    Node(
        "MaskToImage",
        _to_image,
        inputs=(_MASK,),
        outputs=("IMAGE",),
        v3=True,
        display_name="Convert Mask to Image",
        category="image/mask",
        python_module=_MODULE,
    ),
    Node(
        "ImageToMask",
        _from_image,
        inputs=(Input("image", "IMAGE"), Input("channel", _CHANNELS)),
        outputs=("MASK",),
        v3=True,
        display_name="Convert Image to Mask",
        category="image/mask",
        python_module=_MODULE,
    ),
    Node(
        "InvertMask",
        _invert,
        inputs=(_MASK,),
        outputs=("MASK",),
        v3=True,
        display_name="Invert Mask",
        category="image/mask",
        python_module=_MODULE,
    ),
    Node(
        "MaskPreview",
        _preview,
        inputs=(_MASK,),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Preview Mask",
        category="image/mask",
        python_module=_MODULE,
    ),
)
