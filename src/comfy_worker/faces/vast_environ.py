"""
The environment of Vast.ai's templates -> ours: other names, other words, and what has no meaning here. Pure but for the log.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from comfy_worker.errors import ConfigInvalid
from comfy_worker.settings_parsers import TRUE

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    *("WEBSOCKET_INITIAL_TIMEOUT", "WEBSOCKET_MESSAGE_TIMEOUT", "WEBSOCKET_MAX_NO_MESSAGE_RETRIES"),
    *("WEBSOCKET_MAX_RECONNECTS", "PREPROCESS_WORKERS", "POSTPROCESS_WORKERS", "GENERATION_WORKERS"),
)
REDIS = "API_CACHE=redis is not offered; results are kept in memory."


def translated(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return the variables with ours set from Vast's, where ours are not set.

    Raises:
        ConfigInvalid: several ComfyUIs are named.
    """
    given = {name: text.strip() for name, text in environ.items() if text.strip()}
    found: dict[str, str] = {}
    url = _backend(given)
    if url is not None:
        found["COMFYUI_URL"] = url
    found |= _folders(given, "COMFYUI_URL" in given or url is not None)
    if given.get("DEBUG", "").lower() in TRUE:
        found["LOG_LEVEL"] = "DEBUG"
    return {**found, **given}


def remarks(environ: Mapping[str, str]) -> list[str]:
    """
    Return what to say once of variables that do nothing here.
    """
    said = [name for name in WITHOUT_EFFECT if environ.get(name, "").strip()]
    texts = [f"{', '.join(said)}: without effect on this worker."] if said else []
    return texts + ([REDIS] if environ.get("API_CACHE", "").strip().lower() == "redis" else [])


def _backend(given: Mapping[str, str]) -> str | None:
    listed = [part.strip().rstrip("/") for part in given.get("COMFYUI_BACKENDS", "").split(",")]
    backends = list(dict.fromkeys(part for part in listed if part))
    if len(backends) > 1:
        text = "COMFYUI_BACKENDS must name one ComfyUI: a worker has one, and a second GPU is a second worker"
        raise ConfigInvalid([text])
    base = given.get("COMFYUI_API_BASE", "").rstrip("/")
    return backends[0] if backends else base or None


def _folders(given: Mapping[str, str], runs: bool) -> dict[str, str]:
    path = given.get("COMFYUI_INSTALL_PATH")
    if path is None:
        return {}
    if not runs:
        return {"COMFYUI_PATH": path}
    names = {"COMFY_INPUT_DIR": Path(path) / "input", "COMFY_OUTPUT_DIR": Path(path) / "output"}
    if not all(folder.is_dir() for folder in names.values()):
        logger.warning("COMFYUI_INSTALL_PATH has no input and output folder; files go over HTTP.")
        return {}
    return {name: str(folder) for name, folder in names.items()}
