"""
Workflows for hypothesis: mostly right, each with a few of the mistakes that a caller can make.

Made from `/object_info`, so that both engines know every class. Pictures stay tiny: an accepted one may run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

Info = Mapping[str, Mapping[str, Any]]

MOST_NODES = 9
IDS = ("1", "2", "3", "4", "5", "6", "7", "8", "a:1", "11", "é", "00")
NOWHERE = ("99", "", "1.0", 1, None, True, 1.5, "__proto__", ["1"], {"id": "1"})
SLOTS = (0, 1, 2, -1, 99, True, 0.0, 1.5, "0", "x", None, [0], {})
ODD = (
    *(None, True, False, "", " ", "x", "64", "6.5", "1e3", "nan", "inf", "-Infinity", "0x10", "1_6", "１"),
    *(0, 1, -1, 7, 65, 2**31, 2**64, 10**25, 0.5, -0.0, 63.999, 1e308, float("nan"), float("inf")),
    *({}, {"a": 1}, {"__value__": 32}, {"__value__": [1, 2]}, {"__value__": ["1", 0]}, {"__value__": None}),
    *([], [1], ["1"], ["1", 0, 0], [[1, 2], [3, 4]], [{}, {}], [None, None], {"__type__": "INT"}),
)
FILES = (
    "here.png",
    "here.png",
    "here.png",
    "gone.png",
    "../here.png",
    "here.png [input]",
    "here.png [output]",
)
ODD_FILES = ("/etc/passwd", "sub", "", " ", ".", "[input]", "here.png[input]", "here.pngx[input]", "a\x00b")
TEXTS = ("out", "a/b", "%date:yyyy%", "naïve", "", "x" * 300)
GONE = ("NoSuchNode", "", "saveimage", None, 5, True, ["SaveImage"], {"a": 1})
UPLOADS = ("image_upload", "audio_upload", "video_upload")


@dataclass
class _Builder:
    draw: st.DrawFn
    info: Info
    ids: list[str]
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str) -> str:
        """
        Add a node and what it needs; return its id.
        """
        node_id = self.ids.pop(0)
        values: dict[str, Any] = {}
        self._section(self.info[name]["input"], values, "")
        self.nodes[node_id] = {"class_type": name, "inputs": values}
        return node_id

    def _section(self, sections: Mapping[str, Any], values: dict[str, Any], prefix: str) -> None:
        for section in ("required", "optional"):
            for name, (kind, *rest) in sections.get(section, {}).items():
                if section == "optional" and self.draw(st.booleans()):
                    continue
                options = rest[0] if rest else {}
                if kind == "COMFY_DYNAMICCOMBO_V3":
                    option = self.draw(st.sampled_from(options["options"]))
                    values[prefix + name] = option["key"]
                    self._section(option["inputs"], values, f"{prefix}{name}.")
                else:
                    values[prefix + name] = self._value(kind, options)

    def _value(self, kind: Any, options: Mapping[str, Any]) -> Any:
        widget = widget_of(kind, options)
        if widget is not None and self.draw(st.integers(0, 5)):
            return self.draw(widget)
        links = self._links(kind)
        if links and (len(self.ids) < 3 or self.draw(st.booleans())):
            return self.draw(st.sampled_from(links))
        makers = sorted(
            name
            for name, entry in self.info.items()
            if kind in entry["output"] or (kind == "*" and entry["output"])
        )
        if not makers or len(self.ids) < len(IDS) - MOST_NODES + 1:
            return self.draw(widget if widget is not None else st.sampled_from((["99", 0], 5, None)))
        simple = [
            name for name in makers if name.startswith(("Empty", "Solid", "Primitive", "Load"))
        ] or makers
        made = self.add(self.draw(st.sampled_from(simple * 3 + makers)))
        output = self.info[self.nodes[made]["class_type"]]["output"]
        return [made, output.index(kind) if kind in output else 0]

    def _links(self, kind: Any) -> list[list[Any]]:
        return [
            [node_id, slot]
            for node_id, node in self.nodes.items()
            for slot, made in enumerate(self.info[node["class_type"]]["output"])
            if made == kind or kind == "*"
        ]


def widget_of(kind: Any, options: Mapping[str, Any]) -> st.SearchStrategy[Any] | None:
    """
    Return values that may be typed into an input, few of them wrong; None for one that takes links only.
    """
    if any(options.get(flag) for flag in UPLOADS):
        return st.sampled_from((*FILES * 3, *ODD_FILES))
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options", ["x"])
        return st.sampled_from([*choices * 10, "none of them"])
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min", 0), options.get("max", 64)
        inside = [value for value in (16, 24, 32, 1, 8, 0.5, low) if low <= value <= high]
        return st.sampled_from([*inside * 10, low - 1, high + 1])
    return {"STRING": st.sampled_from(TEXTS), "BOOLEAN": st.booleans()}.get(kind)


@st.composite
def graphs(draw: st.DrawFn, info: Info) -> dict[str, Any]:
    """
    Draw a workflow of a few nodes with up to four mistakes.
    """
    builder = _Builder(draw, info, list(draw(st.permutations(IDS))))
    outputs = sorted(name for name in info if info[name]["output_node"])
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 2, 3)))):
        if len(builder.ids) > len(IDS) - MOST_NODES:
            builder.add(draw(st.sampled_from(outputs)))
    graph = builder.nodes
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 1, 1, 2, 3, 4)))):
        _spoil(draw, graph)
    keys = list(graph)
    return {key: graph[key] for key in (draw(st.permutations(keys)) if draw(st.booleans()) else keys)}


def _spoil(draw: st.DrawFn, graph: dict[str, Any]) -> None:
    node_id = draw(st.sampled_from(list(graph)))
    node = graph[node_id]
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict) or not inputs:
        return
    name = draw(st.sampled_from(list(inputs)))
    what = draw(st.integers(0, 19))
    anyone = st.sampled_from(list(graph))
    if what < 6:
        inputs[name] = draw(st.sampled_from(ODD))
    elif what < 8:
        inputs[name] = [draw(anyone | st.sampled_from(NOWHERE)), draw(st.sampled_from(SLOTS))]
    elif what < 13:
        inputs[name] = [draw(anyone), 0]  # a cycle, another type, or a slot that is not there
    elif what < 15:
        del inputs[name]
    elif what == 15:
        inputs[draw(st.sampled_from(("extra", "format.quality", "", "image")))] = draw(st.sampled_from(ODD))
    else:
        _break(draw, graph, node_id, what)


def _break(draw: st.DrawFn, graph: dict[str, Any], node_id: str, what: int) -> None:
    node = graph[node_id]
    if what == 16:
        node["class_type"] = draw(st.sampled_from(GONE))
    elif what == 17:
        node.pop(draw(st.sampled_from(("class_type", "inputs"))), None)
    elif what == 18:
        node["_meta"] = draw(st.sampled_from(({"title": "A title"}, {}, {"title": None}, None, "x", [])))
    else:
        graph[node_id] = draw(
            st.sampled_from(
                (None, [], "x", {}, 5, {"inputs": {}}, {"inputs": None}, {**node, "inputs": None})
            )
        )
