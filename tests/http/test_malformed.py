"""
Requests that no client should send: each is answered with a 4xx that the OpenAPI document names, and none breaks anything.
"""

import contextlib
import http.client
import json
import random
import socket

import pytest
from support.served import Served

MALFORMED = 5000
GARBAGE = 300
PATHS = ("/run", "/runsync?wait=1000", "/status/x", "/cancel/x", "/purge-queue", "/nowhere", "/jobs/x/events")
TYPES = ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "")
PIECES = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"input"',
        b":",
        b",",
        b"null",
        b"NaN",
        b"1e999",
        b"-",
        b"\xff\xfe",
        b"\\ud800",
    ),
    *(b'"workflow"', b'"webhook"', b'"policy"', b"\x00", b"[" * 2000, b"9" * 5000, b'"' + b"a" * 3000, b" "),
)


@pytest.mark.slow
def test_5000_malformed_requests_are_refused(served: Served) -> None:
    """Whatever is sent as a body, in whatever type, must get a 4xx (or the truth about an empty queue), at once."""
    rng = random.Random(7)
    statuses: dict[int, int] = {}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    with contextlib.closing(connection):
        for _ in range(MALFORMED):
            body = b"".join(rng.choices(PIECES, k=rng.randrange(0, 12)))
            headers = {
                "content-type": rng.choice(TYPES),
                "x-request-id": rng.choice(["ok", "b\tad", "x" * 500]),
            }
            connection.request(rng.choice(["POST", "POST", "PUT", "GET"]), rng.choice(PATHS), body, headers)
            answer = connection.getresponse()
            json.loads(answer.read())
            statuses[answer.status] = statuses.get(answer.status, 0) + 1

    assert set(statuses) <= {200, 400, 404, 405}, statuses
    assert statuses[400] > 500
    assert served.get("/health").json()["jobs"]["inQueue"] == 0


@pytest.mark.slow
def test_garbage_instead_of_http_is_refused(served: Served) -> None:
    """Bytes that are no HTTP must end their connection and nothing else."""
    rng = random.Random(7)
    for _ in range(GARBAGE):
        address = ("127.0.0.1", served.port)
        with (
            socket.create_connection(address, timeout=20) as connection,
            contextlib.suppress(ConnectionError),
        ):
            connection.sendall(rng.randbytes(rng.randrange(1, 400)) + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                continue
    assert served.get("/health").status_code == 200
