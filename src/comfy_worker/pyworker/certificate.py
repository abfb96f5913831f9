"""
The certificate of this instance: what Vast's start script leaves in /etc, or, without that script, made the same way.

The request (RSA 2048, subject `/C=US/ST=CA/CN=pyworker.vast.ai`, address 0.0.0.0) is posted to Vast's console, which
answers with the certificate. Clients trust Vast's root for it.

Source: vast-ai/pyworker, start_server.sh.
"""

import logging
import os
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

logger = logging.getLogger(__name__)

SIGNER = "https://console.vast.ai/api/v0/sign_cert/"
SUBJECT = "/C=US/ST=CA/CN=pyworker.vast.ai"
ATTEMPTS = 5
PAUSE_S = 2.0
TIMEOUT_S = 30.0


class NoCertificate(Exception):
    """
    There is no certificate and none could be had; `str()` says why.
    """


def context(certificate: Path, key: Path, container_id: int, signer: str = SIGNER) -> ssl.SSLContext:
    """
    Return a server's TLS context, with a certificate made first where there is none.

    Raises:
        NoCertificate: there is none, or it cannot be used.
    """
    if not (certificate.is_file() and key.is_file()):
        make(certificate, key, f"{signer}?instance_id={container_id}")
    found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        found.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        raise NoCertificate(
            f"The certificate {certificate} with the key {key} cannot be used: {exc}"
        ) from exc
    return found


def make(certificate: Path, key: Path, signer: str) -> None:
    """
    Make a key and have it signed; `certificate` is written last, and only when it is one.

    Raises:
        NoCertificate: openssl is missing, or nobody signed it.
    """
    request = _request(key)
    reason = ""
    for attempt in range(1, ATTEMPTS + 1):
        reply, reason = _sign(signer, request)
        if reply:
            certificate.write_bytes(reply)
            return
        logger.warning("The certificate was not signed: %s", reason)
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S)
    raise NoCertificate(
        f"USE_SSL is true, {certificate} is not there, and no certificate was signed: {reason}"
    )


def _request(key: Path) -> bytes:
    names = ("subjectAltName=IP:0.0.0.0", "basicConstraints=CA:FALSE")
    command = [
        "openssl",
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-sha256",
        "-batch",
        "-subj",
        SUBJECT,
    ]
    with tempfile.TemporaryDirectory(prefix="pyworker-") as folder:
        fresh = Path(folder) / "key"
        try:
            ran = subprocess.run(
                [*command, *(part for name in names for part in ("-addext", name)), "-keyout", str(fresh)],
                capture_output=True,
                timeout=60,
                check=True,
            )
            text = fresh.read_bytes()
            descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
        except (OSError, subprocess.SubprocessError) as exc:
            raise NoCertificate(f"No key could be made in {key}: {exc}") from exc
    return ran.stdout


def _sign(signer: str, request: bytes) -> tuple[bytes, str]:
    """
    Ask for a signature once; return the certificate, or why there is none.
    """
    post = urllib.request.Request(signer, data=request, headers={"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(post, timeout=TIMEOUT_S) as reply:
            body: bytes = reply.read(1_000_000)
    except (urllib.error.URLError, OSError) as exc:
        return b"", str(exc)
    if b"BEGIN CERTIFICATE" not in body:
        return b"", f"{signer.partition('?')[0]} answered something that is no certificate"
    return body, ""
