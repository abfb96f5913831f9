"""
Log lines and the mask: what is hidden, what is left as it is, and the shapes of a line.
"""

import io
import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_worker import log
from comfy_worker.log import Mask

repeatable = settings(deadline=None, derandomize=True)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """
    What the program logs, instead of standard error.
    """
    handlers, level, propagate = log.logger.handlers[:], log.logger.level, log.logger.propagate
    yield io.StringIO()
    log.logger.handlers[:] = handlers
    log.logger.setLevel(level)
    log.logger.propagate = propagate


@pytest.fixture
def mask() -> Mask:
    """
    A mask that knows two secrets, one within the other.
    """
    mask = Mask()
    mask.add(["swordfish", "swordfish-and-chips"])
    return mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("the key swordfish opens", "the key *** opens"),
        ("swordfishswordfish", "******"),
        ("xswordfishx", "x***x"),
        ("swordfish-and-chips", "***"),
        ("SWORDFISH", "SWORDFISH"),
        ("sword fish", "sword fish"),
    ],
)
def test_known_secrets_are_masked_wherever_they_stand(mask: Mask, text: str, masked: str) -> None:
    """A known secret must be hidden whole, the longest first, and what only resembles it must stay."""
    assert mask.text(text) == mask.secrets(text) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://a.example/b?sig=1", "https://a.example/b?***"),
        ("GET https://a.example/b?X-Amz-Signature=1&x=%2F failed", "GET https://a.example/b?*** failed"),
        ("https://user:pass@a.example/b", "https://a.example/b"),
        ("https://user:p@ss@a.example/b", "https://a.example/b"),
        ("https://token@a.example", "https://a.example"),
        ("https://:pass@a.example/", "https://a.example/"),
        ("https://a.example/b#access_token=1", "https://a.example/b#***"),
        ("https://a.example?x#y", "https://a.example?***"),
        ('{"url": "https://a.example/b?c", "d": "e?f"}', '{"url": "https://a.example/b?***", "d": "e?f"}'),
        ("'http://u:p@h/x?y', 'http://h/z?w'", "'http://h/x?***', 'http://h/z?***'"),
        ("HTTPS://u:p@A.example/?q", "HTTPS://A.example/?***"),
        ("s3://key:secret@bucket/key?versionId=1", "s3://bucket/key?***"),
        ("redis://:password@localhost:6379/0", "redis://localhost:6379/0"),
        ("Authorization: Bearer abcdefgh-12345678.xyz", "Authorization: Bearer ***"),
        ('{"Authorization": "bearer abcdefgh12345678=="}', '{"Authorization": "bearer ***"}'),
    ],
)
def test_user_query_and_fragment_of_urls_are_masked(mask: Mask, text: str, masked: str) -> None:
    """Whatever of a URL may hold a secret must go, and a bearer token as well."""
    assert mask.text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Why? Because a/b@c.example is an address, and 50% of 2:1 is fine.",
        "https://a.example:8188/path/@scope/x.png",
        "http://127.0.0.1:8188",
        "Node 4 (KSampler): seed: got -1, it must be from 0 to 18446744073709551615.",
        "C:\\models\\x.safetensors and /models/x.safetensors",
        "a bearer of good news, a Bearer token",
        "masterpiece, (best quality:1.2), a cat? <lora:x:1>",
        "a://",
        "://?x",
    ],
)
def test_ordinary_text_is_left_as_it_is(mask: Mask, text: str) -> None:
    """A text without a secret must come out unchanged."""
    assert mask.text(text) == text


def test_short_secrets_do_not_garble_the_log() -> None:
    """A secret of a few characters must be left, for it would be found in every line."""
    mask = Mask()
    mask.add(["", "a", "12345"])

    assert mask.text("a line with 12345 in it") == "a line with 12345 in it"


def test_secret_of_a_job_is_masked_while_it_runs() -> None:
    """A job's secret must be hidden until the last job that has it is over."""
    mask = Mask()

    with mask.during(["swordfish"]):
        with mask.during(iter(["swordfish", "swordfish", "other-secret"])):
            assert mask.text("swordfish other-secret") == "*** ***"
        assert mask.text("swordfish other-secret") == "*** other-secret"
    assert mask.text("swordfish") == "swordfish"


def test_secret_of_the_worker_outlives_the_jobs() -> None:
    """A secret of the settings must stay hidden when a job with the same one is over."""
    mask = Mask()
    mask.add(["swordfish"])

    with pytest.raises(ValueError, match="the job failed"), mask.during(["swordfish"]):
        raise ValueError("the job failed")

    assert mask.text("swordfish") == "***"


def test_json_values_are_masked_at_every_depth(mask: Mask) -> None:
    """Texts and keys of a JSON value must be masked, everything else kept."""
    value = {"swordfish": ["https://a/?b", {"x": ("swordfish", 1, None, True, 1.5)}]}

    assert mask.value(value) == {"***": ["https://a/?***", {"x": ["***", 1, None, True, 1.5]}]}


@repeatable
@given(st.text(max_size=50), st.text(min_size=6, max_size=12), st.text(max_size=50))
def test_no_secret_survives_whatever_stands_around_it(before: str, secret: str, after: str) -> None:
    """A known secret must never be in the masked text, unless the mask itself spells it."""
    mask = Mask()
    mask.add([secret])

    masked = mask.secrets(before + secret + after)

    assert secret not in masked or "*" in secret or secret in before + "***" + after


@pytest.mark.parametrize(
    "text", ["a." * 500_000 + "://", "a://" * 250_000, "a://b@" * 200_000, "x" * 1_000_000 + "://?"]
)
def test_long_texts_are_masked_in_no_time(text: str) -> None:
    """A text of a megabyte must not keep the worker busy, whatever is in it."""
    began = time.monotonic()

    Mask().text(text)

    assert time.monotonic() - began < 10


def test_mask_may_be_used_by_many_threads() -> None:
    """Secrets that come and go must never make a concurrent masking fail."""
    mask, failures = Mask(), []

    def work(number: int) -> None:
        try:
            for _ in range(200):
                with mask.during([f"secret-{number}", "secret-of-all"]):
                    assert mask.text(f"secret-{number} secret-of-all") == "*** ***"
        except (AssertionError, RuntimeError) as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,), name=f"masking-{number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures


def test_json_line_has_the_shape_of_the_console(lines: io.StringIO) -> None:
    """A line on RunPod must be one JSON object with request, level and message, on one line whatever it says."""
    log.configure("INFO", as_json=True, stream=lines)
    token = log.current_job.set("job-1")
    logging.getLogger("comfy_worker.some").warning("two\nlines, %s", "Grüße")
    log.current_job.reset(token)
    logging.getLogger("comfy_worker").info("no job")

    first, second = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert first == {"requestId": "job-1", "message": "two\nlines, Grüße", "level": "WARN"}
    assert second == {"requestId": None, "message": "no job", "level": "INFO"}


def test_text_line_has_level_job_and_message(lines: io.StringIO) -> None:
    """A line for people must begin with its level, and the job where there is one."""
    log.configure("INFO", as_json=False, stream=lines)
    token = log.current_job.set("job-1")
    logging.getLogger("comfy_worker").error("bad")
    log.current_job.reset(token)
    logging.getLogger("comfy_worker").info("good")
    logging.getLogger("comfy_worker").debug("not shown")

    assert lines.getvalue().splitlines() == ["ERROR   job-1  bad", "INFO    good"]


@pytest.mark.parametrize("as_json", [True, False])
def test_lines_and_tracebacks_are_masked(lines: io.StringIO, as_json: bool) -> None:
    """A secret must be hidden in the message, its arguments, and the whole chain of exceptions under it."""
    log.configure("DEBUG", as_json=as_json, stream=lines)
    with log.MASK.during(["swordfish"]):
        try:
            try:
                raise KeyError("swordfish")
            except KeyError as exc:
                raise ValueError("https://u:p@a.example/?swordfish") from exc
        except ValueError:
            logging.getLogger("comfy_worker").exception("failed with %r", {"key": "swordfish"})

    text = lines.getvalue()
    assert "swordfish" not in text
    assert "u:p@" not in text
    assert text.count("Traceback") == 2


def test_setting_up_again_replaces_the_former_set_up(lines: io.StringIO) -> None:
    """Two set-ups must not write every line twice."""
    log.configure("INFO", as_json=False, stream=lines)
    log.configure("WARNING", as_json=False, stream=lines)
    logging.getLogger("comfy_worker").warning("once")
    logging.getLogger("comfy_worker").info("not shown")

    assert lines.getvalue().splitlines() == ["WARNING once"]


def test_libraries_that_print_payloads_are_kept_quiet(lines: io.StringIO) -> None:
    """Loggers of libraries that would print requests and keys at DEBUG must stay at WARNING."""
    log.configure("DEBUG", as_json=False, stream=lines)

    for name in ("urllib3", "botocore", "boto3", "s3transfer", "websocket"):
        assert logging.getLogger(name).getEffectiveLevel() >= logging.WARNING
