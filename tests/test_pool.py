"""
The pipeline threads: a bounded queue, one run for equal jobs, cancels that hit the right one, and an orderly end.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest
from support.control_plane import wait_until

from comfy_worker import log
from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobCancelled, JobTimedOut, NodeFailed, WorkerBusy
from comfy_worker.job import Event, Job, Observer, Result, ignore
from comfy_worker.pool import Pool, Ticket

PATIENCE_S = 10.0


class Work:
    """
    A pipeline that holds each job until it is let go, or its deadline ends it.
    """

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.began = threading.Semaphore(0)
        self.go = threading.Event()
        self.failure: BaseException | None = None

    def __call__(self, job: Job, deadline: Deadline, observe: Observer) -> Result:
        self.runs.append(job.id)
        observe(Event("running", 1.0))
        self.began.release()
        while not self.go.wait(0.01):
            deadline.check("running")
        deadline.check("running")
        observe(Event("running", 2.0))
        if self.failure is not None:
            raise self.failure
        return Result(f"{job.id} by {log.current_job.get()}", None)

    def wait_begun(self) -> None:
        """
        Return once one more run has begun.
        """
        assert self.began.acquire(timeout=PATIENCE_S)


@pytest.fixture
def work() -> Work:
    """
    What the pool runs.
    """
    return Work()


@pytest.fixture
def make_pool(work: Work) -> Iterator[Callable[..., Pool]]:
    """
    Make pools, and end them.
    """
    pools: list[Pool] = []
    before = set(threading.enumerate())

    def make(threads: int = 1, limit: int = 10) -> Pool:
        pools.append(Pool(work, threads=threads, limit=limit))
        return pools[-1]

    yield make
    work.go.set()
    for pool in pools:
        pool.close(PATIENCE_S)
    fresh = set(threading.enumerate()) - before
    assert not [thread for thread in fresh if thread.name.startswith("pipeline-")]


def result(ticket: Ticket) -> str:
    """
    Return the job id of a result.
    """
    return ticket.future.result(PATIENCE_S).job_id


def failure(ticket: Ticket) -> BaseException | None:
    """
    Return why a run failed.
    """
    return ticket.future.exception(PATIENCE_S)


def test_job_runs_with_its_id_in_the_log(make_pool: Callable[..., Pool], work: Work) -> None:
    """A job must be run once, and the lines of its thread must carry its id."""
    work.go.set()

    assert result(make_pool().submit(Job("a", {}), ignore)) == "a by a"
    assert work.runs == ["a"]


def test_threads_are_the_concurrency(make_pool: Callable[..., Pool], work: Work) -> None:
    """As many jobs as there are threads must run at once, and the rest wait in order."""
    pool = make_pool(threads=2)
    tickets = [pool.submit(Job(name, {}), ignore) for name in "abcd"]
    work.wait_begun()
    work.wait_begun()

    assert sorted(work.runs) == ["a", "b"]
    assert pool.busy == 4
    work.go.set()
    assert [result(ticket)[0] for ticket in tickets] == ["a", "b", "c", "d"]
    assert sorted(work.runs[2:]) == ["c", "d"]


def test_full_queue_refuses_the_next_job(make_pool: Callable[..., Pool], work: Work) -> None:
    """Beyond the limit a job must be refused at once, and the next one be taken when there is room again."""
    pool = make_pool(limit=2)
    first = pool.submit(Job("running", {}), ignore)
    work.wait_begun()
    waiting = [pool.submit(Job(name, {}), ignore) for name in "ab"]

    with pytest.raises(WorkerBusy, match="2 jobs wait already"):
        pool.submit(Job("c", {}), ignore)
    joined = pool.submit(Job("a", {}), ignore)

    work.go.set()
    wait([ticket.future for ticket in (first, joined, *waiting)], PATIENCE_S)
    assert result(pool.submit(Job("c", {}), ignore)) == "c by c"


def test_equal_job_joins_the_run_and_its_events(make_pool: Callable[..., Pool], work: Work) -> None:
    """A second delivery of a running job must get the same result, and the events from then on."""
    pool, first_events, second_events = make_pool(), [], []
    first = pool.submit(Job("a", {"1": {}}), first_events.append)
    work.wait_begun()
    second = pool.submit(Job("a", {"1": {}}), second_events.append)
    work.go.set()

    assert result(first) == result(second) == "a by a"
    assert work.runs == ["a"]
    assert [event.percent for event in first_events] == [1.0, 2.0]
    assert [event.percent for event in second_events] == [2.0]


def test_waiting_job_is_joined_too(make_pool: Callable[..., Pool], work: Work) -> None:
    """Two deliveries of a job that waits must be one run."""
    pool = make_pool()
    pool.submit(Job("running", {}), ignore)
    work.wait_begun()
    tickets = [pool.submit(Job("a", {}), ignore) for _ in range(3)]
    work.go.set()

    assert [result(ticket) for ticket in tickets] == ["a by a"] * 3
    assert work.runs == ["running", "a"]


def test_other_job_of_the_same_id_runs_after_it(make_pool: Callable[..., Pool], work: Work) -> None:
    """A job of the same id with another workflow must run by itself, and not at the same time."""
    pool = make_pool(threads=2)
    first = pool.submit(Job("a", {"1": {}}), ignore)
    work.wait_begun()
    second = pool.submit(Job("a", {"2": {}}), ignore)
    other = pool.submit(Job("b", {}), ignore)
    work.wait_begun()

    assert work.runs == ["a", "b"]
    work.go.set()
    assert [result(ticket)[0] for ticket in (first, second, other)] == ["a", "a", "b"]
    assert work.runs == ["a", "b", "a"]


def test_job_that_is_over_runs_again(make_pool: Callable[..., Pool], work: Work) -> None:
    """A job that ended must not be joined any more."""
    pool = make_pool()
    work.go.set()
    result(pool.submit(Job("a", {}), ignore))
    result(pool.submit(Job("a", {}), ignore))

    assert work.runs == ["a", "a"]
    assert pool.busy == 0


def test_cancel_of_the_only_caller_stops_the_run(make_pool: Callable[..., Pool], work: Work) -> None:
    """A run that nobody waits for must be told to stop, and the next job must get its thread."""
    pool = make_pool()
    ticket = pool.submit(Job("a", {}), ignore)
    work.wait_begun()

    ticket.cancel()

    assert isinstance(failure(ticket), JobCancelled)
    work.go.set()
    assert result(pool.submit(Job("b", {}), ignore)) == "b by b"


def test_cancel_of_one_of_two_leaves_the_run_to_the_other(make_pool: Callable[..., Pool], work: Work) -> None:
    """Of two callers of one run, the one that cancels must end at once and the other must get the result."""
    pool = make_pool()
    first = pool.submit(Job("a", {}), ignore)
    work.wait_begun()
    second = pool.submit(Job("a", {}), ignore)

    first.cancel()
    assert isinstance(failure(first), JobCancelled)
    first.cancel()
    work.go.set()

    assert result(second) == "a by a"


def test_cancel_of_both_stops_the_run(make_pool: Callable[..., Pool], work: Work) -> None:
    """When the last caller cancels too, the run must be stopped."""
    pool = make_pool()
    first = pool.submit(Job("a", {}), ignore)
    work.wait_begun()
    second = pool.submit(Job("a", {}), ignore)

    first.cancel()
    second.cancel()

    assert isinstance(failure(second), JobCancelled)


def test_cancelled_run_is_not_joined(make_pool: Callable[..., Pool], work: Work) -> None:
    """A job that comes again while its cancelled run ends must run anew."""
    pool = make_pool()
    first = pool.submit(Job("a", {}), ignore)
    work.wait_begun()
    first.cancel()
    second = pool.submit(Job("a", {}), ignore)
    work.go.set()

    assert isinstance(failure(first), JobCancelled)
    assert result(second) == "a by a"


def test_cancel_of_a_waiting_job_ends_it_at_once(make_pool: Callable[..., Pool], work: Work) -> None:
    """A job that waits must end when it is cancelled, not when a thread is free; it never runs."""
    pool = make_pool()
    running = pool.submit(Job("running", {}), ignore)
    work.wait_begun()
    waiting = pool.submit(Job("a", {}), ignore)

    waiting.cancel()

    assert isinstance(failure(waiting), JobCancelled)
    assert pool.busy == 1
    again = pool.submit(Job("a", {}), ignore)
    work.go.set()
    assert (result(running)[0], result(again)) == ("r", "a by a")
    assert work.runs == ["running", "a"]


def test_cancel_after_the_end_does_nothing(make_pool: Callable[..., Pool], work: Work) -> None:
    """A claim that is given back too late must change nothing, and harm no later run of the job."""
    pool = make_pool()
    work.go.set()
    ticket = pool.submit(Job("a", {}), ignore)
    result(ticket)
    work.go.clear()
    later = pool.submit(Job("a", {}), ignore)
    work.wait_begun()

    ticket.cancel()
    work.go.set()

    assert result(ticket) == result(later) == "a by a"


def test_time_limit_counts_from_the_submit(make_pool: Callable[..., Pool], work: Work) -> None:
    """The time a job waits must count, so that the caller knows by when it hears."""
    pool = make_pool()
    pool.submit(Job("running", {}), ignore)
    work.wait_begun()
    short = pool.submit(Job("a", {}, timeout_s=0.01), ignore)
    threading.Event().wait(0.05)
    work.go.set()

    assert isinstance(failure(short), JobTimedOut)


@pytest.mark.parametrize("error", [NodeFailed("a node raised"), ValueError("a fault of ours")])
def test_failure_reaches_every_caller(make_pool: Callable[..., Pool], work: Work, error: Exception) -> None:
    """Whatever a run raises must reach all who wait for it, and the thread must go on."""
    pool, work.failure = make_pool(), error
    tickets = [pool.submit(Job("a", {}), ignore) for _ in range(2)]
    work.go.set()

    assert [failure(ticket) for ticket in tickets] == [error, error]
    work.failure = None
    assert result(pool.submit(Job("b", {}), ignore)) == "b by b"


def test_what_would_end_the_process_ends_only_the_job(make_pool: Callable[..., Pool], work: Work) -> None:
    """A SystemExit of a run must become an ordinary error of the job."""
    pool, work.failure = make_pool(), SystemExit(3)
    ticket = pool.submit(Job("a", {}), ignore)
    work.go.set()

    assert isinstance(failure(ticket), RuntimeError)


def test_close_finishes_what_runs_and_cancels_what_waits(make_pool: Callable[..., Pool], work: Work) -> None:
    """At the end the running job must be finished, waiting ones taken back, and new ones refused."""
    pool = make_pool()
    running = pool.submit(Job("running", {}), ignore)
    work.wait_begun()
    waiting = pool.submit(Job("a", {}), ignore)
    closing = threading.Thread(target=pool.close, args=(PATIENCE_S,), name="closing")
    closing.start()
    while not pool._closing:
        closing.join(0.005)

    with pytest.raises(WorkerBusy, match="shutting down"):
        pool.submit(Job("b", {}), ignore)
    work.go.set()
    closing.join(PATIENCE_S)

    assert result(running) == "running by running"
    assert isinstance(failure(waiting), JobCancelled)
    assert not closing.is_alive()


def test_close_cancels_what_does_not_end(make_pool: Callable[..., Pool], work: Work) -> None:
    """A running job that is not over in time must be told to stop, so that the end is bounded."""
    pool = make_pool(threads=2)
    tickets = [pool.submit(Job(name, {}), ignore) for name in "abc"]
    work.wait_begun()
    work.wait_begun()

    pool.close(0.05)

    assert all(isinstance(failure(ticket), JobCancelled) for ticket in tickets)
    assert pool.busy == 0
    pool.close(0.05)


def test_idle_thread_holds_nothing_of_its_last_job(make_pool: Callable[..., Pool], work: Work) -> None:
    """What a caller gave along with a job may be large, and must be gone with the job."""

    class Watcher:
        def __call__(self, event: Event) -> None:
            pass

    watcher = Watcher()
    held = weakref.ref(watcher)
    work.go.set()
    result(make_pool().submit(Job("a", {}), watcher))
    del watcher

    wait_until(lambda: held() is None, PATIENCE_S)


def test_place_in_the_queue_is_known(make_pool: Callable[..., Pool], work: Work) -> None:
    """A waiting job must know how many are before it, a running one and an unknown one that they do not wait."""
    pool = make_pool()
    for name in "abc":
        pool.submit(Job(name, {}), ignore)
    work.wait_begun()

    assert [pool.position(name) for name in "abcd"] == [None, 0, 1, None]
    assert pool.waiting == 2
