"""
What a node class takes and gives, read from its entry in `/object_info`.

Facts about one class only; what a workflow does with them is in `validate.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
# Neither side of a link is compared when one of them is one of these.
ANY_TYPES = frozenset({"*", "COMFY_MATCHTYPE_V3"})
UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload")


@dataclass(frozen=True, slots=True)
class Declared:
    """
    One input as the class declares it; `label` is its name inside its group, `type` a name or a list of choices.
    """

    name: str
    label: str
    type: Any
    options: Mapping[str, Any]
    required: bool

    @property
    def config(self) -> list[Any]:
        """
        Return what ComfyUI's errors call `input_config`; it has its options even where `/object_info` leaves them out.
        """
        return [self.type, self.options]

    @property
    def choices(self) -> Sequence[Any] | None:
        """
        Return what may be chosen, or None when this is no combo or its choices are not in `/object_info`.
        """
        found = self.options.get("options") if self.type == "COMBO" else self.type
        return found if isinstance(found, list | tuple) else None

    @property
    def is_file(self) -> bool:
        """
        Say whether this names a file of the input folder: ComfyUI checks that it exists, not that it is listed.

        Source: ComfyUI 0.27.0, LoadImage and LoadImageMask; LoadAudio, LoadVideo and Load3D do the same.
        """
        is_combo = self.type == "COMBO" or isinstance(self.type, list | tuple)
        return is_combo and any(self.options.get(flag) for flag in UPLOADS)


def declared_inputs(info: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Declared]:
    """
    Yield every input that a node with these values has, with the flat dotted names of grouped ones.

    A dynamic combo is never an input by itself: it only adds the inputs of the option that `values` chose
    (`format` = `mp3` adds `format.quality`). A growing input adds numbered or named ones, the first `min` required.

    Source: ComfyUI 0.27.0, SaveAudioAdvanced, BatchImagesNode, StringFormat.
    """
    yield from _sections(_mapping(info.get("input")), values, "")


def declared_outputs(info: Mapping[str, Any]) -> Sequence[Any]:
    """
    Return the output types: a list for new-style classes and a tuple for old ones, as ComfyUI's texts tell them apart.
    """
    types = _list(info.get("output"))
    return list(types) if "output_matchtypes" in info else tuple(types)


def is_compatible(received: Any, expected: Any) -> bool:
    """
    Say whether an output type may go into an input type; each may be a comma list, and `*` goes with everything.
    """
    if not isinstance(received, str) or not isinstance(expected, str):
        return bool(received == expected) or received == "*" or expected == "*"
    left, right = _names(received), _names(expected)
    return bool(left & right) or bool((left | right) & ANY_TYPES)


def _names(types: str) -> set[str]:
    return {name.strip() for name in types.split(",")}


def _sections(sections: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> Iterator[Declared]:
    for section, required in (("required", True), ("optional", False)):
        for label, config in _mapping(sections.get(section)).items():
            declared = _declared(prefix, label, config, required)
            if declared.type == DYNAMIC_COMBO:
                yield from _chosen(declared, values)
            elif declared.type == AUTOGROW:
                yield from _grown(declared)
            else:
                yield declared


def _chosen(combo: Declared, values: Mapping[str, Any]) -> Iterator[Declared]:
    for option in _list(combo.options.get("options")):
        if isinstance(option, Mapping) and option.get("key") == values.get(combo.name, combo):
            yield from _sections(_mapping(option.get("inputs")), values, f"{combo.name}.")
            return


def _grown(growing: Declared) -> Iterator[Declared]:
    template = _mapping(growing.options.get("template"))
    least = _count(template.get("min"))
    for config in _first_configs(_mapping(template.get("input"))):
        for index, label in enumerate(_grown_labels(template)):
            yield _declared(f"{growing.name}.", label, config, index < least)


def _first_configs(sections: Mapping[str, Any]) -> Iterator[Any]:
    for section in ("required", "optional"):
        yield from list(_mapping(sections.get(section)).values())[:1]


def _grown_labels(template: Mapping[str, Any]) -> list[str]:
    if names := _list(template.get("names")):
        return [str(name) for name in names]
    return [f"{template.get('prefix', '')}{index}" for index in range(_count(template.get("max")))]


def _declared(prefix: str, label: str, config: Any, required: bool) -> Declared:
    kind, options, *_ = [*_list(config), None, None]
    return Declared(prefix + label, label, kind, _mapping(options), required)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
