"""
The edits of a graph that the Salad face asks for: save nodes named after the request, media values and model URLs turned
into input files. Pure, but for paths of ComfyUI's own folders.

The table of classes and the words of refusals are those of SaladTechnologies/comfyui-api 1.18.0.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from comfy_worker import graph, inline
from comfy_worker.errors import JobInvalid
from comfy_worker.faces import salad_media
from comfy_worker.job import InputFile, UrlAuth

NO_SAVER = 'Prompt must contain a node with a "filename_prefix" input, such as "SaveImage"'
DIRECTORY_CLASSES = frozenset({"VHS_LoadImages", "VHS_LoadImagesPath"})
VIDEO_CLASSES = frozenset(
    {"LoadVideo", "VHS_LoadVideo", "VHS_LoadVideoPath", "VHS_LoadVideoFFmpeg", "VHS_LoadVideoFFmpegPath"}
)
AUDIO_CLASSES = frozenset({"LoadAudio", "VHS_LoadAudio", "VHS_LoadAudioUpload"})
# Input name -> folder of ComfyUI's models; a class's own line wins.
MODEL_FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "vae_name": "vae",
    "control_net_name": "controlnet",
    "unet_name": "diffusion_models",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "config_name": "configs",
    **{f"clip_name{number}": "text_encoders" for number in ("", 1, 2, 3, 4)},
}
CLASS_FOLDERS = {
    ("CLIPVisionLoader", "clip_name"): "clip_vision",
    ("UpscaleModelLoader", "model_name"): "upscale_models",
}
SAFE_ID_CHARS = 120


class Spot(NamedTuple):
    """
    Where a file stands in a request: how messages name it.
    """

    word: str
    node_id: str
    location: str

    @property
    def opening(self) -> str:
        """
        How a refusal of this file begins.
        """
        if not self.node_id:
            return f"Failed to download {self.word} for {self.location}: "
        if self.word == "model":
            return f"Failed to process model for node {self.node_id}: "
        return f"Failed to download {self.word} for node {self.node_id}: "


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What a graph is read with: `info` gives a class's /object_info (empty when unknown), `auth` what a URL is asked with.

    `folders` are ComfyUI's own (`input`, `output`, `temp`) where they are on this disk, `roots` further ones that paths may
    lead into. `key` is no text of any request.
    """

    info: Callable[[str], Mapping[str, Any]]
    auth: Callable[[str], tuple[str, UrlAuth | None]]
    key: str
    folders: Mapping[str, Path] = field(default_factory=dict)
    prepend: bool = True
    roots: Sequence[Path] = ()


@dataclass(slots=True)
class Reading:
    """
    A graph on its way: `prompt` is edited in place, `spots` says where each file of `inputs` stood, by its `field`.
    """

    prompt: dict[str, Any]
    around: Surroundings
    inputs: list[InputFile] = field(default_factory=list)
    spots: dict[str, Spot] = field(default_factory=dict)


def read(prompt: Mapping[str, Any], request_id: str, around: Surroundings) -> Reading:
    """
    Return the graph as it is to be queued, with the files it needs.

    Raises:
        JobInvalid: a value can be neither fetched nor decoded, or nothing would be saved.
    """
    copy = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    reading = Reading(copy, around)
    for node_id, node in copy.items():
        if _is_saver(node):
            _rename(node["inputs"], request_id, around.prepend)
        for place in _media_places(node_id, node, around):
            _take(reading, place)
        _take_directory(reading, node_id, node)
        _take_models(reading, node_id, node)
    if not any(_is_output(node) for node in prompt.values()):
        raise JobInvalid(NO_SAVER, field="prompt")
    return reading


def safe_id(request_id: str) -> str:
    """
    Return an id as a part of a file's name: what no file name may hold, and ComfyUI's `%`, becomes an underscore.
    """
    clean = "".join(char if char.isalnum() or char in "._-" else "_" for char in request_id)
    return clean[:SAFE_ID_CHARS]


def _is_saver(node: Mapping[str, Any]) -> bool:
    value = node["inputs"].get("filename_prefix")
    return isinstance(value, str) and value != ""


def _is_output(node: Mapping[str, Any]) -> bool:
    inputs = node["inputs"]
    is_link = isinstance(inputs.get("filename_prefix"), list)
    return (_is_saver(node) or is_link) and bool(inputs.get("save_output", True))


def _rename(inputs: dict[str, Any], request_id: str, prepend: bool) -> None:
    name = safe_id(request_id)
    inputs["filename_prefix"] = f"{name}_{inputs['filename_prefix']}" if prepend else name or "_"


class _Place(NamedTuple):
    node_id: str
    class_type: str
    input_name: str
    word: str
    values: dict[str, Any]

    @property
    def spot(self) -> Spot:
        suffix = "video" if self.word == "video" else self.input_name
        return Spot(self.word, self.node_id, f"prompt.{self.node_id}.inputs.{suffix}")


def _media_places(node_id: str, node: Mapping[str, Any], around: Surroundings) -> Iterator[_Place]:
    class_type, inputs = node["class_type"], node["inputs"]
    for name, value in inputs.items():
        word = _word(class_type, name, around) if isinstance(value, str) and value else None
        if word:
            yield _Place(node_id, class_type, name, word, inputs)


def _word(class_type: str, name: str, around: Surroundings) -> str | None:
    """
    Return what kind of medium an input takes, None when it takes none, or wants the text itself.
    """
    if class_type in VIDEO_CLASSES:
        return "video" if name in {"video", "file"} else None
    if class_type in AUDIO_CLASSES:
        return "audio" if name in {"audio", "audio_file"} else None
    if (class_type, name) in graph.FILE_INPUTS:
        return "image" if name == "image" else "file"
    if name != "image":
        return "file" if _may_be_file(name) and graph.names_a_file(name, around.info(class_type)) else None
    info = around.info(class_type)
    if not info:
        return None if "base64" in class_type.lower() else "image"
    return "image" if graph.names_a_file(name, info) or graph.has_choices(name, info) else None


def _may_be_file(name: str) -> bool:
    # Asking for a class costs a request to ComfyUI; the names of most inputs say that they are no file.
    return re.search(r"image|mask|video|audio|file|model_file|upload", name) is not None


def _take(reading: Reading, place: _Place) -> None:
    value, spot = place.values[place.input_name], place.spot
    sort = salad_media.sort_of(value)
    if sort == "name":
        return
    if sort == "unknown":
        if _is_there(value, reading.around.folders):
            return
        _refuse(spot, salad_media.NO_TYPE)
    if sort == "path":
        place.values[place.input_name] = _path(reading, value, place)
        return
    place.values[place.input_name] = _add(
        reading, value, spot, f"prompt.{place.node_id}.inputs.{place.input_name}"
    )


def _is_there(value: str, folders: Mapping[str, Path]) -> bool:
    if "input" not in folders or len(value) > 200:
        return False
    return (
        salad_media.reachable(value, {"input": folders["input"]}) is not None
        and (folders["input"] / value).exists()
    )


def _path(reading: Reading, value: str, place: _Place) -> str:
    around, by_path = reading.around, place.class_type.endswith("Path")
    if (known := salad_media.reachable(value, around.folders)) is not None:
        return value if by_path else known
    if (found := salad_media.inside_roots(value, around.roots)) is None:
        _refuse(
            place.spot,
            "a local path must lie inside ComfyUI's input, output or temp folder, or in INPUT_ROOTS",
        )
    if by_path:
        return str(found)
    # Where ComfyUI does not look: it gets a copy.
    where = f"prompt.{place.node_id}.inputs.{place.input_name}"
    name = f"{around.key}-{len(reading.inputs)}{found.suffix}"
    reading.inputs.append(InputFile(name, where, path=found))
    reading.spots[where] = place.spot
    return name


def _add(reading: Reading, value: str, spot: Spot, where: str, folder: str | None = None) -> str:
    """
    Note a file, and return the name that stands for it in the graph until it is staged.
    """
    name = f"{reading.around.key}-{len(reading.inputs)}"
    return _note(reading, name, value, spot, where, folder)


def _note(reading: Reading, name: str, value: str, spot: Spot, where: str, folder: str | None = None) -> str:
    file = InputFile(name, where, folder=folder)
    if salad_media.sort_of(value) == "url":
        url, auth = reading.around.auth(value)
        file = replace(file, url=url, auth=auth)
    else:
        head = inline.head_of(value)
        if head is None or (value[:5].lower() != "data:" and salad_media.extension_of(head) is None):
            _refuse(spot, salad_media.NO_TYPE)
        file = replace(file, data=value)
    reading.inputs.append(file)
    reading.spots[where] = spot
    return name


def _take_directory(reading: Reading, node_id: str, node: Mapping[str, Any]) -> None:
    inputs = node["inputs"]
    values = inputs.get("directory")
    if node["class_type"] not in DIRECTORY_CLASSES or not isinstance(values, list):
        return
    if not values or not all(isinstance(value, str) and value for value in values):
        return
    spot = Spot("images", node_id, f"prompt.{node_id}.inputs.directory")
    folder = f"{reading.around.key}-{node_id if node_id.isalnum() else len(reading.inputs)}"
    for index, value in enumerate(values):
        # The node reads the folder in the order of the names.
        name = f"{folder}/{index:05}.{_extension(value)}"
        _note(reading, name, value, spot, f"prompt.{node_id}.inputs.directory[{index}]")
    root = reading.around.folders.get("input")
    by_path = node["class_type"].endswith("Path") and root is not None
    inputs["directory"] = str(root / folder) if by_path and root else folder


def _extension(value: str) -> str:
    if salad_media.sort_of(value) == "url":
        found = re.search(r"\.([A-Za-z0-9]{1,5})(?:[?#]|$)", value.rsplit("/", 1)[-1])
        return found[1].lower() if found else "png"
    return salad_media.extension_of(inline.head_of(value) or b"") or "png"


def _take_models(reading: Reading, node_id: str, node: Mapping[str, Any]) -> None:
    class_type, inputs = node["class_type"], node["inputs"]
    for name, value in inputs.items():
        if not isinstance(value, str) or not value.lower().startswith(graph.URL_SCHEMES):
            continue
        folder = CLASS_FOLDERS.get((class_type, name)) or MODEL_FOLDERS.get(name)
        spot = Spot("model", node_id, f"prompt.{node_id}.inputs")
        if class_type == "DiffusersLoader" and name == "model_path":
            inputs[name] = _repository(reading, value, spot, f"prompt.{node_id}.inputs.{name}")
        elif folder is not None:
            inputs[name] = _add(reading, value, spot, f"prompt.{node_id}.inputs.{name}", folder)


def _repository(reading: Reading, value: str, spot: Spot, where: str) -> str:
    if value[:5].lower() == "s3://":
        _refuse(spot, "a repository has an https URL")
    # Credentials are not shown to it: whoever names the URL later would get what they opened.
    name = _add(reading, value, spot, where, "diffusers")
    reading.inputs[-1] = replace(reading.inputs[-1], url=value, auth=None, is_repository=True)
    return name


def _refuse(spot: Spot, reason: str) -> NoReturn:
    raise JobInvalid(f"{spot.opening}{reason}", field=spot.location)
