"""
Nodes that read pictures from the engine's folders, and the rules that all loading nodes share.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_worker.standin import naming, picture_files
from comfy_worker.standin.node import Context, Folders, Input, Node, Returned

_PICTURES = frozenset(
    [
        "apng",
        "avif",
        "bmp",
        "gif",
        "heic",
        "heif",
        "ico",
        "jfif",
        "jpe",
        "jpeg",
        "jpg",
        "jxl",
        "pjp",
        "pjpeg",
        "png",
        "svg",
        "svgz",
        "tif",
        "tiff",
        "webp",
    ]
)
_CHANNELS = ("alpha", "red", "green", "blue")


def choices(extensions: frozenset[str]) -> Callable[[Folders], Sequence[str]]:
    """
    Return the choices of a loading node: the files of the input folder with one of these extensions, sorted.
    """

    def files(folders: Folders) -> Sequence[str]:
        names = (entry.name for entry in os.scandir(folders.input) if entry.is_file())
        return sorted(name for name in names if name.rpartition(".")[2].lower() in extensions)

    return files


def fingerprint(name: str) -> Callable[[Mapping[str, Any], Folders], str]:
    """
    Return the fingerprint of a loading node, the hash of its file: an overwritten upload runs anew.
    """

    def digest(inputs: Mapping[str, Any], folders: Folders) -> str:
        return hashlib.sha256(named(inputs[name], folders).read_bytes()).hexdigest()

    return digest


def check(name: str, kind: str) -> Callable[[Mapping[str, Any], Folders], str | None]:
    """
    Return the check of a loading node: the file must exist and lie inside its folder.
    """

    def complaint(inputs: Mapping[str, Any], folders: Folders) -> str | None:
        file = inputs.get(name)
        if not isinstance(file, str):
            raise AttributeError(f"{type(file).__name__!r} object has no attribute 'endswith'")
        if naming.exists_inside(file, folders):
            return None
        return f"Invalid {kind} file: {file}"

    return complaint


def named(name: str, folders: Folders) -> Path:
    """
    Return where the file of that annotated name lies.
    """
    return naming.annotated(name, folders)[1]


def _load_image(inputs: Mapping[str, Any], context: Context) -> Returned:
    return Returned(picture_files.read(named(inputs["image"], context.folders)))


def _load_mask(inputs: Mapping[str, Any], context: Context) -> Returned:
    image, mask = picture_files.read(named(inputs["image"], context.folders))
    channel = _CHANNELS.index(inputs["channel"])
    return Returned((image[..., channel - 1] if channel else mask,))


_IMAGE = Input("image", choices(_PICTURES), {"image_upload": True})
_REFRESH = {"route": "/internal/files/output", "refresh_button": True, "control_after_refresh": "first"}

LOAD_NODES = (
    Node(
        "LoadImage",
        _load_image,
        inputs=(_IMAGE,),
        outputs=("IMAGE", "MASK"),
        display_name="Load Image",
        category="image",
        fingerprint=fingerprint("image"),
        check=check("image", "image"),
    ),
    Node(
        "LoadImageMask",
        _load_mask,
        inputs=(_IMAGE, Input("channel", _CHANNELS)),
        outputs=("MASK",),
        display_name="Load Image (as Mask)",
        category="image",
        fingerprint=fingerprint("image"),
        check=check("image", "image"),
    ),
    Node(
        "LoadImageOutput",
        _load_image,
        inputs=(
            Input("image", "COMBO", {"image_upload": True, "image_folder": "output", "remote": _REFRESH}),
        ),
        outputs=("IMAGE", "MASK"),
        display_name="Load Image (from Outputs)",
        category="image",
        fingerprint=fingerprint("image"),
        check=check("image", "image"),
    ),
)
