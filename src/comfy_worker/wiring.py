"""
Builds a Worker from Settings: the one module that knows all the others. It decides nothing but who gets what.
"""

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from comfy_worker import log, settings, wiring_comfy
from comfy_worker.buckets import Buckets
from comfy_worker.comfy.catalog import Catalog
from comfy_worker.comfy.client import Client
from comfy_worker.comfy.engine import Engine
from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.comfy.forgetter import Forgetter
from comfy_worker.comfy.launch import Launch
from comfy_worker.comfy.process import ComfyProcess
from comfy_worker.comfy.prompts import Prompts
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.deliver_apart import hand_over
from comfy_worker.errors import ConfigInvalid
from comfy_worker.faces.runpod import RunpodFace
from comfy_worker.faces.runpod_progress import Poster
from comfy_worker.fetch import Fetcher
from comfy_worker.fetch_guard import Guard
from comfy_worker.housekeeping import Keeper
from comfy_worker.job import Bucket
from comfy_worker.metrics import Metrics
from comfy_worker.parse import Rules
from comfy_worker.pipeline import Pipeline
from comfy_worker.pool import Pool
from comfy_worker.settings import Settings
from comfy_worker.stage import Shelf, Stager
from comfy_worker.storage import s3
from comfy_worker.templates import Templates, shipped
from comfy_worker.wiring_web import Web

logger = logging.getLogger(__name__)

REPLY_MARGIN = 0.98


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
    metrics: Metrics
    keeper: Keeper
    fetcher: Fetcher
    catalog: Catalog
    web: Web
    forgetter: Forgetter
    bucket: Bucket | None = None
    _closed: threading.Event = field(default_factory=threading.Event)

    @property
    def templates(self) -> Templates:
        """
        The worker's templates: those that come with it, and the operator's.
        """
        return self.face.rules.templates

    def start(self) -> "Worker":
        """
        Start ComfyUI, if it is ours to start.
        """
        if self.engine.process is not None:
            self.engine.process.start()
        return self

    def warm_up(self) -> bool:
        """
        Run WARMUP_WORKFLOW, if there is one; return False when it failed and the worker must not go on (WARMUP_REQUIRED).
        """
        given = self.settings.warmup_workflow
        if given is None:
            return True
        from comfy_worker.warmup import warm_up  # only needed here, and heavy

        warmed = warm_up(given, self.pool.submit, self.face.rules, self.fetcher)
        return warmed or not self.settings.warmup_required

    def fit(self) -> Mapping[str, Any]:
        """
        Return ComfyUI's `/system_stats`, once there is room on the disks for a job.

        Raises:
            DiskFull, ComfyUnavailable: this worker should not be given jobs.
        """
        self.keeper.make_room()
        return self.engine.client.system_stats()

    @property
    def is_worn(self) -> bool:
        """
        Whether this worker must be replaced: ComfyUI cannot be had any more, or there is no room for another job.
        """
        return self.engine.useless or self.keeper.is_worn

    def close(self, drain_s: float | None = None) -> None:
        """
        Give the running jobs `drain_s` (SHUTDOWN_GRACE_S), cancel the rest, then end ComfyUI and remove what is ours.

        Idempotent.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self.pool.close(self.settings.shutdown_grace_s if drain_s is None else drain_s)
        self.forgetter.close()
        self.socket.close()
        if self.engine.process is not None:
            self.engine.process.stop()
        self.engine.client.close()
        self.stores.close()
        if self.face.poster is not None:
            self.face.poster.close()
        self.web.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def build(config: Settings, chosen: Launch, scratch: Path, process: ComfyProcess | None = None) -> Worker:
    """
    Wire a worker to one ComfyUI, `process` where it is supervised. Nothing is started but idle threads.

    Raises:
        ConfigInvalid: the bucket is configured in a way that cannot work.
    """
    log.MASK.add(config.secrets())
    client = Client(chosen.url)
    engine = wiring_comfy.engine(config, chosen, client, process)
    events = wiring_comfy.events(config, chosen)
    catalog = Catalog(client)
    files = wiring_comfy.files(config, chosen, client)
    fetcher, guard = _guarded(config)
    operator = bucket_of(config)
    stores = s3.Stores()
    web = Web(config)
    buckets = Buckets(stores, guard, operator, [config.aws_endpoint_url], web.uploaded)
    forgetter = Forgetter(client.forget)
    pipeline = Pipeline(
        _stager(config, files, fetcher, catalog, buckets, web.shelf_of(chosen, fetcher, buckets)),
        Prompts(client, events, engine, catalog, cancel_grace_s=config.cancel_grace_s),
        files,
        client,
        forgetter,
        partial(hand_over, store=buckets.store, threads=config.upload_threads),
        ready=partial(wiring_comfy.ready, engine, events),
        admit=buckets.admit,
        keep_outputs=config.keep_outputs,
        fail_on_node_error=config.fail_on_node_error,
        may_be_known=chosen.kind == "running" or config.keep_outputs,
        oom_retry=config.oom_retry,
    )
    keeper = wiring_comfy.keeper(config, chosen, files, client)
    metrics = Metrics()
    run = metrics.measured(keeper.around(pipeline.run))
    pool = Pool(run, threads=config.worker_concurrency, limit=config.queue_limit)
    face = _runpod_face(config, pool, lambda: engine.useless or keeper.is_worn, operator)
    return Worker(
        config,
        engine,
        events,
        pool,
        face,
        scratch,
        files,
        stores,
        metrics,
        keeper,
        fetcher,
        catalog,
        web,
        forgetter,
        operator,
    )


def _stager(
    config: Settings,
    files: ComfyFiles,
    fetcher: Fetcher,
    catalog: Catalog,
    buckets: Buckets,
    shelf: Shelf | None,
) -> Stager:
    max_bytes = int(config.input_max_mb * settings.MEGABYTE)
    return Stager(files, fetcher, catalog, buckets.reader, max_bytes=max_bytes, shelf=shelf)


def _guarded(config: Settings) -> tuple[Fetcher, Guard]:
    trusted = [origin.partition("://")[2] for origin in config.http_trusted_origins]
    private = config.allow_private_urls
    fetcher = Fetcher(allow_private=private, allowed_hosts=trusted, threads=config.input_threads)
    return fetcher, Guard(allow_private=private, allowed_hosts=trusted)


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


def _templates(config: Settings) -> Templates:
    found = Templates.load([shipped(), config.workflow_dir])
    found.log_problems()
    return found


def _runpod_face(
    config: Settings, pool: Pool, refresh: Callable[[], bool], operator: Bucket | None
) -> RunpodFace:
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
        templates=_templates(config),
    )
    limits = tuple(
        int(mb * settings.MEGABYTE * REPLY_MARGIN)
        for mb in (config.reply_limit_mb, config.reply_limit_sync_mb)
    )
    return RunpodFace(pool.submit, rules, (limits[0], limits[1]), poster=poster, refresh=refresh)
