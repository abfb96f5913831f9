"""
Where ComfyUI finds models besides its own folder: network volumes and cached models, written down for ComfyUI to read.

Runs before ComfyUI is started, so it looks at a handful of folders and reads no model. Categories and file of paths:
ComfyUI 0.27.0; a category it does not know yet becomes one that takes every file, a folder that is not there is skipped.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_worker.models import cached
from comfy_worker.models.cached import CachedModel
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

FOLDERS: Mapping[str, tuple[str, ...]] = {
    **{
        key: (key,)
        for key in (
            *(
                "checkpoints",
                "configs",
                "loras",
                "vae",
                "clip_vision",
                "style_models",
                "embeddings",
                "diffusers",
            ),
            *(
                "vae_approx",
                "gligen",
                "upscale_models",
                "latent_upscale_models",
                "hypernetworks",
                "photomaker",
            ),
            *("classifiers", "model_patches", "audio_encoders", "background_removal", "frame_interpolation"),
            *(
                "geometry_estimation",
                "optical_flow",
                "detection",
                "sams",
                "onnx",
                "ipadapter",
                "instantid",
                "pulid",
            ),
            *("LLM", "animatediff_models", "animatediff_motion_lora", "ultralytics"),
        )
    },
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("diffusion_models", "unet"),
    "controlnet": ("controlnet", "t2i_adapter"),
    "ultralytics_bbox": ("ultralytics/bbox",),
    "ultralytics_segm": ("ultralytics/segm",),
    "hunyuan": (".",),
    "hunyuan_instruct": (".",),
}
"""ComfyUI's category -> folders below `models/`. `clip` and `unet` are old names of two categories, and folders still."""

OWN_FIRST = frozenset({"ipadapter"})
"""Categories whose node pack adds its usual folder only where there is no entry yet: the entry must name that folder."""

LINKED = ("HunyuanImage-3.0-*", "insightface", "facerestore_models")
"""Folders that node packs read at a fixed place: only a link there helps."""

EXTRA_FILE = "extra_model_paths.yaml"
FLAG = "--extra-model-paths-config"


@dataclass(frozen=True, slots=True)
class Section:
    """
    One part of the file of paths: all folders below `base`/`prefix`.
    """

    name: str
    base: Path
    prefix: str
    custom_nodes: bool = False

    @property
    def models(self) -> Path:
        """
        The folder that holds the folders of the categories.
        """
        return self.base / self.prefix


def flags(config: Settings, comfyui: Path, scratch: Path) -> list[str]:
    """
    Prepare the places of models and return the arguments that tell ComfyUI of them; none where there is nothing to tell.

    Writes into `scratch`, and links below `comfyui`; a place that cannot be written to is one line in the log.
    """
    volumes = roots(config.volume_roots)
    found = list(sections(config, volumes, comfyui))
    try:
        if cached.linked(
            [CachedModel.of(text) for text in config.cached_models], volumes, scratch / "cached"
        ):
            found.append(Section("cached_models", scratch, "cached"))
        for root in volumes:
            _link_fixed(root / "models", comfyui / "models")
        files = [str(root / EXTRA_FILE) for root in volumes if (root / EXTRA_FILE).is_file()]
        if found:
            target = scratch / EXTRA_FILE
            target.write_text(yaml_of(found, comfyui / "models"), encoding="utf-8")
            files.insert(0, str(target))
    except OSError:
        logger.exception("The places of models could not be prepared.")
        return []
    return [FLAG, *files] if files else []


def roots(candidates: Sequence[Path]) -> list[Path]:
    """
    Return the volumes that are there, each once, whatever its names.
    """
    found: dict[Path, Path] = {}
    for path in candidates:
        if path.is_dir():
            found.setdefault(path.resolve(), path)
    return list(found.values())


def sections(config: Settings, volumes: Sequence[Path], comfyui: Path | None) -> Iterator[Section]:
    """
    Yield a section for every place of models: on a volume `models` and a ComfyUI's own, and MODEL_DIR.
    """
    own = comfyui.resolve() if comfyui is not None else None
    places = {own / "models"} if own is not None else set()
    for number, root in enumerate(volumes):
        name = "runpod_worker_comfy" if number == 0 else f"runpod_worker_comfy_{number + 1}"
        places.add((root / "models").resolve())
        yield Section(name, root, "models", config.volume_custom_nodes)
        if (root / "ComfyUI" / "models").is_dir() and (root / "ComfyUI").resolve() != own:
            yield Section(f"{name}_comfyui", root, "ComfyUI/models")
    folder = config.model_dir
    if folder is not None and folder.resolve() not in places:
        yield Section("model_dir", folder, ".")


def models_folder(config: Settings, comfyui: Path | None) -> Path | None:
    """
    Return where models are fetched to: MODEL_DIR, the first volume, else ComfyUI's own folder; None without any.
    """
    if config.model_dir is not None:
        return config.model_dir
    volumes = roots(config.volume_roots)
    if volumes:
        return volumes[0] / "models"
    return comfyui / "models" if comfyui is not None else None


def yaml_of(found: Sequence[Section], own: Path) -> str:
    """
    Return the file of paths as ComfyUI reads it; `own` is the models folder of that ComfyUI.
    """
    return "\n".join(_section_text(section, own) for section in found)


def _section_text(section: Section, own: Path) -> str:
    lines = [f"{section.name}:", f"  base_path: {json.dumps(str(section.base.absolute()))}"]
    for key, folders in FOLDERS.items():
        paths = [str(Path(section.prefix) / folder) for folder in folders]
        if key in OWN_FIRST:
            paths.insert(0, str((own / key).absolute()))
        lines += [f"  {key}: |", *(f"    {path}" for path in paths)]
    if section.custom_nodes:
        lines.append("  custom_nodes: custom_nodes")
    return "\n".join(lines) + "\n"


def _link_fixed(models: Path, own: Path) -> None:
    for pattern in LINKED:
        for folder in sorted(models.glob(pattern)):
            if not folder.is_dir() or folder.resolve().is_relative_to(own.resolve()):
                continue
            plain = folder.name
            head, _, tail = plain.rpartition("-v")
            for name in dict.fromkeys((plain, head if tail.isdecimal() and head else plain)):
                _link(own / name, folder)


def _link(name: Path, folder: Path) -> None:
    if name.is_symlink() and not name.exists():
        name.unlink()
    if not name.exists():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to(folder.absolute())
        logger.info("%s of the volume is linked into ComfyUI's models.", folder.name)
