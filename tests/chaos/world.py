"""
Everything around the worker: RunPod's queue, a supervised engine, a host of files, a store. All of it on loopback.
"""

import contextlib
import io
import resource
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from support.control_plane import ControlPlane, wait_until
from support.lanes import comfy_folder
from support.worker_process import ROOT, WorkerProcess

from chaos.plan import Weather
from comfy_worker.comfy import launch

CONCURRENCY = 12
SLOW_S = 0.6
BITS = 24
SMALL_FILE = 64
JUMPY = """
import random, runpy, sys, threading, time
true_time, offset = time.time, [0.0]
time.time = lambda: true_time() + offset[0]
chooser = random.Random({seed})
def jump():
    while True:
        time.sleep(1.0)
        offset[0] = chooser.choice([0.0, 3600.0, -3600.0, 0.5, -0.5, 86400.0])
threading.Thread(target=jump, daemon=True).start()
sys.argv = ["handler.py"]
runpy.run_path({handler!r}, run_name="__main__")
"""
"""The worker with a clock on its wall that jumps by up to a day once a second; what it measures with must not care."""


class Host:
    """
    A host of files and a store: what a path answers is in its first part. `stored` has every object by its path.
    """

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.hooks: dict[int, list[bytes]] = {}
        self.told: dict[int, float] = {}
        self.counts: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    host.get(self)

            def do_PUT(self) -> None:
                with contextlib.suppress(OSError):
                    host.put(self)

            def do_POST(self) -> None:
                with contextlib.suppress(OSError):
                    host.post(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Host":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

    def count(self, name: str) -> None:
        """
        Count a request that was answered badly, or on a path that is.
        """
        with self._lock:
            self.counts[name] += 1

    def times(self, path: str) -> int:
        """
        Count a request for a path; return how many there were.
        """
        with self._lock:
            self._asked[path] += 1
            return self._asked[path]

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        """
        Serve `/<how>/<number>.png`: a picture of the number's colour, as well as the host feels.
        """
        _, how, name = handler.path.partition("?")[0].split("/", 2)
        number = int(name.partition(".")[0])
        body = picture_of(number)
        if how != "good":
            self.count(f"host: {how}")
        if how == "gone":
            _answer(handler, 404, b"no such file")
        elif how == "flaky" and self.times(handler.path) <= 2:
            if number % 2:
                _reset(handler)
            else:
                _answer(handler, 503, b"later")
        elif how == "half":
            _half_close(handler, body)
        elif how == "truncated":
            _answer(handler, 200, body, cut=len(body) // 2)
        else:
            if how == "slow":
                time.sleep(SLOW_S)
            _answer(handler, 200, body)

    def put(self, handler: BaseHTTPRequestHandler) -> None:
        """
        Store an object; the bucket says how: `good`, `flaky`, `refused`, `reset`.
        """
        path = handler.path.partition("?")[0]
        how = path.split("/")[1]
        if how == "slow":
            time.sleep(SLOW_S)  # a slow reader: the body waits in the connection
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if how != "good":
            self.count(f"store: {how}")
        if how == "refused":
            _answer(handler, 403, b"<Error><Code>AccessDenied</Code></Error>")
        elif how == "flaky" and self.times(path) <= 1:
            _answer(handler, 503, b"<Error><Code>SlowDown</Code></Error>")
        elif how == "reset" and self.times(path) <= 1:
            self.stored[path] = body  # it is there, and nobody was told
            _reset(handler)
        else:
            self.stored[path] = body
            _answer(handler, 200, b"")

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        """
        Receive a webhook at `/<how>/<number>`: once in vain when it is `hook_flaky` or `hook_reset`.
        """
        _, how, name = handler.path.split("/", 2)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if how != "hook":
            self.count(f"receiver: {how[5:]}")
        with self._lock:
            self.hooks.setdefault(int(name), []).append(body)
            first = len(self.hooks[int(name)]) == 1
        if how == "hook_flaky" and first:
            _answer(handler, 503, b"later")
        elif how == "hook_reset" and first:
            _reset(handler)
        else:
            _answer(handler, 200, b"")
            self.told.setdefault(int(name), time.monotonic())


def picture_of(number: int) -> bytes:
    """
    Return a picture of a number: its bits in black and white, which an inversion keeps exactly.
    """
    image = Image.new("RGB", (BITS, 2))
    for place in range(BITS):
        if number >> place & 1:
            image.putpixel((place, 0), (255, 255, 255))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, cut: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("ETag", '"x"')
    handler.end_headers()
    handler.wfile.write(body[:cut])
    if cut is not None:
        handler.close_connection = True


def _half_close(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    # The connection stays half open: nothing more comes, and what the other side sends is still taken.
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_WR)
    handler.close_connection = True


def _reset(handler: BaseHTTPRequestHandler) -> None:
    # Closing with nothing to linger for sends a RST.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


@dataclass
class World:
    """
    A running world. `counts` are the faults that were really injected, beside those of the host.
    """

    plane: ControlPlane
    worker: WorkerProcess
    host: Host
    folder: Path
    engine_url: str
    vast: WorkerProcess
    vast_url: str
    start: Callable[[], WorkerProcess]
    counts: Counter[str] = field(default_factory=Counter)

    def is_replaced(self) -> tuple[int, str] | None:
        """
        Start a new worker where the old one has ended, as RunPod does; return its exit code and its last lines then.
        """
        try:
            code = self.worker.wait(0.0)
        except subprocess.TimeoutExpired:
            return None
        said = "\n".join(self.worker.lines[-20:])
        self.worker.close()
        self.worker = self.start()
        self.counts["worker replaced"] += 1
        return code, said

    def turn(self, weather: Weather) -> None:
        """
        Change the weather. Jobs go on meanwhile.
        """
        self._limit_files(SMALL_FILE if weather.full_disk else resource.RLIM_INFINITY)
        is_set = self._set_faults(weather.faults)
        self.counts[f"weather: {weather.name}{'' if is_set else ' (ComfyUI was away)'}"] += 1
        if weather.kills:
            self.kill()

    def _set_faults(self, faults: Mapping[str, Any]) -> bool:
        # A ComfyUI that is just being started again has no faults, and none is needed: it is the fault.
        try:
            url = f"{self.engine_url}/standin/faults"
            return requests.post(url, json=dict(faults), timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def _limit_files(self, size: int) -> None:
        limits = {self.worker.pid: size, self.vast.pid: size}
        # A ComfyUI that was started meanwhile has inherited the limit, which is not meant for it.
        limits |= {child.pid: resource.RLIM_INFINITY for child in self.worker.children()}
        for pid, limit in limits.items():
            with contextlib.suppress(OSError):
                _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, most))

    def kill(self) -> None:
        """
        Kill ComfyUI, if there is one now.
        """
        import os
        import signal

        for child in self.worker.children():
            with contextlib.suppress(OSError):
                if b"main.py" in Path(f"/proc/{child.pid}/cmdline").read_bytes():
                    os.kill(child.pid, signal.SIGKILL)
                    self.counts["ComfyUI killed"] += 1

    def clear_up(self) -> None:
        """
        Make the weather fair, and wait until ComfyUI answers and its queue is empty.
        """
        self.turn(Weather("fair"))
        wait_until(self._idle, 90.0)

    def _idle(self) -> bool:
        try:
            queue = requests.get(f"{self.engine_url}/queue", timeout=5).json()
            requests.post(f"{self.engine_url}/standin/faults", json={}, timeout=5)
        except (requests.RequestException, ValueError):
            return False
        return not queue["queue_running"] and not queue["queue_pending"]


@contextlib.contextmanager
def world(folder: Path, seed: int) -> Iterator[World]:
    """
    Start everything; end it at the end of the block.
    """
    port = launch.free_port()
    engine = comfy_folder(folder / "ComfyUI")
    own = {
        "COMFYUI_PATH": str(engine),
        "COMFY_PORT": str(port),
        "WORKER_CONCURRENCY": str(CONCURRENCY),
        "ALLOW_PRIVATE_URLS": "true",
        "COMFY_RESTART_DELAY": "0.1",
        "COMFY_MAX_RAPID_RESTARTS": "1000",
        "WEBSOCKET_RECONNECT_DELAY_S": "0.2",
        "CANCEL_GRACE_S": "10",
        "LOG_LEVEL": "ERROR",
        "RUNPOD_DEBUG_LEVEL": "ERROR",
    }
    code = JUMPY.format(seed=seed, handler=str(ROOT / "handler.py"))
    with Host() as host, ControlPlane(hold_s=1.0) as plane:

        def start() -> WorkerProcess:
            return WorkerProcess(folder, {**plane.environ(), **own}, program=("-c", code))

        first = start()
        place: World | None = None
        try:
            wait_until(lambda: plane.takes, 60.0)
            engine_url = f"http://127.0.0.1:{port}"
            with _vast_face(folder / "vast", engine_url, engine) as (vast, vast_url):
                place = World(plane, first, host, folder, engine_url, vast, vast_url, start)
                yield place
        finally:
            (place.worker if place is not None else first).close()


@contextlib.contextmanager
def _vast_face(folder: Path, engine_url: str, engine: Path) -> Iterator[tuple[WorkerProcess, str]]:
    """
    A second worker on the same ComfyUI and its disk: the Vast face, whose results come by webhook.
    """
    port = launch.free_port()
    own = {"COMFYUI_URL": engine_url, "COMFY_INPUT_DIR": str(engine / "input"), "COMFY_OUTPUT_DIR": str(engine / "output"),
           "ALLOW_PRIVATE_URLS": "true", "JOB_TIMEOUT_S": "30", "LOG_LEVEL": "ERROR",
           "CANCEL_GRACE_S": "10", "WEBSOCKET_RECONNECT_DELAY_S": "0.2", "BACKEND_FAILURE_THRESHOLD": "1000000",
           "MAX_QUEUE_SIZE": "1000"}  # fmt: skip
    program = ("-m", "comfy_worker", "serve", "--face", "vast", "--port", str(port))
    face = WorkerProcess(folder, own, program=program)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    try:
        wait_until(is_ready, 60.0)
        yield face, url
    finally:
        face.close()
