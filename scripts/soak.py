"""
A worker for days, in minutes: thousands of small jobs through one worker, while everything that could grow is sampled.

`python handler.py` runs under a control plane on loopback. Each job brings a picture of its own, inverts it and hands it
back, so that no cache answers twice. On a real ComfyUI where one is found (COMFYUI_PATH, else comfy-cli's default
workspace), on the built-in engine with `--builtin`. Ends with 1 when something grew after the first jobs. The samples go
to a CSV and the curves to a PNG in bench/results.
"""

import argparse
import base64
import csv
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.control_plane import ControlPlane, wait_until  # noqa: E402
from support.lanes import comfy_folder  # noqa: E402
from support.pictures import invert_workflow  # noqa: E402
from support.worker_process import WorkerProcess  # noqa: E402

from comfy_worker.comfy import launch  # noqa: E402
from comfy_worker.settings import Settings  # noqa: E402

RESULTS = ROOT / "bench" / "results"
MEASURES = (
    "ms per job", "worker MB", "worker files open", "worker threads", "ComfyUI MB", "ComfyUI files open", "ComfyUI threads",
    "input files", "output entries", "temp entries", "scratch entries", "history entries",
)  # fmt: skip
ALLOWED = {
    "ms per job": (1.25, 1.0),
    "worker MB": (1.05, 4.0),
    "ComfyUI MB": (1.05, 16.0),
    "input files": (1.3, 20.0),
}
"""Growth of the last fifth over the first one, as a factor and in units, that counts as flat; else 1.0 and 3."""
CONNECTED = "worker files open"
"""May grow by the jobs at once too: the SDK keeps as many connections as it ever posted results at the same time."""


class Sample(NamedTuple):
    """
    Everything that could grow, after `jobs` jobs.
    """

    jobs: int
    seconds: float
    values: tuple[float, ...]


class Places(NamedTuple):
    """
    Where to look: the ids of the processes, the folders, and ComfyUI's address.
    """

    worker: int
    comfy: int
    folders: tuple[Path, ...]
    url: str

    def values(self) -> tuple[float, ...]:
        """
        Look, in the order of `MEASURES` after the first.
        """
        found: list[float] = []
        for pid in (self.worker, self.comfy):
            status = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":" in line
            )
            found += [
                int(status["VmRSS"].split()[0]) * 1024 / 1e6,
                len(os.listdir(f"/proc/{pid}/fd")),
                int(status["Threads"]),
            ]
        found += [sum(1 for _ in folder.rglob("*")) if folder.is_dir() else 0 for folder in self.folders]
        found.append(len(requests.get(f"{self.url}/history", timeout=30).json()))
        return tuple(found)


def picture(number: int) -> str:
    """
    Return a small picture that no other number gives.
    """
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, number // 65536)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def job(number: int) -> dict[str, Any]:
    """
    Return the input of one job.
    """
    return {"workflow": invert_workflow("in.png"), "images": [{"name": "in.png", "image": picture(number)}]}


def run(plane: ControlPlane, jobs: int, minutes: float, every: int, places: Places) -> Iterator[Sample]:
    """
    Send the jobs, `every` at a time, and yield a sample after each lot; with `minutes` go on until they are over.
    """
    began = time.monotonic()
    for first in itertools.count(0, every):
        late = time.monotonic() - began >= minutes * 60
        if late if minutes else first >= jobs:
            return
        sent = time.monotonic()
        last = first + every if minutes else min(first + every, jobs)
        lot = plane.submit_all([(None, {"input": job(number)}) for number in range(first, last)])
        for item in lot:
            body = item.wait(120.0)
            if "images" not in body.get("output", {}):
                raise SystemExit(f"a job failed: {str(body)[:500]}")
        pace = (time.monotonic() - sent) * 1000 / len(lot)
        for item in lot:
            item.posts.clear()
            item.envelope.clear()
        yield Sample(first + len(lot), time.monotonic() - began, (pace, *places.values()))


def verdicts(
    samples: list[Sample], settled: int, concurrency: int
) -> Iterator[tuple[str, float, float, bool]]:
    """
    Yield for each measure its median in the first and the last fifth after `settled` jobs, and whether it is flat.
    """
    left = [sample for sample in samples if sample.jobs >= settled]
    part = max(1, len(left) // 5)
    for index, name in enumerate(MEASURES):
        early, late = (
            sorted(sample.values[index] for sample in some)[len(some) // 2]
            for some in (left[:part], left[-part:])
        )
        factor, units = ALLOWED.get(name, (1.0, 3.0 + concurrency * (name == CONNECTED)))
        yield name, early, late, late <= early * factor + units


def plot(samples: list[Sample], title: str, path: Path) -> None:
    """
    Draw one small curve per measure, from zero to its highest.
    """
    width, height, columns = 420, 170, 3
    rows = -(-len(MEASURES) // columns)
    image = Image.new("RGB", (width * columns, height * rows + 30), "white")
    draw = ImageDraw.Draw(image)
    draw.text((10, 8), title, fill="black")
    for index, name in enumerate(MEASURES):
        left, top = index % columns * width + 50, index // columns * height + 50
        right, bottom = left + width - 70, top + height - 50
        highest = max(sample.values[index] for sample in samples) or 1.0
        draw.rectangle((left, top, right, bottom), outline="gray")
        draw.text((left, top - 15), f"{name}: {samples[-1].values[index]:.0f} at the end", fill="black")
        draw.text((left - 45, top), f"{highest:.0f}", fill="black")
        draw.text((left - 45, bottom - 8), "0", fill="black")
        draw.text((right - 40, bottom + 2), f"{samples[-1].jobs}", fill="black")
        points = [
            (
                left + (right - left) * sample.jobs / samples[-1].jobs,
                bottom - (bottom - top) * sample.values[index] / highest,
            )
            for sample in samples
        ]
        draw.line(points, fill="blue", width=2)
    image.save(path)


def soak(asked: argparse.Namespace, base: Path) -> tuple[str, list[Sample]]:
    """
    Start everything, run the jobs, end everything; return what it ran on, and the samples.
    """
    found = None if asked.builtin else launch.installed(Settings(comfyui_path=asked.comfyui))
    folder = found or comfy_folder(base / "ComfyUI")
    port = launch.free_port()
    url = f"http://127.0.0.1:{port}"
    own = {"COMFYUI_PATH": str(folder), "COMFY_PORT": str(port), "WORKER_CONCURRENCY": str(asked.concurrency)}
    own["LOG_LEVEL"] = "WARNING"
    with ControlPlane(hold_s=1.0) as plane:
        worker = WorkerProcess(base, {**plane.environ(), **own})
        try:
            wait_until(lambda: plane.takes, 120.0)
            comfy = next(child.pid for child in worker.children() if _is_comfyui(child.pid))
            scratch = next(worker.temp.glob("comfy-worker-engine-*"))
            # The built-in engine keeps its own folders beside its `main.py`, as ComfyUI does.
            folders = (folder / "input", folder / "output", scratch, worker.temp)
            version = requests.get(f"{url}/system_stats", timeout=30).json()["system"]["comfyui_version"]
            title = f"ComfyUI {version}" if found else "the built-in engine"
            places = Places(worker.pid, comfy, folders, url)
            samples = []
            for sample in run(plane, asked.jobs, asked.minutes, asked.every, places):
                samples.append(sample)
                shown = ", ".join(
                    f"{name} {value:.0f}" for name, value in zip(MEASURES, sample.values, strict=True)
                )
                print(f"{sample.jobs:6} jobs, {sample.seconds:6.0f} s: {shown}", flush=True)
            return title, samples
        finally:
            worker.close()


def _is_comfyui(pid: int) -> bool:
    return b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def main() -> int:
    """
    Run the soak and print its verdict.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=0.0, help="run for so long, instead of so many jobs")
    parser.add_argument(
        "--settled", type=int, default=1000, help="jobs after which nothing may grow any more"
    )
    parser.add_argument("--every", type=int, default=100, help="jobs between two samples")
    parser.add_argument("--concurrency", type=int, default=16, help="the SDK takes a lot of so many a second")
    parser.add_argument("--builtin", action="store_true", help="use the built-in engine")
    asked = parser.parse_args()
    asked.comfyui = Path(os.environ["COMFYUI_PATH"]) if os.environ.get("COMFYUI_PATH") else None
    with tempfile.TemporaryDirectory(prefix="comfy-soak-") as folder:
        title, samples = soak(asked, Path(folder))
    rows = list(verdicts(samples, asked.settled, asked.concurrency))
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = f"soak-{title.split()[-1]}-{samples[-1].jobs}"
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("jobs", "seconds", *MEASURES))
        writer.writerows((sample.jobs, round(sample.seconds, 1), *sample.values) for sample in samples)
    rate = samples[-1].jobs / samples[-1].seconds
    heading = f"{samples[-1].jobs} jobs on {title}, {rate:.0f} a second, {asked.concurrency} at once"
    plot(samples, heading, RESULTS / f"{name}.png")
    print(f"\n{heading}\n")
    for measure, early, late, flat in rows:
        print(f"{measure:20} {early:8.1f} -> {late:8.1f}  {'flat' if flat else 'NOT FLAT'}")
    print(f"\n{RESULTS.relative_to(ROOT) / name}.png, .csv")
    return 0 if all(flat for *_, flat in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
