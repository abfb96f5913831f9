"""
A place to run single nodes at, without an engine: four folders, and a context that writes down what a node asks of it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from comfy_worker.standin.node import Folders, Interrupted, Node, Returned
from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.nodes_testing import TEST_NODES

ALL: Mapping[str, Node] = {**NODES, **TEST_NODES}


class Desk:
    """
    Runs nodes; fulfils `node.Context`. With `interrupted` set, the next tick raises.
    """

    node_id = "7"

    def __init__(self, root: Path, metadata: bool = True) -> None:
        self.folders = Folders(*(root / name for name in ("input", "output", "temp", "models")))
        for folder in (self.folders.input, self.folders.output, self.folders.temp, self.folders.models):
            folder.mkdir()
        self.prompt: Mapping[str, Any] = {"7": {"class_type": "Any", "inputs": {}}}
        self.extra_pnginfo: Mapping[str, Any] | None = {"workflow": {"nodes": []}, "by": "me"}
        self.metadata = metadata
        self.interrupted = False
        self.ticks: list[tuple[float, float]] = []
        self.previews: list[bytes | None] = []
        self.slept: list[float] = []
        self.images: list[tuple[bytes, str]] = []
        self.texts: list[str] = []

    def progress(self, value: float, maximum: float, preview: bytes | None = None) -> None:
        """
        Note a tick.
        """
        if self.interrupted:
            raise Interrupted
        self.ticks.append((value, maximum))
        self.previews.append(preview)

    def sleep(self, seconds: float) -> None:
        """
        Note how long a node would have slept.
        """
        self.slept.append(seconds)

    def send_image(self, data: bytes, mime: str) -> None:
        """
        Note an image.
        """
        self.images.append((data, mime))

    def send_text(self, text: str) -> None:
        """
        Note a text.
        """
        self.texts.append(text)

    def run(self, class_type: str, **inputs: Any) -> Returned:
        """
        Run one node.
        """
        return ALL[class_type].run(inputs, self)

    def value(self, class_type: str, **inputs: Any) -> Any:
        """
        Run one node and return its first output.
        """
        return self.run(class_type, **inputs).values[0]

    def files(self, returned: Returned, key: str = "images") -> list[Path]:
        """
        Return where the files lie that a node told of.
        """
        assert returned.ui is not None
        roots = {"output": self.folders.output, "temp": self.folders.temp}
        return [roots[item["type"]] / item["subfolder"] / item["filename"] for item in returned.ui[key]]

    def pictures(self, returned: Returned) -> list[Image.Image]:
        """
        Return the pictures that a node told of, read from memory so that no file stays open.
        """
        return [Image.open(io.BytesIO(path.read_bytes())) for path in self.files(returned)]

    def put(self, name: str, data: bytes) -> str:
        """
        Write a file into the input folder and return its name.
        """
        (self.folders.input / name).write_bytes(data)
        return name
