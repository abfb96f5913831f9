"""
Which job the benchmark runs, and when a score still holds.
"""

import json
import logging
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfy_worker.pyworker import benchmark, score
from comfy_worker.pyworker.benchmark import Benchmark, Sources

NOWHERE = Path("/nowhere/at/all.json")
KSAMPLER = {"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "model": ["4", 0]}}}
RANDOM = {"3": {"class_type": "KSampler", "inputs": {"seed": "__RANDOM_INT__", "noise_seed": 7}}}
SEEDLESS = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}


def chosen(sources: Sources, model: str | None = None) -> Benchmark:
    """
    Return the benchmark of these sources, none of which is on this machine by chance.
    """
    return benchmark.choose(replace(sources, provisioned=NOWHERE), model, "1.0")


def put(folder: Path, place: str, graph: Any) -> Path:
    """
    Write a file as JSON, or as the text that it is.
    """
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(graph if isinstance(graph, str) else json.dumps(graph))
    return path


def job(made: Benchmark) -> dict[str, Any]:
    """
    Return the input of one run.
    """
    found: dict[str, Any] = made.payload()["input"]
    return found


def test_default_is_text_to_image_with_a_random_seed() -> None:
    """
    Without a file: 512 x 512, 20 steps, another seed, prompt and UUID each time, seeds beyond 32 bits among them.
    """
    made = chosen(Sources())
    ran = [job(made) for _ in range(40)]

    assert made.route == "/generate/sync"
    assert {each["modifier"] for each in ran} == {"Text2Image"}
    for each in ran:
        assert uuid.UUID(each["request_id"]).version == 4
    sizes = [tuple(each["modifications"][name] for name in ("width", "height", "steps")) for each in ran]
    seeds = {each["modifications"]["seed"] for each in ran}
    assert set(sizes) == {(512, 512, 20)}
    assert len(seeds) == 40
    assert max(seeds) > 2**32
    assert len({each["modifications"]["prompt"] for each in ran}) > 1


def test_size_of_the_default_is_the_operators(caplog: pytest.LogCaptureFixture) -> None:
    """
    Whole numbers are taken; what is none falls back with a warning that names the variable.
    """
    made = chosen(Sources(width="768", height="big", steps="4"))

    given = job(made)["modifications"]

    assert (given["width"], given["height"], given["steps"]) == (768, 512, 4)
    assert "BENCHMARK_TEST_HEIGHT must be a whole number, not 'big'" in caplog.text


def test_prompts_lie_beside_the_program(tmp_path: Path) -> None:
    """
    The lines of misc/test_prompts.txt are what is asked for.
    """
    put(tmp_path, "misc/test_prompts.txt", "first\n\n  second \n")
    made = chosen(Sources(folders=(tmp_path,)))

    assert {job(made)["modifications"]["prompt"] for _ in range(60)} == {"first", "second"}


@pytest.mark.parametrize("place", ["misc/benchmark.json", "workers/comfyui-json/misc/benchmark.json"])
def test_first_file_that_is_there_wins(tmp_path: Path, place: str) -> None:
    """
    A file beside the program, in the documented place too, goes before BENCHMARK_JSON_PATH, that before the provisioned one.
    """
    own, by_path = put(tmp_path, place, KSAMPLER), put(tmp_path, "by_path.json", RANDOM)
    provisioned = put(tmp_path, "provisioned.json", SEEDLESS)
    sources = Sources(folders=(tmp_path,), path=by_path, provisioned=provisioned)

    order = []
    for path in (own, by_path, provisioned):
        order.append(
            next(iter(benchmark.choose(sources, None, "1.0").payload()["input"]["workflow_json"].values()))
        )
        path.unlink()

    assert [node["class_type"] for node in order] == ["KSampler", "KSampler", "EmptyImage"]
    assert order[1]["inputs"] == RANDOM["3"]["inputs"]
    assert "modifier" in benchmark.choose(sources, None, "1.0").payload()["input"]


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"nodes": [], "links": []}', '"text"', "\ufeff\x00"])
def test_broken_file_is_passed_over(tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    What is no workflow in the API format is named, and the next source is taken.
    """
    put(tmp_path, "misc/benchmark.json", broken)
    by_path = put(tmp_path, "by_path.json", KSAMPLER)

    made = chosen(Sources(folders=(tmp_path,), path=by_path))

    assert "by_path.json" in made.source
    assert "misc/benchmark.json" in caplog.text


def test_path_to_nowhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """
    BENCHMARK_JSON_PATH without a file there is no secret.
    """
    made = chosen(Sources(path=NOWHERE))

    assert "Text2Image" in made.source
    assert str(NOWHERE) in caplog.text


@pytest.mark.parametrize(
    "whole",
    [
        {"input": {"workflow_json": KSAMPLER, "request_id": "mine"}},
        {"input": {"modifier": "Mine", "modifications": {"prompt": "x"}}},
        {"modifier": "Mine"},
    ],
)
def test_file_may_hold_a_whole_job(tmp_path: Path, whole: dict[str, Any]) -> None:
    """
    A job is sent as it is, under an id of its own each time.
    """
    made = chosen(Sources(path=put(tmp_path, "job.json", whole)))
    first, second = job(made), job(made)

    assert first["request_id"] != second["request_id"] != "mine"
    assert {"workflow_json", "modifier"} & set(first)


def test_vast_38_seeds_of_a_graph_are_new_each_time(tmp_path: Path) -> None:
    """
    A whole-number seed changes with every run, links and other numbers never.
    """
    made = chosen(Sources(path=put(tmp_path, "g.json", KSAMPLER)))

    ran = [job(made)["workflow_json"]["3"]["inputs"] for _ in range(8)]

    assert len({inputs.pop("seed") for inputs in ran}) == 8
    assert all(inputs == {"steps": 20, "model": ["4", 0]} for inputs in ran)


def test_vast_38_graph_that_draws_by_itself_is_left_alone(tmp_path: Path) -> None:
    """
    With __RANDOM_INT__ in it, its other seeds are the author's.
    """
    made = chosen(Sources(path=put(tmp_path, "g.json", RANDOM)))

    assert job(made)["workflow_json"] == RANDOM


def test_vast_38_graph_without_a_seed_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Where nothing can be drawn anew the log says what that does to the score.
    """
    caplog.set_level(logging.WARNING)

    chosen(Sources(path=put(tmp_path, "g.json", SEEDLESS)))

    assert "from its cache" in caplog.text


def test_vast_37_template_by_name_goes_before_files(tmp_path: Path) -> None:
    """
    VAST_BENCHMARK_TEMPLATE is the one that the operator meant.
    """
    put(tmp_path, "misc/benchmark.json", KSAMPLER)

    made = chosen(Sources(folders=(tmp_path,), template="Mine"))

    assert job(made)["modifier"] == "Mine"
    assert "workflow_json" not in job(made)


def test_legacy_benchmark_is_a_prompt_of_full_size() -> None:
    """
    In the legacy mode the formula's own size is measured, whatever else is set.
    """
    made = chosen(Sources(template="Mine"), "flux")
    ran = [made.payload() for _ in range(8)]

    assert made.route == "/prompt"
    assert {(each["width"], each["height"], each["steps"]) for each in ran} == {(1024, 1024, 28)}
    assert len({each["seed"] for each in ran}) == 8


def test_score_holds_for_its_own_benchmark_only(tmp_path: Path) -> None:
    """
    Another workflow, size, model or version of ours removes the score; the same keeps it.
    """
    put(tmp_path, "g.json", KSAMPLER)
    others = [
        chosen(Sources(width="768")),
        chosen(Sources(path=tmp_path / "g.json")),
        chosen(Sources(template="Mine")),
        chosen(Sources(), "flux"),
        chosen(Sources(), "sd3"),
        benchmark.choose(Sources(provisioned=NOWHERE), None, "1.1"),
    ]
    first = chosen(Sources())
    file = tmp_path / score.NAME

    assert len({first.fingerprint, *(each.fingerprint for each in others)}) == 7
    assert score.keep_or_remove(tmp_path, first.fingerprint) is None
    file.write_text("12.5\n")
    assert score.keep_or_remove(tmp_path, chosen(Sources()).fingerprint) == 12.5
    assert score.keep_or_remove(tmp_path, others[0].fingerprint) is None
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "\n", "fast", "nan", "inf", "0", "-1"])
def test_score_that_is_none_is_removed(tmp_path: Path, text: str) -> None:
    """
    The SDK fails its start on an empty or broken file: it is gone before.
    """
    score.keep_or_remove(tmp_path, "f")
    (tmp_path / score.NAME).write_text(text)

    assert score.keep_or_remove(tmp_path, "f") is None
    assert not (tmp_path / score.NAME).exists()
