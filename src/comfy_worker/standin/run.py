"""
Running one prompt: node after node in the engine's order, with its cache, its messages and its end. One thread does it.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_worker.standin import calls, failures
from comfy_worker.standin.cache import Cache, Done, is_link, keys_of, links
from comfy_worker.standin.context import RunContext, has_previews
from comfy_worker.standin.faults import OutOfMemoryError
from comfy_worker.standin.graph import Agenda, Box, DependencyCycleError, Graph, relink
from comfy_worker.standin.node import Blocked, Interrupted, Node, Returned
from comfy_worker.standin.outbox import Outbox
from comfy_worker.standin.progress import Names
from comfy_worker.standin.prompts import Prompt
from comfy_worker.standin.settings import Settings


@dataclass(frozen=True, slots=True)
class Workshop:
    """
    What every run of an engine uses.
    """

    settings: Settings
    nodes: Mapping[str, Node]
    cache: Cache
    seed: int
    stopping: threading.Event
    die: Callable[[Mapping[str, Any]], None]


class Stopped(Exception):
    """
    The run ends here; the message for it is sent.
    """


class Run:
    """
    One run of a prompt. `entry` is what history gets: `outputs`, `status`, `meta`.
    """

    def __init__(
        self, prompt: Prompt, outbox: Outbox, workshop: Workshop, interrupt: threading.Event
    ) -> None:
        self._prompt = prompt
        self._outbox = outbox
        self._shop = workshop
        self._interrupt = interrupt
        self._graph = Graph(prompt.workflow)
        self._keys = keys_of(prompt.workflow, workshop.nodes, workshop.settings.folders)
        self._done: dict[str, Done] = {}
        self._executed: dict[str, None] = {}
        self._open: dict[str, Returned] = {}
        self._agenda = Agenda(self._graph, self._done.__contains__, set(prompt.outputs).__contains__)
        self._failed = False
        self.outputs: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}

    def execute(self) -> dict[str, Any]:
        """
        Run the prompt to its end, whatever that is, and return the history entry.
        """
        self._outbox.milestone("execution_start")
        self._shop.cache.started(self._keys.values())
        self._load_cached()
        self._outbox.milestone(
            "execution_cached", nodes=[node for node in self._prompt.workflow if node in self._done]
        )
        try:
            self._run_all()
        except Stopped:
            pass
        else:
            self._outbox.milestone("execution_success")
        return self._entry()

    def _load_cached(self) -> None:
        for node_id, key in self._keys.items():
            done = self._shop.cache.get(key)
            if done is not None:
                self._done[node_id] = done

    def _entry(self) -> dict[str, Any]:
        status = {
            "status_str": "error" if self._failed else "success",
            "completed": not self._failed,
            "messages": self._outbox.messages,
        }
        return {"outputs": self.outputs, "status": status, "meta": self.meta}

    def _run_all(self) -> None:
        cached = dict(self._done)
        for output in sorted(self._prompt.outputs, key=self._chance):
            self._agenda.want(output)
        while (node_id := self._next()) is not None:
            if node_id in cached:
                self._show_cached(node_id)
            else:
                self._step(self._graph[node_id])
        self._show_intermediates(cached)

    def _chance(self, node_id: str) -> bytes:
        return hashlib.blake2b(f"{self._shop.seed} {node_id}".encode()).digest()

    def _next(self) -> str | None:
        try:
            return self._agenda.next()
        except DependencyCycleError as cycle:
            # A cycle made at run time leaves history's status at "success" (ComfyUI 0.27.0).
            self._tell_error(cycle, self._graph[cycle.node_id], None)
            raise Stopped from cycle

    def _show_cached(self, node_id: str) -> None:
        names = self._graph[node_id].names
        self._keep_output(names, self._done[node_id])
        self._outbox.executed(names, self._done[node_id].ui)
        self._outbox.progress.put(names, 1, 1, "finished")
        self._outbox.state()
        self._agenda.done(node_id)

    def _keep_output(self, names: Names, done: Done) -> None:
        # Without a client_id, 0.27.0 forgets what it found in its cache.
        if done.ui is not None and (self._outbox.client_id is not None or names.node_id in self._executed):
            self.outputs[names.node_id] = done.ui
            self.meta[names.node_id] = done.meta

    def _show_intermediates(self, cached: Mapping[str, Done]) -> None:
        for node_id in self._needed():
            names, done = self._graph[node_id].names, cached.get(node_id)
            node = self._shop.nodes[self._graph[node_id].class_type]
            if done is not None and done.ui is not None and node.intermediate:
                self._keep_output(names, done)
                self._outbox.executed(names, done.ui)

    def _needed(self) -> list[str]:
        found, stack = dict.fromkeys(self._prompt.outputs), list(self._prompt.outputs)
        while stack:
            for target, _ in links(self._graph[stack.pop()].inputs).values():
                if target not in found:
                    found[target] = None
                    stack.append(target)
        return list(found)

    def _step(self, box: Box) -> None:
        names = box.names
        if names.node_id in self._open:
            self._close(box, self._open.pop(names.node_id))
            return
        self._outbox.progress.put(names, 0.0, 1.0, "running")
        self._outbox.state()
        self._outbox.executing(names)
        how = self._prompt.faults.death_at(names.node_id)
        if how is not None:
            self._shop.die(how)
        self._check_interrupt(box)
        results, blocked = self._call(box)
        if blocked:
            self._tell_blocked(box, results)
        self._settle(box, results)

    def _check_interrupt(self, box: Box) -> None:
        if self._interrupt.is_set() or self._shop.stopping.is_set():
            self._tell_interrupted(box)

    def _call(self, box: Box) -> tuple[list[Returned | Blocked], bool]:
        node = self._shop.nodes[box.class_type]
        context = self._context(box.names)
        values: dict[str, list[Any]] = {}
        results: tuple[list[Returned | Blocked], bool] = ([], False)
        with failures.Attempt() as attempt:
            if self._prompt.faults.is_oom(box.names.node_id):
                raise OutOfMemoryError
            values = calls.gather(node, box.inputs, lambda target, slot: self._done[target].values[slot])
            results = calls.call(node, values, lambda item: node.run(item, context))
        context.flush()
        if isinstance(attempt.error, Interrupted):
            self._tell_interrupted(box)
        if attempt.error is not None:
            self._failed = True
            self._tell_error(attempt.error, box, {**values, **self._hidden(node, box.names)})
            raise Stopped from attempt.error
        return results

    def _hidden(self, node: Node, names: Names) -> dict[str, list[Any]]:
        known = {
            "PROMPT": self._prompt.workflow,
            "EXTRA_PNGINFO": self._prompt.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": names.node_id,
        }
        return {name: [known.get(kind)] for name, kind in node.hidden.items()}

    def _context(self, names: Names) -> RunContext:
        settings, extra = self._shop.settings, self._prompt.extra_data
        return RunContext(
            names,
            self._outbox,
            settings.folders,
            self._prompt.workflow,
            extra.get("extra_pnginfo"),
            settings.metadata,
            has_previews(extra.get("preview_method"), settings.preview_method),
            not settings.old and self._prompt.faults.values.get("throttle", True),
            self._shop.stopping,
            self._interrupt.is_set,
        )

    def _settle(self, box: Box, results: list[Returned | Blocked]) -> None:
        made = next((result for result in results if isinstance(result, Returned) and result.expand), None)
        if made is None:
            self._finish(box, results, calls.merged(results))
            return
        prefix = f"{box.names.node_id}.0.0."
        ids = self._graph.expand(box.names.node_id, made.expand or {}, prefix)
        values = tuple(relink(value, ids) for value in made.values)
        self._open[box.names.node_id] = Returned(values, made.ui)
        needs = [value[0] for value in values if is_link(value) and value[0] in ids.values()]
        outputs = [
            ids[name] for name in ids if self._shop.nodes[self._graph[ids[name]].class_type].output_node
        ]
        self._agenda.wait_for(box.names.node_id, needs + outputs)

    def _close(self, box: Box, result: Returned) -> None:
        resolved = [self._resolve(value) for value in result.values]
        node = self._shop.nodes[box.class_type]
        values = tuple(resolved[slot] if slot < len(resolved) else [] for slot in range(len(node.outputs)))
        self._keep(box, values, calls.merged([result]))

    def _resolve(self, value: Any) -> list[Any]:
        done = self._done.get(value[0]) if is_link(value) else None
        return [value] if done is None else done.values[value[1]]

    def _finish(self, box: Box, results: list[Returned | Blocked], ui: dict[str, list[Any]] | None) -> None:
        node = self._shop.nodes[box.class_type]
        rows = [result.values if isinstance(result, Returned) else result for result in results]
        self._keep(box, calls.collect(node, rows), ui)

    def _keep(self, box: Box, values: tuple[list[Any], ...], ui: dict[str, list[Any]] | None) -> None:
        names = box.names
        meta = {
            "node_id": names.node_id,
            "display_node": names.display_id,
            "parent_node": names.parent_id,
            "real_node_id": names.real_id,
        }
        done = Done(values, ui, meta)
        self._done[names.node_id] = done
        self._executed[names.node_id] = None
        if ui is not None:
            self._keep_output(names, done)
            self._outbox.executed(names, ui)
        self._outbox.progress.finish(names)
        self._outbox.state()
        if names.node_id in self._keys:
            self._shop.cache.put(self._keys[names.node_id], done)
        if len(self._executed) == 1:
            self._shop.cache.ran(self._keys.values())
        self._agenda.done(names.node_id)

    def _tell_interrupted(self, box: Box) -> None:
        self._failed = True
        names = {"node_id": box.names.real_id, "node_type": self._graph[box.names.real_id].class_type}
        self._outbox.milestone("execution_interrupted", True, **names, executed=list(self._executed))
        raise Stopped

    def _tell_blocked(self, box: Box, results: list[Returned | Blocked]) -> None:
        for result in results:
            if isinstance(result, Blocked) and result.message is not None:
                data = failures.blocked_data(
                    result.message, box.names.node_id, box.class_type, self._executed
                )
                self._outbox.blocked(data)

    def _tell_error(self, error: Exception, box: Box, values: Mapping[str, Any] | None) -> None:
        real_id = box.names.real_id
        class_type = self._graph[real_id].class_type
        data = failures.error_data(error, real_id, class_type, values, self._executed, self._prompt.workflow)
        self._outbox.milestone("execution_error", **data)
