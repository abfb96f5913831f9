"""
What is looked at before the SDK sees a request: the envelope, and the payloads of the 2024 template.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_worker.pyworker import envelope, legacy

GRANT = {"cost": 100, "endpoint": "e", "reqnum": 1, "request_idx": 2, "signature": "s", "url": "u"}
PROMPT = {"prompt": "a fox", "width": 512, "height": 512.0, "steps": 20, "seed": 2**63 - 1}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_real_envelope_has_no_problem() -> None:
    """
    What Vast's clients send passes: with and without a session, with a float for a number, with more keys.
    """
    for session in (None, "abc"):
        whole = {"auth_data": {**GRANT, "reqnum": 1.0, "x": []}, "session_id": session, "payload": {}}
        assert envelope.problems_of(whole) == {}
    assert envelope.problems_of({}) == {}


@given(JSON)
def test_any_body_has_an_answer(body: Any) -> None:
    """
    No JSON raises, alone or as any part of an envelope.
    """
    for whole in (
        body,
        {"auth_data": body},
        {"auth_data": {"reqnum": body, "request_idx": body}, "session_id": body},
    ):
        assert isinstance(envelope.problems_of(envelope.with_request_idx(whole)), dict)
    for problems_of in (legacy.prompt_problems, legacy.custom_problems):
        payload = body if isinstance(body, dict) else {"prompt": body, "seed": body, "workflow": body}
        assert isinstance(problems_of(payload), dict)


def test_vast_39_request_idx_is_put_in_where_it_is_absent() -> None:
    """
    Only a grant without one gets it, and the caller's object stays as it was.
    """
    old = {name: value for name, value in GRANT.items() if name != "request_idx"}
    whole = {"auth_data": old, "payload": {}}

    assert envelope.with_request_idx(whole)["auth_data"] == {**old, "request_idx": 0}
    assert "request_idx" not in old
    assert envelope.with_request_idx({"auth_data": GRANT})["auth_data"]["request_idx"] == 2
    assert envelope.with_request_idx([]) == []


def test_legacy_prompt_is_taken_as_its_clients_send_it() -> None:
    """
    Whole numbers may be written as floats, seeds may be large, `steps` may be absent, more keys do no harm.
    """
    assert legacy.prompt_problems({**PROMPT, "more": 1}) == {}
    assert legacy.prompt_problems({name: value for name, value in PROMPT.items() if name != "steps"}) == {}
    assert legacy.custom_problems({"custom_fields": {}, "workflow": {}, "more": 1}) == {}


@pytest.mark.parametrize("name", ["prompt", "width", "height", "seed"])
@pytest.mark.parametrize("wrong", [None, [], {}, True])
def test_legacy_prompt_names_what_is_wrong(name: str, wrong: Any) -> None:
    """
    A missing field and one of a wrong type are each named.
    """
    without = {key: value for key, value in PROMPT.items() if key != name}

    assert legacy.prompt_problems(without) == {name: "missing parameter"}
    assert list(legacy.prompt_problems({**PROMPT, name: wrong})) == [name]
