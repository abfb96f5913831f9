"""
The built-in engine's pictures against a real ComfyUI's, level by level after SaveImage. Without one, nothing runs.

A case that may differ says by how much and why.
"""

import io
import time
import uuid
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
from PIL import Image

from comfy_worker.standin.media import Video, encode_mp4
from comfy_worker.standin.pixels import from_bytes

Levels = npt.NDArray[np.uint8]

_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
_SIZES = ((50, 30), (64, 64), (65, 64), (33, 20), (200, 150), (7, 300), (1, 5), (90, 0), (0, 17), (0, 0))
# Pillow 13 begins with the direction that costs less, Pillow 12 always across; on noise that is up to 27 levels.
_ORDER_MATTERS = ((50, 30), (1, 5))


def _run(url: str, prompt: Mapping[str, Any]) -> list[Levels]:
    """
    Run a prompt whose node `save` saves, and return the pictures that it saved.
    """
    accepted = requests.post(f"{url}/prompt", json={"prompt": prompt}, timeout=30)
    assert accepted.status_code == 200, accepted.text[:500]
    prompt_id = accepted.json()["prompt_id"]
    deadline = time.monotonic() + 60
    while not (history := requests.get(f"{url}/history/{prompt_id}", timeout=30).json()):
        assert time.monotonic() < deadline, "the prompt did not end"
        time.sleep(0.01)
    status = history[prompt_id]["status"]
    assert status["status_str"] == "success", status["messages"][-1]
    return [_view(url, item) for item in history[prompt_id]["outputs"]["save"]["images"]]


def _view(url: str, item: Mapping[str, str]) -> Levels:
    reply = requests.get(f"{url}/view", params=dict(item), timeout=30)
    reply.raise_for_status()
    return np.array(Image.open(io.BytesIO(reply.content)))


def _upload(url: str, name: str, data: bytes) -> None:
    files = {"image": (name, data)}
    requests.post(
        f"{url}/upload/image", files=files, data={"overwrite": "true"}, timeout=30
    ).raise_for_status()


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _saved(link: list[Any], **nodes: Any) -> dict[str, Any]:
    # A prefix of its own each time: a cached node's outputs are not told to a prompt without a client.
    return {
        **nodes,
        "save": _node("SaveImage", images=link, filename_prefix=f"pixels_{uuid.uuid4().hex[:8]}"),
    }


def _difference(real: list[Levels], ours: list[Levels]) -> int:
    """
    Return the largest difference in levels; pictures must agree in number and shape.
    """
    assert [picture.shape for picture in real] == [picture.shape for picture in ours]
    gaps = [np.abs(a.astype(int) - b).max() for a, b in zip(real, ours, strict=True)]
    return int(max(gaps))


def _noise(height: int, width: int, channels: int = 3) -> Levels:
    random = np.random.default_rng(height * width + channels)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return random.integers(0, 256, shape, dtype=np.uint8)


def _smooth(height: int, width: int) -> Levels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4 % 256, y * 5 % 256, (x + y) * 2 % 256], -1).astype(np.uint8)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(Image.fromarray(_smooth(34, 20)), "JPEG", exif=exif, quality=92)


def _frames(kind: str, **options: Any) -> bytes:
    frames = [Image.fromarray(_noise(20, 24 + count)[:, :24]) for count in range(3)]
    return _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def _rgb() -> Image.Image:
    return Image.fromarray(_noise(37, 53))


def _sixteen_bit() -> Image.Image:
    levels = np.random.default_rng(16).integers(0, 65536, (21, 32), dtype=np.uint16)
    return Image.fromarray(levels)


PICTURES: Mapping[str, Callable[[], bytes]] = {
    "rgb.png": lambda: _encoded(_rgb(), "PNG"),
    "rgba.png": lambda: _encoded(Image.fromarray(_noise(37, 53, 4)), "PNG"),
    "grey.png": lambda: _encoded(Image.fromarray(_noise(37, 53, 1)), "PNG"),
    "grey_alpha.png": lambda: _encoded(Image.fromarray(_noise(37, 53, 2), "LA"), "PNG"),
    "one_bit.png": lambda: _encoded(_rgb().convert("1"), "PNG"),
    "palette.png": lambda: _encoded(_rgb().quantize(16), "PNG"),
    "palette_alpha.png": lambda: _encoded(_rgb().quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
    "rgb_key.png": lambda: _encoded(_rgb(), "PNG", transparency=tuple(_noise(37, 53)[3, 3].tolist())),
    "sixteen_bit.png": lambda: _encoded(_sixteen_bit(), "PNG"),
    "float.tiff": lambda: _encoded(Image.fromarray(_noise(20, 18, 1).astype(np.float32) * 1.5), "TIFF"),
    "int.tiff": lambda: _encoded(Image.fromarray(_noise(20, 18, 1).astype(np.int32) * 300), "TIFF"),
    "grey.jpg": lambda: _encoded(Image.fromarray(_noise(37, 53, 1)), "JPEG"),
    "cmyk.jpg": lambda: _encoded(Image.fromarray(_smooth(36, 52)).convert("CMYK"), "JPEG"),
    "full_colour.jpg": lambda: _encoded(_rgb(), "JPEG", subsampling=0, quality=95),
    "half_colour.jpg": lambda: _encoded(_rgb(), "JPEG", subsampling=1, quality=95),
    "quarter_colour.jpg": lambda: _encoded(_rgb(), "JPEG", subsampling=2, quality=95),
    "lossy.webp": lambda: _encoded(Image.fromarray(_smooth(36, 52)), "WEBP", quality=90),
    "lossy_odd.webp": lambda: _encoded(_rgb(), "WEBP", quality=90),
    "lossy_tall.webp": lambda: _encoded(Image.fromarray(_noise(37, 52)), "WEBP", quality=90),
    "lossless.webp": lambda: _encoded(Image.fromarray(_noise(36, 52, 4)), "WEBP", lossless=True),
    "lossless_odd.webp": lambda: _encoded(Image.fromarray(_noise(37, 53, 4)), "WEBP", lossless=True),
    "picture.bmp": lambda: _encoded(_rgb(), "BMP"),
    "three.gif": lambda: _frames("GIF", duration=100),
    "three.webp": lambda: _frames("WEBP", lossless=True),
    "three.png": lambda: _frames("PNG"),
    "three.tiff": lambda: _frames("TIFF"),
    **{f"exif_{turn}.jpg": lambda turn=turn: _turned(turn) for turn in range(1, 9)},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("slot", [0, 1], ids=["image", "mask"])
def test_load_image_reads_the_same_levels(comfyui_url: str, engine_url: str, name: str, slot: int) -> None:
    """
    Every kind of picture file gives ComfyUI's picture and mask exactly.
    """
    data = PICTURES[name]()
    found = []
    for url in (comfyui_url, engine_url):
        _upload(url, name, data)
        nodes = {"load": _node("LoadImage", image=name), "mask": _node("MaskToImage", mask=["load", 1])}
        prompt = _saved([("load", "mask")[slot], 0], **nodes)
        found.append(_run(url, prompt))

    assert _difference(*found) == 0


def _operations() -> dict[str, tuple[dict[str, Any], int]]:
    """
    Return prompts' middle parts by name, `{id: node}` with the result in `do`, and how many levels they may be off.
    """
    image = {"image": ["load", 0]}
    cases: dict[str, tuple[dict[str, Any], int]] = {}

    def add(name: str, node: dict[str, Any], limit: int = 0, **more: Any) -> None:
        cases[name] = ({**more, "do": node}, limit)

    for method in _METHODS:
        for width, height in _SIZES:
            if method == "lanczos" and (width, height) in _ORDER_MATTERS:
                continue
            for crop in ("disabled", "center"):
                sizes = {"width": width, "height": height, "crop": crop}
                add(
                    f"ImageScale-{method}-{width}x{height}-{crop}",
                    _node("ImageScale", upscale_method=method, **image, **sizes),
                )
        for factor in (0.37, 1.5, 2.0):
            scaled = _node("ImageScaleBy", upscale_method=method, scale_by=factor, **image)
            add(f"ImageScaleBy-{method}-{factor}", scaled)
    add("ImageInvert", _node("ImageInvert", **image))
    for x, y, width, height in ((3, 4, 20, 10), (40, 30, 500, 500), (500, 500, 32, 32), (0, 36, 1, 1)):
        region = {"x": x, "y": y, "width": width, "height": height}
        add(f"ImageCrop-{x}-{y}", _node("ImageCrop", **image, **region))
        box = {"box": _node("PrimitiveBoundingBox", **region)}
        add(f"ImageCropV2-{x}-{y}", _node("ImageCropV2", **image, crop_region=["box", 0]), **box)
    # The processor's own exp and sqrt decide about the last bit of the blur's weights.
    for radius, sigma in ((1, 1.0), (3, 0.5), (5, 2.3), (10, 1.0), (31, 10.0)):
        add(f"ImageBlur-{radius}-{sigma}", _node("ImageBlur", blur_radius=radius, sigma=sigma, **image), 1)
    other = {"other": _node("EmptyImage", width=31, height=44, batch_size=2, color=0x33AA77)}
    add("ImageBatch", _node("ImageBatch", image1=["load", 0], image2=["other", 0]), **other)
    add("ImageBatch-reverse", _node("ImageBatch", image1=["other", 0], image2=["load", 0]), **other)
    for channel in ("red", "green", "blue"):
        mask = {"mask": _node("ImageToMask", channel=channel, **image)}
        add(f"ImageToMask-{channel}", _node("MaskToImage", mask=["mask", 0]), **mask)
    for value in (0.0, 0.3, 0.5, 1.0):
        mask = {
            "solid": _node("SolidMask", value=value, width=9, height=5),
            "mask": _node("InvertMask", mask=["solid", 0]),
        }
        add(f"InvertMask-{value}", _node("MaskToImage", mask=["mask", 0]), **mask)
    for color in (0, 0x010203, 0x336699, 0xFFFFFF):
        add(f"EmptyImage-{color:06x}", _node("EmptyImage", width=5, height=3, batch_size=2, color=color))
    for channel in ("alpha", "red", "green", "blue"):
        mask = {"mask": _node("LoadImageMask", image="rgba.png", channel=channel)}
        add(f"LoadImageMask-{channel}", _node("MaskToImage", mask=["mask", 0]), **mask)
    return cases


OPERATIONS = _operations()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("source", ["noise", "smooth"])
def test_node_computes_the_same_levels(comfyui_url: str, engine_url: str, name: str, source: str) -> None:
    """
    Every picture node gives ComfyUI's levels, save for those that may be one off.
    """
    middle, limit = OPERATIONS[name]
    picture = _noise(37, 53) if source == "noise" else _smooth(48, 64)
    data = _encoded(Image.fromarray(picture), "PNG")
    found = []
    for url in (comfyui_url, engine_url):
        _upload(url, f"{source}.png", data)
        _upload(url, "rgba.png", PICTURES["rgba.png"]())
        load = _node("LoadImage", image=f"{source}.png")
        found.append(_run(url, _saved(["do", 0], load=load, **middle)))

    assert _difference(*found) <= limit


@pytest.mark.parametrize("depth", [8, 10])
def test_loaded_video_has_the_same_frames(comfyui_url: str, engine_url: str, depth: int) -> None:
    """
    Frames taken out of a video file are ComfyUI's, odd widths of the chroma planes included.
    """
    frames = from_bytes(np.stack([_smooth(36, 50), _smooth(36, 51)[:, 1:], _noise(36, 50)]))
    data = encode_mp4(Video(frames, Fraction(12), None, depth), {})
    found = []
    for url in (comfyui_url, engine_url):
        _upload(url, "frames.mp4", data)
        nodes = {
            "load": _node("LoadVideo", file="frames.mp4"),
            "do": _node("GetVideoComponents", video=["load", 0]),
        }
        found.append(_run(url, _saved(["do", 0], **nodes)))

    assert _difference(*found) == 0
