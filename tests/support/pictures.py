"""
Small pictures and the workflows around them.
"""

import base64
import io
from typing import Any

from PIL import Image


def png(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    """
    Return a PNG of one colour.
    """
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def b64(data: bytes) -> str:
    """
    Return base64 text.
    """
    return base64.b64encode(data).decode()


def opened(entry: dict[str, Any]) -> Image.Image:
    """
    Return the picture of a base64 entry of a reply.
    """
    image = Image.open(io.BytesIO(base64.b64decode(entry["data"])))
    image.load()
    return image


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """
    Return a node; a link is a tuple or list `(node_id, slot)`.
    """
    fixed = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": class_type, "inputs": fixed}


def invert_workflow(name: str = "in.png", prefix: str = "out") -> dict[str, Any]:
    """
    Return load -> invert -> save.
    """
    return {
        "1": node("LoadImage", image=name),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix=prefix),
    }


def empty_workflow(colour: int = 0xFF8000, size: int = 16, prefix: str = "out") -> dict[str, Any]:
    """
    Return a picture of one colour -> save.
    """
    return {
        "1": node("EmptyImage", width=size, height=size, batch_size=1, color=colour),
        "2": node("SaveImage", images=("1", 0), filename_prefix=prefix),
    }


def job_of(job_id: str, workflow: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """
    Return a RunPod job.
    """
    return {"id": job_id, "input": {"workflow": workflow, **fields}}


def invert_job(job_id: str, picture: bytes, name: str = "in.png") -> dict[str, Any]:
    """
    Return a job that inverts one picture.
    """
    return job_of(job_id, invert_workflow(name), images=[{"name": name, "image": b64(picture)}])
