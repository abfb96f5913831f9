"""
A node class as `/object_info` shows it. Shapes: ComfyUI 0.27.0.
"""

from typing import Any

from comfy_worker.standin.node import Folders, Input, Node


def entry(node: Node, folders: Folders) -> dict[str, Any]:
    """
    Return the entry of one class; choices that are files are listed as of now.
    """
    required = {row.name: _input(row, node.v3, folders) for row in node.inputs if not row.optional}
    optional = {row.name: _input(row, node.v3, folders) for row in node.inputs if row.optional}
    hidden = {name: [kind] if node.v3 else kind for name, kind in node.hidden.items()}
    inputs: dict[str, dict[str, Any]] = {"required": required, "optional": optional, "hidden": hidden}
    inputs = {group: rows for group, rows in inputs.items() if rows or group == "required"}
    shown = {
        "input": inputs,
        "input_order": {group: list(rows) for group, rows in inputs.items()},
        "is_input_list": node.input_is_list,
        "output": list(node.outputs),
        "output_is_list": list(node.output_is_list or [False] * len(node.outputs)),
        "output_name": list(node.output_names or node.outputs),
        "name": node.class_type,
        "display_name": node.display_name or node.class_type,
        "description": node.description,
        "python_module": node.python_module,
        "category": node.category,
        "output_node": node.output_node,
    }
    return {**shown, **(_v3_extras(node) if node.v3 else {}), "has_intermediate_output": node.intermediate}


def _v3_extras(node: Node) -> dict[str, Any]:
    return {
        "output_tooltips": [None] * len(node.outputs),
        "output_matchtypes": None,
        "deprecated": False,
        "experimental": False,
        "dev_only": False,
        "api_node": False,
        "price_badge": None,
        "search_aliases": [],
        "essentials_category": None,
    }


def _input(row: Input, v3: bool, folders: Folders) -> list[Any]:
    options = dict(row.options)
    if isinstance(row.type, str):
        return [row.type, options] if options or v3 else [row.type]
    choices = list(row.type(folders) if callable(row.type) else row.type)
    if v3:
        return ["COMBO", {"multiselect": False, **options, "options": choices}]
    return [choices, options] if options else [choices]
