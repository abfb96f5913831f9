"""
Pure questions to and edits of a workflow graph in API format. Nothing here changes its argument or does I/O.
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from comfy_worker.errors import JobInvalid, WorkflowInvalid
from comfy_worker.job import Workflow

RUN_FOLDER = re.compile(r"cw-[0-9a-f]{20}")
NAMESPACE = uuid.UUID("6f1d5b52-6f0a-5b6e-9c1b-0b9a6a8f2d31")
SOCKET_SAVERS = frozenset({"SaveImageWebsocket"})
NOT_JSON = (
    "it holds a whole number of more than 64 bits or text that is not valid Unicode, or is nested too deeply"
)
URL_SCHEMES = ("http://", "https://", "s3://")
ANNOTATIONS = (" [input]", " [output]", " [temp]")
FILE_FLAGS = frozenset(
    {"image_upload", "video_upload", "audio_upload", "file_upload", "animated_image_upload"}
)

# File inputs that /object_info does not mark, and the common ones, which need no look into it.
FILE_INPUTS = frozenset(
    {
        ("LoadImage", "image"),
        ("LoadImageMask", "image"),
        ("LoadImageOutput", "image"),
        ("LoadAudio", "audio"),
        ("LoadVideo", "file"),
        ("Load3D", "model_file"),
        ("Load3DAnimation", "model_file"),
        ("VHS_LoadVideo", "video"),
        ("VHS_LoadVideoFFmpeg", "video"),
        ("VHS_LoadVideoPath", "video"),
        ("VHS_LoadVideoFFmpegPath", "video"),
        ("VHS_LoadImagePath", "image"),
        ("VHS_LoadAudio", "audio_file"),
        ("VHS_LoadAudioUpload", "audio"),
    }
)


class Place(NamedTuple):
    """
    One widget value in a graph.
    """

    node_id: str
    input_name: str
    value: str

    @property
    def field(self) -> str:
        """
        The value's path, as messages name it.
        """
        return f"workflow.{self.node_id}.inputs.{self.input_name}"


def check_shape(workflow: Any) -> Workflow:
    """
    Return `workflow` if it is a graph in API format.

    Raises:
        WorkflowInvalid: it is not, with the way out; the UI format of the editor gets a text of its own.
    """
    if not isinstance(workflow, dict):
        raise WorkflowInvalid(
            f"'workflow' must be an object in ComfyUI's API format, not {kind_of(workflow)}.",
            field="workflow",
        )
    if isinstance(workflow.get("nodes"), list) and "links" in workflow:
        raise WorkflowInvalid(
            "'workflow' is in the editor's format (it has 'nodes' and 'links'). ComfyUI runs the API format: in the "
            "editor choose Workflow > Export (API), or File > Save (API Format) in older versions, and send that file.",
            field="workflow",
        )
    if not workflow:
        raise WorkflowInvalid("'workflow' is empty: it must hold at least one output node.", field="workflow")
    for node_id, node in workflow.items():
        _check_node(node_id, node)
        # ComfyUI's body is two levels deeper, and must be sendable too.
        if not is_json([[{node_id: node}]]):
            raise WorkflowInvalid(
                f"'workflow.{node_id}' cannot be sent to ComfyUI: {NOT_JSON}.", field=f"workflow.{node_id}"
            )
    return workflow


def _check_node(node_id: str, node: Any) -> None:
    name = f"workflow.{node_id}"
    if not isinstance(node, dict):
        raise WorkflowInvalid(
            f"'{name}' must be an object with 'class_type' and 'inputs', not {kind_of(node)}.", field=name
        )
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        raise WorkflowInvalid(f"'{name}.class_type' must name the node's class.", field=f"{name}.class_type")
    if not isinstance(node.get("inputs"), dict):
        raise WorkflowInvalid(
            f"'{name}.inputs' must be an object, not {kind_of(node.get('inputs'))}.", field=f"{name}.inputs"
        )
    if node.get("_meta") is not None and not isinstance(node["_meta"], dict):
        raise WorkflowInvalid(f"'{name}._meta' must be an object.", field=f"{name}._meta")


def is_json(value: Any) -> bool:
    """
    Return whether a value can go out as JSON; `NOT_JSON` says what is in it otherwise.
    """
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """
    Return the JSON name of a value's type, with its article.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), "something else")


def widgets(workflow: Workflow) -> Iterator[Place]:
    """
    Yield every text value of the graph in order.
    """
    for node_id, node in workflow.items():
        for input_name, value in node["inputs"].items():
            if isinstance(value, str):
                yield Place(node_id, input_name, value)


def nested_texts(workflow: Workflow) -> Iterator[str]:
    """
    Yield every text inside a list or an object of the graph's inputs; the source of a link is one of them.
    """
    pending = [
        value
        for node in workflow.values()
        for value in node["inputs"].values()
        if isinstance(value, (list, dict))
    ]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            pending.extend(value.values() if isinstance(value, dict) else value)


def names_a_file(input_name: str, info: Mapping[str, Any]) -> bool:
    """
    Return whether the input names a file in ComfyUI's input folder: an upload flag in the input's options says so.

    `info` is the class's entry of /object_info. See `FILE_INPUTS` for the inputs that it does not mark.
    """
    _, options = _spec(info, input_name)
    return any(options.get(flag) for flag in FILE_FLAGS)


def has_choices(input_name: str, info: Mapping[str, Any]) -> bool:
    """
    Return whether the input is a choice from a list, as inputs that name files are.
    """
    type_, _ = _spec(info, input_name)
    return isinstance(type_, list) or type_ == "COMBO"


def is_prose(input_name: str, info: Mapping[str, Any]) -> bool:
    """
    Return whether the input is free text, in which a file's name is only a word.
    """
    type_, options = _spec(info, input_name)
    return type_ == "STRING" and bool(options.get("multiline"))


def _spec(info: Mapping[str, Any], input_name: str) -> tuple[Any, Mapping[str, Any]]:
    groups = info.get("input")
    for group in groups.values() if isinstance(groups, dict) else ():
        spec = group.get(input_name) if isinstance(group, dict) else None
        if isinstance(spec, list) and spec:
            return spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return None, {}


def is_remote(value: str) -> bool:
    """
    Return whether a whole value is a URL or data URI that stands for a file.
    """
    lowered = value[:8].lower()
    return lowered.startswith((*URL_SCHEMES, "data:")) and not any(space in value for space in " \t\r\n")


def replaced(workflow: Workflow, edit: Callable[[Place], str]) -> dict[str, Any]:
    """
    Return a copy of the graph with `edit` applied to every text value. Nodes that do not change are shared.
    """
    changes = {(place.node_id, place.input_name): edit(place) for place in widgets(workflow)}
    copy: dict[str, Any] = dict(workflow)
    for (node_id, input_name), value in changes.items():
        if value != workflow[node_id]["inputs"][input_name]:
            node = dict(copy[node_id])
            node["inputs"] = {**node["inputs"], input_name: value}
            copy[node_id] = node
    return copy


def split_annotation(value: str) -> tuple[str, str]:
    """
    Split `name [input]` into the name and its annotation (empty when there is none).
    """
    for suffix in ANNOTATIONS:
        if value.endswith(suffix):
            return value[: -len(suffix)], suffix
    return value, ""


def prefixed(workflow: Workflow, folder: str) -> dict[str, Any]:
    """
    Return a copy in which every `filename_prefix` saves below `folder`.

    Raises:
        JobInvalid: a prefix would leave the folder.
    """

    def edit(place: Place) -> str:
        if place.input_name != "filename_prefix":
            return place.value
        value = place.value.replace("\\", "/")
        if value.startswith("/") or ".." in value.split("/") or "\x00" in value:
            raise JobInvalid(
                f"'{place.field}' must be a relative path without '..': a job saves into its own folder.",
                field=place.field,
            )
        return f"{folder}/{place.value}"

    return replaced(workflow, edit)


def saves_over_socket(workflow: Workflow) -> frozenset[str]:
    """
    Return the ids of nodes whose pictures come over the websocket only.
    """
    return frozenset(node_id for node_id, node in workflow.items() if node["class_type"] in SOCKET_SAVERS)


def title_of(workflow: Workflow, node_id: str) -> str | None:
    """
    Return the title a person gave the node in the editor.
    """
    meta = workflow.get(node_id, {}).get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) and title else None


def prompt_id_of(job_id: str, workflow: Workflow, attempt: int) -> str:
    """
    Return the prompt id of one run: the same job, staged graph and attempt always get the same one.

    A canonical lowercase UUID, the only form that ComfyUI 0.27 takes.
    """
    graph = hashlib.sha256(orjson.dumps(workflow, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return str(uuid.uuid5(NAMESPACE, orjson.dumps([job_id, graph, attempt]).decode()))


def folder_of(prompt_id: str) -> str:
    """
    Return the name of the output folder of one run, see `RUN_FOLDER`. Never made of a caller's text.
    """
    return f"cw-{prompt_id.replace('-', '')[:20]}"
