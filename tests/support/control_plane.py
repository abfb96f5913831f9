"""
RunPod's serverless control plane on loopback, as the worker's SDK sees it: job-take, job-stop, job-done, ping.

`with ControlPlane() as plane: job = plane.submit(...); job.wait()`. It keeps every post in order, answers as it is told
to (faults), and cancels. Tests only. Wire format: the runpod SDK 1.12.0 as observed. Not simulated: time limits,
retries, webhooks, the client's side.
"""

import asyncio
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

ENDPOINT, KEY = "ep1", "the-key-of-the-worker"
START_S = 10.0
PATIENCE_S = 60.0
"""How long a test waits for what must happen: long, for the machine may be busy."""


@dataclass(frozen=True)
class Post:
    """
    One POST to job-done: `kind` is `progress` or `result`, `status` what it was answered, `at` in monotonic seconds.
    """

    kind: str
    at: float
    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    query: dict[str, str]
    size: int


@dataclass
class PlaneJob:
    """
    One job. `posts` are all posts for its id in order; `answers` are statuses for its first results, then `answer`.
    """

    id: str
    envelope: dict[str, Any]
    answers: deque[int] = field(default_factory=deque)
    answer: int = 200
    posts: list[Post] = field(default_factory=list)
    taken: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def results(self) -> list[Post]:
        """
        The results that were posted, refused ones too.
        """
        return [post for post in self.posts if post.kind == "result"]

    @property
    def progress(self) -> list[Post]:
        """
        The progress that was posted.
        """
        return [post for post in self.posts if post.kind == "progress"]

    @property
    def body(self) -> dict[str, Any]:
        """
        The body of the one result that was taken: `{"output"?, "error"?, "stopPod"?}`.
        """
        [post] = [post for post in self.results if post.status == 200]
        return post.body

    @property
    def output(self) -> dict[str, Any]:
        """
        What the client sees as `output`.
        """
        found: dict[str, Any] = self.body.get("output", {})
        return found

    def wait(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """
        Wait for the result and return its body.
        """
        if not self.done.wait(timeout_s):
            raise TimeoutError(f"{self.id} got no result; its posts: {[post.kind for post in self.posts]}")
        return self.body

    def wait_until(self, is_so: Callable[["PlaneJob"], object], timeout_s: float = PATIENCE_S) -> None:
        """
        Wait until something holds for the job, for example that a post came.
        """
        wait_until(lambda: is_so(self), timeout_s)


def wait_until(is_so: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """
    Wait until something holds.
    """
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.01)


class ControlPlane:
    """
    The plane, in a thread. `hold_s` is how long an empty poll is held; `take_status` answers every take with it;
    while `paused` it hands out no job.

    `pings` are the queries of the worker's pings and `takes` the addresses of its takes, both in order.
    """

    def __init__(self, hold_s: float = 0.5) -> None:
        self.hold_s = hold_s
        self.take_status: int | None = None
        self.paused = False
        self.jobs: list[PlaneJob] = []
        self.pings: list[dict[str, str]] = []
        self.takes: list[str] = []
        self.open_takes = 0
        self._by_id: dict[str, PlaneJob] = {}
        self._waiting: deque[PlaneJob] = deque()
        self._stops: deque[str] = deque()
        self._number = itertools.count(1)
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="control-plane", daemon=True
        )

    def __enter__(self) -> "ControlPlane":
        self._thread.start()
        if not self._ready.wait(START_S):
            raise TimeoutError("the control plane did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(START_S)

    def environ(self) -> dict[str, str]:
        """
        Return the variables that RunPod gives a worker of this endpoint.
        """
        base = f"http://127.0.0.1:{self._port}/v2/{ENDPOINT}"
        return {
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_POD_ID": "w1",
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=SIM",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=SIM",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=SIM",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=SIM",
        }

    def submit(
        self,
        input_: Any,
        job_id: str | None = None,
        *,
        answers: tuple[int, ...] = (),
        answer: int = 200,
        **envelope: Any,
    ) -> PlaneJob:
        """
        Queue one job. An id that was used before is a delivery of its own; posts go to the latest one of an id.
        """
        return self.submit_all([(job_id, {"input": input_, **envelope})], answers=answers, answer=answer)[0]

    def submit_all(
        self,
        raws: list[tuple[str | None, dict[str, Any]]],
        *,
        answers: tuple[int, ...] = (),
        answer: int = 200,
    ) -> list[PlaneJob]:
        """
        Queue jobs `(id, {"input": ..., ...})` at once.
        """
        jobs = []
        for given, envelope in raws:
            job_id = given or f"job-{next(self._number):06d}-e1"
            jobs.append(PlaneJob(job_id, {"id": job_id, **envelope}, deque(answers), answer))
        self._on_loop(lambda: self._add(jobs))
        return jobs

    def cancel(self, job: PlaneJob) -> None:
        """
        Cancel a job: it leaves the queue, or its worker is told to stop it.
        """
        self._on_loop(lambda: self._cancel(job))

    def stop(self, job: PlaneJob) -> None:
        """
        Tell the worker to stop a job that it may not have yet, and wait until it was told.
        """
        self._on_loop(lambda: self._stops.append(job.id))
        wait_until(lambda: not self._stops)

    def set(self, **fields: Any) -> None:
        """
        Change `hold_s`, `take_status` or `paused`; polls that are held notice it.
        """
        self._on_loop(lambda: [setattr(self, name, value) for name, value in fields.items()])

    def _on_loop(self, act: Callable[[], object]) -> None:
        async def run() -> None:
            act()
            self._bell.set()
            self._bell = asyncio.Event()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(START_S)

    def _add(self, jobs: list[PlaneJob]) -> None:
        self.jobs += jobs
        self._by_id.update({job.id: job for job in jobs})
        self._waiting.extend(jobs)

    def _cancel(self, job: PlaneJob) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        elif not job.done.is_set():
            self._stops.append(job.id)

    async def _serve(self) -> None:
        self._loop, self._end, self._bell = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=64 << 20, middlewares=[_only_with_key])
        app.add_routes(self._routes())
        runner = web.AppRunner(app, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    def _routes(self) -> Iterator[web.RouteDef]:
        base = f"/v2/{ENDPOINT}"
        yield web.get(f"{base}/job-take/{{worker}}", self._take)
        yield web.get(f"{base}/job-take-batch/{{worker}}", self._take)
        yield web.get(f"{base}/job-stop/{{worker}}", self._stop)
        yield web.post(f"{base}/job-done/{{worker}}/{{job}}", self._done)
        yield web.get(f"{base}/ping/{{worker}}", self._ping)

    async def _hold(self, until: Callable[[], object]) -> None:
        began = self._loop.time()
        while not until() and (left := began + self.hold_s - self._loop.time()) > 0:
            bell = self._bell
            try:
                await asyncio.wait_for(bell.wait(), left)
            except TimeoutError:
                return

    async def _take(self, request: web.Request) -> web.Response:
        self.takes.append(request.path_qs)
        self.open_takes += 1
        try:
            await self._hold(lambda: self.take_status or (self._waiting and not self.paused))
        finally:
            self.open_takes -= 1
        if self.take_status is not None:
            return web.Response(status=self.take_status)
        batch = request.query.get("batch_size")
        count = 0 if self.paused else min(int(batch or 1), len(self._waiting))
        # A client that went away while its poll was held must not swallow a job.
        if not count or request.transport is None or request.transport.is_closing():
            return web.Response(status=204)
        jobs = [self._waiting.popleft() for _ in range(count)]
        for job in jobs:
            job.taken.set()
        envelopes = [job.envelope for job in jobs]
        return web.json_response(envelopes if batch else envelopes[0])

    async def _stop(self, _request: web.Request) -> web.Response:
        await self._hold(lambda: self._stops)
        ids = list(self._stops)
        self._stops.clear()
        return web.json_response({"jobsToStop": ids}) if ids else web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        raw = await request.read()
        job = self._by_id[request.match_info["job"]]
        body = json.loads(raw, parse_constant=_refuse)
        kind = "progress" if body.get("status") == "IN_PROGRESS" else "result"
        status = 200 if kind == "progress" else job.answers.popleft() if job.answers else job.answer
        headers = dict(request.headers)
        job.posts.append(Post(kind, time.monotonic(), status, body, headers, dict(request.query), len(raw)))
        if kind == "result" and status == 200:
            job.done.set()
        return web.Response(status=status)

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings.append(dict(request.query))
        return web.json_response({})


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@web.middleware
async def _only_with_key(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.headers.get("Authorization") != KEY:
        return web.Response(status=401)
    answer: web.StreamResponse = await handler(request)
    return answer
