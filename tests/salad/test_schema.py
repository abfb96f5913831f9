"""
Our OpenAPI document against the peer's: nothing more may be demanded, nothing that clients read may be missing.

`contracts/salad/openapi.json` holds the parts that matter of the document of SaladTechnologies/comfyui-api 1.18.0, without
its descriptions; its licence stands beside it. What differs is in `ON_PURPOSE`, each with its reason.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.salad_fixtures import ServeSalad
from support.served import Served

CONTRACT = json.loads((Path(__file__).parent.parent / "contracts" / "salad" / "openapi.json").read_text())
ROUTES = sorted(CONTRACT)

# (route, path in the schema, what differs) -> why.
ON_PURPOSE = {
    ("GET /health", "response.200.version", "enum"): "our version is another number",
    ("GET /health", "response.500.version", "enum"): "our version is another number",
    ("GET /ready", "response.200.version", "enum"): "our version is another number",
    ("GET /ready", "response.503.version", "enum"): "our version is another number",
    ("POST /prompt", "request.id", "default"): "no random default in a document (S85)",
    (
        "POST /prompt",
        "request.convert_output.options.quantisationTable",
        "type",
    ): "a whole number, as documented (S54)",
}


def resolved(document: Any, schema: Any) -> Any:
    """
    Return a schema with its references followed.
    """
    if isinstance(schema, list):
        return [resolved(document, item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        found = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return resolved(document, {**found, **{key: value for key, value in schema.items() if key != "$ref"}})
    made = {key: resolved(document, value) for key, value in schema.items()}
    if "allOf" in made:
        [only] = made.pop("allOf")
        made = {**only, **made}
    return made


def ours(document: Any, route: str) -> tuple[Any, dict[str, Any]]:
    """
    Return the request and the replies of one route of our document, in the form of the contract.
    """
    method, _, path = route.partition(" ")
    operation = document["paths"][path][method.lower()]

    def schema(part: Any) -> Any:
        return resolved(document, part["content"]["application/json"]["schema"])

    request = schema(operation["requestBody"]) if "requestBody" in operation else None
    return request, {status: schema(answer) for status, answer in operation["responses"].items()}


def variants(schema: Any) -> list[Any]:
    """
    Return the choices of a schema, or itself.
    """
    found = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return list(found)


def properties(schema: Any) -> dict[str, Any]:
    """
    Return all properties of a schema's choices.
    """
    return {name: part for choice in variants(schema) for name, part in choice.get("properties", {}).items()}


def demanded(schema: Any) -> set[str]:
    """
    Return what every choice of a schema requires.
    """
    return set.intersection(*(set(choice.get("required", ())) for choice in variants(schema)))


def differences(theirs: Any, mine: Any, path: str, *, is_request: bool) -> Iterator[tuple[str, str]]:
    """
    Yield where ours demands more, offers less, or says something else: (path, what).
    """
    known = properties(mine)
    wanted = demanded(mine) - demanded(theirs)
    if is_request and wanted:
        yield path, f"required {', '.join(sorted(wanted))}"
    missing = demanded(theirs) - demanded(mine)
    if not is_request and missing:
        yield path, f"not sure {', '.join(sorted(missing))}"
    for name, part in properties(theirs).items():
        here = f"{path}.{name}"
        if name not in known:
            yield here, "missing"
            continue
        if part.get("same as"):
            continue
        for key in ("type", "enum", "default"):
            if part.get(key) is not None and part.get(key) != known[name].get(key):
                yield here, key
        yield from differences(part, known[name], here, is_request=is_request)
        for inner in ("items", "additionalProperties"):
            if isinstance(part.get(inner), dict) and isinstance(known[name].get(inner), dict):
                yield from differences(part[inner], known[name][inner], here, is_request=is_request)


@pytest.fixture
def document(serve_salad: ServeSalad) -> Any:
    """
    Our OpenAPI document, as a client gets it.
    """
    return serve_salad().get("/docs/json").json()


def test_document_differs_on_purpose_only(document: Any) -> None:
    """No field of a request is newly required, no field of a reply is lost, and every difference has its reason."""
    found = set()
    for route in ROUTES:
        request, replies = ours(document, route)
        contract = CONTRACT[route]
        if "request" in contract:
            found |= {
                (route, *each)
                for each in differences(contract["request"], request, "request", is_request=True)
            }
        for status, schema in contract["responses"].items():
            schema = contract["responses"]["200"] if schema.get("same as") else schema
            parts = differences(schema, replies[status], f"response.{status}", is_request=False)
            found |= {(route, *each) for each in parts}

    assert sorted(found - set(ON_PURPOSE)) == []
    assert sorted(set(ON_PURPOSE) - found) == []


def test_replies_of_the_contract_are_really_sent(served: Served) -> None:
    """What the peer requires in a 200 of /prompt and its stats is there."""
    from support.pictures import empty_workflow

    schema = CONTRACT["POST /prompt"]["responses"]["200"]

    body = served.post("/prompt", {"prompt": empty_workflow(1)}).json()

    assert set(schema["required"]) <= set(body)
    stats = schema["properties"]["stats"]["properties"]
    assert set(stats) == set(body["stats"])
    assert set(stats["comfy_execution"]["required"]) <= set(body["stats"]["comfy_execution"])


def test_salad_s85_document_has_no_random_defaults_and_lists_errors(serve_salad: ServeSalad) -> None:
    """Two workers give one document, and each POST says how it is refused."""
    first, second = (serve_salad().get("/docs/json").json() for _ in range(2))

    assert first == second
    for path, item in first["paths"].items():
        if "post" in item:
            assert {"400", "413"} <= set(item["post"]["responses"]), path


@pytest.mark.slow
def test_document_is_served_in_both_forms_with_a_page(served: Served) -> None:
    """/docs is a page of the worker's own, /docs/json and /docs/yaml the same document."""
    page, as_json, as_yaml = served.get("/docs"), served.get("/docs/json"), served.get("/docs/yaml")

    assert page.headers["content-type"].startswith("text/html")
    assert as_json.json()["openapi"] == "3.0.0"
    assert as_yaml.headers["content-type"].startswith("application/x-yaml")
    assert yaml.safe_load(as_yaml.text) == as_json.json()


def test_document_holds_what_openapi_3_0_knows(document: Any) -> None:
    """No keyword of later versions is left: no `const`, no type null, no number as exclusive bound."""

    def walk(value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield key, item
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)

    for key, value in walk(document):
        assert key not in {"const", "$defs", "examples"}
        assert not (key == "type" and value == "null")
        assert not (key.startswith("exclusive") and not isinstance(value, bool))
        if key == "$ref":
            assert value.startswith("#/components/schemas/")
            assert value.rpartition("/")[2] in document["components"]["schemas"]
