"""
Nodes that hand on a value typed in: strings and numbers, and the empty latent.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin.node import Context, Input, Node, Returned

_LIMIT = 9223372036854775807


def _value(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((inputs["value"],))


def _primitive(class_type: str, kind: str, display_name: str, **options: Any) -> Node:
    return Node(
        class_type,
        _value,
        inputs=(Input("value", kind, options),),
        outputs=(kind,),
        v3=True,
        display_name=display_name,
        category="utilities/primitive",
        python_module="comfy_extras.nodes_primitive",
    )


def _empty_latent(inputs: Mapping[str, Any], _context: Context) -> Returned:
    shape = (inputs["batch_size"], 4, inputs["height"] // 8, inputs["width"] // 8)
    return Returned(({"samples": np.zeros(shape, np.float32)},))


PLAIN_NODES = (
    _primitive("PrimitiveString", "STRING", "Text String (DEPRECATED)", multiline=False),
    _primitive("PrimitiveStringMultiline", "STRING", "Input Text", multiline=True),
    _primitive("PrimitiveInt", "INT", "Int", min=-_LIMIT, max=_LIMIT, control_after_generate="fixed"),
    _primitive("PrimitiveFloat", "FLOAT", "Float", min=-_LIMIT, max=_LIMIT, step=0.1),
    _primitive("PrimitiveBoolean", "BOOLEAN", "Boolean"),
    Node(
        "EmptyLatentImage",
        _empty_latent,
        inputs=(
            Input("width", "INT", {"default": 512, "min": 16, "max": 16384, "step": 8}),
            Input("height", "INT", {"default": 512, "min": 16, "max": 16384, "step": 8}),
            Input("batch_size", "INT", {"default": 1, "min": 1, "max": 4096}),
        ),
        outputs=("LATENT",),
        display_name="Empty Latent Image",
        category="model/latent",
    ),
)
