"""
What the router signs, in its three generations, and the check of it.

RSASSA-PKCS1-v1_5 with SHA-256 over the UTF-8 bytes of a message, in standard base64. The message is `json.dumps` of some
fields of the grant exactly as received: 100 and 100.0 are different messages. The SDK checks requests by itself; this is
for the one door that it leaves open, and for the tests.

Source: vast-ai/pyworker of 2024 and 2025, vastai 1.9.1 (`Backend.__check_signature`).
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

FIELDS = {
    "legacy": ("cost", "endpoint", "reqnum", "url"),
    "interim": ("cost", "endpoint", "reqnum", "request_idx", "url"),
    "sdk": ("url",),
}
"""The signed fields of each generation, in their order: which is the order of the alphabet in all three."""


def message(generation: str, grant: Mapping[str, Any]) -> str:
    """
    Return the text that is signed for a grant.

    Raises:
        KeyError: no such generation, or the grant lacks a field of it.
    """
    return json.dumps({name: grant[name] for name in FIELDS[generation]}, indent=4)


def holds(public_key: str, text: str, signature: Any) -> bool:
    """
    Return whether `signature` (base64) is the key's (PEM) for `text`.
    """
    from Crypto.Hash import SHA256  # the SDK's own, absent where only the texts are wanted
    from Crypto.PublicKey import RSA
    from Crypto.Signature import pkcs1_15

    try:
        raw = base64.b64decode(signature)
        pkcs1_15.new(RSA.import_key(public_key)).verify(SHA256.new(text.encode()), raw)
    except (ValueError, TypeError, binascii.Error):
        return False
    return True
