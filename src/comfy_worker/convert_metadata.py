"""
What a re-encoded image keeps of the metadata of its source.
"""

from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin

_MOST_EXIF_BYTES = 65_533  # a JPEG segment holds no more


def kept(image: Image.Image, target: str) -> dict[str, Any]:
    """
    Return what `save` needs to keep the metadata: text for PNG; EXIF, XMP and the colour profile for the others.
    """
    image.load()  # text may stand behind the pixels of a PNG
    texts = {key: str(text) for key, text in getattr(image, "text", {}).items()}
    exif = image.getexif()
    found: dict[str, Any] = {}
    if target == "png":
        found["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            found["pnginfo"].add_text(key, text)
    else:
        _put_workflow(exif, texts)
        if image.info.get("xmp"):
            found["xmp"] = image.info["xmp"]
    if len(exif) and len(exif.tobytes()) <= (_MOST_EXIF_BYTES if target == "jpeg" else 1 << 31):
        found["exif"] = exif.tobytes()
    if image.info.get("icc_profile") and image.mode in {"RGB", "RGBA", "P"}:
        found["icc_profile"] = image.info["icc_profile"]
    return found


def _put_workflow(exif: Image.Exif, texts: Mapping[str, str]) -> None:
    # ComfyUI 0.27.0 looks for a workflow dropped onto its editor in these two tags of a WebP.
    for key, tag in (("prompt", 0x0110), ("workflow", 0x010F)):
        if key in texts:
            exif[tag] = f"{key}:{texts[key]}"
