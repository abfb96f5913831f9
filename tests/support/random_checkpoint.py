"""
A checkpoint of random weights, about 10 MB, that a real ComfyUI loads and samples on a CPU in a second.

An SD3-shaped model of two layers with a tiny autoencoder and no text encoder: enough for a true CheckpointLoaderSimple,
KSampler and VAEDecode, whose pictures mean nothing. Written in the safetensors format by hand.
"""

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WIDTH = 128
DEPTH = 2
CHANNELS = 16
SIDE = 64


@dataclass
class Tensors:
    """
    Shapes and scales by name: scale 0 and 1 are constants, anything else the spread of a normal distribution.
    """

    shapes: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)

    def add(self, name: str, shape: tuple[int, ...], scale: float) -> None:
        self.shapes[name] = (shape, scale)

    def linear(self, name: str, out: int, into: int) -> None:
        self.add(f"{name}.weight", (out, into), 1 / math.sqrt(into) * 0.999)
        self.add(f"{name}.bias", (out,), 0)

    def conv(
        self, name: str, out: int, into: int, kernel: int = 3, bias: bool = True, gain: float = 0.999
    ) -> None:
        self.add(f"{name}.weight", (out, into, kernel, kernel), gain / math.sqrt(into * kernel * kernel))
        if bias:
            self.add(f"{name}.bias", (out,), 0)


def write(path: Path, seed: int = 0) -> None:
    """
    Write the checkpoint; the same seed gives the same file.
    """
    tensors = Tensors()
    _transformer(tensors, "model.diffusion_model")
    _autoencoder(tensors, "first_stage_model")
    # One key of a text encoder is enough for ComfyUI to make an empty CLIP object.
    tensors.add("text_encoders.clip_l.logit_scale", (), 1)
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", "note": "random weights, not a trained model"}
    }
    offset = 0
    for name, (shape, _) in tensors.shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape, scale in tensors.shapes.values():
            file.write(_values(random, shape, scale).tobytes())


def _values(
    random: np.random.Generator, shape: tuple[int, ...], scale: float
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
    if scale in (0, 1):
        return np.full(shape, scale, np.float16)
    return (random.standard_normal(shape, dtype=np.float32) * scale).astype(np.float16)


def _transformer(tensors: Tensors, root: str) -> None:
    tensors.add(f"{root}.pos_embed", (1, SIDE * SIDE, WIDTH), 0.02)
    tensors.conv(f"{root}.x_embedder.proj", WIDTH, CHANNELS, 2)
    for name, into in (("t_embedder", 256), ("y_embedder", 2048)):
        tensors.linear(f"{root}.{name}.mlp.0", WIDTH, into)
        tensors.linear(f"{root}.{name}.mlp.2", WIDTH, WIDTH)
    tensors.linear(f"{root}.context_embedder", WIDTH, 4096)
    for layer in range(DEPTH):
        for stream in ("context_block", "x_block"):
            name = f"{root}.joint_blocks.{layer}.{stream}"
            short = layer == DEPTH - 1 and stream == "context_block"
            tensors.linear(f"{name}.attn.qkv", 3 * WIDTH, WIDTH)
            tensors.linear(f"{name}.adaLN_modulation.1", (2 if short else 6) * WIDTH, WIDTH)
            if not short:
                tensors.linear(f"{name}.attn.proj", WIDTH, WIDTH)
                tensors.linear(f"{name}.mlp.fc1", 4 * WIDTH, WIDTH)
                tensors.linear(f"{name}.mlp.fc2", WIDTH, 4 * WIDTH)
    tensors.linear(f"{root}.final_layer.linear", CHANNELS * 4, WIDTH)
    tensors.linear(f"{root}.final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)


def _autoencoder(tensors: Tensors, root: str) -> None:
    def block(name: str) -> None:
        for index in (0, 2, 4):
            tensors.conv(f"{name}.conv.{index}", 64, 64, gain=0.999 if index < 4 else 0.5)

    encoder, decoder = f"{root}.taesd_encoder", f"{root}.taesd_decoder"
    tensors.conv(f"{encoder}.0", 64, 3)
    block(f"{encoder}.1")
    for index in (2, 6, 10):
        tensors.conv(f"{encoder}.{index}", 64, 64, bias=False)
        for step in (1, 2, 3):
            block(f"{encoder}.{index + step}")
    tensors.conv(f"{encoder}.14", CHANNELS, 64)
    tensors.conv(f"{decoder}.1", 64, CHANNELS, gain=2.0)
    for index in (3, 8, 13):
        for step in (0, 1, 2):
            block(f"{decoder}.{index + step}")
        tensors.conv(f"{decoder}.{index + 4}", 64, 64, bias=False)
    block(f"{decoder}.18")
    tensors.conv(f"{decoder}.19", 3, 64)
    tensors.add(f"{root}.vae_scale", (), 1)
    tensors.add(f"{root}.vae_shift", (), 0)
