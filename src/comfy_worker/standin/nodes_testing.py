"""
Nodes for tests only: they wait, fail, block, expand and make files on demand. The engine hides them unless asked.
"""

import io
import math
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from comfy_worker.standin import naming, picture_files
from comfy_worker.standin.faults import OutOfMemoryError
from comfy_worker.standin.node import Blocked, Context, Folders, Input, Node, Returned
from comfy_worker.standin.nodes_save import item, prefix_input
from comfy_worker.standin.pixels import Array

_MIB = 1 << 20
_A_DAY_S = 86400.0


def _sleep(inputs: Mapping[str, Any], context: Context) -> Returned:
    steps = inputs["steps"]
    for step in range(1, steps + 1):
        context.sleep(inputs["seconds"] / steps)
        context.progress(step, steps)
    return _hand_on(inputs, context)


def _hand_on(inputs: Mapping[str, Any], _context: Context) -> Returned:
    return Returned((inputs.get("any"),))


def _fail(inputs: Mapping[str, Any], _context: Context) -> Returned:
    raise RuntimeError(inputs["message"])


def _run_out(_inputs: Mapping[str, Any], _context: Context) -> Returned:
    raise OutOfMemoryError


def _hang(inputs: Mapping[str, Any], context: Context) -> Returned:
    # An interrupt acts at ticks only, so nothing but the end of the engine ends this sleep early.
    context.sleep(_A_DAY_S)
    context.progress(1, 1)
    return _hand_on(inputs, context)


def _block(inputs: Mapping[str, Any], context: Context) -> Returned:
    if not inputs["block"]:
        return _hand_on(inputs, context)
    return Returned((Blocked(inputs["message"] or None),))


def _list(inputs: Mapping[str, Any], _context: Context) -> Returned:
    count, side = inputs["count"], inputs["size"]
    levels = (index / max(count - 1, 1) for index in range(count))
    return Returned(([np.full((1, side, side, 3), level, np.float32) for level in levels],))


def _expand(inputs: Mapping[str, Any], _context: Context) -> Returned:
    empty = {"width": inputs["size"], "height": inputs["size"], "batch_size": 1, "color": inputs["color"]}
    graph = {
        "picture": {"class_type": "EmptyImage", "inputs": empty},
        "negative": {"class_type": "ImageInvert", "inputs": {"image": ["picture", 0]}},
    }
    return Returned((["negative", 0],), expand=graph)


def _cycle(_inputs: Mapping[str, Any], _context: Context) -> Returned:
    graph = {
        "first": {"class_type": "ImageInvert", "inputs": {"image": ["second", 0]}},
        "second": {"class_type": "ImageInvert", "inputs": {"image": ["first", 0]}},
    }
    return Returned((["first", 0],), expand=graph)


def _never(_inputs: Mapping[str, Any], _folders: Folders) -> float:
    return math.nan


def _refuse(inputs: Mapping[str, Any], _folders: Folders) -> str | None:
    return inputs.get("message") or None


def _big_file(inputs: Mapping[str, Any], context: Context) -> Returned:
    block = secrets.token_bytes(_MIB)
    whole, rest = divmod(round(inputs["megabytes"] * _MIB), _MIB)
    target = naming.target(inputs["filename_prefix"], context.folders.output)
    name = target.name(0, inputs["extension"])
    with (target.folder / name).open("wb") as file:
        for _ in range(whole):
            file.write(block)
        file.write(block[:rest])
    return Returned((), {inputs["key"]: (item(name, target.subfolder),)})


def _any_key(inputs: Mapping[str, Any], context: Context) -> Returned:
    kind = inputs["type"]
    root = context.folders.temp if kind == "temp" else context.folders.output
    target = naming.target(inputs["filename_prefix"], root)
    names = [target.name(index, inputs["extension"]) for index in range(inputs["count"])]
    for name in names:
        (target.folder / name).write_bytes(secrets.token_bytes(64))
    extra = {"format": inputs["format"]} if inputs["format"] else {}
    return Returned((), {inputs["key"]: [{**item(name, target.subfolder, kind), **extra} for name in names]})


def _sample(inputs: Mapping[str, Any], context: Context) -> Returned:
    steps, random = inputs["steps"], np.random.default_rng(inputs["seed"])
    height, width = (
        inputs["latent_image"]["samples"].shape[2:]
        if "latent_image" in inputs
        else (inputs["size"] // 8,) * 2
    )
    noise = random.random((height, width, 3), np.float32)
    wanted = np.linspace(random.random(3), random.random(3), height * width).reshape(height, width, 3)
    image = noise
    for step in range(1, steps + 1):
        context.sleep(inputs["seconds_per_step"])
        image = (noise + (wanted - noise) * (step / steps)).astype(np.float32)
        context.progress(step, steps, _jpeg(image))
    return Returned((image.repeat(8, axis=0).repeat(8, axis=1)[None],))


def _jpeg(image: Array) -> bytes:
    buffer = io.BytesIO()
    picture = picture_files.picture_of(image)
    # Previews fit into 512 by 512, enlarged or not.
    factor = 512 / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture.resize(size).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _row(class_type: str, run: Any, *inputs: Input, **more: Any) -> Node:
    return Node(class_type, run, inputs, category="testing", python_module="custom_nodes.standin", **more)


_ANY = Input("any", "*", optional=True)
_MESSAGE = Input("message", "STRING", {"default": "raised on purpose"})
_SIZE = Input("size", "INT", {"default": 64, "min": 1, "max": 16384})
_STEPS = Input("steps", "INT", {"default": 10, "min": 1, "max": 10000})
_SECONDS = Input("seconds", "FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0})
_KEY = Input("key", "STRING", {"default": "images"})

_ROWS = (
    _row("StandinSleep", _sleep, _SECONDS, _STEPS, _ANY, outputs=("*",)),
    _row("StandinRaise", _fail, _MESSAGE, _ANY, outputs=("*",)),
    _row("StandinOutOfMemory", _run_out, _ANY, outputs=("*",)),
    _row("StandinHang", _hang, _ANY, outputs=("*",)),
    _row(
        "StandinBlocker",
        _block,
        Input("block", "BOOLEAN", {"default": True}),
        Input("message", "STRING", {"default": ""}),
        _ANY,
        outputs=("*",),
    ),
    _row(
        "StandinList",
        _list,
        Input("count", "INT", {"default": 3, "min": 0, "max": 1000}),
        _SIZE,
        outputs=("IMAGE",),
        output_is_list=(True,),
    ),
    _row("StandinExpand", _expand, _SIZE, Input("color", "INT", {"default": 0}), outputs=("IMAGE",)),
    _row("StandinCycle", _cycle, _ANY, outputs=("IMAGE",)),
    _row("StandinNeverCached", _hand_on, _ANY, outputs=("*",), fingerprint=_never),
    _row("StandinFailValidation", _hand_on, _MESSAGE, _ANY, outputs=("*",), check=_refuse),
    _row(
        "StandinBigFile",
        _big_file,
        Input("megabytes", "FLOAT", {"default": 1.0, "min": 0.0, "max": 65536.0}),
        _KEY,
        Input("extension", "STRING", {"default": "bin"}),
        prefix_input("big"),
        output_node=True,
    ),
    _row(
        "StandinAnyKey",
        _any_key,
        _KEY,
        Input("extension", "STRING", {"default": "mp4"}),
        Input("format", "STRING", {"default": "video/h264-mp4"}),
        Input("count", "INT", {"default": 1, "min": 0, "max": 1000}),
        Input("type", ("output", "temp"), {"default": "output"}),
        prefix_input("any"),
        _ANY,
        output_node=True,
    ),
    _row(
        "StandinKSampler",
        _sample,
        Input("seed", "INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
        Input("steps", "INT", {"default": 20, "min": 1, "max": 10000}),
        Input("seconds_per_step", "FLOAT", {"default": 0.05, "min": 0.0, "max": 3600.0}),
        Input("size", "INT", {"default": 512, "min": 8, "max": 16384, "step": 8}),
        Input("latent_image", "LATENT", optional=True),
        outputs=("IMAGE",),
    ),
)

TEST_NODES: Mapping[str, Node] = {node.class_type: node for node in _ROWS}
