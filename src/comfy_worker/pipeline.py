"""
One job from its inputs to its outputs: the order of the stages, the deadline, the clean-up. `run` reads aloud.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from comfy_worker import graph, outcome
from comfy_worker.collect import Collected, collect
from comfy_worker.comfy import refusals
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.comfy.forgetter import Forgetter
from comfy_worker.comfy.http_errors import NotListening
from comfy_worker.comfy.prompts import Finished, Order, Prompts
from comfy_worker.comfy.validate import validate
from comfy_worker.deadline import Deadline
from comfy_worker.deliver import Delivered
from comfy_worker.errors import ComfyUnavailable, NodeFailed, OutOfMemory, WorkerError
from comfy_worker.job import Artifact, Bucket, Delivery, Event, Job, Observer, Output, Result, ignore
from comfy_worker.stage import Staged, Stager
from comfy_worker.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

RERUNS = 1
"""How often a job runs again because a file of it is gone, or pictures were lost with the websocket."""


class Deliver(Protocol):
    """
    Hands artifacts over: `deliver.deliver` with its stores bound.
    """

    def __call__(
        self, job_id: str, artifacts: Sequence[Artifact], delivery: Delivery, deadline: Deadline, /
    ) -> Delivered:
        """
        Return the outputs, in the order of the artifacts.
        """


@dataclass(frozen=True, slots=True)
class Ran:
    """
    A prompt that is over, and what it left.
    """

    prompt_id: str
    finished: Finished
    collected: Collected

    @property
    def succeeded(self) -> bool:
        """
        Whether ComfyUI ran the prompt to its end.
        """
        return self.finished.verdict.kind == "succeeded"

    @property
    def complete(self) -> bool:
        """
        Whether everything that the prompt made is at hand.
        """
        return not self.collected.missing and not self.finished.pictures_missing


@dataclass(slots=True)
class Trip:
    """
    What every stage of one job needs.
    """

    job: Job
    deadline: Deadline
    observe: Observer
    scratch: Path
    watch: Stopwatch


@dataclass(frozen=True, slots=True)
class Pipeline:
    """
    Runs jobs on one ComfyUI. `ready(deadline, sure)` waits until it answers (`sure`: ask, however it looks), `admit` judges a
    job's bucket; `may_be_known` says that ComfyUI may know prompts that this process did not post; `oom_retry` runs a job
    once more that ran out of memory.
    """

    stager: Stager
    prompts: Prompts
    files: ComfyFiles
    client: Client
    forgetter: Forgetter
    deliver: Deliver
    ready: Callable[[Deadline, bool], None] = lambda deadline, _: deadline.check("starting")
    admit: Callable[[Bucket | None], None] = lambda _: None
    keep_outputs: bool = False
    fail_on_node_error: bool = True
    may_be_known: bool = True
    oom_retry: bool = False

    def run(self, job: Job, deadline: Deadline, observe: Observer = ignore) -> Result:
        """
        Run one job and return what it made.

        Raises:
            WorkerError: one of the tree; `partial` holds a `Result` when files were finished before the failure.
        """
        for bucket in {
            job.delivery.bucket,
            job.reads,
            *(file.auth.bucket for file in job.inputs if file.auth),
        }:
            self.admit(bucket)
        self.ready(deadline, False)
        try:
            return self._run(job, deadline, observe)
        except NotListening:
            # Nothing was queued: ComfyUI ended since, and may be on its way up again.
            self.ready(deadline, True)
            return self._run(job, deadline, observe)

    def _run(self, job: Job, deadline: Deadline, observe: Observer) -> Result:
        observe(Event("staging", 0.0))
        with tempfile.TemporaryDirectory(prefix="comfy-worker-", ignore_cleanup_errors=True) as scratch:
            trip = Trip(job, deadline, observe, Path(scratch), Stopwatch())
            with self.stager.staged(job, deadline, trip.scratch) as staged:
                trip.watch.add("staged", trip.watch.began)
                if job.dry_run:
                    return self._checked(trip, staged)
                with self._ran(trip, staged) as ran:
                    return self._delivered(trip, ran)

    @contextmanager
    def _ran(self, trip: Trip, staged: Staged) -> Iterator[Ran]:
        """
        Run the workflow, once more where something of it is gone; its files are there while the block runs.
        """
        reruns = 0
        for attempt in count(1):
            prompt_id = graph.prompt_id_of(trip.job.id, staged.workflow, attempt)
            try:
                ran = self._execute(trip, staged, prompt_id)
                if ran.finished.reused and not (ran.succeeded and ran.complete):
                    continue  # over before, and of no use: a failed job that is sent again runs again
                reason = self._why_again(ran)
                if reason is None or reruns == RERUNS:
                    yield ran
                    return
                reruns += 1
                logger.warning("%s (prompt %s); the workflow runs once more.", reason, prompt_id)
            finally:
                self._tidy(prompt_id, trip.job.delivery)

    def _why_again(self, ran: Ran) -> str | None:
        """
        Return why a run does not count, None when it does. After a lack of memory ComfyUI is told to free what it holds.
        """
        if ran.succeeded:
            return None if ran.complete else "Some outputs are gone"
        if not outcome.ran_out_of_memory(ran.finished):
            return None
        with suppress(ComfyUnavailable):
            self.client.free()  # unloads the models, so that at least the next job has memory
        return "The memory was too small for a node" if self.oom_retry else None

    def _execute(self, trip: Trip, staged: Staged, prompt_id: str) -> Ran:
        job, folder = trip.job, graph.folder_of(prompt_id)
        workflow = graph.prefixed(staged.workflow, folder)
        order = Order(
            prompt_id,
            workflow,
            job.strict,
            job.comfy_org_api_key,
            job.extra_pnginfo,
            may_be_known=self.may_be_known,
        )
        self.forgetter.settle(prompt_id)
        if job.queueing is not None:
            job.queueing(prompt_id, staged.workflow)
        began = time.monotonic()
        finished = self.prompts.run(
            order, trip.deadline, trip.observe, lambda: trip.watch.add("queued", began)
        )
        trip.watch.add("executed", began)
        found = partial(
            collect,
            finished.verdict.outputs,
            workflow,
            finished.pictures,
            locate=partial(self.files.locate, scratch=trip.scratch),
            job_folder=folder,
        )
        collected = found(include_temp=job.include_temp)
        if collected.only_temp and job.temp_if_alone:
            collected = found(include_temp=True)
        return Ran(prompt_id, finished, collected)

    def _delivered(self, trip: Trip, ran: Ran) -> Result:
        """
        Hand over what a run left, then return it, or raise what went wrong with it attached.
        """
        trip.observe(Event("delivering", 99.0))
        failure: WorkerError | None = outcome.failure_of(ran.prompt_id, ran.finished, ran.collected)
        delivered, problem = self._hand_over(trip, ran)
        result = self._result(trip, ran, delivered)
        if failure is None:
            failure = problem
        elif problem is not None:
            result = replace(result, warnings=(*result.warnings, str(problem)))
        if failure is None:
            trip.observe(Event("done", 100.0))
            return result
        if isinstance(failure, (NodeFailed, OutOfMemory)) and not self.fail_on_node_error and result.outputs:
            return replace(result, warnings=(*result.warnings, str(failure)))
        failure.partial = result
        raise failure

    def _hand_over(self, trip: Trip, ran: Ran) -> tuple[Delivered, WorkerError | None]:
        with trip.watch.measure("delivered"):
            try:
                delivered = self.deliver(
                    trip.job.id, ran.collected.artifacts, trip.job.delivery, trip.deadline
                )
                trip.watch.spent["converted"] = delivered.converted_ms
                return delivered, None
            except WorkerError as exc:
                outputs = exc.partial if isinstance(exc.partial, tuple) else ()
                return Delivered(tuple(item for item in outputs if isinstance(item, Output))), exc

    def _result(self, trip: Trip, ran: Ran, delivered: Delivered) -> Result:
        finished = ran.finished
        warnings = (
            *trip.job.warnings,
            *refusals.describe(finished.node_errors, trip.job.workflow),
            *finished.verdict.warnings,
            *(finished.warnings if ran.succeeded else ()),
            *ran.collected.warnings,
            *delivered.warnings,
        )
        return Result(
            trip.job.id,
            ran.prompt_id,
            delivered.outputs,
            warnings,
            refusals.shareable(finished.node_errors, trip.job.workflow),
            trip.watch.timings(finished.node_ms or {}),
            cached_nodes=len(finished.verdict.cached),
            history=finished.entry,
        )

    def _checked(self, trip: Trip, staged: Staged) -> Result:
        """
        Validate without running: classes, links, values, models, and the inputs, which are staged already.

        Raises:
            WorkflowInvalid: ComfyUI would refuse the workflow, or drop outputs while the job is strict.
        """
        classes = self.client.object_info()

        def choices(class_type: str) -> Mapping[str, Any]:
            found: Mapping[str, Any] = classes.get(class_type, {})
            return found

        verdict = validate(staged.workflow, classes)
        if verdict.error is not None:
            raise refusals.refusal(
                400,
                {"error": verdict.error, "node_errors": verdict.node_errors},
                staged.workflow,
                choices,
            )
        if verdict.node_errors and trip.job.strict:
            raise refusals.partly_refused(verdict.node_errors, staged.workflow, choices)
        warnings = (*trip.job.warnings, *refusals.describe(verdict.node_errors, staged.workflow))
        return Result(trip.job.id, None, warnings=warnings, timings=trip.watch.timings({}), dry_run=True)

    def _tidy(self, prompt_id: str, delivery: Delivery) -> None:
        """
        Remove the files of a run, and soon its entry in ComfyUI's history, which names them.
        """
        if self.keep_outputs:
            return
        if delivery.apart is None or not delivery.apart.leave:
            self.files.clear(graph.folder_of(prompt_id))
        self.forgetter.forget(prompt_id)
