"""
What every test stands on: a clean environment, the built-in engine, and workers wired to it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import pictures

from comfy_worker import entry, settings, wiring
from comfy_worker.comfy.launch import Launch
from comfy_worker.settings import Settings
from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker

OURS = {name for entry in settings.fields(Settings) for name in settings.names_of(entry)}


NO_COMFYUI = "no ComfyUI at COMFYUI_PATH or ~/comfy/ComfyUI"
NO_VAST_SDK = "no Python with the vastai SDK at VAST_PYTHON or .venv-vast (scripts/setup-vast)"
LOUD = {
    NO_COMFYUI: "NO REAL COMFYUI WAS FOUND: {} tests on it were skipped",
    NO_VAST_SDK: "NO VASTAI SDK WAS FOUND: {} tests on it were skipped",
}


LEFT_OUT = "Slow tests were left out: `scripts/test --all` runs them too, as CI does."


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Add `--all`.
    """
    parser.addoption("--all", action="store_true", help="run the slow tests too, as CI does")


def leaves_out(config: pytest.Config) -> bool:
    """
    Return whether the slow tests are left out: neither `--all` nor a name asks for them (`-k`, `-m`, a file, a test of it).
    """
    chosen = config.option.all or config.option.keyword or config.option.markexpr
    return not chosen and not any(".py" in arg for arg in config.args)


def pytest_configure(config: pytest.Config) -> None:
    """
    Let hypothesis try fewer examples where the slow tests are left out.
    """
    hypothesis.settings.register_profile("short", max_examples=25)
    hypothesis.settings.register_profile("all", max_examples=150)
    hypothesis.settings.load_profile("short" if leaves_out(config) else "all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Leave out the slow tests.
    """
    if leaves_out(config):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """
    Say loudly at the end what was not tested: a run without a real ComfyUI must not look like one with it.
    """
    if leaves_out(config):
        terminalreporter.write_line(LEFT_OUT)
    for reason, text in LOUD.items():
        skipped = [
            report for report in terminalreporter.stats.get("skipped", []) if reason in str(report.longrepr)
        ]
        if skipped:
            terminalreporter.write_sep("!", text.format(len(skipped)), red=True, bold=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Keep every test free of the settings and proxies of whoever runs it.
    """
    for name in list(os.environ):
        if (
            name in OURS
            or name.startswith(("RUNPOD_", "AWS_", "BUCKET_", "S3_"))
            or name.lower().endswith("_proxy")
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineThread]:
    """
    The built-in engine with its test nodes, shared by the whole run.
    """
    with EngineThread(tmp_path_factory.mktemp("engine"), test_nodes=True) as running:
        yield running


def launch_of(engine: EngineThread, *, shared_disk: bool = True) -> Launch:
    """
    Describe a running built-in engine as a worker sees it.
    """
    if not shared_disk:
        return Launch("running", engine.url)
    folders = engine.folders
    return Launch("running", engine.url, input=folders.input, output=folders.output, temp=folders.temp)


WorkerFactory = Callable[..., Worker]


@pytest.fixture
def make_worker() -> Iterator[WorkerFactory]:
    """
    Build workers for a launch, `make_worker(launch, websocket_reconnect_attempts=0, ...)`, and close them at the end.
    """
    workers: list[Worker] = []

    def make(launch: Launch, **fields: Any) -> Worker:
        quick = Settings(comfy_restart_delay=0.1, websocket_reconnect_delay_s=0.1, cancel_grace_s=10.0)
        scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-test-"))
        config = replace(quick, **fields)
        worker = wiring.build(config, launch, scratch, entry.process_of(config, launch)).start()
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.close(drain_s=5.0)


@pytest.fixture
def worker(engine: EngineThread, make_worker: WorkerFactory) -> Worker:
    """
    A worker on the built-in engine, with a shared disk.
    """
    return make_worker(launch_of(engine))


@pytest.fixture
def invert_job() -> dict[str, Any]:
    """
    A job with one input picture: load, invert, save.
    """
    return pictures.invert_job("job-1", pictures.png((8, 6), (10, 20, 30)))
