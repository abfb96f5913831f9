"""
Calling a node: values for its inputs, one call per item of a list, and the results put together again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy_worker.standin.cache import links
from comfy_worker.standin.node import Blocked, Node, Returned


def gather(
    node: Node, inputs: Mapping[str, Any], value_of: Callable[[str, int], list[Any]]
) -> dict[str, list[Any]]:
    """
    Return the values of each input that the class has as a list: what a link brings, or the one value of a widget.
    """
    # Sub-inputs of a dynamic choice have dotted names: `format.quality`.
    declared = {row.name for row in node.inputs}
    known = {name: value for name, value in inputs.items() if name.split(".")[0] in declared}
    linked = links(known)
    return {name: value_of(*linked[name]) if name in linked else [value] for name, value in known.items()}


def blocker(values: Mapping[str, Sequence[Any]]) -> Blocked | None:
    """
    Return the first blocker among the values.
    """
    return next((value for row in values.values() for value in row if isinstance(value, Blocked)), None)


def call(
    node: Node, values: Mapping[str, list[Any]], run: Callable[[Mapping[str, Any]], Returned]
) -> tuple[list[Returned | Blocked], bool]:
    """
    Call a node once per item (shorter lists repeat their last one), or once with the lists if it takes lists.

    An item with a blocker in it is not called, its result is the blocker. The flag tells whether there was one.
    """
    if node.input_is_list:
        found = blocker(values)
        return ([found], True) if found else ([run(values)], False)
    if any(not row for row in values.values()):
        return [], False
    results: list[Returned | Blocked] = []
    for index in range(max((len(row) for row in values.values()), default=1)):
        item = {name: row[min(index, len(row) - 1)] for name, row in values.items()}
        found = blocker({name: [value] for name, value in item.items()})
        results.append(found or run(item))
    return results, any(isinstance(result, Blocked) for result in results)


def collect(node: Node, results: Sequence[tuple[Any, ...] | Blocked]) -> tuple[list[Any], ...]:
    """
    Return per output the list of what the calls gave: their values, or the items where the output is a list.
    """
    columns: list[list[Any]] = [[] for _ in node.outputs]
    lists = node.output_is_list or (False,) * len(node.outputs)
    for values in results:
        for slot, column in enumerate(columns):
            if isinstance(values, Blocked):
                column.append(Blocked())
            elif slot < len(values):
                value = values[slot]
                if lists[slot] and not isinstance(value, Blocked):
                    column.extend(value)
                else:
                    column.append(value)
    return tuple(columns)


def merged(results: Sequence[Returned | Blocked]) -> dict[str, list[Any]] | None:
    """
    Return what the calls showed, key by key one list; None if nothing.
    """
    ui: dict[str, list[Any]] = {}
    for result in results:
        if isinstance(result, Returned) and result.ui is not None:
            for key, items in result.ui.items():
                ui.setdefault(key, []).extend(items)
    return ui or None
