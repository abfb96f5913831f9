"""
The job that the benchmark runs: the operator's own workflow or template, else Vast's text to image.

The first of these that can be read: a template by name, `misc/benchmark.json` beside the program,
`BENCHMARK_JSON_PATH`, the workflow that Vast's base image links. A file holds a graph, or a whole job.

Source: the benchmark of Vast's `comfyui-json` worker (0e08881).
"""

import copy
import hashlib
import json
import logging
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Payload = dict[str, Any]

PROVISIONED = Path("/opt/comfyui-api-wrapper/workflows/pyworker_benchmark.json")
PLACES = (Path("misc/benchmark.json"), Path("workers/comfyui-json/misc/benchmark.json"))
PROMPTS = Path("misc/test_prompts.txt")
DEFAULT_PROMPTS = (
    "a lighthouse on a cliff at dawn, waves below, soft light",
    "a bowl of lemons on a wooden table, still life, oil painting",
    "a narrow street in the rain at night, reflections of shop signs",
    "a red fox asleep in deep snow, photograph",
    "a map of an island that does not exist, ink on old paper",
)
SEEDS = ("seed", "noise_seed")
PLACEHOLDER = "__RANDOM_INT__"
GRAPH_SEED_MAX = 2**32 - 1
"""Every node that has a seed takes this much; ComfyUI's own sampler takes more."""

TEXT_SEED_MAX = 2**63 - 1
LEGACY_SIZE = {"width": 1024, "height": 1024, "steps": 28}


@dataclass(frozen=True)
class Sources:
    """
    Where a benchmark may come from. `folders` are looked through in order; sizes are texts as they were set.
    """

    folders: tuple[Path, ...] = ()
    path: Path | None = None
    template: str | None = None
    width: str = ""
    height: str = ""
    steps: str = ""
    provisioned: Path = PROVISIONED


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark: its route, what tells it apart from another, and `payload()`, which differs on every call.
    """

    route: str
    source: str
    fingerprint: str
    payload: Callable[[], Payload]


def choose(sources: Sources, legacy_model: str | None, version: str) -> Benchmark:
    """
    Return the benchmark of a worker; `version` is ours, another one measures anew.
    """
    if legacy_model is not None:
        make = _legacy(_prompts(sources))
        key: Any = [legacy_model, LEGACY_SIZE]
        return Benchmark("/prompt", f"{legacy_model} at 1024 x 1024, 28 steps", _digest(version, key), make)
    if sources.template is not None:
        job: Payload = {"modifier": sources.template, "modifications": {"seed": PLACEHOLDER}}
        return _of_job(f"the template {sources.template}", job, version)
    for path in _files(sources):
        found = _read(path)
        if found is not None:
            return _of_job(f"the workflow {path}", found, version)
    return _default(sources, version)


def _of_job(source: str, job: Payload, version: str) -> Benchmark:
    if not _varies(job):
        logger.warning(
            "The benchmark (%s) has neither a seed nor %s: ComfyUI may answer all runs but the first from its cache, and "
            "the score is too good to be true.",
            source,
            PLACEHOLDER,
        )

    def payload() -> Payload:
        return {"input": {**_reseeded(job), "request_id": str(uuid.uuid4())}}

    return Benchmark("/generate/sync", source, _digest(version, job), payload)


def _default(sources: Sources, version: str) -> Benchmark:
    size = {
        "width": _size("BENCHMARK_TEST_WIDTH", sources.width, 512),
        "height": _size("BENCHMARK_TEST_HEIGHT", sources.height, 512),
        "steps": _size("BENCHMARK_TEST_STEPS", sources.steps, 20),
    }
    prompts = _prompts(sources)

    def payload() -> Payload:
        chosen = {"prompt": random.choice(prompts), "seed": random.randint(0, TEXT_SEED_MAX), **size}
        job = {"request_id": str(uuid.uuid4()), "modifier": "Text2Image", "modifications": chosen}
        return {"input": job}

    source = "Text2Image at {width} x {height}, {steps} steps".format(**size)
    return Benchmark("/generate/sync", source, _digest(version, ["Text2Image", size]), payload)


def _legacy(prompts: tuple[str, ...]) -> Callable[[], Payload]:
    return lambda: {
        "prompt": random.choice(prompts),
        "seed": random.randint(0, GRAPH_SEED_MAX),
        **LEGACY_SIZE,
    }


def _files(sources: Sources) -> list[Path]:
    # The same folder may be named twice, as the program's and as the working folder.
    found = list(dict.fromkeys(folder / place for folder in sources.folders for place in PLACES))
    found = [path for path in found if path.is_file()]
    if sources.path is not None:
        found.append(sources.path)
    return [*found, *([sources.provisioned] if sources.provisioned.is_file() else [])]


def _read(path: Path) -> Payload | None:
    """
    Return the job of a file, or None with a warning that names what is wrong with it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        logger.warning("The benchmark %s cannot be read and is passed over: %s", path, exc)
        return None
    if isinstance(found, Mapping) and isinstance(found.get("input"), Mapping):
        found = found["input"]
    if isinstance(found, dict) and ("workflow_json" in found or "modifier" in found):
        return found
    if _is_graph(found):
        return {"workflow_json": found}
    logger.warning(
        "The benchmark %s is passed over: it is neither a workflow in the API format nor a job. "
        "In ComfyUI choose Export (API).",
        path,
    )
    return None


def _is_graph(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(node, dict) and "class_type" in node for node in found.values())
    )


def _size(name: str, text: str, default: int) -> int:
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        logger.warning("%s must be a whole number, not %r; %d is taken.", name, text, default)
        return default


def _prompts(sources: Sources) -> tuple[str, ...]:
    for folder in sources.folders:
        try:
            lines = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        found = tuple(line.strip() for line in lines if line.strip())
        if found:
            return found
    return DEFAULT_PROMPTS


def _has_placeholder(value: Any) -> bool:
    return PLACEHOLDER in json.dumps(value)


def _varies(job: Payload) -> bool:
    return _has_placeholder(job) or _reseeded(job) != job or "workflow_json" not in job


def _reseeded(job: Payload) -> Payload:
    """
    Return a job with new seeds, unless it asks for them itself: otherwise ComfyUI's cache answers all runs but the first.
    """
    fresh = copy.deepcopy(job)
    graph = fresh.get("workflow_json")
    if not isinstance(graph, dict) or _has_placeholder(job):
        return fresh
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict):
            seeds = [name for name in SEEDS if type(inputs.get(name)) is int]
            inputs.update({name: random.randint(0, GRAPH_SEED_MAX) for name in seeds})
    return fresh


def _digest(version: str, key: Any) -> str:
    return hashlib.sha256(json.dumps([version, key], sort_keys=True).encode()).hexdigest()
