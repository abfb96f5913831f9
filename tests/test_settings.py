"""
The environment -> Settings: every variable's form, every problem named at once, no secret shown, two families apart.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from comfy_worker.errors import ConfigInvalid
from comfy_worker.settings import Settings, load, names_of

FIELDS = dataclasses.fields(Settings)
S3 = {
    "S3_ENDPOINT_URL": "https://s3.example.com",
    "S3_ACCESS_KEY_ID": "s3-key",
    "S3_SECRET_ACCESS_KEY": "s3-secret",
    "S3_BUCKET_NAME": "s3-bucket",
}
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://bucket.example.com",
    "BUCKET_ACCESS_KEY_ID": "bucket-key",
    "BUCKET_SECRET_ACCESS_KEY": "bucket-secret",
}
# One value per field that its parser refuses; a field without one takes any text.
BAD: dict[str, str] = {
    "comfyui_url": "ftp://host",
    "comfyui_args": "--port 1",
    "comfyui_command": "python 'main.py",
    "comfy_port": "70000",
    "comfy_log_level": "LOUD",
    "comfy_boot_timeout_s": "0",
    "comfy_api_available_interval_ms": "0.5",
    "comfy_api_available_max_retries": "-1",
    "comfy_restart_delay": "soon",
    "comfy_max_rapid_restarts": "0",
    "comfy_rapid_restart_window": "nan",
    "gpu_check": "x",
    "warmup_required": "x",
    "shutdown_grace_s": "-1",
    "oom_retry": "x",
    "min_free_disk_mb": "-1",
    "max_queue_size": "0",
    "api_cache_ttl": "0",
    "include_comfyui_response": "maybe",
    "output_base64_max_bytes": "0",
    "vast_url_inputs": "some",
    "s3_connect_timeout": "0",
    "s3_connect_attempts": "0",
    "keep_local_outputs": "maybe",
    "webhook_url": "ftp://example.com",
    "webhook_timeout": "61",
    "vast_sessions": "-1",
    "worker_http_port": "70000",
    "min_free_memory_mb": "none",
    "orphan_age_s": "-1",
    "websocket_reconnect_attempts": "many",
    "websocket_reconnect_delay_s": "-1",
    "websocket_trace": "maybe",
    "job_timeout_s": "inf",
    "job_timeout_max_s": "0",
    "worker_concurrency": "0",
    "strict": "2",
    "fail_on_node_error": "off!",
    "cancel_grace_s": "0",
    "strip_metadata": "x",
    "keep_outputs": "x",
    "reply_limit_mb": "0",
    "reply_limit_sync_mb": "1e9",
    "input_max_mb": "1e999",
    "input_threads": "65",
    "input_roots": "pictures",
    "input_cache_mb": "-1",
    "input_cache_age_s": "-1",
    "allow_private_urls": "x",
    "models_threads": "0",
    "models_timeout_s": "0",
    "hf_endpoint": "hub.example.com",
    "volume_roots": "models",
    "volume_custom_nodes": "x",
    "cached_models": "owner/name",
    "network_volume_debug": "x",
    "bucket_endpoint_url": "s3.example.com",
    "bucket_addressing_style": "host",
    "bucket_url_expiry_s": "604801",
    "bucket_public_url": "https://",
    "upload_threads": "0",
    "refresh_worker": "sometimes",
    "progress_updates": "x",
    "log_level": "LOUD",
    "log_format": "xml",
    "lru_cache_size_gb": "-1",
    "http_trusted_origins": "*",
    "http_auth_allowed_origins": "example.com",
    "aws_endpoint_url": "s3.example.com",
    "azure_storage_account": "dev.example.com",
    "max_body_size_mb": "0",
    "max_queue_depth": "-1",
    "prepend_filenames": "maybe",
    "queue_limit": "0",
    "provisioning_script": "ftp://example.com/x.sh",
    "provisioning_timeout_s": "0",
    "provisioning_required": "maybe",
    "old_outputs_age_s": "-1",
    "serve_api_locally": "maybe",
    "prompt_webhook_retries": "0",
    "system_webhook_url": "ftp://example.com/hook",
    "system_webhook_events": "executing, everything",
}
FREE = {
    "backend_failure_threshold",  # anything that is no positive number is 3, as Vast's users know it
    "s3_allowed_buckets",
    "comfy_model",
    "vast_backend",
    "vast_log_file",
    "server_api_key",
    "cache_dir", "model_dir", "system_meta", "http_auth_header_name", "http_auth_header_value",
    "azure_storage_sas_token",
    "azure_storage_connection_string", "azure_storage_key",  # secrets that are checked: tests/salad/test_azure.py
    "aws_region", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
    "models_manifest", "manifest", "hf_token", "civitai_token",
    "warmup_workflow", "workflow_dir", "webhook_secret",
    "comfyui_path", "comfyui_python", "comfy_input_dir", "comfy_output_dir", "comfy_org_api_key",
    "bucket_access_key_id", "bucket_secret_access_key", "bucket_name", "bucket_prefix", "bucket_region",
    "runpod_endpoint_id", "runpod_webhook_get_job", "runpod_webhook_post_output", "runpod_pod_id", "runpod_ai_api_key",
}  # fmt: skip


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    """
    Return what is wrong with an environment.
    """
    with pytest.raises(ConfigInvalid) as caught:
        load(environ)
    return caught.value.problems


def test_empty_environment_gives_the_defaults() -> None:
    """Without any variable, and with empty ones, every field must have its default."""
    assert load({}) == Settings()
    assert load({name: " " for entry in FIELDS for name in names_of(entry)}) == Settings()
    assert load({"SOMETHING_ELSE": "x", "BUCKET_LIST": "y"}) == Settings()


def test_every_field_has_one_name_and_a_sentence() -> None:
    """No variable may belong to two fields, and each must be explained in one sentence, in a group."""
    names = [name for entry in FIELDS for name in names_of(entry)]

    assert len(names) == len(set(names))
    assert all(name == name.upper() for name in names)
    for entry in FIELDS:
        text = entry.metadata["text"]
        assert text[0].isupper() or text[0] == "`", entry.name
        assert text.endswith("."), entry.name
        assert entry.metadata["group"] in {
            "ComfyUI",
            "HTTP server",
            "Life of the worker",
            "Worker",
            "Templates",
            "Webhooks",
            "Jobs",
            "Inputs",
            "Models",
            "Storage",
            "RunPod",
            "Vast",
            "Log",
        }


def test_every_default_would_be_accepted_as_a_value() -> None:
    """A default that is written out must be a value that its own parser takes, and mean the same."""
    for entry in FIELDS:
        if entry.default not in (None, (), "", frozenset()):
            text = (
                ":".join(map(str, entry.default)) if isinstance(entry.default, tuple) else str(entry.default)
            )
            assert entry.metadata["parse"](text) == entry.default, entry.name


def test_every_field_is_known_to_be_checked_or_free() -> None:
    """A new variable must be put into the table of bad values, or named as one that takes any text."""
    assert {entry.name for entry in FIELDS} == set(BAD) | FREE


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_value_is_named_with_the_form_that_is_taken(name: str) -> None:
    """A wrong value must stop the worker with the variable, what it takes, and what it got."""
    entry = next(entry for entry in FIELDS if entry.name == name)
    variable = names_of(entry)[0]

    found = [text for text in problems({variable: BAD[name]}) if text.startswith(f"{variable} must be ")]

    assert len(found) == 1
    assert found[0].endswith(f", not {BAD[name]!r}")


def test_all_bad_values_are_named_at_once() -> None:
    """One start must name every variable that is wrong, in one message."""
    environ = {names_of(entry)[0]: BAD[entry.name] for entry in FIELDS if entry.name in BAD}

    with pytest.raises(ConfigInvalid) as caught:
        load(environ)

    assert {text.partition(" ")[0] for text in caught.value.problems} >= set(environ)
    assert all(f"  - {text}" in str(caught.value) for text in caught.value.problems)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("REFRESH_WORKER", " True ", True),
        ("REFRESH_WORKER", "ON", True),
        ("FAIL_ON_NODE_ERROR", "No", False),
        ("PROGRESS_UPDATES", "0", False),
        ("COMFY_LOG_LEVEL", "debug", "DEBUG"),
        ("LOG_FORMAT", "JSON", "json"),
        ("WEBSOCKET_RECONNECT_DELAY_S", "0.5", 0.5),
        ("COMFY_API_AVAILABLE_INTERVAL_MS", " 50 ", 50),
        ("COMFY_PORT", "0", 0),
        ("COMFYUI_URL", "gpu-box:8188", "http://gpu-box:8188"),
        ("COMFYUI_URL", "http://127.0.0.1:8188/", "http://127.0.0.1:8188"),
        ("COMFYUI_URL", "https://[::1]:8188/base", "https://[::1]:8188/base"),
        ("COMFY_HOST", "127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("COMFYUI_ARGS", "--cpu --preview-method 'auto x'", ("--cpu", "--preview-method", "auto x")),
        ("COMFYUI_PATH", "~/comfy", Path.home() / "comfy"),
        ("COMFY_ORG_API_KEY", " key ", SecretStr("key")),
        ("BUCKET_ADDRESSING_STYLE", None, None),
    ],
)
def test_value_is_read(name: str, text: str | None, value: Any) -> None:
    """A value must be read as its type, in every spelling that is taken, without blanks around it."""
    entry = next(entry for entry in FIELDS if name in names_of(entry))

    assert getattr(load({name: text} if text else {}), entry.name) == value


@pytest.mark.parametrize(
    "text",
    ["http://", "http:///x", "host:port", "http://host:99999", "http://host:0", "http://user@host", "http://u:p@host", "http://host?x=1",
     "http://host#x", "http://ho st", "http://[::1", "ws://host", "http://host\\x"],
)  # fmt: skip
def test_odd_address_is_refused(text: str) -> None:
    """An address that is none, or that holds more than an address, must be refused."""
    [problem] = problems({"COMFYUI_URL": text})

    assert problem.startswith(
        "COMFYUI_URL must be an http(s) URL with a host, without user, password or query"
    )


@pytest.mark.parametrize(
    "flag",
    [
        "--port 1",
        "--port=1",
        "--listen",
        "--base-directory /x",
        "--output-directory=/x",
        "--input-directory x",
        "--temp-directory x",
    ],
)
def test_flags_that_the_worker_sets_are_refused(flag: str) -> None:
    """An argument that would break the worker's own must be refused with its name."""
    [problem] = problems({"COMFYUI_ARGS": f"--cpu {flag}"})

    assert f"without {flag.split()[0].split('=')[0]}, which the worker sets itself" in problem


def test_unclosed_quote_is_refused() -> None:
    """Arguments that a shell could not split must be refused."""
    assert "arguments a shell could split" in problems({"COMFYUI_ARGS": "--x 'y"})[0]


def test_unknown_home_folder_is_refused() -> None:
    """A path below the home of nobody must be refused, not trip the start."""
    assert problems({"COMFYUI_PATH": "~nobody-of-this-name/x"})[0].startswith("COMFYUI_PATH must be a path")


def test_first_name_of_a_field_wins() -> None:
    """With two names given, the preferred one must count."""
    environ = {"COMFY_HOST": "old:1", "COMFYUI_URL": "new:2"}

    assert load(environ).comfyui_url == "http://new:2"


def test_secrets_are_never_shown() -> None:
    """No message may hold a secret: not of a secret variable, nor in the user, query or password of a URL."""
    environ = {
        "BUCKET_ENDPOINT_URL": "https://user:hunter2-password@s3.example.com",
        "BUCKET_PUBLIC_URL": "https://cdn.example.com/?signature=hunter2-signature",
        "COMFYUI_URL": "http://host/?token=hunter2-token",
        "BUCKET_SECRET_ACCESS_KEY": "hunter2-secret",
        "COMFY_ORG_API_KEY": "hunter2-key",
        "RUNPOD_AI_API_KEY": "hunter2-runpod",
        "LOG_LEVEL": "no such level",
    }

    found = problems(environ)

    assert len(found) == 5
    assert "hunter2" not in "\n".join(found)
    assert any("'no such level'" in text for text in found)


def test_secrets_are_listed_for_masking_and_not_printed() -> None:
    """Every secret must be known to whoever masks, and a printed Settings may not show those of SecretStr."""
    environ = {
        **BUCKET,
        "COMFY_ORG_API_KEY": "key-1",
        "RUNPOD_AI_API_KEY": "key-2",
        "RUNPOD_WEBHOOK_POST_OUTPUT": "https://x/key-3",
    }

    config = load(environ)

    assert set(config.secrets()) == {"bucket-key", "bucket-secret", "key-1", "key-2", "https://x/key-3"}
    assert not any(secret in repr(config) for secret in ("bucket-secret", "key-1", "key-2"))


def test_both_families_of_storage_names_are_read() -> None:
    """The names of S3 clients must do the same as those of RunPod's users."""
    config = load({**S3, "S3_REGION": "eu-1"})

    assert (config.bucket_endpoint_url, config.bucket_access_key_id) == ("https://s3.example.com", "s3-key")
    assert (config.bucket_secret_access_key, config.bucket_name) == (SecretStr("s3-secret"), "s3-bucket")
    assert config.bucket_region == "eu-1"


def test_families_of_storage_names_are_never_mixed() -> None:
    """A complete BUCKET_ family must ignore the S3_ family, bucket name and region included."""
    config = load({**S3, "S3_REGION": "eu-1", **BUCKET})

    assert (config.bucket_endpoint_url, config.bucket_access_key_id) == (
        "https://bucket.example.com",
        "bucket-key",
    )
    assert (config.bucket_secret_access_key, config.bucket_name) == (SecretStr("bucket-secret"), None)
    assert config.bucket_region is None


@pytest.mark.parametrize("name", sorted(BUCKET))
def test_half_a_family_is_not_filled_from_the_other(name: str) -> None:
    """One BUCKET_ variable with a complete S3_ family must be an error that names what is missing."""
    [problem] = problems({**S3, name: BUCKET[name]})

    missing = set(BUCKET) - {name}
    assert all(variable in problem for variable in missing)
    assert f"{name} switches object storage on" in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUCKET_URL_EXPIRY_S", "60"),
        ("BUCKET_PREFIX", "p"),
        ("BUCKET_ADDRESSING_STYLE", "path"),
        ("BUCKET_REGION", "eu-1"),
        ("BUCKET_OF_SOMEONE", "x"),
    ],
)
def test_other_bucket_variables_go_with_either_family(name: str, value: str) -> None:
    """A variable that says how, not where, must not turn the S3_ family off."""
    assert load({**S3, name: value}).bucket_endpoint_url == "https://s3.example.com"


@pytest.mark.parametrize("missing", sorted(BUCKET))
def test_half_configured_storage_stops_the_worker(missing: str) -> None:
    """Storage with a part missing must stop the worker with the part's name, and never store anything elsewhere."""
    [problem] = problems({name: value for name, value in BUCKET.items() if name != missing})

    assert problem.startswith(f"{missing} must be set too")


def test_bucket_name_does_for_an_endpoint() -> None:
    """On AWS a bucket's name must be enough, without an endpoint."""
    environ = {**BUCKET, "BUCKET_NAME": "b"}
    del environ["BUCKET_ENDPOINT_URL"]

    assert load(environ).bucket_name == "b"


def test_public_url_alone_stops_the_worker() -> None:
    """A public URL without a bucket can only be a mistake."""
    [problem] = problems({"BUCKET_PUBLIC_URL": "https://cdn.example.com"})

    assert problem.startswith(
        "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY must be set too"
    )


def test_prefix_needs_a_bucket_name() -> None:
    """A prefix has no place in the legacy layout."""
    assert problems({**BUCKET, "BUCKET_PREFIX": "p"}) == (
        "BUCKET_PREFIX needs BUCKET_NAME: without a bucket name the legacy layout is used",
    )


@pytest.mark.parametrize("name", ["COMFY_INPUT_DIR", "COMFY_OUTPUT_DIR"])
def test_folders_of_a_running_comfyui_come_in_pairs(name: str) -> None:
    """One folder without the other must stop the worker."""
    assert problems({name: "/x"}) == ("COMFY_INPUT_DIR and COMFY_OUTPUT_DIR must be set together",)


@pytest.mark.parametrize(
    "environ", [{"JOB_TIMEOUT_S": "100000"}, {"JOB_TIMEOUT_S": "20", "JOB_TIMEOUT_MAX_S": "10"}]
)
def test_default_time_limit_within_the_largest(environ: dict[str, str]) -> None:
    """A default that no job could ask for must stop the worker."""
    [problem] = problems(environ)

    assert problem.startswith("JOB_TIMEOUT_S must not be larger than JOB_TIMEOUT_MAX_S")
