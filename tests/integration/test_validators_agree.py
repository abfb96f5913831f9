"""
Three validators, one verdict: a real ComfyUI's, the built-in engine's, and our own over the real one's `/object_info`.

Reproducible: the same graphs in every run. More of them: `VALIDATOR_GRAPHS=1000 pytest -s FILE`.
The real one walks Python sets, so that one graph may get different answers from two runs of it (which nodes of a cycle
are told, and what hides behind an error). Where the declared order gives another answer, some order of those sets must
give the real one's; how many graphs needed that is told, and bounded.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.graphs import graphs
from support.pictures import png

from comfy_worker.comfy.validate import validate
from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.thread import EngineThread

GRAPHS = int(os.environ.get("VALIDATOR_GRAPHS", "40"))
ORDERS = 200
MOST_BY_ORDER = 0.03
LOADERS = frozenset(("LoadImage", "LoadImageMask", "LoadImageOutput", "LoadAudio", "LoadVideo"))
PATIENCE_S = 60.0

Graph = dict[str, Any]
Check = Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Verdict:
    """
    What must agree: the status, the kind of refusal, and of each failing node its class and the kinds of its errors.
    """

    status: int
    error: str | None
    nodes: Mapping[str, tuple[Any, ...]]


def verdict(status: int, error: Mapping[str, Any] | None, node_errors: Mapping[str, Any]) -> Verdict:
    """
    Return the verdict of a reply; a crash of the server is a status.
    """
    if error is not None and error["type"] == "invalid_prompt":
        return Verdict(500, None, {})
    nodes = {
        node_id: (entry["class_type"].partition("@")[0], *sorted(found["type"] for found in entry["errors"]))
        for node_id, entry in node_errors.items()
    }
    return Verdict(status, error["type"] if error is not None else None, nodes)


class Asked:
    """
    A server that validates, and forgets at once what it took.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = requests.Session()

    def __call__(self, graph: Graph) -> Verdict:
        """
        Ask for a verdict.
        """
        reply = self._post("/prompt", {"prompt": graph})
        if reply.status_code == 500:
            return Verdict(500, None, {})
        body = reply.json()
        if reply.status_code == 200:
            self._post("/queue", {"clear": True})
            self._post("/interrupt", {})
        return verdict(reply.status_code, body.get("error"), body["node_errors"])

    def info(self) -> dict[str, Any]:
        """
        Return `/object_info`.
        """
        found: dict[str, Any] = self._http.get(f"{self._url}/object_info", timeout=PATIENCE_S).json()
        return found

    def close(self) -> None:
        """
        Let go of the connections.
        """
        self._http.close()

    def _post(self, path: str, body: Any) -> requests.Response:
        headers = {"Content-Type": "application/json"}
        return self._http.post(self._url + path, json.dumps(body), headers=headers, timeout=PATIENCE_S)


def ours(graph: Graph, info: Mapping[str, Any], check: Check | None = None) -> Verdict:
    """
    Return the verdict of our own validation.
    """
    judged = validate(json.loads(json.dumps(graph)), info, check=check)
    return verdict(200 if judged.error is None else 400, judged.error, judged.node_errors)


def shuffled(graph: Graph, info: Mapping[str, Any], order: random.Random) -> tuple[Graph, dict[str, Any]]:
    """
    Return the same graph with its nodes and their inputs in another order, as sets have them.

    Each node gets a class of its own, `<class>@<id>`, in which the inputs that it has and those that it must have stand
    in one section.
    """
    nodes, classes = {}, dict(info)
    for node_id in order.sample(list(graph), len(graph)):
        node = graph[node_id]
        name, inputs = (
            (node.get("class_type"), node.get("inputs")) if isinstance(node, dict) else (None, None)
        )
        if isinstance(name, str) and name in info and isinstance(inputs, dict):
            node = {**node, "class_type": f"{name}@{node_id}"}
            sections = info[name]["input"]
            rows = [*sections["required"].items()]
            rows += [row for row in sections.get("optional", {}).items() if row[0] in inputs]
            rows = order.sample(rows, len(rows))
            classes[node["class_type"]] = {**info[name], "input": {"required": dict(rows)}}
        nodes[node_id] = node
    return nodes, classes


@dataclass
class Trial:
    """
    The validators side by side.
    """

    real: Asked
    builtin: Asked
    engine: EngineThread
    info: dict[str, Any]
    counts: Counter[str] = field(default_factory=Counter)

    def differences(self, graph: Graph) -> dict[str, Any]:
        """
        Return the verdicts when they are not one, else nothing.
        """
        real, builtin = self.real(graph), self.builtin(graph)
        found: dict[str, Any] = {"real": real}
        if builtin != real and not self._in_some_order(graph, real, self.check):
            found["builtin"] = builtin
        own = ours(graph, self.info) if self._applies(graph) else real
        if own != real and not self._in_some_order(graph, real, None):
            found["ours"] = own
        by_order = builtin != real and "builtin" not in found
        self.counts.update(["graphs", f"status {real.status}", *(["by order"] if by_order else [])])
        self.counts.update(kind for _, *kinds in real.nodes.values() for kind in kinds)
        return found if len(found) > 1 else {}

    def check(self, class_type: str, inputs: Mapping[str, Any]) -> str | None:
        """
        Return what a node's own check says.
        """
        own = NODES[class_type.partition("@")[0]].check
        return own(inputs, self.engine.folders) if own is not None else None

    def _applies(self, graph: Graph) -> bool:
        # The dry run cannot ask a class's own check, and leaves names of files to ComfyUI.
        classes = [node.get("class_type") for node in graph.values() if isinstance(node, dict)]
        return not any(isinstance(name, str) and name in LOADERS for name in classes)

    def _in_some_order(self, graph: Graph, wanted: Verdict, check: Check | None) -> bool:
        order = random.Random(0)
        if wanted.status == 500:
            return False
        return any(ours(*shuffled(graph, self.info, order), check) == wanted for _ in range(ORDERS))


@pytest.fixture(scope="module")
def trial(real_comfy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """
    The real ComfyUI beside a built-in engine that knows the same files.
    """
    with EngineThread(tmp_path_factory.mktemp("validators")) as engine:
        for folder in (real_comfy.launch.input, engine.folders.input):
            put_files(folder)
        trial = Trial(Asked(real_comfy.launch.url), Asked(engine.url), engine, {})
        trial.info = {name: entry for name, entry in trial.real.info().items() if name in NODES}
        yield trial
        trial.real.close()
        trial.builtin.close()


def put_files(folder: Path) -> None:
    """
    Put a picture and a folder where names of files are looked for.
    """
    (folder / "here.png").write_bytes(png((8, 8), (1, 2, 3)))
    (folder / "sub").mkdir(exist_ok=True)


def test_validators_agree(trial: Trial) -> None:
    """Every graph must get one verdict: taken or refused, the same failing nodes, the same kinds of errors."""
    seen: set[str] = set()

    @settings(
        max_examples=2 * GRAPHS,  # some are drawn twice
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def every(data: st.DataObject) -> None:
        graph = data.draw(graphs(trial.info))
        text = json.dumps(graph)
        if text not in seen and len(seen) < GRAPHS:
            assert trial.differences(graph) == {}
            seen.add(text)

    every()

    print(f"\nvalidators agree: {dict(trial.counts.most_common())}")
    assert len(seen) == GRAPHS
    assert trial.counts["by order"] <= max(MOST_BY_ORDER * GRAPHS, 3)
    assert trial.counts["status 200"]
    assert trial.counts["status 400"]
