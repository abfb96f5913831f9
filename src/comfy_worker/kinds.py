"""
What a file is: one line per extension says its MIME type and its kind; a new kind of output is a line here.

Names first, bytes only where the name says nothing. No file is opened here.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

from comfy_worker.job import Kind

UNKNOWN: tuple[str, Kind] = ("application/octet-stream", "file")

# fmt: off
BY_EXTENSION: Mapping[str, tuple[str, Kind]] = {
    "png": ("image/png", "image"),
    "apng": ("image/apng", "image"),
    "jpg": ("image/jpeg", "image"),
    "jpeg": ("image/jpeg", "image"),
    "webp": ("image/webp", "image"),
    "avif": ("image/avif", "image"),
    "heic": ("image/heic", "image"),
    "gif": ("image/gif", "image"),
    "bmp": ("image/bmp", "image"),
    "tif": ("image/tiff", "image"),
    "tiff": ("image/tiff", "image"),
    "exr": ("image/aces", "image"),  # what ComfyUI 0.27.0 itself calls it in /view
    "hdr": ("image/vnd.radiance", "image"),
    "jxl": ("image/jxl", "image"),
    "psd": ("image/vnd.adobe.photoshop", "image"),
    "svg": ("image/svg+xml", "image"),
    "ico": ("image/x-icon", "image"),
    "mp4": ("video/mp4", "video"),
    "m4v": ("video/x-m4v", "video"),
    "mov": ("video/quicktime", "video"),
    "mkv": ("video/x-matroska", "video"),
    "webm": ("video/webm", "video"),
    "avi": ("video/x-msvideo", "video"),
    "mpeg": ("video/mpeg", "video"),
    "ogv": ("video/ogg", "video"),
    "mp3": ("audio/mpeg", "audio"),
    "wav": ("audio/wav", "audio"),
    "flac": ("audio/flac", "audio"),
    "m4a": ("audio/mp4", "audio"),
    "aac": ("audio/aac", "audio"),
    "ogg": ("audio/ogg", "audio"),
    "opus": ("audio/ogg", "audio"),
    "aiff": ("audio/aiff", "audio"),
    "weba": ("audio/webm", "audio"),
    "mid": ("audio/midi", "audio"),
    "glb": ("model/gltf-binary", "3d"),
    "gltf": ("model/gltf+json", "3d"),
    "obj": ("model/obj", "3d"),
    "fbx": ("application/octet-stream", "3d"),
    "stl": ("model/stl", "3d"),
    "ply": ("application/octet-stream", "3d"),
    "splat": ("application/octet-stream", "3d"),
    "spz": ("application/octet-stream", "3d"),
    "usdz": ("model/vnd.usdz+zip", "3d"),
    "latent": ("application/octet-stream", "latent"),
    "safetensors": ("application/octet-stream", "file"),
    "txt": ("text/plain", "file"),
    "md": ("text/markdown", "file"),
    "csv": ("text/csv", "file"),
    "json": ("application/json", "file"),
    "srt": ("application/x-subrip", "file"),
    "vtt": ("text/vtt", "file"),
    "html": ("text/html", "file"),
    "css": ("text/css", "file"),
    "js": ("application/javascript", "file"),
    "xml": ("application/xml", "file"),
    "yaml": ("application/yaml", "file"),
    "pdf": ("application/pdf", "file"),
    "zip": ("application/zip", "file"),
    "tar": ("application/x-tar", "file"),
    "gz": ("application/gzip", "file"),
    "7z": ("application/x-7z-compressed", "file"),
    "npy": ("application/octet-stream", "file"),
    "npz": ("application/zip", "file"),
}
# fmt: on

# The extensions that make a bare string in a node's outputs a path (ComfyUI 0.27.0: Preview3D).
PATH_EXTENSIONS = frozenset({"glb", "gltf", "obj", "fbx", "stl", "ply", "splat", "spz", "usdz"})

HEAD_BYTES = 64

_BY_START: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"v/1\x01", "exr"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"glTF", "glb"),
    (b"%PDF", "pdf"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gz"),
    (b"\xff\xfb", "mp3"),
    (b"\xff\xf3", "mp3"),
    (b"\xff\xf2", "mp3"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"BM", "bmp"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
)
_BY_RIFF = {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}
_BY_FAMILY: Mapping[str, Kind] = {
    "image": "image",
    "video": "video",
    "audio": "audio",
    "model": "3d",
    "text": "file",
}
_BY_BRAND = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heic",
    b"heix": "heic",
    b"mif1": "heic",
    b"qt  ": "mov",
    b"M4A ": "m4a",
    b"M4V ": "m4v",
}


def extension(filename: str) -> str:
    """
    Return the extension of a name in lower case and without its dot, or an empty text.
    """
    return PurePosixPath(filename).suffix[1:].lower()


def by_name(filename: str) -> tuple[str, Kind] | None:
    """
    Return (MIME type, kind) by the extension of `filename`, or None when the table has no line for it.
    """
    return BY_EXTENSION.get(extension(filename))


def by_mime(mime: str) -> Kind | None:
    """
    Return the kind that a MIME type stands for, or None when it says nothing (`application/...`, not a MIME type).
    """
    family, _, rest = mime.partition("/")
    return _BY_FAMILY.get(family) if rest else None


def by_bytes(head: bytes) -> tuple[str, Kind]:
    """
    Return (MIME type, kind) by the first `HEAD_BYTES` bytes; unknown bytes are a plain file.
    """
    name = _magic(head)
    return BY_EXTENSION[name] if name else UNKNOWN


def extension_by_bytes(head: bytes) -> str | None:
    """
    Return the extension of a file by its first `HEAD_BYTES` bytes, without its dot, or None.
    """
    return _magic(head)


def extension_of(mime: str) -> str | None:
    """
    Return the usual extension of a picture or sound of this MIME type, without its dot, or None.
    """
    return next((name for name, (known, _) in BY_EXTENSION.items() if known == mime != UNKNOWN[0]), None)


def _magic(head: bytes) -> str | None:
    for start, name in _BY_START:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF":
        return _BY_RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BY_BRAND.get(head[8:12], "mp4")
    if head[:4] == b"\x1aE\xdf\xa3":
        return "webm" if b"webm" in head else "mkv"
    return None
