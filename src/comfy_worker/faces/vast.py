"""
The Vast face put together: `app_of` gives its application over a worker.

Clients of the ComfyUI API wrapper in Vast.ai's templates find the routes, fields and replies that they know; what differs on
purpose is in docs/reference/vast.md. The PyWorker in front of it is `comfy_worker.pyworker`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI

from comfy_worker import graph
from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.faces import http, vast_docs, vast_legacy, vast_reply, vast_routes
from comfy_worker.faces.http import Service, create_app
from comfy_worker.faces.vast_delivery import rules_of
from comfy_worker.faces.vast_entry import Entry
from comfy_worker.faces.vast_faults import Faults
from comfy_worker.faces.vast_health import Health
from comfy_worker.faces.vast_request import Hook
from comfy_worker.faces.vast_run import VastFace
from comfy_worker.faces.vast_store import Desk
from comfy_worker.job import Bucket
from comfy_worker.settings import MEGABYTE
from comfy_worker.templates import Templates
from comfy_worker.webhook import Message, Sender

logger = logging.getLogger(__name__)

TIDY_S = 30.0


class Web(Protocol):
    """
    What a worker on the web has beside the rest.
    """

    webhooks: Sender
    own_webhooks: Sender

    def admit_webhook(self, url: str, field: str) -> None:
        """
        Return if a webhook may be posted to, else raise `JobInvalid`.
        """


class VastWorker(http.Worker, Protocol):
    """
    A worker as this face needs it. `bucket` is the one of its settings.
    """

    catalog: Callable[[str], Mapping[str, Any]]
    socket: EventSocket
    files: ComfyFiles
    web: Web
    bucket: Bucket | None

    @property
    def templates(self) -> Templates:
        """
        The worker's templates.
        """


def app_of(worker: VastWorker) -> FastAPI:
    """
    Return the application: the API of the wrapper over a worker.
    """
    config = worker.settings
    faults = Faults(config.backend_failure_threshold)
    health = Health(worker, faults)
    api = vast_routes.Api(
        rules_of(config, worker.bucket),
        worker.templates,
        worker.catalog,
        worker.web.admit_webhook,
        health,
        config.include_comfyui_response,
    )
    model = vast_legacy.model_of(
        config.comfy_model, worker.templates, required=config.vast_backend == "comfyui"
    )
    legacy = vast_legacy.Legacy(api, model)
    desk = Desk(config.max_queue_size, config.api_cache_ttl, partial(_evicted, worker))
    tidying: list[asyncio.Task[None]] = []

    async def start(service: Service) -> None:
        api.face_ = VastFace(service, desk, partial(_post, worker.web), faults)
        tidying.append(asyncio.create_task(_tidy(desk)))

    async def end(_service: Service) -> None:
        for task in tidying:
            task.cancel()
        await api.face.drain(config.shutdown_grace_s)

    app = create_app(
        worker,
        title="ComfyUI API",
        description=vast_docs.DESCRIPTION,
        bearer=config.server_api_key,
        max_body_bytes=int(config.max_body_size_mb * MEGABYTE),
        routers=[vast_routes.router_of(api), vast_legacy.router_of(legacy), vast_docs.router_of()],
        render=vast_routes.render,
        on_start=[start, health.start],
        on_end=[end, health.end],
    )
    app.openapi = partial(  # type: ignore[method-assign]
        vast_docs.document, worker.templates, secured=config.server_api_key is not None
    )
    return app


def _post(web: Web, hook: Hook, request_id: str, body: bytes) -> None:
    headers = tuple(vast_reply.webhook_headers(hook.secret, body))
    message = Message(hook.url, body, id=request_id, signed=False, headers=headers, attempt_s=hook.timeout_s)
    (web.own_webhooks if hook.is_trusted else web.webhooks).send(message)


def _evicted(worker: VastWorker, entry: Entry) -> None:
    """
    Remove the files that a result named, with the result.
    """
    apart = entry.order.job.delivery.apart
    if apart is None or not apart.leave or worker.settings.keep_local_outputs or entry.prompt_id is None:
        return
    folder = graph.folder_of(entry.prompt_id)
    asyncio.get_running_loop().run_in_executor(None, worker.files.clear, folder)


async def _tidy(desk: Desk) -> None:
    while True:
        await asyncio.sleep(TIDY_S)
        desk.tidy()
