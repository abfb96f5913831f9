"""
Run one prompt on one ComfyUI, from the queue to its verdict; whatever goes wrong, the prompt is taken back.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import SecretStr

from comfy_worker import graph
from comfy_worker.comfy import refusals
from comfy_worker.comfy.cancel import cancel
from comfy_worker.comfy.catalog import Catalog
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.mailbox import Mailbox
from comfy_worker.comfy.progress import PromptState, Verdict, verdict
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.comfy.submit import submit
from comfy_worker.comfy.watch import Watch
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, PromptLost, WorkflowInvalid
from comfy_worker.job import Event, Observer

logger = logging.getLogger(__name__)

SOCKET_WAIT_S = 2.0
NO_SUCH_CLASS = re.compile(r"missing_node_type|Cannot execute because node .+ does not exist")
"""How ComfyUI refuses a class that it does not have: 0.27.0, 0.3.64."""


class Engine(Protocol):
    """
    The ComfyUI behind the client, as far as its life is concerned.
    """

    def guard(self) -> Callable[[], None]:
        """
        Return a check that raises `ComfyUnavailable` once the present ComfyUI is dead.
        """

    def stuck(self) -> None:
        """
        Take note that ComfyUI did not let go of a cancelled prompt.
        """

    @property
    def failed_packs(self) -> Sequence[str]:
        """
        The custom node packs that ComfyUI could not import, as far as is known.
        """


@dataclass(frozen=True, slots=True)
class Order:
    """
    What to run: a workflow with its prompt id, and what goes beside it. `strict` refuses a partly valid workflow.

    `may_be_known` says that ComfyUI may have got this prompt before; then it is looked up first.
    """

    prompt_id: str
    workflow: Mapping[str, Any]
    strict: bool = False
    api_key: SecretStr | None = None
    extra_pnginfo: Mapping[str, Any] | None = None
    may_be_known: bool = True


@dataclass(frozen=True, slots=True)
class Finished:
    """
    A prompt that is over. `node_errors` names outputs that ComfyUI dropped as invalid.

    `pictures` came over the websocket only; `pictures_missing` says that some may have been lost.
    `warnings` tell of nodes that did not run although the prompt succeeded. `reused`: it had been over before.
    `entry` is what the history says, as it came.
    """

    verdict: Verdict
    node_errors: Mapping[str, Any]
    pictures: tuple[tuple[str, str, bytes], ...] = ()
    pictures_missing: bool = False
    node_ms: Mapping[str, float] | None = None
    warnings: tuple[str, ...] = ()
    reused: bool = False
    entry: Mapping[str, Any] | None = None


class Prompts:
    """
    Runs prompts on one ComfyUI. Thread-safe: each call waits for its own prompt only.
    """

    def __init__(
        self,
        client: Client,
        socket: EventSocket,
        engine: Engine,
        catalog: Catalog,
        *,
        cancel_grace_s: float = 30.0,
    ) -> None:
        self._client = client
        self._socket = socket
        self._engine = engine
        self._catalog = catalog
        self._cancel_grace_s = cancel_grace_s

    def run(
        self, order: Order, deadline: Deadline, observe: Observer, queued: Callable[[], None]
    ) -> Finished:
        """
        Queue, watch and judge one prompt; `queued` is called once ComfyUI has it.

        Raises:
            WorkflowInvalid: ComfyUI refused it, or a part of it while `strict`.
            PromptLost, ComfyUnavailable: see `watch`.
            JobTimedOut, JobCancelled: by the deadline; the prompt is gone from ComfyUI then, or `stuck` was called.
        """
        state = PromptState(order.prompt_id, order.workflow)
        savers = graph.saves_over_socket(order.workflow)
        box = Mailbox(savers)
        deadline.on_cancel(box.wake)
        alive = self._engine.guard()
        client_id = self._socket.ensure(min(SOCKET_WAIT_S, deadline.left_s))
        watch = Watch(
            self._client, self._socket, box, order.prompt_id, state, alive, gap=not self._socket.connected
        )
        self._socket.subscribe(order.prompt_id, box)
        try:
            where = self._client.whereabouts(order.prompt_id) if order.may_be_known else "unknown"
            entry = self._client.history(order.prompt_id) if where == "ended" else None
            reused = entry is not None
            node_errors = (
                self._queue(order, client_id, deadline)
                if where in {"unknown", "ended"} and not reused
                else {}
            )
            queued()
            observe(Event("queued", 0.0))
            watch.gap |= where in {"queued", "running"}
            entry = entry or watch.run(deadline, observe)
        except (WorkflowInvalid, PromptLost):
            raise
        except ComfyUnavailable:
            self._take_back(order.prompt_id, 0.0)
            raise
        except BaseException:
            self._take_back(order.prompt_id, self._cancel_grace_s)
            raise
        finally:
            self._socket.unsubscribe(order.prompt_id)
        return Finished(
            verdict(entry),
            node_errors,
            tuple(state.pictures),
            bool(savers)
            and (state.missing_pictures > 0 or (watch.gap and not savers <= set(state.expected))),
            dict(state.node_ms),
            state.warnings(),
            reused,
            entry,
        )

    def _queue(self, order: Order, client_id: str, deadline: Deadline) -> Mapping[str, Any]:
        deadline.check("queueing")
        extra: dict[str, Any] = {"extra_pnginfo": dict(order.extra_pnginfo or {})}
        if order.api_key is not None:
            extra["api_key_comfy_org"] = order.api_key.get_secret_value()
        body = {
            "prompt": order.workflow,
            "prompt_id": order.prompt_id,
            "client_id": client_id,
            "extra_data": extra,
        }
        try:
            node_errors = submit(self._client, body, deadline, self._catalog.fresh).node_errors
        except WorkflowInvalid as exc:
            packs = self._engine.failed_packs if NO_SUCH_CLASS.search(str(exc)) else ()
            if not packs:
                raise
            raise WorkflowInvalid(
                f"{exc}\n\nComfyUI could not import these custom node packs, and its log says why: {', '.join(packs)}",
                **exc.details,
            ) from exc
        if node_errors and order.strict:
            self._take_back(order.prompt_id, self._cancel_grace_s)
            raise refusals.partly_refused(node_errors, order.workflow, self._catalog.fresh)
        return node_errors

    def _take_back(self, prompt_id: str, grace_s: float) -> None:
        if not cancel(self._client, prompt_id, grace_s) and grace_s > 0:
            logger.error("ComfyUI still runs a cancelled prompt after %g s.", grace_s)
            self._engine.stuck()
