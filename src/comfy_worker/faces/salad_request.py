"""
A request of the Salad face -> `Order`: a job for the pipeline and what the replies need. Pure, see `salad_graph`.
"""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from comfy_worker import graph
from comfy_worker.errors import JobInvalid
from comfy_worker.faces import salad_graph
from comfy_worker.faces.salad_delivery import Rules, block_of, delivery_of, echo_of
from comfy_worker.faces.salad_graph import Spot, Surroundings
from comfy_worker.faces.salad_models import (
    Credential,
    Options,
    PromptRequest,
    Strict,
    WorkflowRequest,
)
from comfy_worker.job import InputFile, Job
from comfy_worker.templates import Template

Model = TypeVar("Model", bound=Strict)

Around = Callable[[list[Credential]], Surroundings]
"""The credentials of a request -> what its graph is read with."""

TAGS = frozenset(
    {
        *("none", "str", "bool", "bearer", "basic", "header", "query", "s3", "dict[str,any]"),
        *("ConvertOutput", "S3Upload", "HfUpload", "AzureBlobUpload", "HttpUpload"),
    }
)
"""What pydantic puts between the steps of a path when a value may be of several types."""

NOT_JSON = "Body is not valid JSON but content-type is set to 'application/json'"
MOST_REASONS = 10


class RequestInvalid(JobInvalid):
    """
    The body does not fit its schema; details: `field` and `reason`, the sentence that stands as `message` in the reply.
    """


@dataclass(frozen=True, slots=True)
class Order:
    """
    A request, translated. `prompt` is the graph with what stands for its files, `echo` what the replies repeat.

    `spots` says where each input file stood, by the `field` of its `InputFile`.
    """

    id: str
    job: Job
    echo: Mapping[str, Any]
    spots: Mapping[str, Spot] = field(default_factory=dict)
    webhook: str | None = None
    webhook_v2: str | None = None
    is_async: bool = False


def decoded(body: bytes) -> Any:
    """
    Return the JSON of a body.

    Raises:
        RequestInvalid: it is not JSON.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        raise RequestInvalid(NOT_JSON, field="body", reason=NOT_JSON) from None


def checked(model: type[Model], raw: Any) -> Model:
    """
    Return a body as the model of its route.

    Raises:
        RequestInvalid: it does not fit; every place is named.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as exc:
        raise _misfit(exc) from None


def _misfit(exc: ValidationError) -> RequestInvalid:
    reasons: dict[str, str] = {}
    for item in exc.errors(include_url=False, include_input=False):
        if item["type"] == "none_required":
            continue
        reason = "Required" if item["type"] == "missing" else item["msg"]
        reasons.setdefault(".".join(_path(item["loc"])), reason)
    return misfit(reasons)


def misfit(reasons: Mapping[str, str]) -> RequestInvalid:
    """
    Return the refusal of a body, from the reasons by dotted path.
    """
    shown = list(reasons.items())[:MOST_REASONS]
    text = ", ".join(
        f"body/{path.replace('.', '/')} {reason}" if path else f"body {reason}" for path, reason in shown
    )
    return RequestInvalid(text, field=shown[0][0] or "body", reason=text)


def _path(loc: Sequence[str | int]) -> list[str]:
    parts = [str(part) for part in loc]
    free = 2 if parts[:1] in (["prompt"], ["input"]) else 1
    return [
        *parts[:free],
        *(part for part in parts[free:] if part not in TAGS and not part.startswith("list[")),
    ]


def to_order(raw: Any, rules: Rules, around: Around) -> Order:
    """
    Translate the body of /prompt.

    Raises:
        JobInvalid: a field is missing, wrong or not possible here; `details["field"]` is the dotted path.
    """
    request = checked(PromptRequest, raw)
    prompt = {
        node_id: node.model_dump(by_alias=True, exclude_none=True) for node_id, node in request.prompt.items()
    }
    return order_of(prompt, request, rules, around)


def from_template(
    template: Template, request: WorkflowRequest, rules: Rules, around: Around
) -> tuple[Order, Mapping[str, Any]]:
    """
    Translate the body of /workflow/...; return the order, and `input` with its defaults.

    Raises:
        JobInvalid: as `to_order`, or a parameter is missing or wrong.
    """
    try:
        built = template.build(request.input, "input")
    except RequestInvalid:
        raise
    except JobInvalid as exc:
        text = str(exc)
        if text.startswith("Failed to generate"):
            raise
        path = str(exc.details.get("field") or "input")
        reason = re.sub(rf"^'{re.escape(path)}' ", "", text)
        raise misfit({path: reason}) from exc
    inputs = []
    for file in built.inputs:
        url, auth = around(request.credentials or []).auth(file.url) if file.url else (None, None)
        inputs.append(replace(file, url=url, auth=auth))
    prompt = {str(node_id): dict(node) for node_id, node in built.workflow.items()}
    order = order_of(prompt, request, rules, around, tuple(inputs))
    return order, built.echo


def order_of(
    prompt: Mapping[str, Any],
    options: Options,
    rules: Rules,
    around: Around,
    inputs: tuple[InputFile, ...] = (),
) -> Order:
    """
    Translate a graph with the options beside it, and files that are named in it already.

    Raises:
        JobInvalid: as `to_order`.
    """
    for node_id, node in prompt.items():
        if not isinstance(node.get("inputs"), dict):
            raise misfit({f"prompt.{node_id}.inputs": "Required, an object"})
        if not graph.is_json([[node]]):
            raise misfit({f"prompt.{node_id}": f"cannot be sent to ComfyUI: {graph.NOT_JSON}"})
    request_id = options.id if options.id is not None else str(uuid.uuid4())
    echo = echo_of(request_id, options)
    delivery = delivery_of(options, rules)
    reading = salad_graph.read(prompt, request_id, around(options.credentials or []))
    job = Job(
        id=request_id or "-",
        workflow=reading.prompt,
        inputs=(*inputs, *reading.inputs),
        delivery=delivery,
        timeout_s=rules.timeout_s,
        strict=rules.strict,
        comfy_org_api_key=rules.comfy_org_api_key,
        reads=rules.bucket,
    )
    webhook, webhook_v2 = options.webhook or None, options.webhook_v2 or None
    block = block_of(options)
    is_async = bool(webhook or webhook_v2 or (block is not None and block[1].is_async))
    spots = {file.field: Spot("file", "", file.field) for file in inputs} | reading.spots
    return Order(request_id, job, echo, spots, webhook, webhook_v2, is_async)
