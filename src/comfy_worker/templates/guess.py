"""
Which values of a graph a caller will want to set: a declaration guessed from classes, names of inputs and links.

Pure, and without a ComfyUI: what a node really takes is not asked. A name that is taken gets a number behind it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_worker import graph
from comfy_worker.job import Workflow

Bounds = tuple[float | None, float | None, float | None]
NONE: Bounds = (None, None, None)
SIDE: Bounds = (16, 4096, 8)
STRENGTH: Bounds = (-10, 10, None)

# Input -> parameter, type, and what bounds it. Only for values, never for links.
KNOWN: Mapping[str, tuple[str, str, Bounds]] = {
    "seed": ("seed", "seed", NONE),
    "noise_seed": ("seed", "seed", NONE),
    "width": ("width", "int", SIDE),
    "height": ("height", "int", SIDE),
    "batch_size": ("batch_size", "int", (1, 64, None)),
    "length": ("length", "int", (1, 10_000, None)),
    "fps": ("fps", "float", (0.1, 240, None)),
    "frame_rate": ("fps", "float", (0.1, 240, None)),
    "steps": ("steps", "int", (1, 200, None)),
    "cfg": ("cfg", "float", (0, 100, None)),
    "guidance": ("guidance", "float", (0, 100, None)),
    "denoise": ("denoise", "float", (0, 1, None)),
    "shift": ("shift", "float", (0, 100, None)),
    "sampler_name": ("sampler", "str", NONE),
    "scheduler": ("scheduler", "str", NONE),
    "ckpt_name": ("checkpoint", "str", NONE),
    "unet_name": ("model", "str", NONE),
    "vae_name": ("vae", "str", NONE),
    "clip_name": ("text_encoder", "str", NONE),
    "clip_name1": ("text_encoder", "str", NONE),
    "clip_name2": ("text_encoder", "str", NONE),
    "clip_name3": ("text_encoder", "str", NONE),
    "lora_name": ("lora", "str", NONE),
    "strength_model": ("lora_strength", "float", STRENGTH),
    "strength_clip": ("lora_strength_clip", "float", STRENGTH),
    "control_net_name": ("control_net", "str", NONE),
    "model_name": ("model_name", "str", NONE),
    "megapixels": ("megapixels", "float", (0.01, 16, None)),
}
PICTURES = frozenset({"LoadImage", "LoadImageMask", "LoadImageOutput", "VHS_LoadImagePath"})
TEXTS = (
    "text",
    "prompt",
    "string",
    "value",
    "text_g",
    "text_l",
    "clip_l",
    "t5xxl",
    "text_positive",
    "text_negative",
)
SIDES = ("positive", "negative")
TEXT_CLASSES = ("textencode", "prompt", "primitivestring")
NO_CONDITIONING = frozenset(
    {"clip", "model", "vae", "image", "pixels", "latent", "samples", "mask", "control_net"}
)
LONGEST_WALK = 1000
SHARED = frozenset(
    {
        "prompt",
        "negative_prompt",
        "seed",
        "width",
        "height",
        "length",
        "fps",
        "steps",
        "cfg",
        "sampler",
        "scheduler",
    }
)
"""Several places of these that have one value are one parameter; two pictures or two LoRAs never are."""

Place = tuple[str, str]
ORDER = (
    "prompt",
    "negative_prompt",
    "image",
    "mask",
    "width",
    "height",
    "seed",
    "steps",
    "cfg",
    "guidance",
    "denoise",
)


@dataclass(frozen=True, slots=True)
class Found:
    """
    One value that became, or is to become, a parameter.
    """

    name: str
    type: str
    place: Place
    value: Any
    bounds: Bounds = NONE
    note: str = ""


def declare(workflow: Workflow, summary: str) -> dict[str, Any]:
    """
    Return the declaration of a template for a graph, to be written as YAML and edited.

    Shape: `{"summary": str, "parameters": {name: {"type", "description", "bind", ...}}}`.
    """
    named: dict[str, list[Found]] = {}
    for found in _found(workflow):
        named.setdefault(_free_name(found, named), []).append(found)
    rank = {name: number for number, name in enumerate(ORDER)}
    names = sorted(named, key=lambda name: rank.get(named[name][0].name, len(ORDER)))
    return {"summary": summary, "parameters": {name: _parameter(named[name]) for name in names}}


def _free_name(found: Found, named: Mapping[str, list[Found]]) -> str:
    name, number = found.name, 1
    while name in named and not (found.name in SHARED and named[name][0].value == found.value):
        number += 1
        name = f"{found.name}_{number}"
    return name


def _parameter(found: list[Found]) -> dict[str, Any]:
    first = found[0]
    binds = [graph_place(item.place) for item in found]
    entry: dict[str, Any] = {"type": first.type, "description": first.note}
    if first.type in {"image", "file"} or (first.name == "prompt" and first.type == "str"):
        entry["required"] = True
    elif first.type != "seed":
        entry["default"] = first.value
    for key, bound in zip(("min", "max", "step"), first.bounds, strict=True):
        if bound is not None and first.type in {"int", "float"} and _holds(key, bound, first.value):
            entry[key] = bound
    entry["bind"] = binds if len(binds) > 1 else binds[0]
    return entry


def _holds(key: str, bound: float, value: Any) -> bool:
    # The graph's own value must stay possible.
    return bool(value >= bound if key == "min" else value <= bound if key == "max" else value % bound == 0)


def graph_place(place: Place) -> str:
    """
    Return a place as a template writes it.
    """
    return f"{place[0]}.inputs.{place[1]}"


def _found(workflow: Workflow) -> Iterator[Found]:
    prompts = _prompts(workflow)
    yield from prompts.values()
    for node_id, node in workflow.items():
        for input_name in node["inputs"]:
            place = _end(workflow, (node_id, input_name))
            if place in prompts:
                continue
            found = _value(workflow, place, input_name, node)
            if found is not None:
                yield found


def _value(workflow: Workflow, place: Place, input_name: str, node: Mapping[str, Any]) -> Found | None:
    class_type, value = node["class_type"], workflow[place[0]]["inputs"].get(place[1])
    note = _title(workflow, place[0])
    if (class_type, input_name) in graph.FILE_INPUTS:
        if not isinstance(value, str):
            return None
        name = "mask" if class_type == "LoadImageMask" else "image" if class_type in PICTURES else "file"
        return Found(name, "image" if class_type in PICTURES else "file", place, value, note=note)
    if input_name in KNOWN:
        name, kind, bounds = KNOWN[input_name]
        return Found(name, kind, place, value, bounds, note) if _fits(kind, value) else None
    if _is_text(class_type, input_name, value):
        return Found("text", "str", place, value, note=note)
    return None


def _fits(kind: str, value: Any) -> bool:
    if kind == "str":
        return isinstance(value, str)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (kind == "float" and isinstance(value, float))


def _is_text(class_type: str, input_name: str, value: Any) -> bool:
    known = class_type.lower().replace("_", "").replace(" ", "")
    return input_name in TEXTS and isinstance(value, str) and any(part in known for part in TEXT_CLASSES)


def _title(workflow: Workflow, node_id: str) -> str:
    return graph.title_of(workflow, node_id) or str(workflow[node_id]["class_type"])


def _link(value: Any, workflow: Workflow) -> tuple[str, int] | None:
    is_link = (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )
    return (value[0], value[1]) if is_link and value[0] in workflow else None


def _end(workflow: Workflow, place: Place) -> Place:
    """
    Return the place that gives an input its value: through nodes that only hold one.
    """
    for _ in range(LONGEST_WALK):
        link = _link(workflow[place[0]]["inputs"].get(place[1]), workflow)
        if link is None or "value" not in workflow[link[0]]["inputs"]:
            return place
        place = (link[0], "value")
    return place


def _prompts(workflow: Workflow) -> dict[Place, Found]:
    """
    Return the texts that lead into a sampler, the positive ones first.
    """
    found: dict[Place, Found] = {}
    for side in SIDES:
        for node in workflow.values():
            for input_name in _entrances(node, side):
                if link := _link(node["inputs"].get(input_name), workflow):
                    for place in _texts(workflow, link):
                        name = "prompt" if side == "positive" else "negative_prompt"
                        note = _title(workflow, place[0])
                        value = workflow[place[0]]["inputs"][place[1]]
                        found.setdefault(place, Found(name, "str", place, value, note=note))
    return found


def _entrances(node: Mapping[str, Any], side: str) -> tuple[str, ...]:
    if all(name in node["inputs"] for name in SIDES):
        return (side,)
    # Samplers and guiders without a negative side.
    known = node["class_type"].lower()
    is_one_sided = side == "positive" and ("sampler" in known or "guider" in known)
    return ("positive", "conditioning") if is_one_sided else ()


def _texts(workflow: Workflow, start: tuple[str, int]) -> list[Place]:
    """
    Walk from a conditioning against the links to the texts that it is made of.
    """
    seen: set[tuple[str, int]] = set()
    pending, places = [start], []
    while pending and len(seen) < LONGEST_WALK:
        node_id, slot = pending.pop(0)
        if (node_id, slot) in seen:
            continue
        seen.add((node_id, slot))
        inputs = workflow[node_id]["inputs"]
        ends = {name: _end(workflow, (node_id, name)) for name in TEXTS if name in inputs}
        places += [end for end in ends.values() if isinstance(workflow[end[0]]["inputs"].get(end[1]), str)]
        pending += _upstream(workflow, inputs, slot)
    return list(dict.fromkeys(places))


def _upstream(workflow: Workflow, inputs: Mapping[str, Any], slot: int) -> list[tuple[str, int]]:
    # A node with both sides in and out (a ControlNet) has the positive one first.
    if all(name in inputs for name in SIDES):
        inputs = {SIDES[min(slot, 1)]: inputs[SIDES[min(slot, 1)]]}
    links = (_link(value, workflow) for name, value in inputs.items() if name not in NO_CONDITIONING)
    return [link for link in links if link is not None]
