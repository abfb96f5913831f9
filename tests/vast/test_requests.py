"""
Requests of the Vast face: shapes, refusals, inputs, stores. The numbers are those of the peer's defects.
"""

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import launch_of
from pydantic import SecretStr
from support.http_desk import HttpDesk
from support.pictures import empty_workflow, invert_workflow, node, png
from support.salad_fixtures import BUCKET, KEY, SECRET, S3Server
from support.served import Served
from support.vast_fixtures import ServeVast, asked, colour_of, ended, generate, started

from comfy_worker.standin.thread import EngineThread

RULES = [
    (
        {"workflow_json": {"1": {}}, "modifier": "Text2Image"},
        "value_error",
        ["body", "input"],
        "Value error, Cannot provide both workflow_json and modifier - they are mutually exclusive",
    ),
    ({}, "value_error", ["body", "input"], "Value error, Must provide either workflow_json OR modifier"),
    (
        {"modifications": {"a": 1}, "workflow_json": {"1": {}}},
        "value_error",
        ["body", "input"],
        "Value error, modifications can only be provided when modifier is specified",
    ),
    (None, "model_attributes_type", ["body", "input"], None),
    ({"workflow_json": []}, "dict_type", ["body", "input", "workflow_json"], "Input should be a valid dictionary"),
    ({"workflow_json": None}, "dict_type", ["body", "input", "workflow_json"], None),
    ({"workflow_json": {"1": {}}, "request_id": 5}, "string_type", ["body", "input", "request_id"], None),
    ({"workflow_json": {"1": {}}, "s3": {"connect_timeout": 2.5}}, "int_from_float", ["body", "input", "s3", "connect_timeout"], None),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "loc", "msg"), RULES)
def test_misfit_is_told_as_fastapi_does(
    served: Served, given: Any, kind: str, loc: list[str], msg: str | None
) -> None:
    """A body that breaks a rule must be a 422 whose `detail` has the wrapper's type, place and text."""
    reply = served.post("/generate/sync", {"input": given})

    [item] = reply.json()["detail"]
    assert reply.status_code == 422
    assert (item["type"], item["loc"]) == (kind, loc)
    assert msg is None or item["msg"] == msg


def test_broken_json_is_told_with_its_place(served: Served) -> None:
    """A body that is no JSON must be a 422 `json_invalid`, whatever its type says."""
    reply = requests.post(f"{served.url}/generate", data=b'{"input": ', timeout=10)

    assert reply.status_code == 422
    assert reply.json() == {
        "detail": [{"type": "json_invalid", "loc": ["body", 10], "msg": "JSON decode error"}]
    }


def test_blocks_of_empty_texts_mean_nothing_is_configured(served: Served) -> None:
    """The blocks that the documented client always sends, all empty, must be accepted."""
    blocks = {
        "s3": {"access_key_id": "", "secret_access_key": "", "endpoint_url": "", "bucket_name": "", "region": ""},
        "webhook": {"url": "", "extra_params": {"a": 1}},
        "modifier": "",
        "unknown": 1,
    }  # fmt: skip

    reply = generate(served, empty_workflow(0x11), **blocks)

    assert (reply.status_code, reply.json()["status"]) == (200, "completed")


def test_result_has_every_key_and_its_length(served: Served) -> None:
    """A Result must have the six keys, ComfyUI's record, and a fixed length without compression."""
    reply = generate(served, empty_workflow(0x12), request_id="keys")
    body = reply.json()

    assert set(body) == {"id", "message", "status", "comfyui_response", "output", "timings"}
    assert (body["id"], body["message"]) == ("keys", "Processing complete.")
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert "content-encoding" not in reply.headers
    [prompt_id] = [key for key in body["comfyui_response"] if key != "execution_details"]
    record = body["comfyui_response"][prompt_id]
    assert record["outputs"]["2"]["images"] == [
        {"filename": "out_00001_.png", "subfolder": "", "type": "output"}
    ]
    assert record["prompt"][2]["2"]["inputs"]["filename_prefix"] == "out"
    assert body["comfyui_response"]["execution_details"]["completed"] is True
    times = body["timings"]
    stages = sum(times[f"{name}_ms"] for name in ("preprocess", "generation", "postprocess"))
    assert stages <= times["total_ms"] + 3
    assert times["completed_at_ms"] >= times["queued_at_ms"]


def test_record_of_comfyui_can_be_left_out(served: Served, serve_vast: ServeVast) -> None:
    """Header, body and setting must decide about `comfyui_response`, the body first."""
    body = {"input": asked(empty_workflow(0x13))}
    lean = serve_vast(include_comfyui_response=False)

    header = served.post("/generate/sync", body, headers={"X-Include-ComfyUI-Response": "no"}).json()
    setting = lean.post("/generate/sync", body).json()
    both = {"input": {**body["input"], "include_comfyui_response": True}}
    by_body = lean.post("/generate/sync", both, headers={"X-Include-ComfyUI-Response": "0"}).json()

    assert (header["comfyui_response"], setting["comfyui_response"]) == ({}, {})
    assert by_body["comfyui_response"]


def test_envelope_of_a_pyworker_is_accepted(served: Served) -> None:
    """For tests without a PyWorker its whole envelope must be taken."""
    envelope = {"auth_data": {}, "session_id": None, "payload": {"input": asked(empty_workflow(0x14))}}

    assert served.post("/generate/sync", envelope).status_code == 200


def test_random_int_is_drawn_anew_and_can_be_read_back(served: Served) -> None:
    """A whole text becomes a number, a part of one digits; each job draws its own."""
    graph = empty_workflow(0x15)
    graph["1"]["inputs"]["color"] = "__RANDOM_INT__"
    graph["2"]["inputs"]["filename_prefix"] = "a-__RANDOM_INT__-__RANDOM_INT__"

    bodies = [generate(served, graph).json() for _ in range(2)]

    drawn = []
    for body in bodies:
        # EmptyImage takes 24 bits only, so ComfyUI refuses most draws, and names the number.
        text = json.dumps(body)
        assert "__RANDOM_INT__" not in text
        drawn.append(text)
    assert drawn[0] != drawn[1]


def test_vast_12_only_inputs_that_name_files_are_fetched(served: Served, desk: HttpDesk) -> None:
    """A URL as LoadImage's picture is fetched once; one in a text or a title is left alone."""
    url = desk.put("/in.png", png((8, 8), (0, 255, 255)))
    graph = invert_workflow(url, "https")
    graph["1"]["_meta"] = {"title": "https://example.invalid/title.png"}
    graph["9"] = node("PreviewAny", source="https://example.invalid/prose")

    reply = generate(served, graph, return_outputs_as_base64=True)

    assert reply.status_code == 200, reply.text
    assert colour_of(reply.json()["output"][0]) == 0xFF0000
    assert [seen.path for seen in desk.seen] == ["/in.png"]


def test_vast_13_private_addresses_are_refused_by_default(serve_vast: ServeVast, desk: HttpDesk) -> None:
    """A URL that leads to this machine must fail the job with 422, and nothing be asked there."""
    served = serve_vast(allow_private_urls=False)

    reply = generate(served, invert_workflow(desk.put("/in.png", png((8, 8), (1, 2, 3)))))

    assert reply.status_code == 422
    assert "ALLOW_PRIVATE_URLS" in reply.text or "private" in reply.text
    assert desk.seen == []


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_vast_14_base64_and_data_uris_are_inputs(served: Served, prefix: str) -> None:
    """A picture inside the request must be loaded as a file."""
    picture = base64.b64encode(png((8, 8), (0, 255, 0))).decode()

    reply = generate(served, invert_workflow(prefix + picture), return_outputs_as_base64=True)

    assert reply.status_code == 200, reply.text
    assert colour_of(reply.json()["output"][0]) == 0xFF00FF
    assert picture not in json.dumps(reply.json()["comfyui_response"])


def store(s3_server: S3Server) -> dict[str, Any]:
    """Return the settings of a worker whose own bucket is on that server."""
    return {
        "bucket_endpoint_url": s3_server.url,
        "bucket_access_key_id": KEY,
        "bucket_secret_access_key": SecretStr(SECRET),
        "bucket_name": BUCKET,
    }


def test_vast_15_keys_and_endpoint_come_from_one_source(
    serve_vast: ServeVast, s3_server: S3Server, desk: HttpDesk
) -> None:
    """An endpoint alone, half a pair of keys and a foreign bucket must be 422, and never reach the operator's keys."""
    served = serve_vast(**store(s3_server))

    replies = [
        generate(served, empty_workflow(0x15), s3=block)
        for block in (
            {"endpoint_url": desk.url},
            {"access_key_id": "k", "bucket_name": "b"},
            {"bucket_name": "someone-elses"},
        )
    ]

    assert [reply.status_code for reply in replies] == [422, 422, 422]
    # Other tests may have "secret" masked by now.
    assert "lacks access_key_id" in replies[0].json()["message"]
    assert "_access_key: a store of your own needs keys" in replies[1].json()["message"]
    assert "S3_ALLOWED_BUCKETS" in replies[2].json()["message"]
    assert desk.seen == []


def test_files_are_stored_under_the_request_id_with_a_link(
    serve_vast: ServeVast, s3_server: S3Server
) -> None:
    """A stored file must be at `<request_id>/<name>`, and its link be a signed one of seven days that opens."""
    served = serve_vast(**store(s3_server))

    body = generate(served, empty_workflow(0x161616), request_id="order-7").json()

    [item] = body["output"]
    data, mime = s3_server.get("order-7/out_00001_.png")
    assert data[:4] == b"\x89PNG"
    assert mime == "image/png"
    assert "X-Amz-Expires=604800" in item["url"]
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in item["url"]
    assert requests.get(item["url"], timeout=10).content == data
    assert "data" not in item


def test_a_requests_own_store_is_used_with_its_own_keys(served: Served, s3_server: S3Server) -> None:
    """Keys, endpoint and bucket of a request must be what its files are stored with."""
    block = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint_url": s3_server.url,
        "bucket_name": BUCKET,
    }

    body = generate(
        served, empty_workflow(0x171717), request_id="own-1", s3=block, return_outputs_as_base64=True
    ).json()

    [item] = body["output"]
    assert s3_server.get("own-1/out_00001_.png")[0] == base64.b64decode(item["data"])
    assert item["mimetype"] == "image/png"


def test_vast_16_failed_upload_fails_the_job_unless_base64_has_the_file(
    served: Served, s3_server: S3Server
) -> None:
    """Refused keys must be a 422; with base64 asked for the job succeeds with a note and a warning."""
    wrong = {
        "access_key_id": KEY,
        "secret_access_key": "wrong",
        "endpoint_url": s3_server.url,
        "bucket_name": BUCKET,
    }

    alone = generate(served, empty_workflow(0x18), s3=wrong)
    beside = generate(served, empty_workflow(0x19), s3=wrong, return_outputs_as_base64=True)

    assert (alone.status_code, alone.json()["status"]) == (422, "failed")
    assert alone.json()["message"].startswith("Post-processing failed: ")
    assert "SignatureDoesNotMatch" in alone.json()["message"]
    [item] = beside.json()["output"]
    assert beside.status_code == 200
    assert "SignatureDoesNotMatch" in item["upload_error"]
    assert colour_of(item) == 0x19
    assert beside.json()["warnings"]


def test_unreachable_store_is_a_503(served: Served) -> None:
    """A store that nobody answers at may be reached by another worker: 503 with Retry-After."""
    gone = {
        "access_key_id": "k",
        "secret_access_key": "s",
        "endpoint_url": "http://127.0.0.1:9",
        "bucket_name": "b",
        "connect_attempts": 1,
    }

    reply = generate(served, empty_workflow(0x1A), s3=gone)

    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")


def test_vast_17_secrets_are_in_no_reply_and_no_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal and a failed job must repeat no key and no secret that was sent."""
    secrets = {"access_key_id": "AKIA-very-secret-1", "secret_access_key": "very-secret-2"}
    hook = {"url": "http://127.0.0.1:9/hook", "secret": "very-secret-3"}
    caplog.set_level(logging.DEBUG)

    refused = served.post(
        "/generate/sync", {"input": {"s3": {**secrets, "connect_timeout": "x"}, "webhook": hook}}
    )
    failed = generate(served, {"1": node("NoSuchNode")}, s3={**secrets, "bucket_name": "b"}, webhook=hook)

    assert (refused.status_code, failed.status_code) == (422, 422)
    for secret in ("AKIA-very-secret-1", "very-secret-2", "very-secret-3"):
        assert secret not in refused.text + failed.text + caplog.text


@pytest.mark.parametrize("name", ["../../outside", "/etc/x", ".hidden", "a b", "ü", "x" * 300])
def test_vast_18_id_is_never_a_path(
    served: Served, s3_server: S3Server, engine: EngineThread, name: str
) -> None:
    """Any id must be accepted, and neither a file nor a key be named after one that is no harmless name."""
    block = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint_url": s3_server.url,
        "bucket_name": BUCKET,
    }

    reply = generate(served, empty_workflow(0x1B), request_id=name, s3=block)

    assert (reply.status_code, reply.json()["id"]) == (200, name)
    with s3_server.client() as client:
        keys = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert not any(name in key or ".." in key for key in keys)
    assert any(key.startswith("id-") for key in keys)
    assert not list(Path(engine.folders.output).parent.glob("outside*"))


def test_same_name_from_two_folders_keeps_both_files(served: Served, s3_server: S3Server) -> None:
    """Two files of one name in two sub-folders must get two keys."""
    block = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint_url": s3_server.url,
        "bucket_name": BUCKET,
    }
    graph = empty_workflow(0x1C, prefix="one/same")
    graph["3"] = node("EmptyImage", width=8, height=8, batch_size=1, color=0x1D)
    graph["4"] = node("SaveImage", images=("3", 0), filename_prefix="two/same")

    body = generate(served, graph, request_id="folders", s3=block).json()

    assert len({item["url"].partition("?")[0] for item in body["output"]}) == 2
    assert s3_server.get("folders/same_00001_.png")[0] != s3_server.get("folders/two/same_00001_.png")[0]


def test_large_file_is_not_inlined_and_says_so(serve_vast: ServeVast) -> None:
    """Above OUTPUT_BASE64_MAX_BYTES an item must have `error` in the wrapper's words, and the job succeed."""
    served = serve_vast(output_base64_max_bytes=50)

    [item] = generate(served, empty_workflow(0x1E), return_outputs_as_base64=True).json()["output"]

    assert item["error"].startswith("file size ")
    assert item["error"].endswith("exceeds OUTPUT_BASE64_MAX_BYTES (50); not inlined")
    assert "data" not in item


def test_vast_21_modifier_is_looked_up_in_a_table(served: Served) -> None:
    """A name that is no template must be a 422 that lists the known ones; unknown parameters are warnings."""
    unknown = generate(served, modifier="os.system", modifications={"prompt": "x"})
    wrong = generate(served, modifier="Text2Image", modifications={"steps": "many"})
    strange = generate(served, modifier="text2image", modifications={"prompt": "x", "colour": 1})

    assert (unknown.status_code, wrong.status_code) == (422, 422)
    assert "Text2Image" in unknown.json()["message"]
    assert "'input.modifications.steps'" in wrong.json()["message"]
    # The built-in engine has no models: by then the parameters were judged and the name was found.
    assert strange.status_code == 422
    assert "Unknown modifier" not in strange.json()["message"]


@pytest.mark.slow
def test_vast_29_local_files_live_as_long_as_the_result(serve_vast: ServeVast, engine: EngineThread) -> None:
    """A file that is neither stored nor inlined must be at `local_path`, and go with its result; others go at once."""
    served = serve_vast(api_cache_ttl=1.0)

    left = Path(generate(served, empty_workflow(0x1F), request_id="left").json()["output"][0]["local_path"])
    was_there = left.is_file()
    inlined = generate(served, empty_workflow(0x20), return_outputs_as_base64=True).json()["output"][0]
    kept = serve_vast(launch_of(engine), keep_local_outputs=True)
    stays = Path(
        generate(kept, empty_workflow(0x21), return_outputs_as_base64=True).json()["output"][0]["local_path"]
    )

    from support.vast_fixtures import until

    until(lambda: served.get("/result/left").status_code == 404 and not left.exists())
    assert was_there
    assert not Path(inlined["local_path"]).exists()
    assert stays.is_file()


def test_vast_30_previews_are_delivered_where_there_is_nothing_else(served: Served) -> None:
    """A graph with PreviewImage only must return its pictures, as `temp`; beside a saved one they stay out."""
    alone = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0x22),
        "2": node("PreviewImage", images=("1", 0)),
    }
    both = {**empty_workflow(0x23), "9": node("PreviewImage", images=("1", 0))}

    [item] = generate(served, alone, return_outputs_as_base64=True).json()["output"]
    items = generate(served, both).json()["output"]

    assert item["type"] == "temp"
    assert colour_of(item) == 0x22
    assert [item["type"] for item in items] == ["output"]


def test_vast_31_every_listed_file_comes_once(served: Served) -> None:
    """Several kinds of output in one graph must all be there, each file once."""
    graph = empty_workflow(0x24)
    graph["5"] = node("EmptyAudio", duration=0.2, sample_rate=44100, channels=1)
    graph["6"] = node("SaveAudio", audio=("5", 0), filename_prefix="sound")

    items = generate(served, graph).json()["output"]

    assert sorted(item["output_type"] for item in items) == ["audio", "images"]
    assert len({item["local_path"] for item in items}) == len(items) == 2


def test_started_job_is_pending_and_its_result_comes(served: Served) -> None:
    """`/generate` must answer 202 at once, and `/result` the Result once it is there."""
    reply = served.post("/generate", {"input": asked(empty_workflow(0x25), request_id="async-1")})

    assert reply.status_code == 202
    assert (reply.json()["status"], reply.json()["message"]) == ("pending", "Request accepted")
    assert set(reply.json()["timings"]) == {"queued_at_ms"}
    assert ended(served, "async-1").json()["output"][0]["filename"] == "out_00001_.png"
    by_body = served.post("/result", {"request_id": "async-1"})
    assert (by_body.status_code, by_body.json()["status"]) == (200, "completed")


def test_unknown_ids_are_told(served: Served) -> None:
    """`/result` and `/cancel` of an id that nobody sent must be the wrapper's 404s."""
    result, cancel = served.get("/result/nobody"), served.post("/cancel/nobody")

    assert (result.status_code, result.json()["message"]) == (404, "Request ID not found")
    assert set(result.json()) >= {"id", "status", "output", "timings", "comfyui_response"}
    assert (cancel.status_code, cancel.json()) == (404, {"error": "Request nobody not found"})


def test_pages_and_queue_are_there(served: Served) -> None:
    """The documentation, its document, the queue and the refusal of other routes must be as the wrapper has them."""
    assert all("<html" in served.get(path).text for path in ("/", "/docs", "/redoc"))
    document = served.get("/openapi.json").json()
    assert {"/generate", "/generate/sync", "/generate/stream", "/result/{request_id}"} <= set(
        document["paths"]
    )
    names = {"preprocess_queue_size", "generation_queue_size", "postprocess_queue_size"}
    assert set(served.get("/queue-info").json()) == set(served.post("/queue-info", {}).json()) == names
    assert (served.post("/generate/sync/", {}).status_code, served.get("/nope").json()) == (
        404,
        {"detail": "Not Found"},
    )


def test_vast_11_cancel_by_body_and_by_path_answer_alike(served: Served) -> None:
    """A job that is over must say so to both forms of cancel."""
    started(served, "over-1", empty_workflow(0x26))
    ended(served, "over-1")

    replies = [served.post("/cancel/over-1"), served.post("/cancel", {"request_id": "over-1"})]

    said = {"message": "Request over-1 is already completed", "status": "completed"}
    assert [(reply.status_code, reply.json()) for reply in replies] == [(200, said), (200, said)]


@pytest.mark.parametrize("depth", [300, 1000])
@pytest.mark.parametrize("place", ["extra_params", "modifications", "workflow_json"])
def test_vast_1_nesting_without_end_is_a_4xx(served: Served, place: str, depth: int) -> None:
    """A body that is nested too deeply to be handed on must be refused, not end as a fault that clients repeat."""
    deep = f"{'[' * depth}{']' * depth}"
    inputs = {
        "extra_params": f'"workflow_json": {json.dumps(empty_workflow())}, "webhook": {{"url": "", "extra_params": {{"a": {deep}}}}}',
        "modifications": f'"modifier": "Text2Image", "modifications": {{"a": {deep}}}',
        "workflow_json": f'"workflow_json": {{"1": {{"class_type": "SaveImage", "inputs": {{"a": {deep}}}}}}}',
    }

    reply = requests.post(f"{served.url}/generate/sync", data=f'{{"input": {{{inputs[place]}}}}}', timeout=10)

    assert reply.status_code == 422, reply.text


@pytest.mark.slow
def test_vast_2_cancel_of_a_finished_job_changes_nothing(served: Served) -> None:
    """The stored Result must be the same before and after a cancel that comes too late."""
    generate(served, empty_workflow(0x27), request_id="late-cancel")
    before = served.get("/result/late-cancel").json()

    served.post("/cancel/late-cancel")

    assert served.get("/result/late-cancel").json() == before
