"""
Signatures of webhooks: what the receivers' own library verifies, and no other message passes for.
"""

import base64
import json
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from comfy_worker.webhook import key_of, secret_problem, signed
from comfy_worker.webhook.sign import id_of, signature

BODY = b'{"type":"prompt.complete","id":"req-1","images":[]}'
SECRET = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
keys = st.binary(min_size=1, max_size=64)
ids = st.text(max_size=60)
bodies = st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3).map(
    lambda value: json.dumps(value).encode()
)


@pytest.mark.parametrize(
    ("secret", "wanted"),
    [
        (SECRET, "v1,9CZei0PVhFa7gqXgk9qZYoqCyobUUNqXyXh8dEBA8+Q="),
        (f"whsec_{SECRET}", "v1,9CZei0PVhFa7gqXgk9qZYoqCyobUUNqXyXh8dEBA8+Q="),
        (f" {SECRET}\n", "v1,9CZei0PVhFa7gqXgk9qZYoqCyobUUNqXyXh8dEBA8+Q="),
        ("", "v1,I79d7mFEoQ9wk8cfkT6ZYFiR6fOG1k6v4JwwBvskvl0="),
    ],
)
def test_signature_is_the_known_one(secret: str, wanted: str) -> None:
    """
    Known secrets sign a known body with a known signature, with or without `whsec_` (S66).
    """
    assert signature(key_of(secret), "req-1", 1_700_000_000, [BODY]) == wanted


@given(keys, ids, bodies)
def test_library_verifies_what_was_signed(key: bytes, message_id: str, body: bytes) -> None:
    """
    Whatever the key, the id and the body are, the receivers' library accepts the headers.
    """
    secret = f"whsec_{base64.b64encode(key).decode()}"
    headers = signed(key_of(secret), id_of(message_id), int(time.time()), [body])

    assert Webhook(secret).verify(body, headers) == json.loads(body)


@given(keys, bodies, bodies)
def test_library_refuses_another_body(key: bytes, body: bytes, other: bytes) -> None:
    """
    A signature is good for its own body only.
    """
    assume(body != other)
    headers = signed(key, "id", int(time.time()), [body])

    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(other, headers)


@given(st.lists(st.binary(max_size=10), max_size=5))
def test_signature_does_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    """
    A body read from a file in pieces is signed as it would be in one.
    """
    assert signature(b"k", "id", 1, pieces) == signature(b"k", "id", 1, [b"".join(pieces)])


@given(keys)
def test_key_is_read_in_every_spelling(key: bytes) -> None:
    """
    Padded or not, standard or URL-safe letters, prefix or none: one key (S66).
    """
    text = base64.b64encode(key).decode()
    url_safe = base64.urlsafe_b64encode(key).decode()

    for spelling in (
        text,
        text.rstrip("="),
        url_safe,
        url_safe.rstrip("="),
        f"whsec_{text}",
        f"{text[:3]}\n{text[3:]}",
    ):
        assert key_of(spelling) == key


@given(st.text(max_size=80))
def test_any_secret_gives_a_key(secret: str) -> None:
    """
    No secret stops the worker.
    """
    assert isinstance(key_of(secret), bytes)


@pytest.mark.parametrize("secret", ["", SECRET, f"whsec_{SECRET}", "QUJD", "QUI=", "QUI"])
def test_good_secret_has_no_problem(secret: str) -> None:
    """
    A clean secret, or none, is not warned about.
    """
    assert secret_problem(secret) is None


@pytest.mark.parametrize("secret", ["whsec_", "!!!", "my-secret!", "QUJDR", "QU=JD"])
def test_bad_secret_has_a_problem_that_does_not_tell_it(secret: str) -> None:
    """
    A secret that receivers may read otherwise is worth a warning, without its text.
    """
    problem = secret_problem(secret)

    assert problem is not None
    assert secret not in problem.replace("'whsec_'", "")


@given(ids)
def test_id_can_be_a_header(text: str) -> None:
    """
    Any job id becomes an id that a header carries, the same one each time, and itself where it can.
    """
    assume(text)

    assert id_of(text) == id_of(text)
    assert id_of(text).isascii()
    assert id_of(text).isprintable()


def test_id_of_nothing_is_drawn() -> None:
    """
    A message without an id gets one of its own.
    """
    assert id_of("") != id_of("")
    assert id_of("job 1.a") == "job 1.a"
