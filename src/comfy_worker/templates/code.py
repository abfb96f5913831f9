"""
A template written in Python: a file with a pydantic model `Parameters` and a function `build(params) -> workflow`.

Such files run with the worker's rights: they are loaded from a folder that the operator names, never from a job.
"""

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from comfy_worker.templates.template import Template


def loaded(path: Path, name: str) -> Template:
    """
    Run a Python file and return its template.

    Raises:
        ValueError: it lacks `Parameters` or `build`.
        Exception: whatever the file itself raises.
    """
    module = _module(path)
    model, build = getattr(module, "Parameters", None), getattr(module, "build", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ValueError("it must define a pydantic model 'Parameters'")
    if not callable(build) or inspect.iscoroutinefunction(build):
        raise ValueError("it must define a function 'build(params)' that returns the workflow")
    about = inspect.getdoc(module) or ""
    summary, _, description = about.partition("\n")
    return Template(
        name,
        model,
        build,
        summary=str(getattr(module, "summary", summary)).strip(),
        description=str(getattr(module, "description", description)).strip(),
        version=str(getattr(module, "version", "")),
        tags=tuple(map(str, getattr(module, "tags", ()))),
        source=path.name,
    )


def _module(path: Path) -> ModuleType:
    # A name of its own, so that two files called the same do not meet.
    name = f"comfy_worker_template_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
