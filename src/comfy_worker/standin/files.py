"""
Files over HTTP: uploads, masks, and /view. Rules and empty answers: ComfyUI 0.27.0.
"""

import asyncio
import hashlib
import io
import json
import mimetypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image, UnidentifiedImageError

from comfy_worker.standin.engine import Engine
from comfy_worker.standin.node import Folders
from comfy_worker.standin.replies import ENGINE, Crash, as_json, empty

_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".exr": "image/aces",
    ".webm": "video/webm",
    ".mp4": "video/mp4",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".opus": "audio/ogg",
    ".wav": "audio/x-wav",
    ".txt": "text/plain",
    ".json": "application/json",
    ".glb": "model/gltf-binary",
}
_RENDERED = frozenset((".html", ".htm", ".svg", ".js", ".css", ".xml"))


def folder_of(kind: str, folders: Folders) -> Path | None:
    """
    Return the folder that a `type` means, None for an unknown one.
    """
    return {"input": folders.input, "output": folders.output, "temp": folders.temp}.get(kind)


def is_inside(path: str, folder: Path) -> bool:
    """
    Tell whether a path stays in a folder; symbolic links are not followed.
    """
    root = os.path.abspath(folder)
    return os.path.commonpath((root, os.path.abspath(path))) == root


async def post_image(request: web.Request) -> web.Response:
    """
    Take a file into the input folder, or into the one that `type` names.
    """
    return await _upload(request, _save)


async def post_mask(request: web.Request) -> web.Response:
    """
    Take a mask: its alpha is put on the image that `original_ref` names, and the result is saved under the mask's name.
    """
    return await _upload(request, _save_masked)


async def _upload(request: web.Request, save: Any) -> web.Response:
    engine: Engine = request.app[ENGINE]
    slow = float(engine.faults.values.get("slow_upload_ms", 0))
    await asyncio.sleep(slow / 1000)
    fields: Mapping[str, Any] = await request.post()
    file = fields.get("image")
    if file is None:
        return empty(400)
    kind, subfolder = str(fields.get("type") or "input"), str(fields.get("subfolder") or "")
    root = folder_of(kind, engine.settings.folders)
    if not isinstance(file, web.FileField) or root is None:
        raise Crash
    folder = os.path.join(root, os.path.normpath(subfolder) if subfolder else "")
    path = os.path.abspath(os.path.join(folder, file.filename))
    if not is_inside(path, root):
        # An absolute name leaves the folder too, but fails later, when it is opened.
        if os.path.isabs(file.filename):
            raise Crash
        return empty(400)
    try:
        name = save(Path(folder), file, fields, engine.settings.folders)
    except OSError as exc:
        raise Crash from exc
    return as_json({"name": name, "subfolder": subfolder, "type": kind})


def _save(folder: Path, file: web.FileField, fields: Mapping[str, Any], _folders: Folders) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    data = file.file.read()
    name = file.filename
    if fields.get("overwrite") not in ("true", "1"):
        name = _free_name(folder, file.filename, data)
    path = folder / name
    if not (path.exists() and _same(path, data)):
        path.write_bytes(data)
    return name


def _free_name(folder: Path, name: str, data: bytes) -> str:
    stem, extension = os.path.splitext(name)
    candidate, count = name, 1
    while (folder / candidate).exists() and not _same(folder / candidate, data):
        candidate = f"{stem} ({count}){extension}"
        count += 1
    return candidate


def _same(path: Path, data: bytes) -> bool:
    if path.stat().st_size != len(data):
        return False
    return hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest()


def _save_masked(folder: Path, file: web.FileField, fields: Mapping[str, Any], folders: Folders) -> str:
    try:
        ref = json.loads(str(fields["original_ref"]))
        name, root = ref["filename"], folder_of(ref.get("type", "output"), folders)
    except (KeyError, TypeError, ValueError) as exc:
        raise Crash from exc
    original = os.path.join(root or folders.output, ref.get("subfolder", ""), name)
    if root is not None and is_inside(original, root) and os.path.isfile(original):
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.open(original).convert("RGBA")
        mask = Image.open(file.file).convert("RGBA")
        picture.putalpha(mask.getchannel("A"))
        picture.save(folder / file.filename, compress_level=4)
    return file.filename


async def get_view(request: web.Request) -> web.StreamResponse:
    """
    Serve a file of one of the folders, as it is or re-encoded.
    """
    engine: Engine = request.app[ENGINE]
    found = find(request.query, engine.settings.folders)
    if isinstance(found, int):
        return empty(found)
    if "preview" in request.query:
        return _preview(found, request.query["preview"], "a" in request.query.get("channel", ""))
    if request.query.get("channel") in ("rgb", "a"):
        return _channel(found, request.query["channel"])
    suffix = found.suffix.lower()
    rendered = suffix in _RENDERED
    headers = {
        "Content-Type": "application/octet-stream"
        if rendered
        else _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream"),
        "Content-Disposition": ("attachment; " if rendered else "") + disposition(found.name),
    }
    if not engine.settings.old:
        headers["X-Content-Type-Options"] = "nosniff"
    return web.FileResponse(found, headers=headers)


def find(query: Mapping[str, str], folders: Folders) -> Path | int:
    """
    Return the file that a query means, or the status that refuses it.
    """
    name = query.get("filename")
    if name is None or name.startswith("blake3:"):
        return 404
    kind = query.get("type", "output")
    for marked in ("output", "input", "temp"):
        if name.endswith(f" [{marked}]"):
            name, kind = name.removesuffix(f" [{marked}]"), marked
    root = folder_of(kind, folders)
    if not name or name.startswith("/") or ".." in name or root is None:
        return 400
    folder = os.path.join(root, query.get("subfolder", ""))
    if not is_inside(folder, root):
        return 403
    path = Path(folder, os.path.basename(name))
    return path if path.is_file() else 404


def disposition(name: str) -> str:
    """
    Return the Content-Disposition of a file name, in raw UTF-8.
    """
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'filename="{escaped}"'


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as exc:
        raise Crash from exc


def _preview(path: Path, wanted: str, alpha: bool) -> web.Response:
    form, _, digits = wanted.partition(";")
    form = "jpeg" if form == "jpeg" and not alpha else "webp"
    quality = int(digits) if digits.isdigit() else 90
    picture = _open(path)
    if form == "jpeg":
        picture = picture.convert("RGB")
    return _encoded(picture, path.name, form, quality=quality)


def _channel(path: Path, channel: str) -> web.Response:
    picture = _open(path)
    if channel == "rgb":
        return _encoded(picture.convert("RGB"), path.name, "png")
    return _encoded(_alpha_only(picture), path.name, "png")


def _alpha_only(picture: Image.Image) -> Image.Image:
    alpha = picture.convert("RGBA").getchannel("A")
    result = Image.new("RGBA", picture.size)
    result.putalpha(alpha)
    return result


def _encoded(picture: Image.Image, name: str, form: str, **options: Any) -> web.Response:
    buffer = io.BytesIO()
    picture.save(buffer, format=form.upper(), **options)
    return web.Response(
        body=buffer.getvalue(),
        content_type=f"image/{form}",
        headers={"Content-Disposition": disposition(name)},
    )
