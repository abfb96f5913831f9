"""
What a face says of itself: the OpenAPI document and the page that shows it.
"""

import re

from support.served import Served


def test_page_of_the_api_loads_nothing_from_elsewhere(served: Served) -> None:
    """The page must work where no other host can be reached, and show the document of this server."""
    page = served.get("/docs")

    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.text) == []
    assert 'fetch("openapi.json")' in page.text


def test_document_names_what_all_faces_answer(served: Served) -> None:
    """Every operation must name its refusals by a status that is really used, and none FastAPI's own 422."""
    document = served.get("/openapi.json").json()
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }

    assert {"/run", "/runsync", "/status/{job_id}", "/jobs/{job_id}/events"} <= set(document["paths"])
    assert not [key for key, operation in operations.items() if "422" in operation["responses"]]
    assert {"200", "400", "408", "413", "503"} <= set(operations["post", "/runsync"]["responses"])
    assert "404" in operations["get", "/status/{job_id}"]["responses"]
    assert "/v2/{endpoint}/run" not in document["paths"]
