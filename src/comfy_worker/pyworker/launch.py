"""
Run the PyWorker by its path in another Python, which has the SDK and not this package: nothing else of the folder that
the package lies in gets on the path there, such as packages for another version.
"""

import importlib.util
import os
import sys
from pathlib import Path


def program(package: Path, folder: Path) -> int:
    """
    Be the PyWorker whose package `comfy_worker` lies at `package`; `folder` is the worker program's.
    """
    spec = importlib.util.spec_from_file_location(
        "comfy_worker", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfy_worker"] = module
    spec.loader.exec_module(module)
    from comfy_worker.pyworker import program as pyworker

    return pyworker.main(sys.argv[1:], os.environ, folder)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have names of their own
    raise SystemExit(program(Path(__file__).resolve().parents[1], Path()))
