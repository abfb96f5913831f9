"""
What is run: each case with the ways it makes sense for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from comfy_worker.bench import graphs
from comfy_worker.bench.bare import Bare, EachOwn
from comfy_worker.bench.desk import Desk, Plane, desk, plane
from comfy_worker.bench.graphs import BenchJob
from comfy_worker.bench.measure import Case, Figures, at_once, fresh, in_turns
from comfy_worker.bench.ways import Face, Pipeline, SdkLoop, Way, as_runpod
from comfy_worker.comfy.launch import Launch
from comfy_worker.graph import folder_of
from comfy_worker.job import ignore
from comfy_worker.parse import parse

FACES = ("runpod", "salad", "vast")
VIDEO_MB = 100.0
LATE_S = 0.2
CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Scene:
    """
    Where the bench runs: ComfyUI, what the workers find in their environment, the desk, RunPod's queue, and how much is run.

    `share` scales the rounds of every case.
    """

    launch: Launch
    environ: Mapping[str, str]
    desk: Desk
    plane: Plane
    stack: ExitStack
    share: float = 1.0
    faces: Sequence[str] = FACES

    def rounds(self, usual: int) -> int:
        """
        Return how many rounds a case gets that usually has so many.
        """
        return max(3, round(usual * self.share))

    def ways(self, *, store: bool = False, threads: int = 1) -> list[Way]:
        """
        Start a worker for each way; they end with the scene. With `store` the outputs go to the desk.
        """
        environ = {**self.environ, "WORKER_CONCURRENCY": str(threads), **(self._store() if store else {})}
        put = f"{self.desk.url}/store" if store else None
        made: list[Way] = []
        for kind, arguments in (
            (Bare, (self.launch.url, put)),
            (Pipeline, (self.launch, environ)),
            (SdkLoop, (self.plane, environ)),
            *((Face, (face, environ)) for face in self.faces),
        ):
            made.append(kind(*arguments))
            self.stack.callback(made[-1].close)
        return made

    def _store(self) -> dict[str, str]:
        return {
            "BUCKET_ENDPOINT_URL": self.desk.url,
            "BUCKET_NAME": "bench",
            "BUCKET_ACCESS_KEY_ID": "bench-key",
            "BUCKET_SECRET_ACCESS_KEY": "bench-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.desk.url,
            "AWS_ACCESS_KEY_ID": "bench-key",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
            "HTTP_TRUSTED_ORIGINS": self.desk.url,
        }


Run = Callable[[Scene, Sequence[Way]], Iterator[Case]]


def small(scene: Scene, ways: Sequence[Way]) -> Iterator[Case]:
    """
    A trivial job, and the same one again and again.
    """
    persistent = Bare(scene.launch.url, None, persistent=True)
    scene.stack.callback(persistent.close)
    yield in_turns("trivial job", [*ways, persistent], graphs.saving, scene.rounds(200), warm=3)
    # Nothing to render: ComfyUI answers from its cache, but for the saving.
    same = graphs.saving(fresh(), 512)
    yield in_turns("fully cached job", ways, lambda _: same, scene.rounds(50))


def pictures(scene: Scene, ways: Sequence[Way]) -> Iterator[Case]:
    """
    Larger pictures, as base64.
    """
    for title, size, batch, rounds in (
        ("1 x 1024^2 PNG", 1024, 1, 30),
        ("4 x 1024^2 PNG", 1024, 4, 20),
        ("4 x 4096^2 PNG", 4096, 4, 3),
    ):
        yield in_turns(
            title, ways, partial(graphs.saving, size=size, batch=batch), scene.rounds(rounds), warm=1
        )


def inputs(scene: Scene, ways: Sequence[Way]) -> Iterator[Case]:
    """
    Inputs by URL from a slow host, and large ones in the request.
    """

    def by_url(number: int) -> BenchJob:
        urls = {f"u{index}.png": f"{scene.desk.url}/small/{number}/{index}.png" for index in range(8)}
        return graphs.loading(number, urls)

    scene.desk.delay_s = LATE_S
    try:
        yield in_turns("8 inputs by URL, 200 ms each", ways, by_url, scene.rounds(10), warm=1)
    finally:
        scene.desk.delay_s = 0.0

    def large(number: int) -> BenchJob:
        return graphs.loading(
            number, {f"p{index}.png": graphs.picture(number * 4 + index, 10.0) for index in range(4)}
        )

    yield in_turns("4 inputs of 10 MB", ways, large, scene.rounds(5), warm=1)


def storage(scene: Scene, ways: Sequence[Way]) -> Iterator[Case]:
    """
    Four pictures to a store that takes its time.
    """
    for late in (0.0, 0.05, LATE_S):
        scene.desk.delay_s = late
        title = f"4 x 512^2 PNG to storage, {late * 1000:.0f} ms each"
        yield in_turns(title, ways, partial(graphs.saving, size=512, batch=4), scene.rounds(15), warm=1)
    scene.desk.delay_s = 0.0


def large_video(scene: Scene, ways: Sequence[Way]) -> Iterator[Case]:
    """
    A video of 100 MB that comes by URL and goes to storage, where one is configured.
    """

    def passed(number: int) -> BenchJob:
        return graphs.passing_video(f"{scene.desk.url}/video/{number}.mp4")

    yield in_turns(f"{VIDEO_MB:.0f} MB video, URL to storage", ways, passed, scene.rounds(3), warm=1)


def gaps(scene: Scene) -> Iterator[Case]:
    """
    How long ComfyUI idles between back-to-back jobs of about a second, with storage at 200 ms, by its own clock.
    """
    blurs = _blurs_of_a_second(scene)
    scene.desk.delay_s = LATE_S
    try:
        for threads in (1, 2, 3):
            environ = {
                **scene.environ, **scene._store(), "WORKER_CONCURRENCY": str(threads), "KEEP_OUTPUTS": "true",
            }  # fmt: skip
            way = Pipeline(scene.launch, environ)
            try:
                found = Figures(
                    f"pipeline, {threads} thread{'s' * (threads > 1)}", _gaps(way, scene.rounds(15), blurs)
                )
            finally:
                way.close()
            yield Case(
                f"idle gap of ComfyUI, jobs of about 1 s, {threads} thread{'s' * (threads > 1)}", [found]
            )
    finally:
        scene.desk.delay_s = 0.0


def _blurs_of_a_second(scene: Scene) -> int:
    bare = Bare(scene.launch.url)
    try:
        case = in_turns("", [bare], lambda n: graphs.rendering(n, 3), 3, warm=1)
    finally:
        bare.close()
    return max(1, round(3 * 1000 / case.figures[0].median))


def _gaps(way: Pipeline, jobs: int, blurs: int) -> list[float]:
    tickets = [
        way.worker.pool.submit(
            parse(f"gap-{number}", as_runpod(graphs.rendering(number, blurs)), way.rules), ignore
        )
        for number in (fresh() for _ in range(jobs))
    ]
    prompts = [str(ticket.future.result(600).prompt_id) for ticket in tickets]
    spans = sorted(_span(way.worker.engine.client.history(prompt_id) or {}) for prompt_id in prompts)
    for prompt_id in prompts:
        way.worker.files.clear(folder_of(prompt_id))
    way.worker.engine.client.forget(prompts)
    return [float(after[0] - before[1]) for before, after in pairwise(spans)]


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    said = dict(entry["status"]["messages"])
    return said["execution_start"]["timestamp"], said["execution_success"]["timestamp"]


def queued(scene: Scene, ways: Sequence[Way]) -> Iterator[Case]:
    """
    A thousand jobs from 16 clients at once.
    """
    shared: list[Way] = [EachOwn(scene.launch.url), *ways[1:]]
    jobs = max(50, round(1000 * scene.share))
    yield at_once(f"{jobs} jobs, {CLIENTS} clients", shared, graphs.saving, jobs, CLIENTS)


PLAIN: Mapping[str, Run] = {"small": small, "pictures": pictures, "inputs": inputs, "queued": queued}
STORED: Mapping[str, Run] = {"storage": storage, "video": large_video}
NAMES = (*PLAIN, *STORED, "gaps")


def content(path: str) -> bytes:
    """
    Return what the desk serves: `/small/<number>/<index>.png` or `/video/<number>.mp4`.
    """
    kind, number, *rest = path.strip("/").split("/")
    if kind == "video":
        return graphs.video(int(number.partition(".")[0]), VIDEO_MB)
    return graphs.picture(int(number) * 16 + int(rest[0].partition(".")[0]), 0.01)


def run(
    launch: Launch, environ: Mapping[str, str], names: Sequence[str], share: float, faces: Sequence[str]
) -> Iterator[Case]:
    """
    Yield the cases of these names, each when it is measured.
    """
    with desk(content) as files, plane() as jobs:
        for group, store in ((PLAIN, False), (STORED, True)):
            asked = [group[name] for name in names if name in group]
            if not asked:
                continue
            with ExitStack() as stack:
                scene = Scene(launch, environ, files, jobs, stack, share, faces)
                ways = scene.ways(store=store)
                for case in asked:
                    yield from case(scene, ways)
        if "gaps" in names:
            with ExitStack() as stack:
                yield from gaps(Scene(launch, environ, files, jobs, stack, share, faces))
