"""
One template: parameters in, a workflow and the files it reads out.

Where its graph comes from is in `declared` (YAML) and `code` (Python); what is done with any parameters is here.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from comfy_worker import graph
from comfy_worker.errors import JobInvalid, WorkerError
from comfy_worker.job import InputFile, Workflow
from comfy_worker.templates.fields import FileMark, SeedMark, draw, input_file, mark_of
from comfy_worker.templates.wording import refusal

logger = logging.getLogger(__name__)

UNKNOWN_SHOWN = 20

Make = Callable[[BaseModel], Any]
"""Checked parameters, files given by the names the workflow is to use -> the graph."""


@dataclass(frozen=True, slots=True)
class Built:
    """
    A workflow made from parameters. `inputs` are the files that came with them, already named in the workflow.

    `params` are all parameters with their defaults and drawn seeds, as they were given; `echo` the same without
    the content of files (a file that was sent inline is left out).
    """

    workflow: Workflow
    inputs: tuple[InputFile, ...]
    params: Mapping[str, Any]
    echo: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """
    A named workflow. `model` is the pydantic model of its parameters: fields of an API and its documentation.

    `graph` is the graph with nothing filled in, None where Python makes it.
    """

    name: str
    model: type[BaseModel]
    make: Make
    summary: str = ""
    description: str = ""
    version: str = ""
    tags: tuple[str, ...] = ()
    source: str = ""
    graph: Workflow | None = None

    def schema(self) -> dict[str, Any]:
        """
        Return the JSON schema of the parameters.
        """
        return self.model.model_json_schema()

    def build(self, params: Any, field: str = "params", *, seed_of: str | None = None) -> Built:
        """
        Make the workflow for `params`, an object; a null counts as absent.

        `field` is where they stand in the request, for messages. With `seed_of`, seeds are drawn by that text and the
        name of the parameter: the same job sent twice stays the same job.

        Raises:
            JobInvalid: a parameter is missing or wrong, or the template's own code refuses them; `details["field"]`.
        """
        if params is None:
            params = {}
        if not isinstance(params, Mapping):
            raise JobInvalid(f"'{field}' must be an object, not {graph.kind_of(params)}", field=field)
        given = {str(name): value for name, value in params.items() if value is not None}
        marks = {name: mark_of(info) for name, info in self.model.model_fields.items()}
        for name, mark in marks.items():
            if isinstance(mark, SeedMark) and name not in given and self._is_drawn(name):
                given[name] = draw(None if seed_of is None else f"{self.name}\0{name}\0{seed_of}")
        checked = self._checked(given, field)
        values = {name: getattr(checked, name) for name in marks}
        files = {
            name: file
            for name, mark in marks.items()
            if isinstance(mark, FileMark)
            and isinstance(values[name], str)
            and (file := input_file(values[name], f"{field}.{name}", mark)) is not None
        }
        named = checked.model_copy(update={name: file.name for name, file in files.items()})
        shown = checked.model_dump(mode="json")
        return Built(
            graph.check_shape(self._made(named, field)),
            tuple(files.values()),
            shown,
            {key: value for key, value in shown.items() if key not in files or files[key].url is not None},
            self._warnings(given, field),
        )

    def _is_drawn(self, name: str) -> bool:
        # A seed with a default of its own is not drawn.
        return self.model.model_fields[name].default_factory is draw

    def _checked(self, given: Mapping[str, Any], field: str) -> BaseModel:
        try:
            return self.model.model_validate(given)
        except ValidationError as exc:
            raise refusal(exc, field) from None

    def _made(self, params: BaseModel, field: str) -> Any:
        try:
            return self.make(params)
        except WorkerError:
            raise
        except ValueError as exc:
            raise JobInvalid(f"Failed to generate workflow prompt: {exc}", field=field) from exc
        except Exception as exc:
            logger.exception("The template '%s' failed.", self.name)
            text = f"Failed to generate workflow prompt: template '{self.name}' failed; the worker's log has the reason"
            raise JobInvalid(text, field=field) from exc

    def _warnings(self, given: Mapping[str, Any], field: str) -> tuple[str, ...]:
        known = {name for key, info in self.model.model_fields.items() for name in (key, info.alias)}
        strange = (name[:60] for name in given if name not in known)
        return tuple(
            f"Unknown parameter '{field}.{name}' was ignored; template '{self.name}' does not have it."
            for name in islice(strange, UNKNOWN_SHOWN)
        )
