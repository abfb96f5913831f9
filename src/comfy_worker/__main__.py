"""
The command line: `comfy-worker run` tries a job through the very handler and shows what comes of it.
"""

import asyncio
import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from comfy_worker import __version__, entry, workflow_command
from comfy_worker import serve as serving
from comfy_worker.bench.cli import bench
from comfy_worker.dialects import DIALECTS, Face
from comfy_worker.errors import ComfyUnavailable, ConfigInvalid, ModelUnavailable
from comfy_worker.job import Event
from comfy_worker.models.cli import app as models_app

app = typer.Typer(help="Any ComfyUI workflow as an API call.", no_args_is_help=True, add_completion=False)
app.add_typer(models_app, name="models")
app.add_typer(workflow_command.app, name="workflow")
app.command()(bench)
console = Console(stderr=True)

FILE_GROUPS = ("images", "videos", "audio", "files")


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """
    Any ComfyUI workflow as an API call.
    """
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    job: Annotated[Path, typer.Argument(help="A job: {'input': {'workflow': ..., 'images': [...]}}.")] = Path(
        "test_input.json"
    ),
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the files go.")] = Path("output"),
) -> None:
    """
    Run one job and write what it made to a folder.

    Uses the ComfyUI at COMFYUI_URL if it answers, else one at COMFYUI_PATH or ~/comfy/ComfyUI, else the built-in engine.
    """
    raw = read_job(job)
    try:
        worker = entry.local_worker(os.environ)
    except (ConfigInvalid, ModelUnavailable) as exc:
        fail(str(exc), 2 if isinstance(exc, ConfigInvalid) else 1)
    try:
        with console.status(f"Waiting for {worker.engine.launch.title}"):
            worker.engine.wait_ready()
        bars = Bars()
        with bars.progress:
            reply = asyncio.run(worker.face.handle(raw, bars))
    except ComfyUnavailable as exc:
        fail(str(exc), 1)
    except KeyboardInterrupt:
        fail("Interrupted. The job was taken back.", 130)
    finally:
        worker.close()
    written = list(write(reply, output))
    for text in reply.get("errors", ()):
        console.print(f"[yellow]Warning:[/] {text}", highlight=False)
    for line in written:
        print(line)
    if "error" in reply:
        shown = {key: value for key, value in reply.items() if key not in FILE_GROUPS}
        fail(f"The job FAILED: {json.dumps(shown, indent=2, ensure_ascii=False)}", 1)
    if not written:
        console.print(f"The job made no files. Status: {reply.get('status', 'completed')}")


@app.command()
def serve(
    face: Annotated[Face, typer.Option(help="Whose API: runpod, salad or vast.")],
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; by default 127.0.0.1 (salad: HOST, or every one)."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port; 0 takes a free one; by default 8000 (salad: PORT, or 3000; vast: 18288).",
        ),
    ] = None,
) -> None:
    """
    Answer HTTP in the dialect of a platform, until told to stop.

    ComfyUI is started, watched and ended as under RunPod; COMFYUI_URL uses one that runs. Settings: environment variables.
    """
    raise typer.Exit(serving.serve(os.environ, face, host, port))


@app.command()
def vast(
    model_port: Annotated[
        int,
        typer.Option(
            min=1, max=65535, help="Port of the model server that is started with it, on 127.0.0.1."
        ),
    ] = 18288,
) -> None:
    """
    Be a serverless worker of Vast.ai: the PyWorker on Vast's SDK, and behind it `serve --face vast`.

    MODEL_SERVER_URL uses a model server that runs. Needs comfy-worker[vast], or a Python that has vastai in VAST_PYTHON.
    """
    from comfy_worker.pyworker import program  # only needed here

    command = [sys.executable, "-m", "comfy_worker", "serve", "--face", "vast", "--port", str(model_port)]
    defaults = DIALECTS[Face.vast].defaults
    raise typer.Exit(program.start(os.environ, command, f"http://127.0.0.1:{model_port}", defaults))


def read_job(path: Path) -> dict[str, Any]:
    """
    Read a job file; a bare workflow is wrapped, with a hint.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail(f"{path} does not exist. Give a job file: comfy-worker run job.json", 2)
    except (OSError, ValueError) as exc:
        fail(f"{path} cannot be read as JSON: {exc}", 2)
    if isinstance(raw, dict) and "input" not in raw:
        console.print(
            f'{path} is a bare workflow; as a job it is {{"input": {{"workflow": ...}}}}.', highlight=False
        )
        raw = {"input": {"workflow": raw}}
    if not isinstance(raw, dict):
        fail(f'{path} must hold an object: {{"input": {{"workflow": ...}}}}', 2)
    return {"id": "local", **raw}


def write(reply: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """
    Write every file of a reply below `folder`; yield a line for each, with where it is.
    """
    taken: set[Path] = set()
    for group in FILE_GROUPS:
        for item in reply.get(group, ()):
            if item["type"] != "base64":
                yield f"{item['filename']}: {item['data']}"
                continue
            path = folder / item["subfolder"] / item["filename"]
            if path in taken:
                path = path.with_name(f"{item['node_id']}_{path.name}")
            taken.add(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(item["data"]))
            yield f"{path} ({item['size_bytes']:,} bytes, {item['mime']})"
    for item in reply.get("text", ()):
        yield f"Text of node {item['node_id']}: {item['text']}"


class Bars:
    """
    A live bar per node, and one for the whole job.
    """

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:<40}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console)
        self._whole = self.progress.add_task("The job", total=100)
        self._nodes: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        """
        Show one event.
        """
        self.progress.update(self._whole, completed=event.percent, description=f"The job: {event.kind}")
        if event.node_id is None:
            if event.kind in {"delivering", "done"}:
                self._finish()
            return
        if event.node_id not in self._nodes:
            self._finish()
            title = event.title or event.class_type or ""
            self._nodes[event.node_id] = self.progress.add_task(
                f"  {event.node_id} {title}"[:40], total=event.max or 1
            )
        self.progress.update(self._nodes[event.node_id], completed=event.value or 0, total=event.max or 1)

    def _finish(self) -> None:
        for task in self._nodes.values():
            total = self.progress.tasks[task].total
            self.progress.update(task, completed=total)


def fail(message: str, code: int) -> NoReturn:
    """
    Say why, and end the program.
    """
    console.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(code)


def main() -> None:
    """
    Run the command line.
    """
    app()


if __name__ == "__main__":
    main()
