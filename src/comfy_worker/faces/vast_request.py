"""
A request of the Vast face -> `Order`: a job for the pipeline, and what its replies need. Pure, but for chance.
"""

import hashlib
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from comfy_worker import graph, inline, kinds
from comfy_worker.errors import JobInvalid
from comfy_worker.faces import vast_delivery
from comfy_worker.faces.vast_body import checked, unwrapped
from comfy_worker.faces.vast_delivery import Rules
from comfy_worker.faces.vast_models import (
    LONGEST_TIMEOUT_S,
    RAW,
    SHORTEST_TIMEOUT_S,
    GenerateInput,
    GenerateRequest,
)
from comfy_worker.job import InputFile, Job, Workflow
from comfy_worker.templates import Template, Templates

RANDOM = "__RANDOM_INT__"
HIGHEST = 2**32 - 1
SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
TEXT_TO_IMAGE = "Text2Image"
FEWEST_CHARS = 88
NAMES_SHOWN = 20

Info = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Hook:
    """
    Who is told of the result, and how the message is signed.
    """

    url: str
    place: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    secret: str = field(default="", repr=False)
    timeout_s: float = 30.0
    is_trusted: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """
    A request, translated. `id` is the caller's, `job.id` what files and keys are named after; `fingerprint` tells two bodies apart.

    `includes` says whether ComfyUI's record goes into the result, where the request says so at all.
    """

    id: str
    job: Job
    fingerprint: str
    as_base64: bool = False
    includes: bool | None = None
    is_detached: bool = False
    hook: Hook | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def to_order(raw: Any, rules: Rules, templates: Templates, info: Info, *, as_base64: bool = False) -> Order:
    """
    Translate the body of `/generate` and its sisters; `as_base64` is what a header asked for.

    Raises:
        JobInvalid: a field is missing, wrong, or not possible here.
    """
    given = checked(GenerateRequest, unwrapped(raw)).input
    return order_of(given, _workflow(given, templates), rules, info, as_base64=as_base64)


Made = tuple[Workflow, tuple[InputFile, ...], tuple[str, ...]]
"""A graph, the files that came with its parameters, and warnings."""


def order_of(given: GenerateInput, made: Made, rules: Rules, info: Info, *, as_base64: bool = False) -> Order:
    """
    Return the order for a graph that is there already.

    Raises:
        JobInvalid: as `to_order`.
    """
    wants = as_base64 or given.return_outputs_as_base64
    fingerprint = _fingerprint(given, wants)
    name = given.request_id or str(uuid.uuid4())
    key = key_of(name)
    workflow, files, warnings = made
    workflow, inputs = _with_files(drawn(workflow), info, key, all_urls=rules.all_urls)
    job = Job(
        key,
        workflow,
        (*files, *inputs),
        vast_delivery.delivery_of(given.s3, key, as_base64=wants, rules=rules),
        rules.timeout_s,
        rules.strict,
        comfy_org_api_key=rules.comfy_org_api_key,
        warnings=warnings,
        temp_if_alone=True,
    )
    return Order(
        name,
        job,
        fingerprint,
        wants,
        given.include_comfyui_response,
        given.detach,
        _hook(given, rules),
        tuple(_secrets(given)),
    )


def _fingerprint(given: GenerateInput, wants: bool) -> str:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    try:
        return hashlib.sha256(orjson.dumps([given.model_dump(), wants], option=options)).hexdigest()
    except TypeError:
        raise _too_deep() from None


def _too_deep() -> JobInvalid:
    return JobInvalid(f"'input' cannot be used: {graph.NOT_JSON}.", field="input")


def key_of(request_id: str) -> str:
    """
    Return what stands for an id in paths and keys: itself where it is harmless, else a hash.
    """
    if SAFE_ID.fullmatch(request_id):
        return request_id
    return f"id-{hashlib.sha256(request_id.encode(errors='replace')).hexdigest()[:32]}"


def _workflow(given: GenerateInput, templates: Templates) -> Made:
    raw: Any = given.workflow_json
    if given.modifier == RAW and not raw:
        raw = given.modifications.get("workflow_json")
        if not isinstance(raw, dict):
            return _built(template_of(templates, TEXT_TO_IMAGE), given.modifications)
    if raw:
        return graph.check_shape(raw), (), ()
    return _built(template_of(templates, given.modifier), given.modifications)


def template_of(templates: Templates, name: str) -> Template:
    """
    Return a modifier's template, by its exact name, else without regard to case.

    Raises:
        JobInvalid: there is none; the known ones are named.
    """
    found = templates.by_name.get(name)
    if found is None:
        found = next((item for key, item in templates.by_name.items() if key.lower() == name.lower()), None)
    if found is None:
        known = ", ".join([RAW, *templates.names()][:NAMES_SHOWN])
        text = f"Unknown modifier: {name[:80]}. Known ones: {known}"
        raise JobInvalid(text, field="input.modifier")
    return found


def _built(template: Template, modifications: Mapping[str, Any]) -> Made:
    if not graph.is_json(modifications):
        raise _too_deep()
    built = template.build(drawn(modifications), "input.modifications")
    return built.workflow, built.inputs, built.warnings


def drawn(value: Any) -> Any:
    """
    Return a copy with every `__RANDOM_INT__` drawn: a number where it is the whole text, digits inside a longer one.
    """
    if isinstance(value, dict):
        return {key: drawn(item) for key, item in value.items()}
    if isinstance(value, list):
        return [drawn(item) for item in value]
    if not isinstance(value, str) or RANDOM not in value:
        return value
    number = secrets.randbelow(HIGHEST + 1)
    return number if value == RANDOM else value.replace(RANDOM, str(number))


def _with_files(
    workflow: Workflow, info: Info, key: str, *, all_urls: bool
) -> tuple[Workflow, tuple[InputFile, ...]]:
    """
    Turn base64 in inputs that name files into files; with `all_urls` every text that is a URL and no prose too.

    URLs and data URIs in inputs that name files need nothing here: the stage finds them.
    """
    files: list[InputFile] = []

    def edit(place: graph.Place) -> str:
        value, class_type = place.value, workflow[place.node_id]["class_type"]
        is_url = all_urls and value.lower().startswith(graph.URL_SCHEMES[:2]) and graph.is_remote(value)
        if not is_url and not _may_be_base64(value):
            return value
        names_file = (class_type, place.input_name) in graph.FILE_INPUTS or graph.names_a_file(
            place.input_name, info(class_type)
        )
        if is_url and (names_file or graph.is_prose(place.input_name, info(class_type))):
            return value
        if not is_url and not (names_file and _is_base64(value)):
            return value
        name = f"cwreq-{key[:40]}-{uuid.uuid4().hex[:12]}"
        files.append(
            InputFile(name, place.field, data=None if is_url else value, url=value if is_url else None)
        )
        return name

    return graph.replaced(workflow, edit), tuple(files)


def _may_be_base64(value: str) -> bool:
    return len(value) >= FEWEST_CHARS and value[:5].lower() != "data:" and "://" not in value[:16]


def _is_base64(value: str) -> bool:
    head = inline.head_of(value)
    return head is not None and kinds.extension_by_bytes(head) is not None


def _hook(given: GenerateInput, rules: Rules) -> Hook | None:
    secret = rules.webhook_secret.get_secret_value() if rules.webhook_secret is not None else ""
    block = given.webhook
    if block is not None and block.url:
        timeout = min(max(block.timeout, SHORTEST_TIMEOUT_S), LONGEST_TIMEOUT_S)
        return Hook(
            block.url,
            "input.webhook.url",
            block.extra_params,
            block.secret or secret,
            float(timeout),
            block.url == rules.sessions_url,
        )
    if rules.webhook_url is not None:
        own = block.secret if block is not None else ""
        return Hook(rules.webhook_url, "WEBHOOK_URL", {}, own or secret, rules.webhook_timeout_s, True)
    return None


def _secrets(given: GenerateInput) -> Iterator[str]:
    if given.s3 is not None:
        yield from (given.s3.access_key_id, given.s3.secret_access_key)
    if given.webhook is not None:
        yield given.webhook.secret
