"""
What the engine says about itself: versions, node classes, models, folders, settings. Shapes: ComfyUI 0.27.0.
"""

import os
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from comfy_worker.standin import object_info
from comfy_worker.standin.engine import Engine
from comfy_worker.standin.files import folder_of
from comfy_worker.standin.post_prompt import REPLACEMENTS
from comfy_worker.standin.replies import ENGINE, as_json, empty
from comfy_worker.standin.settings import ENGINE_NAME, VERSIONS, Settings
from comfy_worker.standin.socket_route import features

MODEL_FOLDERS = (
    "checkpoints",
    "configs",
    "loras",
    "vae",
    "text_encoders",
    "diffusion_models",
    "clip_vision",
    "style_models",
    "embeddings",
    "diffusers",
    "vae_approx",
    "controlnet",
    "gligen",
    "upscale_models",
    "latent_upscale_models",
    "custom_nodes",
    "hypernetworks",
    "photomaker",
    "classifiers",
    "model_patches",
    "audio_encoders",
    "background_removal",
    "frame_interpolation",
    "geometry_estimation",
    "optical_flow",
    "detection",
)


async def get_system_stats(request: web.Request) -> web.Response:
    """
    Answer with versions and memory; `engine` says that this is not ComfyUI.
    """
    settings: Settings = request.app[ENGINE].settings
    total, free = _memory()
    system: dict[str, Any] = {
        "os": "linux" if sys.platform.startswith("linux") else sys.platform,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": VERSIONS[settings.profile],
        "required_frontend_version": "0.0.0",
        "installed_templates_version": None,
        "required_templates_version": "0.0.0",
        "python_version": sys.version,
        "pytorch_version": "none",
        "embedded_python": False,
        "argv": list(settings.argv),
        "engine": ENGINE_NAME,
    }
    if not settings.old:
        system |= {"comfy_package_versions": [], "deploy_environment": "built-in"}
    memory = {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}
    return as_json({"system": system, "devices": [{"name": "cpu", "type": "cpu", "index": None, **memory}]})


def _memory() -> tuple[int, int]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 0


async def get_features(request: web.Request) -> web.Response:
    """
    Answer with what the server announces.
    """
    return as_json(features(request.app[ENGINE].settings))


async def get_object_info(request: web.Request) -> web.Response:
    """
    Answer with all node classes.
    """
    return as_json(request.app[ENGINE].classes())


async def get_object_info_of(request: web.Request) -> web.Response:
    """
    Answer with one node class, `{}` for an unknown one.
    """
    engine: Engine = request.app[ENGINE]
    name = request.match_info["name"]
    node = engine.nodes.get(name)
    return as_json({name: object_info.entry(node, engine.settings.folders)} if node is not None else {})


async def get_models(_request: web.Request) -> web.Response:
    """
    Answer with the names of the model folders.
    """
    return as_json(MODEL_FOLDERS)


async def get_models_in(request: web.Request) -> web.Response:
    """
    Answer with the files of a model folder.
    """
    folder = request.match_info["folder"]
    if folder not in MODEL_FOLDERS:
        return empty(404)
    root = request.app[ENGINE].settings.folders.models / folder
    return as_json([path.relative_to(root).as_posix() for path in _files(root)])


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


async def get_model_folders(request: web.Request) -> web.Response:
    """
    Answer with the model folders and where they are.
    """
    models = request.app[ENGINE].settings.folders.models
    names = [name for name in MODEL_FOLDERS if name not in ("configs", "custom_nodes")]
    return as_json([{"name": name, "folders": [str(models / name)]} for name in names])


async def get_model_files(request: web.Request) -> web.Response:
    """
    Answer with the files of a model folder, their sizes and times.
    """
    folder = request.match_info["folder"]
    if folder not in MODEL_FOLDERS:
        return empty(404)
    root = request.app[ENGINE].settings.folders.models / folder
    rows = [(path.relative_to(root).as_posix(), path.stat()) for path in _files(root)]
    times = [
        (name, {"modified": at.st_mtime, "created": at.st_ctime, "size": at.st_size}) for name, at in rows
    ]
    return as_json([{"name": name, "pathIndex": 0, **facts} for name, facts in times])


async def get_embeddings(request: web.Request) -> web.Response:
    """
    Answer with the names of the embeddings, without their extensions.
    """
    root = request.app[ENGINE].settings.folders.models / "embeddings"
    return as_json([path.relative_to(root).with_suffix("").as_posix() for path in _files(root)])


async def get_folder_paths(request: web.Request) -> web.Response:
    """
    Answer with the folders of every kind of model.
    """
    models = request.app[ENGINE].settings.folders.models
    return as_json({name: [str(models / name)] for name in MODEL_FOLDERS})


async def get_files(request: web.Request) -> web.Response:
    """
    Answer with the files of a folder, newest first, each with its kind behind it.
    """
    kind = request.match_info["kind"]
    root = folder_of(kind, request.app[ENGINE].settings.folders)
    if root is None:
        return as_json({"error": "Invalid directory type"}, status=400)
    files = [path for path in root.iterdir() if path.is_file() and not path.name.startswith(".")]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return as_json([f"{path.name} [{kind}]" for path in files])


async def get_node_replacements(_request: web.Request) -> web.Response:
    """
    Answer with the classes that are gone and what takes their place.
    """
    return as_json(REPLACEMENTS)


async def get_users(_request: web.Request) -> web.Response:
    """
    Answer as a server with one user.
    """
    return as_json({"storage": "server", "migrated": False})


async def get_nothing(_request: web.Request) -> web.Response:
    """
    Answer with an empty object.
    """
    return as_json({})


async def get_none(_request: web.Request) -> web.Response:
    """
    Answer with an empty list.
    """
    return as_json([])


async def get_log(_request: web.Request) -> web.Response:
    """
    Answer with an empty log.
    """
    return as_json({"entries": [], "size": {"cols": 80, "rows": 24}})


async def assets_off(_request: web.Request) -> web.Response:
    """
    Answer as a server whose assets are off.
    """
    message = "Assets system is disabled. Start the server with --enable-assets to use this feature."
    return as_json({"error": {"code": "SERVICE_DISABLED", "message": message, "details": {}}}, status=503)
