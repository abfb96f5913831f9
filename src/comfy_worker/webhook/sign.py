"""
Signatures by the Standard Webhooks rules: HMAC-SHA256 over `<id>.<timestamp>.<body>`. Pure.
"""

import base64
import hashlib
import hmac
import re
import uuid
from collections.abc import Iterable

PREFIX = "whsec_"
HEADER_SAFE = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
STRICT = re.compile(r"[A-Za-z0-9+/]+={0,2}")
URL_SAFE = str.maketrans("-_", "+/")


def key_of(secret: str) -> bytes:
    """
    Return the key of a secret, base64 with or without `whsec_` before it; what is not base64 is passed over.

    An empty secret is an empty key, with which everything is signed where none is set.
    """
    text = secret.strip().removeprefix(PREFIX).translate(URL_SAFE)
    letters = re.sub(r"[^A-Za-z0-9+/]", "", text)
    if len(letters) % 4 == 1:
        letters = letters[:-1]  # six bits are no byte
    return base64.b64decode(letters + "=" * (-len(letters) % 4))


def secret_problem(secret: str) -> str | None:
    """
    Return why receivers could not verify what this secret signs; None when they can. Never tells the secret.
    """
    text = secret.strip().removeprefix(PREFIX)
    if not text:
        return None if not secret.strip() else "it is empty behind 'whsec_'"
    if not key_of(secret):
        return "it is not base64, so that everything is signed with an empty key"
    if STRICT.fullmatch(text) is None or len(text.rstrip("=")) % 4 == 1:
        return "it is not clean base64, so that a receiver may read another key from it"
    return None


def id_of(text: str) -> str:
    """
    Return a message's id as a header can carry it: `text`, another id for what a header cannot, a random one for "".
    """
    if not text:
        return str(uuid.uuid4())
    if HEADER_SAFE.fullmatch(text):
        return text
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text.encode(errors="replace").decode()))


def signature(key: bytes, message_id: str, timestamp: int, body: Iterable[bytes]) -> str:
    """
    Return `v1,<base64>` for a body in pieces; `timestamp` is in seconds since 1970.
    """
    mac = hmac.new(key, f"{message_id}.{timestamp}.".encode(), hashlib.sha256)
    for piece in body:
        mac.update(piece)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


def signed(key: bytes, message_id: str, timestamp: int, body: Iterable[bytes]) -> dict[str, str]:
    """
    Return the three headers of a signed message.
    """
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(key, message_id, timestamp, body),
    }
