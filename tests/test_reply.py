"""
The last check of a reply: whatever is in it, it arrives, or is refused in words.
"""

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_worker.errors import ReplyTooLarge
from comfy_worker.faces.reply import sealed, shown
from comfy_worker.log import MASK

LIMIT = 1_000_000
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters(), max_size=10) | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)

# Fractions are left out: writers spell their exponents differently.
exact = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.text(st.characters(), max_size=10), anything, max_size=4))
def test_any_reply_arrives(reply: dict[str, Any]) -> None:
    """Whatever the reply holds, the sealed one must pass every JSON writer that a platform uses, strictly."""
    reply.pop("errors", None)

    clean = sealed(reply, LIMIT)

    assert json.dumps(clean, ensure_ascii=False, allow_nan=False).encode()
    assert orjson.loads(orjson.dumps(clean)) == clean


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=10), exact, max_size=4), st.integers(1, 400))
def test_size_is_what_the_sdk_posts(reply: dict[str, Any], limit: int) -> None:
    """The size must be that of Python's own writer, to the byte: a reply is let through exactly when that fits."""
    size = len(json.dumps(reply, ensure_ascii=False).encode())

    try:
        sealed(reply, limit)
    except ReplyTooLarge as error:
        assert error.details == {"size_bytes": size, "limit_bytes": limit}
        assert size > limit
    else:
        assert size <= limit


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, b"bytes", bytearray(b"x"), {1, 2}, object(), 1j, range(3)]
)
def test_what_is_no_json_becomes_null_and_is_named(value: Any) -> None:
    """A value that JSON has not must become null, and `errors` must say where it was."""
    clean = sealed({"images": [{"a": value}], "errors": ["first"]}, LIMIT)

    assert clean["images"] == [{"a": None}]
    assert clean["errors"][0] == "first"
    assert "output.images[0].a" in clean["errors"][1]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("caf\udcc3\udca9.png", "café.png"),
        ("caf\udce9.png", "caf\ufffd.png"),
        ("a\ud800b", "a?b"),
        ("\ud83d\ude00", "??"),
        ("fine 🎈", "fine 🎈"),
    ],
)
def test_half_pairs_are_repaired(text: str, wanted: str) -> None:
    """A file name that is no UTF-8 must be repaired, in a value and in a key, and any other half pair be replaced."""
    assert sealed({"name": text}, LIMIT)["name"] == wanted
    assert wanted in sealed({text: 1}, LIMIT)


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (True, True),
        (0.1, 0.1),
    ],
)
def test_numbers_beyond_64_bits_become_text(number: Any, wanted: Any) -> None:
    """A whole number that no other reader takes must become text, digit by digit; any other stays."""
    assert sealed({"n": number}, LIMIT)["n"] == wanted


def test_tuples_and_odd_keys_become_json() -> None:
    """A tuple must become a list, and a key that is no text become one."""
    assert sealed({"a": (1, (2,)), 5: {None: 1}}, LIMIT) == {"a": [1, [2]], "5": {"None": 1}}  # type: ignore[dict-item]


def test_reply_is_a_fresh_copy() -> None:
    """What the SDK changes in a reply must change nothing of ours."""
    reply = {"images": [{"a": [1]}]}

    clean = sealed(reply, LIMIT)
    clean["images"][0]["a"].append(2)
    clean["new"] = 1

    assert reply == {"images": [{"a": [1]}]}


def test_reply_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    """The limit must be met to the byte."""
    size = len(json.dumps({"a": "x" * 100}))

    assert sealed({"a": "x" * 100}, size)
    with pytest.raises(ReplyTooLarge, match="BUCKET_ENDPOINT_URL") as caught:
        sealed({"a": "x" * 101}, size)
    assert caught.value.details == {"size_bytes": size + 1, "limit_bytes": size}


def test_size_counts_bytes_and_not_letters() -> None:
    """Letters of more than one byte must count as what they are on the wire."""
    with pytest.raises(ReplyTooLarge):
        sealed({"a": "ü" * 60}, 100)


def test_reply_that_holds_itself_is_refused() -> None:
    """A circle must end in an error that the face turns into words, not hang."""
    reply: dict[str, Any] = {}
    reply["self"] = reply

    with pytest.raises(RecursionError):
        sealed(reply, LIMIT)


def test_shown_text_is_masked_and_never_empty() -> None:
    """A text for a caller must be without secrets, and an empty one must say at least that."""
    with MASK.during(["swordfish"]):
        assert shown(" the swordfish at https://u:p@h/?q ") == "the *** at https://h/?***"
    assert shown("") == shown(" \n") == "The job failed without a reason."
