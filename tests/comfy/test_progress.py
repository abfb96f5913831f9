"""
The rules of watching: what a message means, and how an entry of the history ended.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import replay

from comfy_worker.comfy.messages import (
    Cached,
    Errored,
    Executed,
    Executing,
    Interrupted,
    Message,
    NodeState,
    Other,
    Picture,
    ProgressState,
    Started,
    Status,
    Succeeded,
    Text,
    Ticked,
)
from comfy_worker.comfy.progress import PromptState, Step, verdict
from comfy_worker.job import Event

P, Q = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {}},
    "2": {"class_type": "SaveImageWebsocket", "inputs": {}, "_meta": {"title": "Result"}},
}
FAILURE = Errored(P, "1", "EmptyImage", "RuntimeError", "no\n", True)
BLOCKED = Errored(P, "1", "EmptyImage", "ExecutionBlocked", "Execution Blocked: no", False)


def state_after(*said: Message) -> PromptState:
    state = PromptState(P, GRAPH)
    for at, message in enumerate(said):
        state.feed(message, float(at))
    return state


def entry(*types: str, **status: Any) -> dict[str, Any]:
    return {"outputs": {}, "status": {**status, "messages": [[kind, {"prompt_id": P}] for kind in types]}}


def picture(data: bytes = b"PNG", prompt_id: str | None = None, node_id: str | None = None) -> Picture:
    metadata = {} if prompt_id is None else {"prompt_id": prompt_id, "node_id": node_id}
    return Picture(prompt_id, node_id, "image/png", memoryview(data), metadata)


def node_state(value: float, most: float, state: str = "running", display: str | None = None) -> NodeState:
    return NodeState(value, most, state, display)


@pytest.mark.parametrize(
    ("types", "status", "kind"),
    [
        (["execution_start", "execution_success"], {"status_str": "error", "completed": False}, "succeeded"),
        (["execution_start", "execution_error"], {"status_str": "success", "completed": True}, "failed"),
        (["execution_start", "execution_interrupted"], {"completed": True}, "interrupted"),
        (["execution_error", "execution_success"], {}, "succeeded"),
        (["execution_error", "execution_interrupted"], {}, "interrupted"),
    ],
)
def test_verdict_believes_the_messages_only(types: list[str], status: dict[str, Any], kind: str) -> None:
    """
    The messages in the entry decide, in the order success, interrupted, error; its status fields do not.
    """
    assert verdict(entry(*types, **status)).kind == kind


@pytest.mark.parametrize(("completed", "kind"), [(True, "succeeded"), (False, "failed"), ("yes", "failed")])
def test_verdict_falls_back_with_a_warning_when_no_message_tells(completed: Any, kind: str) -> None:
    """
    An entry without an end is judged by `completed`, and says that it was.
    """
    found = verdict(entry("execution_start", completed=completed))

    assert found.kind == kind
    assert found.warnings


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"status": None},
        {"status": {"messages": None}},
        {"status": {"messages": [1, [], ["execution_success"], [{}, {}]]}},
        {"outputs": []},
    ],
)
def test_verdict_never_raises_for_a_broken_entry(broken: dict[str, Any]) -> None:
    """
    An entry that makes no sense is a failure without a node.
    """
    assert (verdict(broken).kind, verdict(broken).error) == ("failed", None)


def test_verdict_trims_the_message_and_keeps_the_traceback_out_of_sight() -> None:
    """
    The message loses the newline that ComfyUI adds; the traceback is kept and not shown.
    """
    data = {
        "node_id": "1",
        "node_type": "EmptyImage",
        "exception_type": "OSError",
        "exception_message": " no\n\nTry less.\n",
        "traceback": ["/secret/path.py"],
    }

    error = verdict({"status": {"messages": [["execution_error", data]]}}).error

    assert error is not None
    assert (error.message, error.traceback) == ("no\n\nTry less.", ("/secret/path.py",))
    assert "secret" not in repr(error)


@pytest.mark.parametrize(
    ("message", "look", "ending"),
    [
        (Started(P), "no", False),
        (Executing(P, "1"), "no", False),
        (Executing(P, None), "now", True),
        (Succeeded(P), "soon", True),
        (Interrupted(P, "1"), "soon", True),
        (FAILURE, "soon", True),
        (BLOCKED, "no", False),
        (Executed(P, "1", "1", None), "no", False),
    ],
)
def test_feed_says_when_to_look(message: Message, look: str, ending: bool) -> None:
    """
    Only the null event is worth asking at once; the other ends come before the entry, and a blocker ends nothing.
    """
    step = PromptState(P, GRAPH).feed(message)

    assert (step.look, step.ending, step.mine) == (look, ending, True)


@pytest.mark.parametrize(
    "message",
    [
        Executing(None, "1"),
        Executing(None, None),
        Executing(Q, None),
        Succeeded(Q),
        Interrupted(Q, None),
        Errored(Q, "1", "EmptyImage", "x", "x", True),
        picture(prompt_id=Q, node_id="2"),
        picture(),
        Text("1", "hello"),
        Other("custom"),
    ],
)
def test_feed_ignores_what_is_not_about_this_prompt(message: Message) -> None:
    """
    Broadcasts of other prompts, reminders without an id and unknown types change nothing.
    """
    state = PromptState(P, GRAPH)

    assert state.feed(message) == Step()
    assert (state.state, state.pictures, state.texts, state.warnings()) == ("queued", [], [], ())


def test_feed_stays_running_after_an_error() -> None:
    """
    An error is a candidate: only history says whether the prompt failed.
    """
    state = state_after(Started(P), FAILURE)

    assert state.state == "running"
    assert state.warnings() == ("Node 1 (EmptyImage) did not run: no",)


@pytest.mark.parametrize(
    ("before", "remaining", "look"),
    [(None, 0, "now"), (3, 2, "soon"), (2, 3, "no"), (None, 2, "no"), (2, None, "no")],
)
def test_feed_looks_when_the_queue_shrinks_while_queued(
    before: int | None, remaining: int | None, look: str
) -> None:
    """
    An empty queue means that it may be over, a shorter one that somebody may have removed it.
    """
    state = state_after(Status(before))

    assert state.feed(Status(remaining)).look == look


def test_feed_ignores_a_shorter_queue_when_running() -> None:
    """
    Once the prompt runs, others leaving the queue say nothing about it.
    """
    state = state_after(Status(5), Started(P))

    assert state.feed(Status(4)) == Step()


def test_feed_shows_the_node_and_its_value() -> None:
    """
    An event names the node of the posted workflow, its class, its title and how far it is.
    """
    state = state_after(Started(P), Executing(P, "2.0.1", "2"))

    event = state.feed(Ticked(P, "2.0.1", 3.0, 4.0)).event

    assert event == Event("running", 0.0, "2", "SaveImageWebsocket", "Result", 3.0, 4.0)


def test_feed_shows_nothing_twice() -> None:
    """
    A message that changes nothing for the caller makes no event.
    """
    state = state_after(Started(P), Ticked(P, "1", 1.0, 4.0))

    assert state.feed(Ticked(P, "1", 1.0, 4.0)).event is None


def test_percent_counts_cached_nodes_as_done() -> None:
    """
    Half of the workflow being cached is half of the work.
    """
    state = PromptState(P, GRAPH)

    event = state.feed(Cached(P, ("1",))).event

    assert event is not None
    assert event.percent == 50.0
    assert state.cached == {"1"}


def test_percent_never_falls_when_states_go_back() -> None:
    """
    A node that starts again, or a tick out of order, does not take progress back.
    """
    state = PromptState(P, GRAPH)
    said = [
        ProgressState(P, {"1": node_state(3, 4)}),
        ProgressState(P, {"1": node_state(1, 4)}),
        Ticked(P, "1", -5.0, 0.0),
    ]

    shown = [step.event.percent for step in map(state.feed, said) if step.event]

    assert shown == [37.5] * len(shown)


def test_percent_follows_the_nodes_without_progress_state() -> None:
    """
    A server that sends no `progress_state` still shows progress: the next node means that the one before is done.
    """
    state = PromptState(P, GRAPH)
    state.feed(Executing(P, "1"), 1.0)

    event = state.feed(Executing(P, "2"), 1.5).event

    assert event is not None
    assert event.percent == 50.0
    assert state.node_ms == {"1": 500.0}


def test_node_ms_counts_from_the_first_sign_of_a_node() -> None:
    """
    `progress_state` comes before `executing`; the time in between belongs to the node.
    """
    state = PromptState(P, GRAPH)
    state.feed(ProgressState(P, {"1": node_state(0, 1)}), 1.0)
    state.feed(Executing(P, "1"), 1.25)
    state.feed(ProgressState(P, {"1": node_state(1, 1, "finished")}), 1.5)

    assert state.node_ms == {"1": 500.0}


def test_percent_does_not_finish_a_node_that_runs_beside_another() -> None:
    """
    With `progress_state` a second node may start while the first still runs, and neither is done by that.
    """
    state = PromptState(P, GRAPH)
    state.feed(ProgressState(P, {"1": node_state(0, 1), "2": node_state(0, 1)}), 1.0)

    events = [state.feed(Executing(P, node_id), 2.0).event for node_id in ("1", "2")]

    assert [event.percent for event in events if event is not None] == [0.0, 0.0]
    assert state.node_ms == {}


def test_node_ms_adds_what_a_node_expanded_into() -> None:
    """
    The time of the nodes of a subgraph belongs to the node of the workflow that they stand for.
    """
    state = PromptState(P, GRAPH)
    state.feed(ProgressState(P, {"1": node_state(0, 1), "1.0.2": node_state(0, 1, display="1")}), 10.0)
    state.feed(
        ProgressState(
            P, {"1": node_state(1, 1, "finished"), "1.0.2": node_state(1, 1, "finished", display="1")}
        ),
        10.25,
    )

    assert state.node_ms == {"1": 500.0}


def test_pictures_belong_to_the_node_that_is_executing() -> None:
    """
    A picture without metadata is a result only while a SaveImageWebsocket node of this prompt executes.
    """
    state = state_after(
        Executing(P, "1"),
        picture(b"preview"),
        Executing(P, "2"),
        picture(b"result"),
        Succeeded(P),
        picture(b"late"),
    )

    assert state.pictures == [("2", "image/png", b"result")]


def test_pictures_with_metadata_belong_to_their_node() -> None:
    """
    A picture with metadata is a result when its node is a SaveImageWebsocket node, whatever executes.
    """
    state = state_after(Started(P), picture(b"a", P, "2"), picture(b"b", P, "1"), picture(b"c", Q, "2"))

    assert state.pictures == [("2", "image/png", b"a")]


def test_preview_is_an_event_of_its_own_and_no_result() -> None:
    """
    A picture of a node that is at work is news for whoever watches; a result and a picture of another prompt are not.
    """
    state = state_after(Started(P), Executing(P, "1"))

    shown = [state.feed(picture(*made)).event for made in ((b"a", P, "1"), (b"r", P, "2"), (b"q", Q, "1"))]

    assert [event and event.preview and bytes(event.preview[1]) for event in shown] == [b"a", None, None]
    assert shown[0] is not None
    assert (shown[0].node_id, shown[0].kind) == ("1", "running")


def test_missing_pictures_ignores_a_blocked_node() -> None:
    """
    Every node begins as 0 of 1; that alone announces no picture.
    """
    state = state_after(ProgressState(P, {"2": node_state(0, 1)}), ProgressState(P, {"2": node_state(1, 1)}))

    assert state.missing_pictures == 0


OWN: list[Message] = [
    Started(P),
    Cached(P, ("1", "7")),
    Executing(P, "1", "1"),
    Executing(P, "2", None),
    Ticked(P, "2", 1.0, 3.0),
    ProgressState(
        P, {"1": node_state(1, 1, "finished"), "2": node_state(1, 3), "2.0": node_state(2, 3, "x", "2")}
    ),
    Executed(P, "2", "2", {}),
    BLOCKED,
    FAILURE,
]
TERMINAL: list[Message] = [Executing(P, None), Succeeded(P), Interrupted(P, None)]
NOISE: list[Message] = [
    Status(0),
    Status(None),
    Executing(None, "1"),
    Executing(Q, None),
    Succeeded(Q),
    Interrupted(Q, "1"),
    ProgressState(Q, {"1": node_state(1, 1)}),
    picture(),
    picture(prompt_id=Q, node_id="2"),
    picture(prompt_id=P, node_id="2"),
    Text("1", "x"),
    Other("custom"),
]
ANY = st.lists(st.sampled_from([*OWN, *TERMINAL, *NOISE]), max_size=40)


@given(ANY)
def test_feed_never_ends_early_whatever_comes_in_whatever_order(said: list[Message]) -> None:
    """
    Noise, duplicates and any order never raise, never let the percentage fall and never end a prompt that did not.
    """
    state = PromptState(P, GRAPH)
    ended, highest = False, 0.0

    for at, message in enumerate(said):
        step = state.feed(message, float(at))
        ended = ended or message in TERMINAL
        assert (state.state == "ending") == ended
        assert not (step.look != "no" and not step.mine and not isinstance(message, Status))
        if step.event is not None:
            assert highest <= step.event.percent <= 99
            highest = step.event.percent


@given(ANY, st.lists(st.sampled_from(NOISE[:9]), max_size=40))
def test_feed_says_the_same_with_noise_in_between(said: list[Message], noise: list[Message]) -> None:
    """
    What belongs to other prompts changes neither the state nor the results of this one.
    """
    quiet, loud = PromptState(P, GRAPH), PromptState(P, GRAPH)
    alone = [message for message in said if message not in NOISE]

    for message in alone:
        quiet.feed(message)
    for message, other in zip([*alone, *[None] * len(noise)], [*noise, *[None] * len(alone)], strict=True):
        for item in (other, message):
            if item is not None and not isinstance(item, Picture):
                loud.feed(item)

    assert (quiet.state, quiet.cached, quiet.warnings()) == (loud.state, loud.cached, loud.warnings())


@given(st.randoms(use_true_random=False), st.sampled_from(replay.VERSIONS))
def test_feed_survives_recorded_frames_in_any_order(random: Any, version: str) -> None:
    """
    A recorded run with a subgraph, shuffled and doubled, is read without an error and ends as one.
    """
    transcript = replay.load(version, "t01_subgraph_expansion")
    frames = [*transcript.frames, *transcript.frames]
    random.shuffle(frames)
    state = PromptState(str(transcript.prompts[0].prompt_id), transcript.prompts[0].workflow)

    for at, message in frames:
        state.feed(message, at)

    assert state.state == "ending"
