"""
Builds a Worker from Settings: the one module that knows all the others. It decides nothing but who gets what.
"""

import atexit
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from comfy_worker import deliver, log, settings
from comfy_worker.buckets import Buckets
from comfy_worker.comfy import launch
from comfy_worker.comfy.catalog import Catalog
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.files import ComfyFiles, RemoteFiles, SharedFiles, probe_shared
from comfy_worker.comfy.launch import Launch
from comfy_worker.comfy.process import ComfyProcess, Restarts
from comfy_worker.comfy.prompts import Prompts
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, ConfigInvalid
from comfy_worker.faces.runpod import RunpodFace
from comfy_worker.faces.runpod_progress import Poster
from comfy_worker.faces.runpod_sdk import Loop, exit_on_sigterm, prepare
from comfy_worker.fetch import Fetcher
from comfy_worker.fetch_guard import Guard
from comfy_worker.job import Bucket
from comfy_worker.parse import Rules
from comfy_worker.pipeline import Pipeline
from comfy_worker.pool import Pool
from comfy_worker.settings import Settings
from comfy_worker.stage import Stager
from comfy_worker.storage import s3

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 1000
REPLY_MARGIN = 0.98
DRAIN_S = 30.0
NO_COMFYUI = (
    "No ComfyUI was found, so the built-in engine runs the workflow: a small stand-in for trying, without models. For "
    "the real one set COMFYUI_URL to a running ComfyUI or COMFYUI_PATH to its folder, or install it with `comfy install`."
)


@dataclass(slots=True)
class Engine:
    """
    The ComfyUI that a worker uses, supervised or not.
    """

    launch: Launch
    client: Client
    process: ComfyProcess | None = None
    is_stuck: bool = False
    tries: int = 500
    interval_s: float = 0.05

    def guard(self) -> Callable[[], None]:
        """
        Return a check that raises once the present ComfyUI is dead.
        """
        return self.process.guard() if self.process else lambda: None

    def stuck(self) -> None:
        """
        Kill a supervised ComfyUI that does not let go of a prompt; it is started again. Remember any other.
        """
        if self.process is not None:
            self.process.kill()
        else:
            self.is_stuck = True

    def wait_ready(self, check: Callable[[], None] = lambda: None) -> None:
        """
        Return once ComfyUI answers.

        Raises:
            ComfyUnavailable: it does not, and will not.
        """
        if self.process is not None:
            self.process.wait_ready(check)
            return
        for _ in range(self.tries):
            check()
            if self.client.answers():
                return
            time.sleep(self.interval_s)
        raise ComfyUnavailable(
            f"ComfyUI server ({self.client.address}) not reachable after multiple retries."
        )

    @property
    def useless(self) -> bool:
        """
        Whether no job can be served any more by this worker.
        """
        return self.is_stuck or (self.process is not None and self.process.given_up)


@dataclass(slots=True)
class Worker:
    """
    A wired worker. `start` returns at once; `close` ends everything that was started, in order.
    """

    settings: Settings
    engine: Engine
    socket: EventSocket
    pool: Pool
    face: RunpodFace
    scratch: Path
    files: ComfyFiles
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "Worker":
        """
        Start ComfyUI, if it is ours to start.
        """
        if self.engine.process is not None:
            self.engine.process.start()
        return self

    def close(self, drain_s: float = DRAIN_S) -> None:
        """
        Finish or cancel the running jobs, then end ComfyUI and remove what is ours. Idempotent.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self.pool.close(drain_s)
        self.socket.close()
        if self.engine.process is not None:
            self.engine.process.stop()
        self.engine.client.close()
        if self.face.poster is not None:
            self.face.poster.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def choose(config: Settings, scratch: Path, *, builtin: bool) -> Launch:
    """
    Return which ComfyUI to use, in this order: COMFYUI_URL, an installed one, the built-in engine (where allowed).

    Raises:
        ConfigInvalid: there is none.
    """
    if config.comfyui_url is not None:
        return launch.running(config)
    port = config.comfy_port or free_port()
    folder = launch.installed(config)
    if folder is not None:
        return launch.comfyui(config, folder, port, scratch)
    if builtin:
        logger.warning(NO_COMFYUI)
        return launch.builtin(port, scratch)
    raise ConfigInvalid(["COMFYUI_PATH must be set: no ComfyUI was found at /comfyui or ~/comfy/ComfyUI"])


def build(config: Settings, chosen: Launch, scratch: Path) -> Worker:
    """
    Wire a worker to one ComfyUI. Nothing is started but idle threads.
    """
    log.MASK.add(config.secrets())
    client = Client(chosen.url)
    engine = _engine(config, chosen, client)
    events = EventSocket(
        chosen.url,
        attempts=config.websocket_reconnect_attempts,
        delay_s=config.websocket_reconnect_delay_s,
        trace=config.websocket_trace,
    )
    catalog = Catalog(client)
    files = _files(config, chosen, client)
    fetcher = Fetcher(allow_private=config.allow_private_urls, threads=config.input_threads)
    operator = bucket_of(config)
    buckets = Buckets(s3.Stores(), Guard(allow_private=config.allow_private_urls), operator)
    max_bytes = int(config.input_max_mb * settings.MEGABYTE)
    pipeline = Pipeline(
        Stager(files, fetcher, catalog, buckets.reader, max_bytes=max_bytes),
        Prompts(client, events, engine, catalog, cancel_grace_s=config.cancel_grace_s),
        files,
        client,
        partial(deliver.deliver, store=buckets.store, threads=config.upload_threads),
        ready=partial(_ready, engine, events),
        admit=buckets.admit,
        keep_outputs=config.keep_outputs,
        fail_on_node_error=config.fail_on_node_error,
        may_be_known=chosen.kind == "running" or config.keep_outputs,
    )
    pool = Pool(pipeline.run, threads=config.worker_concurrency, limit=QUEUE_LIMIT)
    face = _runpod_face(config, pool, engine, operator)
    return Worker(config, engine, events, pool, face, scratch, files)


def _ready(engine: Engine, events: EventSocket, deadline: Deadline, sure: bool) -> None:
    # An open websocket says it as well, and costs nothing.
    if sure or not events.connected:
        engine.wait_ready(lambda: deadline.check("waiting for ComfyUI"))


def _engine(config: Settings, chosen: Launch, client: Client) -> Engine:
    process = None
    if chosen.command and chosen.folder is not None:
        process = ComfyProcess(
            chosen.command,
            chosen.folder,
            client,
            boot_timeout_s=config.comfy_boot_timeout_s,
            interval_s=config.comfy_api_available_interval_ms / 1000,
            restarts=Restarts(
                config.comfy_restart_delay, config.comfy_max_rapid_restarts, config.comfy_rapid_restart_window
            ),
        )
    return Engine(
        chosen,
        client,
        process,
        tries=config.comfy_api_available_max_retries or 500,
        interval_s=config.comfy_api_available_interval_ms / 1000,
    )


def _files(config: Settings, chosen: Launch, client: Client) -> ComfyFiles:
    if chosen.input is None or chosen.output is None:
        return RemoteFiles(client)
    shared = SharedFiles(
        chosen.input,
        chosen.output,
        chosen.temp,
        max_bytes=config.input_cache_mb * settings.MEGABYTE,
        max_age_s=config.input_cache_age_s,
    )
    if chosen.kind == "running" and not probe_shared(chosen.input, client):
        logger.warning("COMFY_INPUT_DIR is not the folder of the ComfyUI at COMFYUI_URL; files go over HTTP.")
        return RemoteFiles(client)
    return shared


def bucket_of(config: Settings) -> Bucket | None:
    """
    Return the operator's bucket, None when object storage is off.

    Raises:
        ConfigInvalid: it is configured in a way that cannot work.
    """
    if config.bucket_access_key_id is None or config.bucket_secret_access_key is None:
        return None
    bucket = Bucket(
        config.bucket_endpoint_url,
        config.bucket_access_key_id,
        config.bucket_secret_access_key,
        config.bucket_name,
        config.bucket_prefix,
        config.bucket_region,
        addressing_style=config.bucket_addressing_style or ("auto" if config.bucket_name else "path"),
        expiry_s=config.bucket_url_expiry_s,
        public_url=config.bucket_public_url,
    )
    problems = s3.check(bucket)
    if problems:
        raise ConfigInvalid(problems)
    return bucket


def _runpod_face(config: Settings, pool: Pool, engine: Engine, operator: Bucket | None) -> RunpodFace:
    poster = None
    if config.progress_updates and config.runpod_webhook_post_output:
        key = config.runpod_ai_api_key
        poster = Poster(
            config.runpod_webhook_post_output, key.get_secret_value() if key else None, config.runpod_pod_id
        )
    rules = Rules(
        timeout_s=config.job_timeout_s,
        timeout_max_s=config.job_timeout_max_s,
        strict=config.strict,
        strip_metadata=config.strip_metadata,
        comfy_org_api_key=config.comfy_org_api_key,
        bucket=operator,
    )
    limits = tuple(
        int(mb * settings.MEGABYTE * REPLY_MARGIN)
        for mb in (config.reply_limit_mb, config.reply_limit_sync_mb)
    )
    return RunpodFace(
        pool.submit,
        rules,
        (limits[0], limits[1]),
        poster=poster,
        refresh=lambda: engine.useless,
    )


def worker_of(environ: Mapping[str, str], *, builtin: bool) -> Worker:
    """
    Read the settings, set up the log, and wire and start a worker.

    Raises:
        ConfigInvalid: a setting is wrong.
    """
    return started(settings.load(environ), builtin=builtin)


def local_worker(environ: Mapping[str, str]) -> Worker:
    """
    Return a worker for a person at a terminal: a quiet log, a free port, and COMFYUI_URL only where it answers.

    Raises:
        ConfigInvalid: a setting is wrong.
    """
    config = settings.load({"LOG_LEVEL": "WARNING", "COMFY_PORT": "0", **environ})
    if config.comfyui_url is not None:
        client = Client(config.comfyui_url)
        if not client.answers():
            logger.warning("The ComfyUI at COMFYUI_URL does not answer.")
            config = replace(config, comfyui_url=None)
        client.close()
    return started(config, builtin=True)


def started(config: Settings, *, builtin: bool) -> Worker:
    """
    Set up the log, and wire and start a worker.

    Raises:
        ConfigInvalid: the settings cannot work.
    """
    as_json = config.log_format == "json" or (
        config.log_format == "auto" and config.runpod_endpoint_id is not None
    )
    log.configure(config.log_level, as_json=as_json)
    scratch = Path(tempfile.mkdtemp(prefix="comfy-worker-engine-"))
    try:
        return build(config, choose(config, scratch, builtin=builtin), scratch).start()
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


_shared: list[Worker] = []
_sharing = threading.Lock()


def shared(environ: Mapping[str, str]) -> Worker:
    """
    Return the worker of this process, wired and started at the first call.
    """
    with _sharing:
        if not _shared:
            _shared.append(worker_of(environ, builtin="RUNPOD_WEBHOOK_GET_JOB" not in environ))
            atexit.register(close_shared)  # for who only imports the handler
        return _shared[0]


def close_shared() -> None:
    """
    End the worker of this process, if there is one.
    """
    with _sharing:
        for worker in _shared:
            worker.close()
        _shared.clear()


def serve_runpod(environ: MutableMapping[str, str]) -> int:
    """
    Be `python handler.py`: start ComfyUI, import the SDK while it boots, wait until it answers, serve jobs.

    Returns the exit code: 2 for wrong settings, 1 when ComfyUI cannot be had.
    """
    log.configure("INFO", as_json="RUNPOD_ENDPOINT_ID" in environ)  # until the settings are read
    exit_on_sigterm()
    try:
        worker = shared(environ)
    except ConfigInvalid as exc:
        logger.error("%s", exc)
        return 2
    try:
        prepare(environ)
        loop = Loop(
            worker.face.handle,
            worker.settings.worker_concurrency,
            worker.settings.refresh_worker,
            worker.engine.client.system_stats,
            close_shared,
        )
        loop.load()
        worker.engine.wait_ready()
        loop.run()
    except ComfyUnavailable as exc:
        logger.error("%s", exc)
        return 1
    finally:
        close_shared()
    return 0


def free_port() -> int:
    """
    Return a port on loopback that nobody listens on now.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
