"""
Every recorded conversation with a real ComfyUI ends with the right verdict, whatever part of the socket was lost.
"""

import json
import random

import pytest
from support import replay

from comfy_worker.comfy import messages
from comfy_worker.comfy.progress import PromptState, Verdict, verdict
from comfy_worker.comfy.refusals import refusal
from comfy_worker.errors import WorkflowInvalid

# `accepted` was queued, and removed or not waited for; `crashed` was answered by a 500; `died` with its server.
# What is not named here succeeded, every prompt of it.
EXPECTED = {
    **dict.fromkeys(("e13b", "q14"), "accepted"),
    **dict.fromkeys((f"e{number:02}" for number in (*range(1, 18), 21, 22)), "rejected"),
    **dict.fromkeys(("r07", "26", "a01", "o04", "o12", "o21"), "rejected"),
    **dict.fromkeys(("e27", "e28", "p06", "p07", "q19", "r01", "r03", "r04", "r05", "r06", "r08"), "failed"),
    **dict.fromkeys(("t06", "t07", "t08", "t10", "t11", "t21", "t22", "c07", "o05"), "failed"),
    **dict.fromkeys(("p04", "q01", "q02", "q03", "q04", "t15"), "interrupted"),
    "q25": "died",
    "e18c": "rejected crashed",
    "e19": "crashed crashed crashed crashed rejected rejected",
    "e23": "accepted accepted accepted crashed",
    "e24": "accepted rejected rejected",
    "q06": "interrupted succeeded",
    "q09": "succeeded accepted accepted accepted",
    "q10": "accepted succeeded succeeded succeeded succeeded",
    "u06": "rejected accepted rejected accepted accepted",
    "j04": "interrupted succeeded",
    "j05": "succeeded accepted",
    "j01": "accepted " * 4 + "rejected " * 7 + "accepted " + "rejected " * 6 + "accepted",
    "p09_validate_cfg_string": "accepted",
    "p09_validate_seed_max": "accepted",
    "p09": "rejected",
    "u03": "accepted accepted accepted rejected accepted rejected rejected rejected",
}
ONLY_0_3_64 = {
    "26": "succeeded",
    "e19": "rejected crashed crashed rejected rejected rejected",
    "u03": "accepted accepted accepted rejected accepted rejected accepted accepted",
}
ONLY_0_27_0 = {
    "q14": "succeeded",
    "e27": "rejected",
    "e28": "rejected",
    "t07": "succeeded",
    "t08": "succeeded",
}
JOB_STATUS = {"completed": "succeeded", "failed": "failed", "cancelled": "interrupted"}

TRANSCRIPTS = replay.every()
ENDS = (messages.Succeeded, messages.Errored, messages.Interrupted)


def expected_of(transcript: replay.Transcript) -> list[str]:
    special = ONLY_0_27_0 if transcript.version == "0.27.0" else ONLY_0_3_64
    for table in (special, EXPECTED):
        for key in (transcript.name, transcript.case):
            if key in table:
                named = table[key].split()
                return named * len(transcript.prompts) if len(named) == 1 else named
    return ["succeeded"] * len(transcript.prompts)


def judged_of(prompt: replay.Prompt) -> str:
    if prompt.entry is not None:
        return verdict(prompt.entry).kind
    if prompt.status == 400:
        error = refusal(400, json.dumps(prompt.reply).encode(), prompt.workflow or {})
        return "rejected" if isinstance(error, WorkflowInvalid) else "?"
    return {None: "died", 500: "crashed", 200: "accepted"}[prompt.status]


def is_end_of(message: messages.Message, prompt_id: str) -> bool:
    if isinstance(message, messages.Executing):
        return message.node is None and message.prompt_id == prompt_id
    return isinstance(message, ENDS) and message.prompt_id == prompt_id


def watch(prompt: replay.Prompt, frames: list[tuple[float, messages.Message]]) -> tuple[Verdict, int]:
    """
    Wait for a prompt as a watcher does; return the verdict and how many frames it took.

    The entry can be read from the `status` on that follows the end, never at the end itself, and by polling after the
    last frame.
    """
    assert prompt.prompt_id is not None and prompt.entry is not None
    state = PromptState(prompt.prompt_id, prompt.workflow)
    ended = readable = False
    for taken, (at, message) in enumerate(frames, 1):
        readable = readable or (ended and isinstance(message, messages.Status))
        ended = ended or is_end_of(message, prompt.prompt_id)
        if state.feed(message, at).look == "now" and readable:
            return verdict(prompt.entry), taken
    return verdict(prompt.entry), len(frames)


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_verdict_is_right_from_history_alone(transcript: replay.Transcript) -> None:
    """
    Every posted prompt is judged as a person who reads the recording would judge it, without any socket message.
    """
    assert [judged_of(prompt) for prompt in transcript.prompts] == expected_of(transcript)


@pytest.mark.parametrize("transcript", [case for case in TRANSCRIPTS if case.values[0].jobs])
def test_verdict_is_the_same_from_a_job_object(transcript: replay.Transcript) -> None:
    """
    The job object of newer servers gives the verdict that its own status claims, from the messages in it.
    """
    found = {job_id: verdict(job).kind for job_id, job in transcript.jobs.items()}

    assert found == {job_id: JOB_STATUS[job["status"]] for job_id, job in transcript.jobs.items()}


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_verdict_is_the_same_when_the_socket_is_cut_after_any_frame(transcript: replay.Transcript) -> None:
    """
    Losing the rest of the stream, or its beginning, changes nothing about how a prompt ended.
    """
    frames = list(transcript.frames)
    for prompt in transcript.prompts:
        if prompt.entry is None:
            continue
        whole, _ = watch(prompt, frames)

        assert all(watch(prompt, frames[:cut])[0] == whole for cut in range(len(frames)))
        assert all(watch(prompt, frames[cut:])[0] == whole for cut in range(len(frames)))


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_the_entry_is_read_at_the_null_event_at_the_latest(transcript: replay.Transcript) -> None:
    """
    With the whole stream nobody has to poll: the end of a prompt is read as soon as it can be.
    """
    for prompt in transcript.prompts:
        nulls = [
            position
            for position, (_, message) in enumerate(transcript.frames, 1)
            if isinstance(message, messages.Executing) and is_end_of(message, str(prompt.prompt_id))
        ]
        if prompt.entry is not None and nulls:
            assert watch(prompt, list(transcript.frames))[1] <= nulls[0]


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_state_ends_only_with_a_message_of_its_own(transcript: replay.Transcript) -> None:
    """
    A prompt counts as ending from its own success, interruption or null event on, and from nothing else.
    """
    for prompt in transcript.prompts:
        if prompt.prompt_id is None or not isinstance(prompt.workflow, dict):
            continue
        state = PromptState(prompt.prompt_id, prompt.workflow)
        own_end = False
        for at, message in transcript.frames:
            state.feed(message, at)
            own_end = own_end or (
                is_end_of(message, prompt.prompt_id) and not isinstance(message, messages.Errored)
            )

            assert (state.state == "ending") == own_end


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_percent_never_falls_and_is_complete_only_with_the_verdict(transcript: replay.Transcript) -> None:
    """
    What the caller is shown only grows and stays below 100, also with the middle of the stream in disorder.
    """
    shuffled = list(transcript.frames)
    random.Random(7).shuffle(shuffled)
    for prompt in transcript.prompts:
        if prompt.prompt_id is None or not isinstance(prompt.workflow, dict):
            continue
        for frames in (transcript.frames, shuffled):
            state = PromptState(prompt.prompt_id, prompt.workflow)
            steps = [state.feed(message, at) for at, message in frames]
            shown = [step.event.percent for step in steps if step.event is not None]

            assert shown == sorted(shown)
            assert all(0 <= percent <= 99 for percent in shown)


@pytest.mark.parametrize("version", replay.VERSIONS)
@pytest.mark.parametrize(
    "name",
    [
        "18_save_image_websocket",
        "19_save_image_websocket_feature_flags",
        "20_save_image_websocket_no_client",
    ],
)
def test_pictures_of_a_websocket_node_are_counted(version: str, name: str) -> None:
    """
    Both pictures arrive with and without the feature flag and as a broadcast, and none is missing.
    """
    transcript = replay.load(version, name)
    (prompt,) = transcript.prompts
    state = PromptState(str(prompt.prompt_id), prompt.workflow)

    for at, message in transcript.frames:
        state.feed(message, at)

    assert [(node_id, mime) for node_id, mime, _ in state.pictures] == [("2", "image/png")] * 2
    assert (state.expected, state.missing_pictures) == ({"2": 2}, 0)


@pytest.mark.parametrize("version", replay.VERSIONS)
def test_pictures_lost_in_a_gap_are_missed(version: str) -> None:
    """
    When the frames with the pictures are lost, the rest of the stream tells how many there should have been.
    """
    transcript = replay.load(version, "18_save_image_websocket")
    (prompt,) = transcript.prompts
    state = PromptState(str(prompt.prompt_id), prompt.workflow)

    for at, message in transcript.frames:
        if not isinstance(message, messages.Picture):
            state.feed(message, at)

    assert state.missing_pictures == 2


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_previews_are_not_taken_for_results(transcript: replay.Transcript) -> None:
    """
    Only SaveImageWebsocket nodes have pictures; those of samplers are dropped.
    """
    for prompt in transcript.prompts:
        if prompt.prompt_id is None or "SaveImageWebsocket" in json.dumps(prompt.workflow):
            continue
        state = PromptState(prompt.prompt_id, prompt.workflow)
        for at, message in transcript.frames:
            state.feed(message, at)

        assert state.pictures == []


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_a_succeeded_prompt_warns_only_of_its_blockers(transcript: replay.Transcript) -> None:
    """
    An error on the way to success is a warning (t04, t05), and nothing else makes one.
    """
    for prompt in transcript.prompts:
        if prompt.entry is None or verdict(prompt.entry).kind != "succeeded":
            continue
        state = PromptState(str(prompt.prompt_id), prompt.workflow)
        for at, message in transcript.frames:
            state.feed(message, at)
        blocked = ("Node 3 (PreviewImage) did not run: Execution Blocked: Blocked Execution",)

        assert state.warnings() == (blocked if transcript.case in ("t04", "t05") else ())


@pytest.mark.parametrize("transcript", TRANSCRIPTS)
def test_a_failure_names_its_node(transcript: replay.Transcript) -> None:
    """
    Every failed prompt tells which node of which class raised what, without the newline ComfyUI adds.
    """
    for prompt in transcript.prompts:
        found = verdict(prompt.entry) if prompt.entry is not None else Verdict("succeeded")

        assert (found.error is not None) == (found.kind == "failed")
        if found.error is not None:
            assert found.error.class_type == prompt.workflow[found.error.node_id]["class_type"]
            assert found.error.exception_type
            assert found.error.message == found.error.message.strip() != ""


@pytest.mark.parametrize(
    ("version", "name", "nodes"),
    [
        ("0.27.0", "r04_error_after_one_output_done", 1),
        ("0.3.64", "r04_error_after_one_output_done", 1),
        ("0.27.0", "c07_cached_outputs_and_failure", 2),
        ("0.27.0", "c02_all_cached_no_client_id", 0),
        ("0.27.0", "q26_output_node_without_ui", 0),
        ("0.27.0", "o09_intermediate_output", 2),
        ("0.27.0", "29_mixed_valid_and_invalid_outputs", 1),
    ],
)
def test_outputs_are_kept_whatever_the_verdict(version: str, name: str, nodes: int) -> None:
    """
    The outputs that history lists are handed on: all of a partial failure, and none where a success has none.
    """
    (prompt,) = replay.load(version, name).prompts

    assert len(verdict(prompt.entry or {}).outputs) == nodes


@pytest.mark.parametrize("version", replay.VERSIONS)
def test_cached_nodes_are_told(version: str) -> None:
    """
    An identical run is cached as a whole, so that its files may be older than the prompt.
    """
    transcript = replay.load(version, "02_empty_save_identical_again")
    (prompt,) = transcript.prompts

    assert verdict(prompt.entry or {}).cached == {"1", "2"}


@pytest.mark.parametrize("version", replay.VERSIONS)
def test_nodes_are_timed(version: str) -> None:
    """
    Every node that ran has a duration and no node that was cached has one.
    """
    first, again = (replay.load(version, name) for name in ("01_empty_save", "02_empty_save_identical_again"))
    timed = []
    for transcript in (first, again):
        state = PromptState(str(transcript.prompts[0].prompt_id), transcript.prompts[0].workflow)
        for at, message in transcript.frames:
            state.feed(message, at)
        timed.append({node_id: 0 <= ms < 60_000 for node_id, ms in state.node_ms.items()})

    assert timed == [{"1": True, "2": True}, {}]


@pytest.mark.parametrize("version", replay.VERSIONS)
def test_texts_of_nodes_are_kept(version: str) -> None:
    """
    The text of a node that shows one while running is kept with its node.
    """
    transcript = replay.load(version, "22_preview_any")
    (prompt,) = transcript.prompts
    state = PromptState(str(prompt.prompt_id), prompt.workflow)

    for at, message in transcript.frames:
        state.feed(message, at)

    assert [text for _, text in state.texts] == ["width: 64, height: 64\n batch size: 1"]
