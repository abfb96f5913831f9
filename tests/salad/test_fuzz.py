"""
Whatever a body holds, it is an order or a refusal with a place in it.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfy_worker.errors import JobInvalid
from comfy_worker.faces import salad_reply, salad_request
from comfy_worker.faces.salad_delivery import Rules
from comfy_worker.faces.salad_graph import Surroundings
from comfy_worker.job import Job

TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            *(
                "",
                "http://",
                "https://[",
                "s3://",
                "data:",
                "data:,",
                "data:image/png;base64,x",
                "/9j/4AAQ",
                "../x",
            ),
            *(
                "http://u:p@h/x",
                "https://h:99999/x",
                "http://h\x00/",
                "file:///x",
                "jpeg",
                "webp",
                "SaveImage",
                "LoadImage",
            ),
        ]
    ),
)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
JSON = st.recursive(
    LEAF,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
INPUTS = st.dictionaries(
    st.sampled_from(
        [
            "image",
            "images",
            "video",
            "audio",
            "directory",
            "filename_prefix",
            "ckpt_name",
            "mask",
            "save_output",
        ]
    )
    | TEXT,
    JSON,
    max_size=4,
)
CLASSES = st.sampled_from(
    ["LoadImage", "LoadVideo", "LoadAudio", "VHS_LoadImages", "SaveImage", "DiffusersLoader", "X"]
)
NODE = st.one_of(
    JSON, st.fixed_dictionaries({"class_type": CLASSES, "inputs": INPUTS}, optional={"_meta": JSON})
)
AUTH = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["bearer", "basic", "header", "query", "s3"])}, optional={"token": TEXT}
    ),
)
BODY = st.fixed_dictionaries(
    {"prompt": st.one_of(JSON, st.dictionaries(TEXT, NODE, max_size=4))},
    optional={
        "id": LEAF,
        "webhook": LEAF,
        "webhook_v2": LEAF,
        "convert_output": st.one_of(
            JSON, st.fixed_dictionaries({"format": TEXT, "options": st.one_of(JSON, INPUTS)})
        ),
        "credentials": st.one_of(
            JSON, st.lists(st.fixed_dictionaries({"url_pattern": TEXT, "auth": AUTH}), max_size=2)
        ),
        "s3": JSON,
        "http_upload": st.one_of(JSON, st.fixed_dictionaries({"url_prefix": TEXT})),
    },
)


def around(credentials: Any) -> Surroundings:
    """
    Return surroundings that know no class.
    """
    from functools import partial

    from comfy_worker.faces.salad_auth import Trust, resolved

    return Surroundings(lambda _: {}, partial(resolved, credentials=credentials, trust=Trust()), "k")


@settings(max_examples=400, deadline=None)
@given(body=st.one_of(JSON, BODY))
@example(
    body={
        "prompt": {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "image": "https://["}}}
    }
)
@example(body={"prompt": {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": 2**70}}}})
def test_any_body_is_an_order_or_a_refusal(body: Any) -> None:
    """No body raises anything but a refusal, and each refusal can be sent and names a place."""
    try:
        order = salad_request.to_order(body, Rules(), around)
    except JobInvalid as exc:
        status, answer = salad_reply.to_failure(exc)
        assert status == 400
        assert isinstance(answer["location"], str)
        assert answer["location"]
        orjson.dumps(answer)
    else:
        assert isinstance(order.job, Job)
        assert isinstance(order.echo, Mapping)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=60))
def test_any_bytes_are_json_or_a_refusal(body: bytes) -> None:
    """Bytes that are no JSON are refused as such."""
    try:
        salad_request.decoded(body)
    except JobInvalid as exc:
        assert salad_reply.to_failure(exc)[1]["code"] == "FST_ERR_CTP_INVALID_JSON_BODY"
