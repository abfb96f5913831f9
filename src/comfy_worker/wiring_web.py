"""
What a worker on the web has beside the rest: webhooks, system events, the cache of URLs and the folder of models.
"""

import logging
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from comfy_worker.buckets import Buckets
from comfy_worker.cache import UrlCache
from comfy_worker.comfy.launch import Launch
from comfy_worker.errors import InputUnavailable, JobInvalid
from comfy_worker.fetch import Fetcher
from comfy_worker.fetch_guard import Guard
from comfy_worker.model_files import ModelFiles
from comfy_worker.models.repositories import Repositories
from comfy_worker.settings import Settings
from comfy_worker.stage import Shelf
from comfy_worker.webhook import Sender, SystemEvents, checked_url, key_of, secret_problem

logger = logging.getLogger(__name__)

DRAIN_S = 10.0
GIB = 1 << 30


class Web:
    """
    Built from settings; threads start with the first message only.
    """

    def __init__(self, config: Settings) -> None:
        self._config = config
        # A job's address is held to the rules for its inputs; that of system events is the operator's own.
        self._guard = self._guarded(allow_private=config.allow_private_urls)
        self.webhooks = self._sender(self._guard)
        self.shelf: Shelf | None = None
        self.events: SystemEvents | None = None
        self.own_webhooks = self._sender(self._guarded(allow_private=True))
        if config.system_webhook_url is not None and config.system_webhook_events:
            self.events = SystemEvents(
                self.own_webhooks,
                config.system_webhook_url,
                config.system_webhook_events,
                dict(config.system_meta),
            )
        problem = secret_problem(config.webhook_secret.get_secret_value())
        if problem is not None:
            logger.warning("WEBHOOK_SECRET: %s.", problem)

    def _guarded(self, *, allow_private: bool) -> Guard:
        trusted = [origin.partition("://")[2] for origin in self._config.http_trusted_origins]
        return Guard(allow_private=allow_private, allowed_hosts=trusted)

    def _sender(self, guard: Guard) -> Sender:
        key = key_of(self._config.webhook_secret.get_secret_value())
        return Sender(key, guard, attempts=self._config.prompt_webhook_retries)

    def admit_webhook(self, url: str, field: str) -> None:
        """
        Return if a job's webhook may be posted to; refusing it later would be a silence nobody can explain.

        Raises:
            JobInvalid: it is no URL, or leads to a private address.
        """
        parts = urlsplit(checked_url(url, field))
        try:
            self._guard.addresses(
                parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
            )
        except InputUnavailable as exc:
            raise JobInvalid(f"'{field}' cannot be posted to: {exc}", field=field) from exc
        except OSError:
            return  # a name that has no address now may have one later

    def shelf_of(self, chosen: Launch, fetcher: Fetcher, buckets: Buckets) -> Shelf | None:
        """
        Return the cache of URLs and the folder of models, None without CACHE_DIR.
        """
        config = self._config
        if config.cache_dir is None:
            return None
        own = chosen.folder / "models" if chosen.kind == "comfyui" and chosen.folder else None
        root = config.model_dir or own
        models = ModelFiles(root) if root else None
        cache = UrlCache(
            config.cache_dir,
            fetcher,
            limit_bytes=int(config.lru_cache_size_gb * GIB),
            told=self._cached,
            evicted=models.drop_links_to if models else lambda _: None,
            threads=config.input_threads,
        )
        private = config.allow_private_urls
        repositories = Repositories(root / "diffusers", self._guard, http=private) if root else None
        self.shelf = Shelf(cache, models, buckets.prober, buckets.reader, buckets.admit, repositories)
        return self.shelf

    def _cached(
        self,
        name: Literal["file_downloaded", "file_deleted"],
        url: str | None,
        path: Path,
        size: int,
        duration_s: float | None,
    ) -> None:
        if self.events is not None:
            self.events.storage(name, url, str(path), size, duration_s)

    def uploaded(self, url: str, path: str, size: int, duration_s: float) -> None:
        """
        Tell of a file that was handed over.
        """
        if self.events is not None:
            self.events.storage("file_uploaded", url, path, size, duration_s)

    def close(self) -> None:
        """
        Deliver what waits, within a bound.
        """
        self.webhooks.close(DRAIN_S)
        self.own_webhooks.close(DRAIN_S)
