"""
Builds a Worker from Settings: the one module that knows all the others. It decides nothing but who gets what.
"""

import logging
import shutil
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from comfy_worker import deliver, log, settings
from comfy_worker.buckets import Buckets
from comfy_worker.comfy.catalog import Catalog
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.engine import Engine
from comfy_worker.comfy.files import ComfyFiles, RemoteFiles, SharedFiles, probe_shared
from comfy_worker.comfy.launch import Launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.comfy.prompts import Prompts
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ConfigInvalid
from comfy_worker.faces.runpod import RunpodFace
from comfy_worker.faces.runpod_progress import Poster
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
    stores: s3.Stores
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
        self.stores.close()
        if self.face.poster is not None:
            self.face.poster.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def build(config: Settings, chosen: Launch, scratch: Path, process: ComfyProcess | None = None) -> Worker:
    """
    Wire a worker to one ComfyUI, `process` where it is supervised. Nothing is started but idle threads.

    Raises:
        ConfigInvalid: the bucket is configured in a way that cannot work.
    """
    log.MASK.add(config.secrets())
    client = Client(chosen.url)
    engine = Engine(
        chosen,
        client,
        process,
        tries=config.comfy_api_available_max_retries or 500,
        interval_s=config.comfy_api_available_interval_ms / 1000,
    )
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
    stores = s3.Stores()
    buckets = Buckets(stores, Guard(allow_private=config.allow_private_urls), operator)
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
    return Worker(config, engine, events, pool, face, scratch, files, stores)


def _ready(engine: Engine, events: EventSocket, deadline: Deadline, sure: bool) -> None:
    # An open websocket says it as well, and costs nothing.
    if sure or not events.connected:
        engine.wait_ready(lambda: deadline.check("waiting for ComfyUI"))


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
        raise ConfigInvalid([f"Object storage (BUCKET_*): {problem}" for problem in problems])
    for hint in s3.hints(bucket):
        logger.warning("%s", hint)
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
