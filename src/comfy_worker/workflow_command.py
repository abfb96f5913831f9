"""
`comfy-worker workflow`: its commands and options. What they do is in `workflows`, imported only when one is called.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Templates: named workflows with typed parameters.", no_args_is_help=True)

Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="Folder of templates, instead of WORKFLOW_DIR and those that come along."),
]


@app.command()
def new(
    workflow: Annotated[Path, typer.Argument(metavar="GRAPH.JSON", help="A workflow in API format.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Name or path of the template; by default beside the graph."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """
    Write the YAML of a template by finding the prompts, seeds, sizes, models and images of a graph.
    """
    from comfy_worker import workflows

    workflows.new(workflow, output, force=force)


@app.command("list")
def list_(folder: Folder = None) -> None:
    """
    List the templates that a worker would serve.
    """
    from comfy_worker import workflows

    workflows.list_all(workflows.templates_of(os.environ, folder))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a template.")],
    folder: Folder = None,
    as_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the parameters.")
    ] = False,
) -> None:
    """
    Show one template and its parameters.
    """
    from comfy_worker import workflows

    workflows.show(workflows.templates_of(os.environ, folder), name, as_schema=as_schema)


@app.command()
def check(
    folder: Folder = None,
    url: Annotated[
        str, typer.Option("--url", help="Address of a running ComfyUI that judges the graphs too.")
    ] = "",
) -> None:
    """
    Load every template and say what is wrong; exit code 1 when something is.
    """
    from comfy_worker import workflows

    workflows.check(workflows.templates_of(os.environ, folder), url)
