"""
How prompts run: order, interrupts, progress, graphs made at run time, the cache, and what history says.
"""

from pathlib import Path
from typing import Any

import pytest

from comfy_worker.standin.thread import EngineThread

from .client import Client, Socket
from .gate import Gate, chain, picture

JPEG = b"\xff\xd8\xff\xe0 a picture"


def _messages(entry: dict[str, Any]) -> list[str]:
    return [kind for kind, _ in entry["status"]["messages"]]


def _of(socket: Socket, kind: str) -> list[dict[str, Any]]:
    return [frame["data"] for frame in socket.frames if isinstance(frame, dict) and frame["type"] == kind]


def test_history_is_filled_after_success_and_before_the_null_event(client: Client) -> None:
    """
    A look at history upon execution_success misses, one upon the null event never does.
    """
    socket = client.socket()

    prompt_id = client.queue(picture(), socket.client_id, extra_data={"standin": {"history_delay_ms": 200}})
    socket.until(lambda message: message["type"] == "execution_success")
    early = client.get(f"/history/{prompt_id}").json()
    socket.until_over(prompt_id)

    assert early == {}
    assert prompt_id in client.get(f"/history/{prompt_id}").json()


def test_interrupt_stops_at_the_start_of_the_next_node(client: Client, gate: Gate) -> None:
    """
    The node about to start is named, and what was finished is cached for the next run.
    """
    socket = client.socket()
    prompt_id = client.queue(chain("Gate", "Gate"), socket.client_id)
    gate.entered.wait(5)

    client.post("/interrupt")
    gate.open.set()
    entry = client.history(prompt_id)
    again = client.history(client.queue(chain("Gate", "Gate"), socket.client_id))

    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["messages"][-1][1]["node_id"] == "2"
    assert entry["status"]["messages"][-1][1]["executed"] == ["1"]
    assert again["status"]["messages"][1][1]["nodes"] == ["1"]


@pytest.mark.parametrize("wanted", ["pending", "unknown"])
def test_interrupt_of_what_does_not_run_changes_nothing(wanted: str, client: Client, gate: Gate) -> None:
    """
    Only the running prompt can be interrupted, and only by its own id if one is given.
    """
    running = client.queue(chain("Gate", "Gate"), "a")
    pending = client.queue(picture(), "a")
    gate.entered.wait(5)

    client.post("/interrupt", {"prompt_id": pending if wanted == "pending" else "unknown"})
    gate.open.set()

    assert _messages(client.history(running))[-1] == "execution_success"
    assert _messages(client.history(pending))[-1] == "execution_success"


def test_an_idle_interrupt_has_no_effect_on_the_next_prompt(client: Client) -> None:
    """
    The wish to interrupt is forgotten when a prompt starts.
    """
    client.post("/interrupt")

    entry = client.history(client.queue(picture(), "a"))

    assert entry["status"]["completed"] is True


def test_an_interrupt_without_client_is_told_to_everybody(client: Client, gate: Gate) -> None:
    """
    Without a client_id execution_interrupted is broadcast, and execution_start is not.
    """
    observer = client.socket()
    client.queue(chain("Gate", "Gate"))
    gate.entered.wait(5)

    client.post("/interrupt")
    gate.open.set()
    observer.until(lambda message: message["type"] == "execution_interrupted")

    assert "execution_start" not in observer.types()


def test_a_tick_that_is_sent_notices_the_interrupt(client: Client, gate: Gate) -> None:
    """
    Inside a node, an interrupt acts at the first tick that is not throttled away.
    """
    gate.ticks = [(1, 100, None), (2, 100, None), (100, 100, None)]
    socket = client.socket()
    prompt_id = client.queue(chain("Ticks"), socket.client_id)
    gate.entered.wait(5)

    client.post("/interrupt", {"prompt_id": prompt_id})
    gate.open.set()
    entry = client.history(prompt_id)

    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert entry["status"]["messages"][-1][1]["node_id"] == "1"


@pytest.mark.parametrize(("profile", "expected"), [("0.27", [1, 50]), ("0.3", list(range(1, 51)))])
def test_ticks_are_throttled_except_in_the_old_profile(
    profile: str, expected: list[int], tmp_path: Path, gate: Gate
) -> None:
    """
    Of ticks without a pause between them the first and the last are sent; 0.3.64 sends all.
    """
    gate.ticks = [(value, 50, None) for value in range(1, 51)]
    gate.open.set()
    with EngineThread(tmp_path, gate.nodes(), profile=profile) as engine, Client(engine.url) as client:
        socket = client.socket()

        socket.until_over(client.queue(chain("Ticks"), socket.client_id))

    assert [data["value"] for data in _of(socket, "progress")] == expected


@pytest.mark.parametrize(("method", "count"), [("auto", 3), ("none", 0), ("bogus", 0), (None, 0)])
def test_previews_are_sent_when_the_prompt_asks(
    method: str | None, count: int, client: Client, gate: Gate
) -> None:
    """
    `extra_data.preview_method` switches previews on for one prompt; with one, no tick is throttled.
    """
    gate.ticks = [(value, 3, JPEG) for value in (1, 2, 3)]
    gate.open.set()
    socket = client.socket()

    prompt_id = client.queue(chain("Ticks"), socket.client_id, extra_data={"preview_method": method})
    socket.until_over(prompt_id)
    pictures = [frame for frame in socket.frames if isinstance(frame, bytes)]

    assert len(pictures) == count
    assert all(frame == b"\0\0\0\1\0\0\0\1" + JPEG for frame in pictures)


def test_a_cycle_made_at_run_time_fails_under_the_status_success(client: Client) -> None:
    """
    The one case in which status_str lies: messages end with execution_error, the status says success.
    """
    entry = client.history(client.queue(chain("Loop"), "a"))

    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["messages"][-1][0] == "execution_error"
    assert entry["status"]["messages"][-1][1]["exception_type"] == "graph.DependencyCycleError"
    assert entry["status"]["messages"][-1][1]["node_id"] == "1"


def test_nodes_made_at_run_time_are_shown_at_the_posted_one(client: Client, gate: Gate) -> None:
    """
    Ephemeral ids are built from the maker's, and progress names maker and posted node.
    """
    gate.open.set()
    socket = client.socket()

    prompt_id = client.queue(chain("Gate", "Twice"), socket.client_id)
    socket.until_over(prompt_id)
    made = _of(socket, "progress_state")[-1]["nodes"]["2.0.0.one"]

    assert [data["node"] for data in _of(socket, "executing")] == ["1", "2", "2.0.0.one", "3", None]
    assert (made["display_node_id"], made["parent_node_id"], made["real_node_id"]) == ("2", "2", "2")
    assert client.history(prompt_id)["outputs"] == {"3": {"text": ["1"]}}


def test_an_output_node_without_ui_is_told_only_when_cached(client: Client, gate: Gate) -> None:
    """
    Fresh it sends no executed; found in the cache it sends one with output null.
    """
    gate.open.set()
    workflow = {"1": {"class_type": "Silent", "inputs": {}}}
    socket = client.socket()

    socket.until_over(client.queue(workflow, socket.client_id))
    fresh = _of(socket, "executed")
    again = client.queue(workflow, socket.client_id)
    socket.until_over(again)

    assert fresh == []
    assert [data["output"] for data in _of(socket, "executed")] == [None]
    assert client.history(again)["outputs"] == {}


def test_free_makes_the_next_run_start_afresh(client: Client) -> None:
    """
    After free_memory the same workflow runs again and writes another file; after unload_models alone it does not.
    """
    first = client.history(client.queue(picture(), "a"))
    client.post("/free", {"unload_models": True})
    cached = client.history(client.queue(picture(), "a"))
    client.post("/free", {"free_memory": True})

    fresh = client.history(client.queue(picture(), "a"))

    assert cached["outputs"] == first["outputs"]
    assert fresh["outputs"]["2"]["images"][0]["filename"] == "p_00002_.png"


def test_a_cached_output_names_a_file_that_may_be_gone(client: Client, engine: EngineThread) -> None:
    """
    History of a cached run names the old file even after it was deleted, and /view is 404.
    """
    client.history(client.queue(picture(), "a"))
    (engine.folders.output / "p_00001_.png").unlink()

    entry = client.history(client.queue(picture(), "a"))
    item = entry["outputs"]["2"]["images"][0]

    assert item["filename"] == "p_00001_.png"
    assert client.get("/view", params=item).status_code == 404


def test_written_pictures_carry_prompt_and_workflow(client: Client, engine: EngineThread) -> None:
    """
    The text chunks of a PNG are the prompt and each key of extra_pnginfo.
    """
    from PIL import Image

    client.history(client.queue(picture(), "a", extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}}))

    with Image.open(engine.folders.output / "p_00001_.png") as image:
        assert sorted(image.info) == ["prompt", "workflow"]


def _order(seed: int, base: Path, gate: Gate) -> tuple[str, ...]:
    with EngineThread(base, gate.nodes(), seed=seed) as engine, Client(engine.url) as client:
        workflow = {str(index): {"class_type": "Show", "inputs": {}} for index in range(8)}
        socket = client.socket()
        socket.until_over(client.queue(workflow, socket.client_id))
        return tuple(data["node"] for data in _of(socket, "executing"))


def test_independent_outputs_run_in_an_order_that_the_seed_decides(tmp_path: Path, gate: Gate) -> None:
    """
    The order is the same for the same seed and differs between seeds.
    """
    orders = [_order(seed, tmp_path, gate) for seed in (1, 1, 2, 3)]

    assert orders[0] == orders[1]
    assert len(set(orders)) > 1
