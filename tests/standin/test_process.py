"""
The engine as a process: its flags, its first words, its end.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from comfy_worker.standin.__main__ import settings_from

from .client import Client, wait_for
from .gate import picture


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "comfy_worker.standin", *flags]


@contextmanager
def _process(base: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = _free_port()
    command = _command("--base-directory", str(base), "--port", str(port), *flags)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: _answers(port))
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate(timeout=10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_what_it_is_and_ends_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """
    It names itself on its first line, wipes temp, exits with 0, and its sockets break.
    """
    flags = (
        "--cpu",
        "--disable-auto-launch",
        "--preview-method",
        "auto",
        "--database-url",
        "sqlite:///:memory:",
    )
    with _process(tmp_path, *flags) as (process, url):
        (tmp_path / "temp" / "left").write_text("x")
        with Client(url) as client:
            client.history(client.queue(picture(), "a"))
            watcher = client.socket()

            process.send_signal(number)
            text, _ = process.communicate(timeout=10)

            assert watcher.next() is None
    assert text.splitlines()[0] == "This is the comfy-worker built-in engine (not ComfyUI)."
    assert process.returncode == 0
    assert not (tmp_path / "temp").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [({"node": "2", "exit_code": 3}, 3), ({"node": "2", "signal": 9}, -9), ("2", -9)]
)
def test_the_process_dies_at_a_node(how: object, code: int, tmp_path: Path) -> None:
    """
    By exit code or by signal, as asked.
    """
    with _process(tmp_path) as (process, url), Client(url) as client:
        client.queue(picture(), "a", extra_data={"standin": {"die_at_node": how}})

        assert process.wait(timeout=10) == code


PARENT = """
import socket, subprocess, sys, time
child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
for _ in range(500):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0:
            break
    time.sleep(0.02)
print(child.pid)
"""


@pytest.mark.slow
def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """
    An engine that nobody owns any more does not stay.
    """
    port = _free_port()
    command = _command("--base-directory", str(tmp_path), "--port", str(port))

    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(port), *command], timeout=30, capture_output=True, check=True
    )

    try:
        assert wait_for(lambda: not _answers(port))
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(done.stdout), signal.SIGKILL)


@pytest.mark.parametrize(
    "flags", [["--no-such-flag"], ["--cache-none", "--cache-classic"], ["--faults", '{"x": 1}']]
)
def test_a_wrong_flag_ends_with_code_2(flags: list[str]) -> None:
    """
    Unknown flags, flags that exclude each other and unknown faults are refused before anything starts.
    """
    with pytest.raises(SystemExit) as ended:
        settings_from(flags)

    assert ended.value.code == 2


def test_a_taken_port_ends_with_code_1(tmp_path: Path) -> None:
    """
    The second engine on a port gives up.
    """
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])

        done = subprocess.run(
            _command("--base-directory", str(tmp_path), "--port", port),
            timeout=20,
            capture_output=True,
            check=False,
        )

    assert done.returncode == 1


def test_flags_become_settings(tmp_path: Path) -> None:
    """
    Folders follow ComfyUI's rules: a temp directory gets a folder `temp` in it.
    """
    flags = [
        "--base-directory",
        str(tmp_path),
        "--temp-directory",
        str(tmp_path / "t"),
        "--output-directory",
        "/out",
    ]
    more = ["--cache-lru", "7", "--max-upload-size", "2", "--disable-metadata", "--listen", "--test-nodes"]

    settings = settings_from([*flags, *more])

    assert settings.folders.input == tmp_path / "input"
    assert settings.folders.output == Path("/out")
    assert settings.folders.temp == tmp_path / "t" / "temp"
    assert (settings.cache, settings.cache_size, settings.host) == ("lru", 7, "0.0.0.0")
    assert (settings.max_upload_bytes, settings.metadata, settings.test_nodes) == (
        2 * 1024 * 1024,
        False,
        True,
    )


def test_nothing_answers_before_the_start_delay_is_over(tmp_path: Path) -> None:
    """
    A client is refused while the engine starts, as with ComfyUI.
    """
    port = _free_port()
    command = _command("--base-directory", str(tmp_path), "--port", str(port), "--start-delay", "60")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()

        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}/prompt", timeout=5)
        process.kill()
        process.communicate(timeout=10)
