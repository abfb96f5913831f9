"""
An S3 server for tests that refuses what S3 would refuse: a check of SigV4 in front of any WSGI application.

moto by itself takes every key, every signature and every expired link. This layer computes the signature from the
request as AWS documents it ("Authenticating Requests: AWS Signature Version 4"), without botocore's help.
"""

import hashlib
import hmac
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote

from werkzeug.serving import WSGIRequestHandler, make_server

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

ALGORITHM = "AWS4-HMAC-SHA256"
MOST_EXPIRY_S = 604_800
CLOCK_SKEW = timedelta(minutes=15)
ANSWERS = {400: "400 Bad Request", 403: "403 Forbidden", 503: "503 Service Unavailable"}


@dataclass(frozen=True)
class Seen:
    """
    One request: `code` is the error code of the check, or "" when the request was let through.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    code: str


class Refused(Exception):
    """
    What is wrong with a request: an HTTP status and S3's code for it.
    """

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


@dataclass
class SigV4:
    """
    The check. `keys` are secrets by access key; the next `faults` requests are answered 503 whatever they are.

    `checksums` False is a store that knows nothing of AWS's newer checksums, as GCS, R2 and older MinIO.
    """

    app: Application
    keys: dict[str, str]
    checksums: bool = False
    faults: int = 0
    later: timedelta = timedelta(0)
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers, query = headers_of(environ), dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        try:
            self.fail_if_told()
            self.check(environ, headers, query)
        except Refused as refused:
            self.note(environ, headers, query, refused.code)
            body = (
                f"<Error><Code>{refused.code}</Code><Message>SECRET-ECHO {headers}</Message></Error>".encode()
            )
            start_response(
                ANSWERS[refused.status],
                [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))],
            )
            return [body]
        self.note(environ, headers, query, "")
        with environ["wsgi.input"]:
            return list(self.app(environ, start_response))

    def note(self, environ: Environ, headers: dict[str, str], query: dict[str, str], code: str) -> None:
        with self.lock:
            self.seen.append(Seen(environ["REQUEST_METHOD"], raw_path(environ), query, headers, code))

    def fail_if_told(self) -> None:
        with self.lock:
            if self.faults:
                self.faults -= 1
                raise Refused(503, "SlowDown")

    def check(self, environ: Environ, headers: dict[str, str], query: dict[str, str]) -> None:
        if not self.checksums and any("checksum" in name or name == "x-amz-trailer" for name in headers):
            raise Refused(403, "SignatureDoesNotMatch")
        try:
            claim = claim_of(headers, query)
            secret = self.keys[claim["key"]]
        except KeyError:
            raise Refused(403, "InvalidAccessKeyId" if headers or query else "AccessDenied") from None
        wanted = signature(secret, claim, canonical_request(environ, headers, query, claim))
        if not hmac.compare_digest(wanted, claim["signature"]):
            raise Refused(403, "SignatureDoesNotMatch")
        self.check_time(claim)
        check_body(environ, claim["payload"])

    def check_time(self, claim: dict[str, str]) -> None:
        signed = datetime.strptime(claim["date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        now = datetime.now(UTC) + self.later
        if claim["expires"]:
            if not 1 <= int(claim["expires"]) <= MOST_EXPIRY_S:
                raise Refused(400, "AuthorizationQueryParametersError")
            if now > signed + timedelta(seconds=int(claim["expires"])):
                raise Refused(403, "AccessDenied")
        elif abs(now - signed) > CLOCK_SKEW:
            raise Refused(403, "RequestTimeTooSkewed")


def headers_of(environ: Environ) -> dict[str, str]:
    named = {name[5:]: value for name, value in environ.items() if name.startswith("HTTP_")}
    named |= {name: environ[name] for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(name)}
    return {name.replace("_", "-").lower(): value for name, value in named.items()}


def raw_path(environ: Environ) -> str:
    return str(environ["RAW_URI"]).partition("?")[0]


def claim_of(headers: dict[str, str], query: dict[str, str]) -> dict[str, str]:
    """
    Return who says to have signed what, from the Authorization header or from the query of a link.
    """
    if "X-Amz-Signature" in query:
        given = {
            "Credential": "X-Amz-Credential",
            "SignedHeaders": "X-Amz-SignedHeaders",
            "Signature": "X-Amz-Signature",
        }
        fields = {name: query[long] for name, long in given.items()}
        date, payload, expires = query["X-Amz-Date"], "UNSIGNED-PAYLOAD", query["X-Amz-Expires"]
    else:
        text = headers.get("authorization", "")
        fields = dict(re.findall(r"(\w+)=([^,\s]+)", text.removeprefix(ALGORITHM)))
        date, payload, expires = headers.get("x-amz-date", ""), headers.get("x-amz-content-sha256", ""), ""
    key, scope = fields["Credential"].split("/", 1)
    return {
        "key": key,
        "scope": scope,
        "signed": fields["SignedHeaders"],
        "signature": fields["Signature"],
        "date": date,
        "payload": payload,
        "expires": expires,
    }


def canonical_request(
    environ: Environ, headers: dict[str, str], query: dict[str, str], claim: dict[str, str]
) -> str:
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in query.items()
        if name != "X-Amz-Signature"
    )
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in claim["signed"].split(";")]
    return "\n".join(
        [
            environ["REQUEST_METHOD"],
            raw_path(environ),
            "&".join(f"{name}={value}" for name, value in pairs),
            "".join(lines),
            claim["signed"],
            claim["payload"],
        ]
    )


def signature(secret: str, claim: dict[str, str], canonical: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in claim["scope"].split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = [ALGORITHM, claim["date"], claim["scope"], hashlib.sha256(canonical.encode()).hexdigest()]
    return hmac.new(key, "\n".join(text).encode(), "sha256").hexdigest()


def check_body(environ: Environ, wanted: str) -> None:
    """
    Read the body, compare it with the hash that was signed, and put it back for the application.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        return
    digest, body = hashlib.sha256(), tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - closed by the caller
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (chunk := environ["wsgi.input"].read(min(left, 1 << 18))):
        digest.update(chunk)
        body.write(chunk)
        left -= len(chunk)
    if digest.hexdigest() != wanted:
        body.close()
        raise Refused(400, "XAmzContentSHA256Mismatch")
    body.seek(0)
    environ["wsgi.input"] = body


def sink(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """
    A store that takes everything and keeps nothing: enough of S3 for an upload in parts.
    """
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    body = b""
    if environ["REQUEST_METHOD"] == "POST":
        name = "InitiateMultipartUploadResult" if "uploads" in query else "CompleteMultipartUploadResult"
        body = f"<{name}><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId><ETag>e</ETag></{name}>".encode()
    start_response(
        "200 OK", [("ETag", '"e"'), ("Content-Length", str(len(body))), ("Content-Type", "application/xml")]
    )
    return [body]


class Quiet(WSGIRequestHandler):
    """
    Says nothing of each request.
    """

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def served(app: Application) -> Iterator[str]:
    """
    Serve an application on loopback for as long as the block runs; gives its URL.
    """
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="s3-server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()
