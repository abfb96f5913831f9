"""
Is a prompt over, and how: the rules, fed by messages or by an entry of `/history`. Pure; the waiting is in `watch.py`.

The theory of watching
----------------------
Two things tell us about a prompt. The websocket is quick and forgets: nothing is kept for a client that is away, a
second socket of our id silences the first, one stuck reader anywhere delays everybody, and what was lost is not sent
again. The history is slow and sure: one entry per prompt that ran, written once, when it is over.

So the history is the truth and the socket a hint. `verdict` reads an entry and is the only thing that says how a prompt
ended. `PromptState` reads messages and says no more than what to show the caller and when it is worth asking for the
entry. Losing any message, or all of them, costs time and never a job; hence a test that cuts every recorded stream at
every frame and gets the same verdict.

What must not be believed, each seen on a real server:

* `execution_success` comes before the entry exists (missed by half of the requests made at once): look soon, not now.
  Only `executing` with node null and our prompt id comes after the entry was written.
* `execution_error` need not be the end: an execution blocker sends one and the prompt goes on to succeed.
* `executing` without a prompt id is a reminder after a reconnect. It never ends anything.
* `status` belongs to nobody: that the queue is empty is a reason to look, and no proof.
* `status_str` in the entry says "success" for a cycle made while running. The messages in the entry tell the truth,
  so they are asked, in this order: success, interrupted, error.
* Messages of other prompts arrive here too: those of a client without an id are sent to everyone.

A picture of a SaveImageWebsocket node exists on the socket alone. That is the one thing a gap can lose, so they are
counted against what the node announced. Sources: ComfyUI 0.3.64 and 0.27.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from comfy_worker.comfy import messages
from comfy_worker.comfy.messages import Message
from comfy_worker.comfy.meter import Meter
from comfy_worker.job import Event, Workflow

Look = Literal["no", "soon", "now"]

SAVES_TO_SOCKET = "SaveImageWebsocket"


@dataclass(frozen=True, slots=True)
class NodeError:
    """
    What one node raised. `traceback` has paths of ComfyUI's machine: for logs only.
    """

    node_id: str
    class_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    How a prompt ended. `outputs` is `{node_id: {key: [items]}}` and is filled by a failed prompt as well.

    `error` is set when a node raised; `cached` are the nodes that did not run, so that their files may be old.
    """

    kind: Literal["succeeded", "failed", "interrupted"]
    error: NodeError | None = None
    outputs: Mapping[str, Any] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """
    What a message means for the one who waits.

    `look`: ask `/history` now, soon (it is about to be written, or somebody may have removed the prompt), or no.
    `ending`: nothing more is to be expected but the entry. `mine`: the message was about this prompt. `event` is None
    when there is nothing new to show.
    """

    event: Event | None = None
    look: Look = "no"
    ending: bool = False
    mine: bool = False


def verdict(entry: Mapping[str, Any]) -> Verdict:
    """
    Return how a prompt ended, from its entry in `/history` (or its job object, which holds the same messages).

    Entry: `{"outputs": {...}, "status": {"completed": bool, "messages": [[type, data], ...]}}`.
    """
    status = _mapping(entry.get("status")) or _mapping(entry.get("execution_status"))
    said = _said(status.get("messages"))
    outputs = _mapping(entry.get("outputs"))
    cached = frozenset(_strings(said.get("execution_cached", {}).get("nodes")))
    if "execution_success" in said:
        return Verdict("succeeded", None, outputs, cached)
    if "execution_interrupted" in said:
        return Verdict("interrupted", None, outputs, cached)
    if "execution_error" in said:
        return Verdict("failed", _node_error(said["execution_error"]), outputs, cached)
    # Never seen on a real server.
    unsure = "ComfyUI's history does not say how the prompt ended."
    return Verdict(
        "succeeded" if status.get("completed") is True else "failed", None, outputs, cached, (unsure,)
    )


class PromptState:
    """
    What the messages so far say about one prompt.

    `pictures` are those of SaveImageWebsocket nodes, `(node_id, mime, data)` in order, and `expected` is how many each
    such node announced. `texts` are `(node_id, text)`.
    """

    def __init__(self, prompt_id: str, workflow: Workflow) -> None:
        self.prompt_id = prompt_id
        self.state: Literal["queued", "running", "ending"] = "queued"
        self.pictures: list[tuple[str, str, bytes]] = []
        self.expected: dict[str, int] = {}
        self.texts: list[tuple[str, str]] = []
        self.cached: frozenset[str] = frozenset()
        self.started_at: float | None = None
        self._workflow = workflow
        self._meter = Meter(workflow)
        self._savers = frozenset(
            node_id for node_id in workflow if self._class_type(node_id) == SAVES_TO_SOCKET
        )
        self._errors: list[messages.Errored] = []
        self._remaining: int | None = None
        self._shown: Event | None = None

    @property
    def node_ms(self) -> Mapping[str, float]:
        """
        Return how long each node ran, in milliseconds, for the nodes that ran and are done.
        """
        return self._meter.node_ms

    @property
    def missing_pictures(self) -> int:
        """
        Return how many announced pictures of SaveImageWebsocket nodes did not arrive.
        """
        arrived = [node_id for node_id, _, _ in self.pictures]
        return sum(max(0, count - arrived.count(node_id)) for node_id, count in self.expected.items())

    def warnings(self) -> tuple[str, ...]:
        """
        Return what was reported as an error on the way; true problems only when the prompt succeeded nevertheless.
        """
        return tuple(
            f"Node {error.node_id} ({error.node_type}) did not run: {error.exception_message.strip()}"
            for error in self._errors
        )

    def feed(self, message: Message, at: float = 0.0) -> Step:
        """
        Take the next message, received `at` seconds of a steady clock, and return what to do about it.
        """
        if isinstance(message, messages.Status):
            return self._status(message)
        if isinstance(message, messages.Picture):
            results = len(self.pictures)
            mine = self._picture(message)
            is_preview = mine and len(self.pictures) == results
            return Step(self._preview(message) if is_preview else None, mine=mine)
        if isinstance(message, messages.Text):
            return Step(mine=self._text(message))
        if getattr(message, "prompt_id", None) != self.prompt_id:
            return Step()
        if self.state == "queued":
            self.state, self.started_at = "running", at
        look = self._digest(message, at)
        return Step(self._news(), look, self.state == "ending" or look != "no", mine=True)

    def _status(self, message: messages.Status) -> Step:
        before, self._remaining = self._remaining, message.queue_remaining
        if message.queue_remaining == 0:
            return Step(look="now")
        fell = before is not None and self._remaining is not None and self._remaining < before
        return Step(look="soon" if fell and self.state == "queued" else "no")

    def _picture(self, picture: messages.Picture) -> bool:
        names = [picture.metadata.get(key) for key in ("node_id", "real_node_id", "display_node_id")]
        if picture.prompt_id is None and picture.node_id is None:
            names = [self._meter.current]
        elif picture.prompt_id != self.prompt_id:
            return False
        owner = next((name for name in names if isinstance(name, str) and name in self._savers), None)
        if owner is not None:
            self.pictures.append((owner, picture.mime, bytes(picture.data)))
        return owner is not None or picture.prompt_id is not None

    def _preview(self, picture: messages.Picture) -> Event | None:
        return replace(self._shown, preview=(picture.mime, picture.data)) if self._shown else None

    def _text(self, message: messages.Text) -> bool:
        # It goes to every client and names no prompt, but only one prompt runs at a time.
        mine = self.state == "running" and message.node_id in self._workflow
        if mine:
            self.texts.append((message.node_id, message.text))
        return mine

    def _digest(self, message: Message, at: float) -> Look:
        match message:
            case messages.Cached(nodes=nodes):
                self.cached |= frozenset(nodes)
                self._meter.skip(nodes)
            case messages.Executing(node=None):
                return self._end(at, "now")
            case messages.Executing(node=str(node_id), display_node=display):
                self._meter.enter(node_id, display, at)
            case messages.Ticked(node=node_id, value=value, max=most):
                self._meter.tick(node_id, value, most)
                self._expect(node_id, most)
            case messages.ProgressState(nodes=states):
                self._update(states, at)
            case messages.Errored(timestamped=timestamped):
                self._errors.append(message)
                return "soon" if timestamped else "no"
            case messages.Succeeded():
                self._meter.skip(self._workflow)
                return self._end(at, "soon")
            case messages.Interrupted():
                return self._end(at, "soon")
        return "no"

    def _end(self, at: float, look: Look) -> Look:
        self.state = "ending"
        self._meter.stop(at)
        return look

    def _update(self, states: Mapping[str, messages.NodeState], at: float) -> None:
        self._meter.update(states, at)
        for node_id, node in states.items():
            # Every node begins as 0 of 1, whether it has pictures or is blocked and has none.
            if node.max > 1:
                self._expect(node_id, node.max)

    def _expect(self, node_id: str, count: float) -> None:
        if node_id in self._savers:
            self.expected[node_id] = max(self.expected.get(node_id, 0), int(count))

    def _news(self) -> Event | None:
        meter = self._meter
        node_id = None if meter.current is None else meter.display(meter.current)
        class_type, title = self._class_type(node_id), self._title(node_id)
        event = Event("running", meter.percent, node_id, class_type, title, meter.value, meter.max)
        if event == self._shown:
            return None
        self._shown = event
        return event

    def _class_type(self, node_id: str | None) -> str | None:
        found = _mapping(self._workflow.get(node_id or "")).get("class_type")
        return found if isinstance(found, str) else None

    def _title(self, node_id: str | None) -> str | None:
        found = _mapping(_mapping(self._workflow.get(node_id or "")).get("_meta")).get("title")
        return found if isinstance(found, str) else None


def _said(said: Any) -> Mapping[str, Mapping[str, Any]]:
    pairs = [pair for pair in said if isinstance(pair, list | tuple)] if isinstance(said, list) else []
    return {pair[0]: _mapping(pair[1]) for pair in pairs if len(pair) == 2 and isinstance(pair[0], str)}


def _node_error(data: Mapping[str, Any]) -> NodeError:
    keys = ("node_id", "node_type", "exception_type", "exception_message")
    node_id, class_type, kind, message = [str(data.get(key) or "") for key in keys]
    return NodeError(node_id, class_type, kind, message.strip(), tuple(_strings(data.get("traceback"))))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
