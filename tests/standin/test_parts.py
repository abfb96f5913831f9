"""
The parts of the engine that need no server: history's bound, caches, keys, ticks, frames, and what /object_info shows.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from comfy_worker.standin import frames, object_info
from comfy_worker.standin.cache import Cache, Done, keys_of
from comfy_worker.standin.faults import Faults
from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.progress import Throttle
from comfy_worker.standin.prompts import HISTORY_CAP, Prompt, Prompts
from comfy_worker.standin.settings import folders_in

DONE = Done((), None, {})
FOLDERS = folders_in(Path("nowhere"))


def _run(_inputs: Any, _context: Context) -> Returned:
    return Returned(())


NODES = {
    "Source": Node("Source", _run, (Input("value", "INT"),), ("*",)),
    "Named": Node("Named", _run, (Input("any", "*"),), hidden={"id": "UNIQUE_ID"}),
    "Never": Node("Never", _run, fingerprint=lambda _inputs, _folders: float("nan")),
    "Sink": Node("Sink", _run, (Input("any", "*"),)),
}


def _workflow(first: str, second: str, value: int, sink: str = "Sink") -> dict[str, Any]:
    return {
        first: {"class_type": "Source", "inputs": {"value": value}},
        second: {"class_type": sink, "inputs": {"any": [first, 0]}},
    }


def _prompt(prompt_id: str) -> Prompt:
    return Prompt(0, prompt_id, {}, {}, [], Faults({}, random.Random(0)).of({}))


def test_history_keeps_a_bounded_number_of_entries() -> None:
    """
    The oldest entries go when there are too many.
    """
    prompts = Prompts()

    for number in range(HISTORY_CAP + 2):
        prompts.finish(_prompt(str(number)), {})

    assert len(prompts.history()) == HISTORY_CAP
    assert next(iter(prompts.history())) == "2"


def test_a_prompt_is_always_in_one_place_only() -> None:
    """
    Pending, then running, then in the history.
    """
    prompts, prompt = Prompts(), _prompt("a")
    seen = []

    prompts.put(prompt)
    seen.append([place is not None for place in prompts.look("a")])
    prompts.take(0)
    seen.append([place is not None for place in prompts.look("a")])
    prompts.finish(prompt, {})
    seen.append([place is not None for place in prompts.look("a")])

    assert seen == [[False, True, False], [True, False, False], [False, False, True]]


def test_keys_depend_on_content_and_not_on_node_ids() -> None:
    """
    Other ids hit, other values miss, and so does everything behind them.
    """
    one = keys_of(_workflow("1", "2", 5), NODES, FOLDERS)
    renamed = keys_of(_workflow("a", "b", 5), NODES, FOLDERS)
    changed = keys_of(_workflow("1", "2", 6), NODES, FOLDERS)

    assert list(one.values()) == list(renamed.values())
    assert not set(one.values()) & set(changed.values())


def test_keys_hold_the_node_id_for_nodes_that_know_it() -> None:
    """
    A node that is given its id must not be taken for another.
    """
    one = keys_of(_workflow("1", "2", 5, "Named"), NODES, FOLDERS)
    renamed = keys_of(_workflow("1", "b", 5, "Named"), NODES, FOLDERS)

    assert one["1"] == renamed["1"]
    assert one["2"] != renamed["b"]


def test_keys_never_repeat_for_what_always_changes_or_is_broken() -> None:
    """
    NaN, a link to nowhere and a cycle all miss, each time.
    """
    workflow = {
        "never": {"class_type": "Never", "inputs": {}},
        "broken": {"class_type": "Sink", "inputs": {"any": ["nowhere", 0]}},
        "round": {"class_type": "Sink", "inputs": {"any": ["around", 0]}},
        "around": {"class_type": "Sink", "inputs": {"any": ["round", 0]}},
    }

    first, second = (keys_of(workflow, NODES, FOLDERS) for _ in range(2))

    assert len(first) == 4
    assert not set(first.values()) & set(second.values())


def test_keys_of_deep_workflows_need_no_stack() -> None:
    """
    A chain of thousands of nodes gets its keys.
    """
    workflow = {"5000": {"class_type": "Source", "inputs": {"value": 1}}}
    deep = {str(n): {"class_type": "Sink", "inputs": {"any": [str(n + 1), 0]}} for n in range(5000)}

    assert len(keys_of({**deep, **workflow}, NODES, FOLDERS)) == 5001


@pytest.mark.parametrize(
    ("policy", "after_start", "after_run"),
    [
        ("default", ["old"], []),
        ("classic", [], []),
        ("lru", ["old"], ["old"]),
        ("none", [], []),
    ],
)
def test_a_cache_drops_what_another_prompt_does_not_use(
    policy: str, after_start: list[str], after_run: list[str]
) -> None:
    """
    The default waits until a node of the other prompt has run.
    """
    cache = Cache(policy, size=10)
    cache.put("old", DONE)

    cache.started(["new"])
    started = [key for key in ("old",) if cache.get(key)]
    cache.ran(["new"])
    ran = [key for key in ("old",) if cache.get(key)]

    assert (started, ran) == (after_start, after_run)


def test_an_lru_cache_keeps_what_was_used_last() -> None:
    """
    Reading counts as use.
    """
    cache = Cache("lru", size=2)
    cache.put("a", DONE)
    cache.put("b", DONE)
    cache.get("a")

    cache.put("c", DONE)

    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]


def test_ticks_pass_by_time_and_by_distance() -> None:
    """
    After the first, a tick needs 100 ms and half a percent; the last and those with pictures always pass.
    """
    now = [0.0]
    throttle = Throttle(True, clock=lambda: now[0])
    script = [
        (0.0, 1, False),
        (0.2, 2, False),
        (0.25, 50, False),
        (0.31, 50, False),
        (0.32, 51, True),
        (0.33, 1000, False),
    ]

    passed = []
    for at, value, always in script:
        now[0] = at
        passed.append(throttle.passes(value, 1000, always))

    assert passed == [True, False, True, False, True, True]


def test_binary_frames_have_comfyuis_layout() -> None:
    """
    Event, then type or length, then the payload.
    """
    with_metadata = frames.picture_with_metadata(b"PNG", "image/png", {"node_id": "2"})
    head = b'{"node_id": "2", "image_type": "image/png"}'

    assert frames.picture(b"JPG", "image/jpeg") == b"\0\0\0\1\0\0\0\1JPG"
    assert with_metadata == b"\0\0\0\4" + len(head).to_bytes(4, "big") + head + b"PNG"
    assert frames.text("12", "ü") == b"\0\0\0\3\0\0\0\2" + b"12" + "ü".encode()


def test_choices_are_shown_in_the_form_of_their_schema() -> None:
    """
    Classic nodes show a list, V3 nodes a COMBO with options, and files are listed anew each time.
    """
    listed = [["a.png"], ["a.png", "b.png"]]
    inputs = (
        Input("kind", ("x", "y"), {"default": "x"}),
        Input("file", lambda _folders: listed[0], optional=True),
    )
    classic, v3 = (
        Node("C", _run, inputs, hidden={"prompt": "PROMPT"}),
        Node("V", _run, inputs, v3=True, hidden={"p": "PROMPT"}),
    )

    before = object_info.entry(classic, FOLDERS)
    listed.pop(0)
    after = object_info.entry(classic, FOLDERS)
    new = object_info.entry(v3, FOLDERS)

    assert before["input"]["required"]["kind"] == [["x", "y"], {"default": "x"}]
    assert before["input"]["optional"]["file"] == [["a.png"]]
    assert after["input"]["optional"]["file"] == [["a.png", "b.png"]]
    assert before["input"]["hidden"] == {"prompt": "PROMPT"}
    assert new["input"]["required"]["kind"] == [
        "COMBO",
        {"multiselect": False, "default": "x", "options": ["x", "y"]},
    ]
    assert new["input"]["hidden"] == {"p": ["PROMPT"]}
