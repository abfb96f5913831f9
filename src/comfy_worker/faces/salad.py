"""
The Salad face put together: `app_of` gives its application over a worker.

Clients of SaladTechnologies/comfyui-api (1.9 to 1.19) find the routes, fields and replies that they know; what differs on
purpose is in docs/howto/switch-from-salad.md. Two pure translations, `to_order` and `to_reply`, and the routes around them.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson
from fastapi import FastAPI
from pydantic import SecretStr

from comfy_worker.azure import AzureAccount, account_of
from comfy_worker.comfy.engine import Engine
from comfy_worker.comfy.socket import EventSocket
from comfy_worker.faces import http, salad_docs, salad_routes
from comfy_worker.faces.http import create_app
from comfy_worker.faces.salad_auth import Trust, resolved
from comfy_worker.faces.salad_delivery import Rules
from comfy_worker.faces.salad_events import ComfyEvents, DeletionCost
from comfy_worker.faces.salad_graph import Surroundings
from comfy_worker.faces.salad_models import Credential
from comfy_worker.faces.salad_models_api import Library
from comfy_worker.faces.salad_run import SaladFace
from comfy_worker.faces.salad_start import Start
from comfy_worker.job import Bucket
from comfy_worker.settings import MEGABYTE, Settings
from comfy_worker.stage import Shelf
from comfy_worker.storage import azure_access
from comfy_worker.templates import Templates
from comfy_worker.webhook import Message, Sender, SystemEvents

logger = logging.getLogger(__name__)


class Web(Protocol):
    """
    What a worker on the web has beside the rest.
    """

    webhooks: Sender
    shelf: Shelf | None
    events: SystemEvents | None

    def admit_webhook(self, url: str, field: str) -> None:
        """
        Return if a webhook may be posted to, else raise `JobInvalid`.
        """


class SaladWorker(http.Worker, Protocol):
    """
    A worker as this face needs it.
    """

    catalog: Callable[[str], Mapping[str, Any]]
    socket: EventSocket
    web: Web

    @property
    def templates(self) -> Templates:
        """
        The worker's templates.
        """

    def warm_up(self) -> bool:
        """
        Run the warm-up, if there is one; blocks. False: it failed, and the worker must not go on.
        """


def app_of(worker: SaladWorker) -> FastAPI:
    """
    Return the application: the API of comfyui-api over a worker.
    """
    config = worker.settings
    events = _events(worker)
    rules = rules_of(config)
    face = SaladFace(
        rules,
        partial(_around, worker, rules.trust),
        partial(_send, worker.web.webhooks),
        worker.web.admit_webhook,
        events,
    )
    library = Library(worker.engine.client, worker.web.shelf, rules.trust, rules.bucket)
    depth = lambda: worker.pool.busy  # noqa: E731
    api = salad_routes.Api(face, library, worker.templates, depth, config.max_queue_depth)
    start = Start(worker, api.warmed)
    app = create_app(
        worker,
        title="ComfyUI API",
        description=salad_docs.DESCRIPTION,
        bearer=config.server_api_key,
        max_body_bytes=int(config.max_body_size_mb * MEGABYTE),
        routers=[salad_routes.router_of(api), salad_docs.router_of()],
        render=salad_routes.render,
        openapi_path="/docs/json",
        on_start=[start.begin],
        on_end=[start.end, api.end],
    )
    app.openapi = partial(  # type: ignore[method-assign]
        salad_docs.document, worker.templates, library.types, secured=config.server_api_key is not None
    )
    return app


def rules_of(config: Settings) -> Rules:
    """
    Return the operator's part of a request.
    """
    header = None
    if config.http_auth_header_name and config.http_auth_header_value:
        header = (config.http_auth_header_name, config.http_auth_header_value)
        if not config.http_auth_allowed_origins:
            logger.warning("HTTP_AUTH_HEADER_NAME goes nowhere: HTTP_AUTH_ALLOWED_ORIGINS names no origin.")
    account = _azure(config)
    azure = partial(azure_access.reading, account) if account is not None else None
    origins = frozenset(config.http_auth_allowed_origins)
    trust = Trust(header, origins, config.hf_token, config.aws_region, azure)
    return Rules(
        trust,
        _bucket(config),
        hf_endpoint=config.hf_endpoint,
        azure=account,
        timeout_s=config.job_timeout_s,
        prepend=config.prepend_filenames,
        strict=config.strict,
        comfy_org_api_key=config.comfy_org_api_key,
    )


def _azure(config: Settings) -> AzureAccount | None:
    return account_of(
        config.azure_storage_connection_string,
        config.azure_storage_account,
        config.azure_storage_key,
        config.azure_storage_sas_token,
    )


def _bucket(config: Settings) -> Bucket | None:
    if config.aws_region is None:
        return None
    return Bucket(
        config.aws_endpoint_url,
        config.aws_access_key_id or "",
        config.aws_secret_access_key or SecretStr(""),
        bucket="-",
        region=config.aws_region,
        session_token=config.aws_session_token,
        addressing_style="path",
        plain=True,
    )


def _around(worker: SaladWorker, trust: Trust, key: str, credentials: list[Credential]) -> Surroundings:
    return Surroundings(
        info=worker.catalog,
        auth=lambda url: resolved(url, credentials, trust),
        key=key,
        folders=_folders(worker.engine),
        prepend=worker.settings.prepend_filenames,
        roots=worker.settings.input_roots,
    )


def _folders(engine: Engine) -> dict[str, Path]:
    launch = engine.launch
    found = {"input": launch.input, "output": launch.output, "temp": launch.temp}
    return {name: folder for name, folder in found.items() if folder is not None}


def _send(sender: Sender, url: str, request_id: str, body: Mapping[str, Any]) -> None:
    sender.send(Message(url, orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), id=request_id))


def _events(worker: SaladWorker) -> ComfyEvents | None:
    is_salad = any(name.startswith("salad_") for name, _ in worker.settings.system_meta)
    if worker.web.events is None and not is_salad:
        return None
    events = ComfyEvents(worker.web.events, DeletionCost() if is_salad else None)
    worker.socket.tap = events
    return events
