"""
A template written as data: a YAML of typed parameters beside a graph in API format.

    summary: Text to image
    parameters:
      width: {type: int, default: 512, min: 16, max: 2048, step: 8, bind: 5.inputs.width}
    graph: other.json            # optional: the JSON file of the same name otherwise; or the graph itself
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from comfy_worker import graph
from comfy_worker.errors import JobInvalid
from comfy_worker.job import Workflow
from comfy_worker.templates.fields import SEED_MAX, FileMark, SeedMark, draw
from comfy_worker.templates.template import Template
from comfy_worker.templates.wording import sentence

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
INPUTS = ".inputs."
NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
UNSET = object()


class Parameter(BaseModel):
    """
    One parameter as its YAML declares it. `min`, `max` and `step` are bounds of a number; `max` of a text is its length.

    `bind` is one place or several: `<node id>.inputs.<input>`. Without `default` the graph's own value is the default.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["int", "float", "str", "bool", "enum", "image", "file", "seed"]
    bind: list[StrictStr] = Field(min_length=1)
    description: StrictStr = ""
    default: Scalar | None = None
    required: StrictBool = False
    min: StrictInt | StrictFloat | None = None
    max: StrictInt | StrictFloat | None = None
    step: StrictInt | StrictFloat | None = Field(None, gt=0)
    choices: list[Scalar] = []

    @field_validator("bind", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        bounds = {name for name in ("min", "max", "step") if getattr(self, name) is not None}
        allowed = {"int": {"min", "max", "step"}, "float": {"min", "max", "step"}, "seed": {"min", "max"}}
        if strange := bounds - allowed.get(self.type, {"max"} if self.type == "str" else set()):
            raise ValueError(f"'{min(strange)}' means nothing for the type {self.type}")
        if (self.type == "enum") != bool(self.choices):
            raise ValueError("'choices' belongs to the type enum, which needs it")
        if self.required and self.default is not None:
            raise ValueError("'default' means nothing for a required parameter")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("'min' is larger than 'max'")
        return self


class Declaration(BaseModel):
    """
    The whole YAML.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    summary: str = ""
    description: str = ""
    version: str = ""
    tags: list[str] = []
    graph: str | dict[str, Any] | None = None
    parameters: dict[Annotated[str, Field(pattern=f"^{NAME}$")], Parameter] = {}


def declaration(raw: Any) -> Declaration:
    """
    Read what a YAML holds.

    Raises:
        ValueError: it is no declaration; the text names the place.
    """
    try:
        return Declaration.model_validate(raw)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        raise ValueError("; ".join(sentence(error, "template") for error in errors[:5])) from None


def template_of(name: str, declared: Declaration, workflow: Any, source: str = "") -> Template:
    """
    Put a declaration and its graph together.

    Raises:
        ValueError: the graph is none, a parameter is bound to what is not in it, or its default breaks its bounds.
    """
    try:
        checked = graph.check_shape(workflow)
    except JobInvalid as exc:
        raise ValueError(str(exc)) from exc
    fields: dict[str, Any] = {}
    places: dict[str, list[tuple[str, str]]] = {}
    for key, parameter in declared.parameters.items():
        try:
            places[key] = [_place(text, checked) for text in parameter.bind]
            fields[key] = _field(parameter, _value_at(checked, places[key][0]))
        except ValueError as exc:
            raise ValueError(f"parameter '{key}': {exc}") from exc
    _refuse_shared(places)
    model = cast(
        type[BaseModel],
        create_model(_title(name), __config__=ConfigDict(extra="ignore", protected_namespaces=()), **fields),
    )
    return Template(
        name,
        model,
        partial(bound, checked, places),
        summary=declared.summary,
        description=declared.description,
        version=declared.version,
        tags=tuple(declared.tags),
        source=source,
        graph=checked,
    )


def bound(
    workflow: Workflow, places: Mapping[str, list[tuple[str, str]]], params: BaseModel
) -> dict[str, Any]:
    """
    Return a copy of the graph with the parameters at their places.
    """
    copy = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in workflow.items()}
    for key, targets in places.items():
        for node_id, input_name in targets:
            copy[node_id]["inputs"][input_name] = getattr(params, key)
    return copy


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in "".join(c if c.isalnum() else " " for c in name).split())


def _place(text: str, workflow: Workflow) -> tuple[str, str]:
    # An input's name may have dots in it, and so may a node's id: the first `.inputs.` divides them.
    node_id, found, input_name = text.partition(INPUTS)
    if not found or not input_name:
        raise ValueError(f"'{text}' must be '<node id>.inputs.<input>'")
    if node_id not in workflow:
        raise ValueError(f"'{text}': the graph has no node '{node_id}'")
    inputs = workflow[node_id]["inputs"]
    if input_name not in inputs:
        raise ValueError(
            f"'{text}': node '{node_id}' ({workflow[node_id]['class_type']}) has no input '{input_name}' in the graph"
        )
    if isinstance(inputs[input_name], list):
        raise ValueError(
            f"'{text}' is a link to node '{inputs[input_name][0] if inputs[input_name] else ''}', not a value"
        )
    return node_id, input_name


def _value_at(workflow: Workflow, place: tuple[str, str]) -> Any:
    return workflow[place[0]]["inputs"][place[1]]


def _refuse_shared(places: Mapping[str, list[tuple[str, str]]]) -> None:
    taken: dict[tuple[str, str], str] = {}
    for key, targets in places.items():
        for place in targets:
            if place in taken:
                raise ValueError(
                    f"'{INPUTS.join(place)}' is bound to both '{taken[place]}' and '{key}': only one can set it"
                )
            taken[place] = key


def _whole(value: Any) -> Any:
    # JSON writers that know one kind of number send 512.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _annotation(parameter: Parameter) -> Any:
    low, high, step = parameter.min, parameter.max, parameter.step
    types: dict[str, Any] = {
        "int": Annotated[StrictInt, Field(ge=low, le=high, multiple_of=step), BeforeValidator(_whole)],
        "float": Annotated[StrictFloat, Field(ge=low, le=high, multiple_of=step, allow_inf_nan=False)],
        "seed": Annotated[
            StrictInt,
            Field(ge=low or 0, le=SEED_MAX if high is None else high),
            BeforeValidator(_whole),
            SeedMark(),
        ],
        "str": Annotated[StrictStr, Field(max_length=None if high is None else int(high))],
        "bool": StrictBool,
        "image": Annotated[StrictStr, Field(min_length=1), FileMark(must_be_image=True)],
        "file": Annotated[StrictStr, Field(min_length=1), FileMark(must_be_image=False)],
    }
    if parameter.type == "enum":
        return Literal[tuple(parameter.choices)]
    return types[parameter.type]


def _field(parameter: Parameter, own: Any) -> tuple[Any, Any]:
    """
    Return the type and the field of one parameter for pydantic; `own` is the graph's value at its place.
    """
    annotation, text = _annotation(parameter), parameter.description
    if parameter.required:
        return annotation, Field(description=text)
    if parameter.type == "seed" and parameter.default is None:
        note = "drawn by chance when absent"
        return annotation, Field(default_factory=draw, description=f"{text} ({note})" if text else note)
    default = own if parameter.default is None else parameter.default
    try:
        checked = TypeAdapter(annotation).validate_python(default)
    except ValidationError as exc:
        where = "the graph's own value" if parameter.default is None else "default"
        raise ValueError(f"{where}: {sentence(exc.errors(include_url=False)[0], 'default')}") from exc
    return annotation, Field(default=checked, description=text)
