"""
ComfyUI's own validation of a workflow, as a pure function over `/object_info`.

The dry run answers with it before anything is queued, the built-in engine with every POST /prompt.
Types, messages and details are ComfyUI 0.27.0's, observed on a running server. The order of the inputs of one node and
of the outputs is a Python set's there and the declared one here.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_worker.comfy import signature
from comfy_worker.comfy.signature import Declared
from comfy_worker.comfy.values import LOOKUP_ERRORS, Problem, convert, problem

Check = Callable[[str, Mapping[str, Any]], str | None]


@dataclass(frozen=True, slots=True)
class Validation:
    """
    What ComfyUI would answer: `error` and `node_errors` are those of its reply, `error` None means that it queues.

    `outputs` are the output nodes that would run, in the order of the workflow. `workflow` is a copy in which values
    are converted ("64" to 64); objects and lists inside the values are shared with the original.
    """

    error: dict[str, Any] | None
    node_errors: dict[str, dict[str, Any]]
    outputs: tuple[str, ...]
    workflow: dict[str, Any]


def validate(
    workflow: Mapping[str, Any],
    classes: Mapping[str, Mapping[str, Any]],
    *,
    check: Check | None = None,
    targets: Sequence[str] | None = None,
) -> Validation:
    """
    Judge a workflow as ComfyUI 0.27.0 does; never raises for any JSON object.

    `classes` is `/object_info`: `{class_type: {"input", "output", "output_node", ...}}`.
    `check(class_type, inputs)` stands for VALIDATE_INPUTS: None, or a text; linked inputs are None in `inputs`.
    `targets` is `partial_execution_targets`.
    `error["type"]` is `invalid_prompt` where a real server crashes with a 500: a node that is no object, or whose
    `inputs`, `class_type` or `_meta` has an impossible type.
    """
    copied = _copy(workflow)
    refused = _malformed(copied) or _unknown_class(copied, classes)
    if refused is not None:
        return Validation(refused, {}, (), copied)
    outputs = [
        node_id
        for node_id, node in copied.items()
        if classes[node["class_type"]].get("output_node") and (targets is None or node_id in targets)
    ]
    if not outputs:
        return Validation(problem("prompt_no_outputs", "Prompt has no outputs"), {}, (), copied)
    return _judge(_Run(copied, classes, check), outputs)


def _judge(run: "_Run", outputs: Sequence[str]) -> Validation:
    good: list[str] = []
    details: list[str] = []
    node_errors: dict[str, dict[str, Any]] = {}
    for output in outputs:
        outcome = run.visit_output(output)
        if outcome.valid:
            good.append(output)
            continue
        details += [f"{found['message']}: {found['details']}" for found in outcome.problems]
        # ComfyUI adds every failing output to every faulty node known so far, related or not.
        for node_id, known in run.outcomes.items():
            if known.problems:
                class_type = run.workflow[node_id]["class_type"]
                entry = {"errors": known.problems, "dependent_outputs": [], "class_type": class_type}
                node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    error = None
    if not good:
        failed = "Prompt outputs failed validation"
        error = problem("prompt_outputs_failed_validation", failed, "\n".join(details))
    return Validation(error, node_errors, tuple(good), run.workflow)


@dataclass(slots=True)
class _Outcome:
    valid: bool
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class _Run:
    """
    One pass over the graph. Nodes are generators that yield the node they need, so that depth costs no stack.
    """

    workflow: dict[str, Any]
    classes: Mapping[str, Mapping[str, Any]]
    check: Check | None
    outcomes: dict[str, _Outcome] = field(default_factory=dict)

    def visit_output(self, output: str) -> _Outcome:
        reply = self.outcomes.get(output) or self._visit(output)
        if isinstance(reply, Exception):
            extra = {"exception_type": type(reply).__name__, "traceback": []}
            message = "Exception when validating node"
            reply = _Outcome(False, [problem("exception_during_validation", message, str(reply), **extra)])
            self.outcomes[output] = reply
        return reply

    def _visit(self, root: str) -> "_Outcome | Exception":
        path: dict[str, Generator[str, _Outcome | Exception | None, _Outcome]] = {root: self._node(root)}
        reply: _Outcome | Exception | None = None
        while path:
            node_id = next(reversed(path))
            try:
                wanted = path[node_id].send(reply)
            except StopIteration as done:
                reply = done.value
                del path[node_id]
            except LOOKUP_ERRORS as exc:
                reply = exc
                del path[node_id]
            else:
                reply = self.outcomes.get(wanted)
                if reply is None and wanted in path:
                    reply = self._cycle([*path][[*path].index(wanted) :])
                elif reply is None:
                    path[wanted] = self._node(wanted)
        assert reply is not None
        return reply

    def _cycle(self, nodes: list[str]) -> _Outcome:
        steps = [f"{node_id} ({self.workflow[node_id]['class_type']})" for node_id in [*nodes, nodes[0]]]
        for node_id in nodes:
            extra = {"node_id": node_id, "cycle_nodes": list(nodes)}
            text = " -> ".join(steps)
            found = problem("dependency_cycle", "Dependency cycle detected", text, **extra)
            self.outcomes[node_id] = _Outcome(False, [found])
        return _Outcome(False)

    def _node(self, node_id: str) -> Generator[str, _Outcome | Exception | None, _Outcome]:
        node = self.workflow[node_id]
        info, values = self.classes[node["class_type"]], node["inputs"]
        mine = _Outcome(True)
        declared = list(signature.declared_inputs(info, values))
        for wanted in declared:
            if wanted.name not in values:
                mine.problems += _missing(wanted)
            elif not isinstance(values[wanted.name], list):
                mine.problems += convert(wanted, values)
            elif wrong := self._link(wanted, values[wanted.name]):
                mine.problems.append(wrong)
            else:
                source = values[wanted.name][0]
                reply = yield source
                if isinstance(reply, Exception):
                    self.outcomes[source] = _Outcome(False, [_inner(wanted, values[wanted.name], reply)])
                mine.valid = mine.valid and isinstance(reply, _Outcome) and reply.valid
        mine.problems += self._custom(node["class_type"], declared, values)
        before = self.outcomes.get(node_id, _Outcome(True))
        mine.problems = before.problems + mine.problems
        mine.valid = mine.valid and not mine.problems
        self.outcomes[node_id] = mine
        return mine

    def _link(self, wanted: Declared, link: list[Any]) -> Problem | None:
        extra: dict[str, Any] = {"input_name": wanted.name, "input_config": wanted.config}
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return problem("bad_linked_input", message, wanted.name, **extra, received_value=link)
        source = self.classes[self.workflow[link[0]]["class_type"]]
        received = signature.declared_outputs(source)[link[1]]
        if signature.is_compatible(received, wanted.type):
            return None
        details = f"{wanted.name}, received_type({received}) mismatch input_type({wanted.type})"
        extra |= {"received_type": received, "linked_node": link}
        return problem("return_type_mismatch", "Return type mismatch between linked nodes", details, **extra)

    def _custom(
        self, class_type: str, declared: Sequence[Declared], values: Mapping[str, Any]
    ) -> list[Problem]:
        if self.check is None:
            return []
        files = [wanted.name for wanted in declared if wanted.is_file]
        for name in files:
            if name not in values:
                missing = f"VALIDATE_INPUTS() missing 1 required positional argument: '{name}'"
                raise TypeError(f"{class_type}.{missing}")
        given = {name: None if _is_link(value) else value for name, value in values.items()}
        text = self.check(class_type, given)
        if text is None:
            return []
        names = files or [wanted.name for wanted in declared if given.get(wanted.name) is not None]
        message = "Custom validation failed for node"
        return [
            problem("custom_validation_failed", message, f"{name} - {text}", input_name=name)
            for name in names
        ]


def _is_link(value: Any) -> bool:
    # A check does not see what another node will give, but does see a list that is no link.
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and isinstance(value[0], str) and isinstance(value[1], int | float)


def _missing(wanted: Declared) -> list[Problem]:
    if not wanted.required:
        return []
    message = "Required input is missing"
    return [problem("required_input_missing", message, wanted.label, input_name=wanted.name)]


def _inner(wanted: Declared, link: list[Any], exc: Exception) -> Problem:
    return problem(
        "exception_during_inner_validation",
        "Exception when validating inner node",
        str(exc),
        input_name=wanted.name,
        input_config=wanted.config,
        exception_message=str(exc),
        exception_type=type(exc).__name__,
        traceback=[],
        linked_node=link,
    )


def _copy(workflow: Mapping[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = {}
    for node_id, node in workflow.items():
        copied[node_id] = dict(node) if isinstance(node, Mapping) else node
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping):
            copied[node_id]["inputs"] = dict(node["inputs"])
    return copied


def _malformed(workflow: Mapping[str, Any]) -> dict[str, Any] | None:
    # ComfyUI 0.27.0 looks for classes that are gone before it judges: nodes with both keys are opened, in every place.
    for node_id, node in workflow.items():
        if not isinstance(node, dict | list | str):
            return _impossible(node_id, "a node is not an object")
        if "class_type" not in node or "inputs" not in node:
            continue
        if not isinstance(node, dict):
            return _impossible(node_id, "a node is not an object")
        if not isinstance(node["inputs"], dict):
            return _impossible(node_id, "the inputs of a node are not an object")
        if isinstance(node["class_type"], dict | list):
            return _impossible(node_id, "the class_type of a node is not a text")
    return None


def _unknown_class(workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> dict[str, Any] | None:
    for node_id, node in workflow.items():
        if not isinstance(node, dict):
            return _impossible(node_id, "a node is not an object")
        class_type, meta = node.get("class_type"), node.get("_meta", {})
        if isinstance(class_type, dict | list):
            return _impossible(node_id, "the class_type of a node is not a text")
        if class_type in classes:
            continue
        if not isinstance(meta, dict):
            return _impossible(node_id, "the _meta of a node is not an object")
        return _no_such_class(node_id, node, meta)
    return None


def _no_such_class(node_id: str, node: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    class_type = node.get("class_type")
    title = meta.get("title", class_type)
    extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
    message = f"Node '{title}' not found. The custom node may not be installed."
    if "class_type" not in node:
        shown = meta.get("title", f"ID #{node_id}")
        message = (
            f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
        )
    return problem("missing_node_type", message, f"Node ID '#{node_id}'", **extra)


def _impossible(node_id: str, what: str) -> dict[str, Any]:
    return problem("invalid_prompt", f"Cannot execute because {what}.", f"Node ID '#{node_id}'")
