"""
Raw JSON -> Job: what is taken over, what is refused, and that every refusal names its field.
"""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr
from support.pictures import empty_workflow

from comfy_worker.errors import JobInvalid
from comfy_worker.job import Bucket, Conversion, InputFile, Job
from comfy_worker.parse import KNOWN_KEYS, Rules, parse
from comfy_worker.parse_bucket import secrets_of

CONFIG = {
    "accessId": "key-id-1",
    "accessSecret": "secret-1",
    "bucketName": "mine",
    "endpointUrl": "https://s3.example.com",
}
DEFAULTS = Rules()
BLOCK = {"access_key_id": "key-id-2", "secret_access_key": "secret-2", "bucket_name": "other"}


def parsed(rules: Rules = DEFAULTS, s3_config: Any = None, **fields: Any) -> Job:
    """
    Parse a job of one valid workflow and these fields.
    """
    return parse("job-1", {"workflow": empty_workflow(), **fields}, rules, s3_config=s3_config)


def refused(rules: Rules = DEFAULTS, s3_config: Any = None, **fields: Any) -> JobInvalid:
    """
    Return the refusal of such a job.
    """
    with pytest.raises(JobInvalid) as caught:
        parsed(rules, s3_config, **fields)
    return caught.value


def test_plain_job_takes_the_operators_defaults() -> None:
    """A job that says nothing must get what the operator set."""
    bucket = Bucket("https://s3.example.com", "key", SecretStr("secret"), "b")
    key = SecretStr("operator-key")
    rules = Rules(42.0, 100.0, True, True, key, bucket, 1234)

    job = parsed(rules)

    assert (job.id, job.timeout_s, job.strict, job.dry_run, job.inputs) == ("job-1", 42.0, True, False, ())
    assert (job.delivery.strip_metadata, job.delivery.limit_bytes) == (True, 1234)
    assert (job.delivery.bucket, job.delivery.spill, job.comfy_org_api_key) == (bucket, bucket, key)
    assert (job.extra_pnginfo, job.warnings) == (None, ())


def test_fields_of_a_job_win_over_the_operators_defaults() -> None:
    """What a job says must replace the defaults, false as well as true."""
    rules = Rules(strict=True, strip_metadata=True, comfy_org_api_key=SecretStr("operator-key"))

    job = parsed(
        rules,
        timeout_s=5,
        strict=False,
        strip_metadata=False,
        dry_run=True,
        include_temp=True,
        comfy_org_api_key="job-key",
        extra_pnginfo={"workflow": {"nodes": []}},
        convert_output={"format": "webp", "options": {"quality": 80}},
    )

    assert (job.timeout_s, job.strict, job.delivery.strip_metadata) == (5.0, False, False)
    assert (job.dry_run, job.include_temp, job.extra_pnginfo) == (True, True, {"workflow": {"nodes": []}})
    assert job.comfy_org_api_key == SecretStr("job-key")
    assert job.delivery.conversion == Conversion("webp", {"quality": 80}, False)


def test_every_known_key_may_be_null() -> None:
    """A null must count as absent, whatever the key: many clients send every field they know."""
    fields = {key: None for key in KNOWN_KEYS if key != "workflow"}

    assert parsed(**fields) == parsed()


@pytest.mark.parametrize("spelling", ["comfy_org_api_key", "api_key_comfy_org"])
def test_both_spellings_of_the_key_are_read(spelling: str) -> None:
    """The key must be taken in the spelling of the code and in the one of the documentation."""
    assert parsed(**{spelling: "job-key"}).comfy_org_api_key == SecretStr("job-key")


def test_first_spelling_of_the_key_wins() -> None:
    """With both spellings the one that clients really use must count; an empty one counts as absent."""
    job = parsed(comfy_org_api_key="first", api_key_comfy_org="second")
    other = parsed(comfy_org_api_key="", api_key_comfy_org="second")

    assert job.comfy_org_api_key == SecretStr("first")
    assert other.comfy_org_api_key == SecretStr("second")


@pytest.mark.parametrize(
    "image",
    ["https://a.example/x.png", "HTTPS://a.example/x.png", " \n https://a.example/x.png \t", "s3://b/x.png"],
)
def test_url_of_an_image_is_told_apart_from_base64(image: str) -> None:
    """A URL must be taken as one in any case and with blanks around it."""
    job = parsed(images=[{"name": "x.png", "image": image}])

    assert job.inputs == (InputFile("x.png", "images[0].image", url=image.strip(), must_be_image=True),)


@pytest.mark.parametrize(
    "image", ["QUJD", "data:image/png;base64,QUJD", "httpQUJD", "", "file:///etc/passwd"]
)
def test_anything_else_of_an_image_is_left_to_the_decoder(image: str) -> None:
    """What is no URL must be kept as it is, to be decoded later."""
    job = parsed(images=[{"name": "x.png", "image": image}])

    assert job.inputs == (InputFile("x.png", "images[0].image", data=image, must_be_image=True),)


def test_files_need_not_be_images() -> None:
    """A file of `files` must not be checked for being a picture."""
    job = parsed(
        files=[
            {"name": "a.wav", "data": "QUJD"},
            {"name": "b.mp4", "url": " https://a.example/b ", "data": None},
        ]
    )

    assert job.inputs == (
        InputFile("a.wav", "files[0].data", data="QUJD"),
        InputFile("b.mp4", "files[1].url", url="https://a.example/b"),
    )


@pytest.mark.parametrize(
    "name", ["x.png", "a/b/c.png", "Grüße 🎈.png", " x .png", "x.png [input]", "no-ending", "..x", "a" * 200]
)
def test_names_that_stay_in_the_folder_are_taken(name: str) -> None:
    """A relative name without a way up must be taken as it is."""
    assert parsed(images=[{"name": name, "image": "QUJD"}]).inputs[0].name == name


def test_backslashes_of_a_name_become_slashes() -> None:
    """A name as Windows spells it must mean the same file."""
    assert parsed(images=[{"name": "a\\b.png", "image": "QUJD"}]).inputs[0].name == "a/b.png"


@pytest.mark.parametrize(
    "name",
    ["", " ", "/x", "\\x", "..", "../x", "a/../x", "a/./x", "./x", "a//x", "a/", "C:x", "C:/x", "\\\\host\\x",
     "a\x00b", "a\nb", "\x7f", "a" * 201, "ä" * 101, "\ud800.png", "cw-" + "0" * 32, None, 5, ["x"], {}, True],
)  # fmt: skip
def test_names_that_do_not_stay_in_the_folder_are_refused(name: Any) -> None:
    """Every other name must be refused with its field, for both lists."""
    for key, part in (("images", "image"), ("files", "data")):
        error = refused(**{key: [{"name": "good.png", part: "QUJD"}, {"name": name, part: "QUJD"}]})

        assert error.details["field"] == f"{key}[1].name"
        assert str(error).startswith(f"'{key}[1].name' must ")


def test_same_name_in_other_case_is_another_file() -> None:
    """Names that differ only by case must be two files, as they are on the disk of a worker."""
    job = parsed(images=[{"name": "a.png", "image": "QUJD"}, {"name": "A.png", "image": "QUJD"}])

    assert [file.name for file in job.inputs] == ["a.png", "A.png"]


def test_twins_that_differ_by_slashes_are_refused() -> None:
    """Two spellings of one file must be refused like two files of one name."""
    error = refused(
        images=[{"name": "a/b.png", "image": "QUJD"}], files=[{"name": "a\\b.png", "data": "QUJD"}]
    )

    assert str(error) == "'images[0]' and 'files[0]' have the same name 'a/b.png': give each file its own"


@pytest.mark.parametrize(
    "value", [0, 0.0, -1, 100.1, math.nan, math.inf, -math.inf, True, False, "5", [], {}]
)
def test_time_limit_out_of_bounds_is_refused(value: Any) -> None:
    """Whatever is no number within the bounds must be refused."""
    error = refused(Rules(timeout_max_s=100.0), timeout_s=value)

    assert error.details["field"] == "timeout_s"
    assert "at most 100 (JOB_TIMEOUT_MAX_S)" in str(error)


@pytest.mark.parametrize("value", [1, 0.001, 100, 100.0])
def test_time_limit_within_bounds_is_taken(value: float) -> None:
    """A number within the bounds must be taken, the bound itself too."""
    assert parsed(Rules(timeout_max_s=100.0), timeout_s=value).timeout_s == value


def test_default_time_limit_never_exceeds_the_largest() -> None:
    """An operator who lowers only the largest time limit must get it for jobs that name none."""
    assert parsed(Rules(timeout_s=3600.0, timeout_max_s=60.0)).timeout_s == 60.0


@pytest.mark.parametrize("key", ["strict", "dry_run", "include_temp", "strip_metadata"])
@pytest.mark.parametrize("value", [0, 1, "true", [], {}])
def test_switches_take_nothing_but_booleans(key: str, value: Any) -> None:
    """A switch must be true or false, and not something that Python takes for one."""
    assert refused(**{key: value}).details["field"] == key


@pytest.mark.parametrize("value", ["x", [], 5, {"workflow": None}, {"workflow": []}, {"workflow": "x"}])
def test_odd_metadata_is_refused(value: Any) -> None:
    """Metadata that would break ComfyUI's list of jobs for everybody must never be posted."""
    assert refused(extra_pnginfo=value).details["field"] == "extra_pnginfo"


@pytest.mark.parametrize(
    "value", [2**64, "\ud800", json.loads("[" * 300 + "]" * 300)], ids=["number", "text", "depth"]
)
def test_metadata_that_is_no_json_is_refused(value: Any) -> None:
    """Metadata that cannot be sent must be refused here, not trip the worker later."""
    error = refused(extra_pnginfo={"a": value})

    assert error.details["field"] == "extra_pnginfo"
    assert "cannot be sent to ComfyUI" in str(error)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("webp", "convert_output"),
        ([], "convert_output"),
        ({}, "convert_output.format"),
        ({"format": ["webp"]}, "convert_output.format"),
        ({"format": "WEBP"}, "convert_output.format"),
        ({"format": "webp", "keep_metadata": 1}, "convert_output.keep_metadata"),
        ({"format": "webp", "options": []}, "convert_output.options"),
        ({"format": "webp", "speed": 1}, "convert_output"),
    ],
)
def test_odd_conversions_are_refused(value: Any, field: str) -> None:
    """A conversion that is not understood must be refused with the part that is wrong."""
    assert refused(convert_output=value).details["field"] == field


def test_unknown_option_of_a_conversion_is_refused() -> None:
    """An option that no format has must be refused, not ignored."""
    assert "speeed" in str(refused(convert_output={"format": "webp", "options": {"speeed": 3}}))


def test_bucket_of_the_envelope_wins_and_is_complete() -> None:
    """A job's own bucket must replace the operator's with all of its parts, and the envelope's comes first."""
    operator = Bucket(
        "https://other.example.com", "a", SecretStr("b"), "c", "prefix", public_url="https://p.example.com"
    )
    given = {**CONFIG, "prefix": "p", "region": "eu-1", "sessionToken": "token-1"}

    job = parsed(Rules(bucket=operator), s3_config=given, s3Config=CONFIG, s3=BLOCK)

    wanted = Bucket(
        "https://s3.example.com", "key-id-1", SecretStr("secret-1"), "mine", "p", "eu-1", SecretStr("token-1")
    )
    assert job.delivery.bucket == job.delivery.spill == wanted


def test_bucket_in_the_other_spelling_is_read() -> None:
    """The block that Vast's users know must be read, with an endpoint or without."""
    first = parsed(s3=BLOCK).delivery.bucket
    second = parsed(
        s3={**BLOCK, "endpoint_url": "https://s3.example.com", "session_token": "t"}
    ).delivery.bucket

    assert first == Bucket(None, "key-id-2", SecretStr("secret-2"), "other")
    assert second == replace(first, endpoint_url="https://s3.example.com", session_token=SecretStr("t"))


@pytest.mark.parametrize("key", sorted(CONFIG))
@pytest.mark.parametrize("value", [None, 5, [], "\ud800", ""])
def test_incomplete_bucket_is_refused_without_its_secrets(key: str, value: Any) -> None:
    """A part that is missing or wrong must be refused with its name, and nothing of the rest may be shown."""
    error = refused(s3_config={**CONFIG, key: value})

    assert error.details["field"].startswith("s3Config")
    assert not any(secret in str(error) for secret in ("key-id-1", "secret-1"))


@pytest.mark.parametrize("value", ["text", [], 5, True, {}, {"unknown": 1}])
def test_odd_bucket_is_refused(value: Any) -> None:
    """What is no bucket at all must be refused in each of the three places."""
    for error in (refused(s3_config=value), refused(s3Config=value), refused(s3=value)):
        assert error.details["field"].startswith("s3")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("worklow", None),
        ("image", "images"),
        ("Images", "images"),
        ("time_out_s", "timeout_s"),
        ("seed", None),
        ("s3config", "s3Config"),
    ],
)
def test_slips_are_told_and_strange_keys_are_not(key: str, near: str | None) -> None:
    """A key near a known one must be told, and only told; any other is none of our business."""
    warnings = parsed(**{key: "x"}).warnings if key != "worklow" else ()

    assert [text.rpartition("'")[0].rpartition("'")[2] for text in warnings] == ([near] if near else [])


def test_heaps_of_strange_keys_cost_nothing() -> None:
    """A hundred thousand strange keys must not keep the worker busy, and a long one is not repeated."""
    strange = {f"image{number}": 1 for number in range(100_000)} | {"images" * 10_000: 1}

    warnings = parsed(**strange).warnings

    assert 0 < len(warnings) <= 100
    assert max(map(len, warnings)) < 200


def test_large_json_text_is_a_job() -> None:
    """A job that arrives as text must be taken at any size."""
    text = json.dumps({"workflow": empty_workflow(), "images": [{"name": "x", "image": "A" * 8_000_000}]})

    assert len(parse("job-1", text, Rules()).inputs[0].data or "") == 8_000_000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"workflow": ' + "[" * 2000 + "]" * 2000 + "}", '"\ud800"', "{,}", "\x00"]
)
def test_odd_json_text_is_refused(text: str) -> None:
    """Text that no reader takes must be refused like any other that is no JSON."""
    with pytest.raises(JobInvalid, match="Invalid JSON format in input"):
        parse("job-1", text, Rules())


def test_secrets_are_found_in_every_place() -> None:
    """Every key of a raw job must be known before anything is said about it, valid or not."""
    raw = {
        "comfy_org_api_key": "one",
        "api_key_comfy_org": "two",
        "s3Config": {"accessId": "three", "accessSecret": "four", "sessionToken": "five"},
        "s3": {"access_key_id": "six", "secret_access_key": "seven", "session_token": "eight"},
        "workflow": {
            "1": {
                "inputs": {
                    "api_key": "nine",
                    "hf_token": "ten",
                    "token_count": "no",
                    "text": "no",
                    "apikey": 5,
                }
            },
            "2": {"inputs": {"openai_api_key": "eleven", "Password": "twelve"}},
            "3": 5,
            "4": {"inputs": []},
        },
    }
    wanted = {
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    }

    assert set(secrets_of(raw, {"s3Config": {"accessId": "zero", "other": "no"}})) == wanted
    assert set(secrets_of(json.dumps(raw), {})) == wanted - {"zero"}


@pytest.mark.parametrize("raw", [None, 5, [], "", "{", {"workflow": 5, "s3": 5, "s3Config": []}])
def test_odd_jobs_have_no_secrets(raw: Any) -> None:
    """Looking for secrets must never fail."""
    assert list(secrets_of(raw, {"s3Config": "x"})) == []
