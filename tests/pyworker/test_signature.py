"""
What the router signs, in each of its three generations, checked against the digests of known messages.
"""

import base64
import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from support.vast_autoscaler import Signer

from comfy_worker.pyworker import signature

GRANT = {
    "cost": 100,
    "endpoint": "test",
    "reqnum": 7,
    "request_idx": 1007,
    "url": "http://203.0.113.9:34567",
    "signature": "never signed",
    "__request_id": "never signed",
}
DIGESTS = {
    "legacy": "4cd661cf27eef112bb30b6b4cf274d4b5722b1319454aea94fc4b442ad4dcc01",
    "interim": "9513195ba4304c6aec217e3b17fcc875adc03e535df48d255afc997ac9be2ddc",
    "sdk": "c5d828c9901e8f211e6a2bcb2aecceaa1ea4d98921369d383f4717dd014f1370",
}


@pytest.fixture(scope="module")
def signer() -> Signer:
    """
    A key of the test's own.
    """
    return Signer()


@pytest.mark.parametrize("generation", DIGESTS)
def test_message_is_the_routers(generation: str) -> None:
    """
    The signed text of each generation is the known one, byte for byte.
    """
    text = signature.message(generation, GRANT)

    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[generation]


@pytest.mark.parametrize("generation", ["legacy", "interim"])
def test_number_as_it_came_is_signed(generation: str) -> None:
    """
    100 and 100.0 are different messages in the generations that sign the cost.
    """
    assert signature.message(generation, GRANT) != signature.message(generation, {**GRANT, "cost": 100.0})


@pytest.mark.parametrize("generation", DIGESTS)
def test_router_of_the_tests_signs_that_message(signer: Signer, generation: str) -> None:
    """
    The signature is PKCS1 v1.5 with SHA-256 over that text, by the key that is published, and no other text's.
    """
    key = serialization.load_pem_public_key(signer.public.encode())
    assert isinstance(key, rsa.RSAPublicKey)
    raw = base64.b64decode(signer.sign(signature.message(generation, GRANT)))

    for name in DIGESTS:
        text = signature.message(name, GRANT).encode()
        if name == generation:
            key.verify(raw, text, padding.PKCS1v15(), hashes.SHA256())
        else:
            with pytest.raises(InvalidSignature):
                key.verify(raw, text, padding.PKCS1v15(), hashes.SHA256())
