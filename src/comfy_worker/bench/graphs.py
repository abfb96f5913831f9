"""
The jobs of the bench: workflows without a model, each with something that no cache has seen. Pure.
"""

import base64
import io
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BenchJob:
    """
    One job. `files` are its inputs by the name that stands in the workflow: a URL, or the bytes themselves.

    `outputs` is how many files it makes.
    """

    workflow: Graph
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    outputs: int = 1

    def placed(self, place: Callable[[str | bytes], str]) -> Graph:
        """
        Return the workflow with what `place` makes of a file in the place of its name.
        """
        made = {name: place(content) for name, content in self.files.items()}
        return {
            node_id: {
                **node,
                "inputs": {key: _swapped(value, made) for key, value in node["inputs"].items()},
            }
            for node_id, node in self.workflow.items()
        }


def _swapped(value: Any, made: Mapping[str, str]) -> Any:
    return made.get(value, value) if isinstance(value, str) else value


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """
    Return one node.
    """
    return {"class_type": class_type, "inputs": inputs}


def saving(number: int, size: int = 64, batch: int = 1) -> BenchJob:
    """
    Return a job that saves `batch` pictures of one colour, `size` pixels wide and high.
    """
    colour = number * 7919 % 0xFFFFFF
    graph = {
        "1": node("EmptyImage", width=size, height=size, batch_size=batch, color=colour),
        "2": node("SaveImage", images=["1", 0], filename_prefix="bench"),
    }
    return BenchJob(graph, outputs=batch)


def rendering(number: int, blurs: int) -> BenchJob:
    """
    Return a job that keeps ComfyUI busy for some tenths of a second per blur.
    """
    graph = dict(saving(number, 768).workflow)
    for index in range(blurs):
        source = f"b{index - 1}" if index else "1"
        graph[f"b{index}"] = node("ImageBlur", image=[source, 0], blur_radius=15, sigma=5.0)
    graph["2"] = node("SaveImage", images=[f"b{blurs - 1}", 0], filename_prefix="bench")
    return BenchJob(graph)


def loading(number: int, sources: Mapping[str, str | bytes]) -> BenchJob:
    """
    Return a job that loads pictures and saves each of them, scaled to 64 x 64 pixels.
    """
    graph: Graph = {}
    for index, name in enumerate(sources):
        graph[f"l{index}"] = node("LoadImage", image=name)
        graph[f"s{index}"] = node(
            "ImageScale", image=[f"l{index}", 0], upscale_method="nearest-exact", width=64, height=64,
            crop="disabled",
        )  # fmt: skip
        graph[f"o{index}"] = node("SaveImage", images=[f"s{index}", 0], filename_prefix=f"bench{number}")
    return BenchJob(graph, sources, len(sources))


def passing_video(url: str) -> BenchJob:
    """
    Return a job that loads a video and saves it as it is.
    """
    graph = {
        "1": node("LoadVideo", file="bench.mp4"),
        "2": node("SaveVideo", video=["1", 0], filename_prefix="bench", format="auto", codec="auto"),
    }
    return BenchJob(graph, {"bench.mp4": url})


@cache
def _noise(megabytes: float) -> bytes:
    side = int((megabytes * 1e6 / 3) ** 0.5)
    data = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(1).randbytes(side * side * 3)).save(
        data, "PNG", compress_level=0
    )
    return data.getvalue()


def picture(number: int, megabytes: float) -> bytes:
    """
    Return a PNG of noise of about that size; no other number gives the same bytes.
    """
    return _noise(megabytes) + struct.pack(">Q", number)


@cache
def _video(megabytes: float) -> bytes:
    import av  # part of the extra `standin`, and heavy

    data = io.BytesIO()
    side, chooser = 1024, random.Random(2)
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 2
        while data.tell() < megabytes * 1e6:
            noise = Image.frombytes("RGB", (side, side), chooser.randbytes(side * side * 3))
            frame = av.VideoFrame.from_image(noise)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


def video(number: int, megabytes: float) -> bytes:
    """
    Return an mp4 of about that size; no other number gives the same bytes. Needs PyAV.
    """
    # A box of the type `free` may stand at the end of an mp4.
    return _video(megabytes) + struct.pack(">I4sQ", 16, b"free", number)


def as_base64(data: bytes) -> str:
    """
    Return bytes as base64.
    """
    return base64.b64encode(data).decode()
