"""
What a request may hold, and how it is refused: one body for readers of every shape that the peer answers.
"""

from typing import Any

import pytest
import requests
from support.http_desk import HttpDesk
from support.pictures import empty_workflow, node
from support.salad_fixtures import ServeSalad
from support.served import Served

SECRET = "s3cr3t-of-the-caller"


def refused(served: Served, body: Any, status: int = 400) -> dict[str, Any]:
    """
    Post a body that must be refused; return the answer.
    """
    reply = served.post("/prompt", body)
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_salad_s15_null_of_an_optional_field_counts_as_absent(served: Served) -> None:
    """Every optional field may be null."""
    nulls = dict.fromkeys(
        ["id", "webhook", "webhook_v2", "convert_output", "credentials", "s3", "hf_upload", "http_upload"]
    )

    reply = served.post("/prompt", {"prompt": empty_workflow(1), **nulls})

    assert reply.status_code == 200, reply.text
    assert set(nulls) & set(reply.json()) == {"id"}


@pytest.mark.parametrize(
    ("body", "location"),
    [
        ({}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": {"9": {"inputs": {}}}}, "prompt.9.class_type"),
        ({"prompt": {"9": {"class_type": "A"}}}, "prompt.9.inputs"),
        ({"prompt": {"9": {"class_type": "A", "inputs": []}}}, "prompt.9.inputs"),
        ({"prompt": {}, "id": 4}, "id"),
        ({"prompt": {}, "convert_output": {"format": "gif"}}, "convert_output.format"),
        ({"prompt": {}, "http_upload": {}}, "http_upload.url_prefix"),
        ({"prompt": {}, "s3": {"bucket": "b", "async": "yes"}}, "s3.async"),
        (
            {"prompt": {}, "credentials": [{"url_pattern": "x", "auth": {"type": "bearer"}}]},
            "credentials.0.auth.token",
        ),
        (
            {"prompt": {}, "credentials": [{"url_pattern": "x", "auth": {"type": "magic"}}]},
            "credentials.0.auth",
        ),
    ],
)
def test_salad_s16_validation_names_path_and_reason(served: Served, body: Any, location: str) -> None:
    """A body that does not fit is a 400 with the old `error`, the dotted path and a reason."""
    answer = refused(served, body)

    assert (answer["error"], answer["statusCode"], answer["code"]) == (
        "Bad Request",
        400,
        "FST_ERR_VALIDATION",
    )
    assert answer["location"] == location
    assert answer["message"].startswith(f"body/{location.replace('.', '/')} ")


@pytest.mark.parametrize("body", [b"", b"{", b"[1,", b'{"prompt": NaN}', b'"\xff"'])
def test_body_that_is_no_json_is_refused(served: Served, body: bytes) -> None:
    """Malformed JSON is a 400 that says so."""
    reply = requests.post(f"{served.url}/prompt", data=body, timeout=10)

    assert reply.status_code == 400
    assert reply.json()["code"] == "FST_ERR_CTP_INVALID_JSON_BODY"
    assert reply.json()["error"] == "Bad Request"


def test_form_is_refused(served: Served) -> None:
    """A form-encoded body is a 415 in fastify's shape."""
    reply = requests.post(f"{served.url}/prompt", data={"a": "b"}, timeout=10)

    assert (reply.status_code, reply.json()["code"]) == (415, "FST_ERR_CTP_INVALID_MEDIA_TYPE")


def test_body_over_the_limit_is_refused(serve_salad: ServeSalad) -> None:
    """A body over MAX_BODY_SIZE_MB is a 413 in fastify's shape."""
    served = serve_salad(max_body_size_mb=0.01)

    reply = served.post("/prompt", {"prompt": {}, "id": "x" * 20_000})

    assert reply.status_code == 413
    assert reply.json() == {
        "statusCode": 413,
        "code": "FST_ERR_CTP_BODY_TOO_LARGE",
        "error": "Payload Too Large",
        "message": "Request body is too large",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nope"), ("GET", "/prompt"), ("OPTIONS", "/prompt"), ("POST", "/prompt/"), ("PUT", "/health")],
)
def test_unknown_route_and_wrong_method_are_404(served: Served, method: str, path: str) -> None:
    """There is no 405, and a slash at the end is another route."""
    reply = requests.request(method, served.url + path, timeout=10)

    assert reply.status_code == 404
    assert reply.json() == {
        "message": f"Route {method}:{path} not found",
        "error": "Not Found",
        "statusCode": 404,
    }


def test_salad_s17_prefix_that_is_a_link_counts_as_output(served: Served) -> None:
    """A save node whose prefix comes over a link is an output, and the link is left alone."""
    prompt = empty_workflow(2)
    prompt["5"] = node("PrimitiveString", value="linked")
    prompt["2"]["inputs"]["filename_prefix"] = ["5", 0]

    reply = served.post("/prompt", {"prompt": prompt})

    assert "Prompt must contain" not in reply.text
    assert reply.status_code == 200, reply.text
    assert reply.json()["filenames"] == ["linked_00001_.png"]


@pytest.mark.parametrize("prompt", [{}, {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}])
def test_graph_without_a_save_node_is_refused(served: Served, prompt: Any) -> None:
    """Nothing to save is a 400 with the peer's text."""
    answer = refused(served, {"prompt": prompt})

    text = 'Prompt must contain a node with a "filename_prefix" input, such as "SaveImage"'
    assert (answer["error"], answer["location"]) == (text, "prompt")


def test_save_node_that_does_not_save_is_no_output(served: Served) -> None:
    """`save_output: false` takes a node out of the count."""
    prompt = empty_workflow()
    prompt["2"]["inputs"]["save_output"] = False

    assert refused(served, {"prompt": prompt})["location"] == "prompt"


def test_salad_s18_secrets_are_in_no_echo(served: Served) -> None:
    """Credentials are echoed with their keys and patterns, and without any secret."""
    auths = [
        {"type": "bearer", "token": SECRET},
        {"type": "basic", "username": "ann", "password": SECRET},
        {"type": "header", "header_name": "X-Key", "header_value": SECRET},
        {"type": "query", "query_param": "sig", "query_value": SECRET},
        {"type": "s3", "access_key_id": "AK", "secret_access_key": SECRET, "region": "eu-west-1"},
    ]
    given = [{"url_pattern": f"https://{number}/**", "auth": auth} for number, auth in enumerate(auths)]

    reply = served.post("/prompt", {"prompt": empty_workflow(3), "credentials": given})

    assert reply.status_code == 200, reply.text
    assert SECRET not in reply.text
    echo = reply.json()["credentials"]
    assert [entry["url_pattern"] for entry in echo] == [entry["url_pattern"] for entry in given]
    assert [set(entry["auth"]) for entry in echo] == [set(auth) for auth in auths]
    assert echo[0]["auth"] == {"type": "bearer", "token": "[redacted]"}
    assert echo[4]["auth"]["region"] == "eu-west-1"


def test_salad_s18_secrets_are_in_no_webhook(served: Served, desk: HttpDesk) -> None:
    """The 202 and the webhook carry the redacted credentials too."""
    given = [{"url_pattern": "**", "auth": {"type": "bearer", "token": SECRET}}]
    body = {"prompt": empty_workflow(4), "credentials": given, "webhook_v2": f"{desk.url}/hook"}

    reply = served.post("/prompt", body)

    [hook] = desk.wait(1)
    assert reply.status_code == 202
    assert SECRET not in reply.text
    assert SECRET.encode() not in hook.body
    assert hook.json()["credentials"][0]["auth"]["token"] == "[redacted]"


@pytest.mark.parametrize(
    "block",
    [
        {"s3": {"bucket": "b", "prefix": ""}},
        {"hf_upload": {"repo": "a/b"}},
        {"azure_blob_upload": {"container": "c"}},
    ],
)
def test_salad_s20_storage_that_is_not_configured_is_refused(served: Served, block: Any) -> None:
    """A storage block that cannot be served is a 400 before anything is queued."""
    answer = refused(served, {"prompt": empty_workflow(5), **block})

    assert "not configured" in answer["error"]
    assert answer["location"] == next(iter(block))


@pytest.mark.parametrize("request_id", ["a/b", "../up", "a\\b", "a%date%b", "ü x", "", "x" * 300])
def test_salad_s25_id_is_made_safe_on_disk_only(served: Served, request_id: str) -> None:
    """Whatever the id holds, its file is returned and the id is echoed as it was sent."""
    reply = served.post("/prompt", {"id": request_id, "prompt": empty_workflow(6)})

    body = reply.json()
    assert reply.status_code == 200, body
    assert body["id"] == request_id
    [name] = body["filenames"]
    assert name.endswith("_out_00001_.png")
    assert not set("/\\%") & set(name)


def test_id_is_a_new_uuid_by_default(served: Served) -> None:
    """Two requests without an id have two."""
    ids = {served.post("/prompt", {"prompt": empty_workflow(7)}).json()["id"] for _ in range(2)}

    assert len(ids) == 2
    assert all(len(one) == 36 for one in ids)


def test_prefix_is_replaced_where_prepend_is_off(serve_salad: ServeSalad) -> None:
    """PREPEND_FILENAMES=false gives the names of the oldest versions."""
    served = serve_salad(prepend_filenames=False)

    body = served.post("/prompt", {"id": "old", "prompt": empty_workflow(8)}).json()

    assert body["filenames"] == ["old_00001_.png"]


def test_unknown_keys_of_nodes_and_requests_are_dropped(served: Served) -> None:
    """Keys beside the known ones do not travel to ComfyUI or into the echo."""
    prompt = empty_workflow(9)
    prompt["1"]["is_changed"] = [1]
    prompt["2"]["_meta"] = {"title": "Save"}

    body = served.post("/prompt", {"prompt": prompt, "unknown": 1}).json()

    assert "is_changed" not in body["prompt"]["1"]
    assert body["prompt"]["2"]["_meta"] == {"title": "Save"}
    assert "unknown" not in body


def test_salad_s86_key_is_asked_for_where_one_is_set(serve_salad: ServeSalad) -> None:
    """With SERVER_API_KEY, only probes are open."""
    from pydantic import SecretStr

    served = serve_salad(server_api_key=SecretStr("the-key-of-the-server"))
    headers = {"Authorization": "Bearer the-key-of-the-server"}

    assert served.post("/prompt", {"prompt": empty_workflow(10)}).status_code == 401
    assert served.post("/prompt", {"prompt": empty_workflow(10)}, headers=headers).status_code == 200
    assert served.get("/health").status_code in {200, 500}
