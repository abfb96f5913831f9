"""
Requests made by schemathesis from the OpenAPI document of the Vast face.
"""

import pytest
from schemathesis import GenerationMode
from support.made_requests import MODES, hold
from support.vast_fixtures import ServeVast

EXAMPLES = 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=["right", "wrong"])
def test_document_of_vast_holds_for_generated_requests(serve_vast: ServeVast, mode: GenerationMode) -> None:
    """No request may lead to a 5xx, a hang, or a status, type or shape that the document does not name."""
    served = serve_vast(allow_private_urls=False)

    tried = hold(f"{served.url}/openapi.json", mode, EXAMPLES)

    assert {"POST /generate/sync", "POST /cancel", "POST /result"} <= tried
