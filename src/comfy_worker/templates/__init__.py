"""
Templates: named workflows with typed parameters. A face asks `Templates` for one and `build`s a workflow from it.

    templates = Templates.load([shipped(), folder])      # later folders win; one bad file never stops the others
    template = templates.get("sd15/text-to-image")       # JobInvalid names the known ones
    template.model, template.schema()                    # a pydantic model of the parameters, and its JSON schema
    built = template.build({"prompt": "a cat"}, "input") # JobInvalid: "'input.width' must be at most 2048, not 4096"
    built.workflow, built.inputs, built.params, built.echo, built.warnings

Authors of Python templates write `Parameters` with `Image`, `File` and `Seed` from here.
"""

from comfy_worker.templates.fields import File, Image, Seed
from comfy_worker.templates.load import Problem, Templates, shipped
from comfy_worker.templates.template import Built, Template

__all__ = ["Built", "File", "Image", "Problem", "Seed", "Template", "Templates", "shipped"]
