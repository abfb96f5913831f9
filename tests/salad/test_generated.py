"""
Requests made by schemathesis from the OpenAPI document of the Salad face.
"""

from pathlib import Path

import pytest
from conftest import launch_of
from schemathesis import GenerationMode
from support.made_requests import MODES, hold
from support.salad_fixtures import ServeSalad

from comfy_worker.standin.thread import EngineThread

EXAMPLES = 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=["right", "wrong"])
def test_document_of_salad_holds_for_generated_requests(
    serve_salad: ServeSalad, engine: EngineThread, tmp_path: Path, mode: GenerationMode
) -> None:
    """No request may lead to a 5xx, a hang, or a status, type or shape that the document does not name."""
    # Addresses are judged before anything is sent, so no made-up webhook or input leaves the machine.
    served = serve_salad(launch_of(engine), allow_private_urls=False)

    tried = hold(f"{served.url}/docs/json", mode, EXAMPLES)

    assert {"POST /prompt", "POST /download", "POST /interrupt"} <= tried
