"""
The PyWorker's settings: defaults, what is refused, and that all of it is said at once.
"""

import re
from pathlib import Path

import pytest

from comfy_worker.pyworker import config
from comfy_worker.pyworker.config import Misconfigured

ROOT = Path(__file__).resolve().parents[2]
INSTANCE = {"CONTAINER_ID": "12", "PUBLIC_IPADDR": "203.0.113.9", "VAST_TCP_PORT_3000": "34567"}


def load(**environ: str) -> config.Config:
    """
    Load the settings of an instance with these variables on top.
    """
    return config.load({**INSTANCE, **environ}, Path())


def problems(**environ: str) -> str:
    """
    Return what is wrong with these variables.
    """
    with pytest.raises(Misconfigured) as caught:
        load(**environ)
    return str(caught.value)


def test_instance_of_vast_needs_nothing_else() -> None:
    """
    What Vast sets in an instance is enough; the rest has the defaults of the documentation.
    """
    found = load()

    assert found.identity.url == "http://203.0.113.9:34567"
    assert found.identity.report_addresses == ("https://run.vast.ai",)
    assert found.model_server == ("http://127.0.0.1", 18288)
    assert (found.port, found.http_port, found.parallel, found.sessions) == (3000, 3001, 1, 0)
    assert (found.max_queue_time_s, found.benchmark_runs, found.legacy_model) == (10.0, 3, None)
    assert found.use_ssl is False


def test_address_says_https_for_the_exact_word_only() -> None:
    """
    The SDK knows `true` alone, so the reported address must too.
    """
    assert load(USE_SSL="true").identity.url.startswith("https://")
    assert load(USE_SSL="True").identity.url.startswith("http://")


def test_limit_of_the_line_can_be_lifted() -> None:
    """
    `none` takes every request; a number is a limit, 0 too.
    """
    assert load(VAST_MAX_QUEUE_TIME="none").max_queue_time_s is None
    assert load(VAST_MAX_QUEUE_TIME="0").max_queue_time_s == 0
    assert load(VAST_MAX_QUEUE_TIME="2.5").max_queue_time_s == 2.5


def test_every_problem_is_named_at_once() -> None:
    """
    One start is enough to learn of everything that is wrong.
    """
    with pytest.raises(Misconfigured) as caught:
        config.load({"WORKER_PORT": "x", "VAST_SESSIONS": "-1", "UNSECURED": "maybe"}, Path())

    text = str(caught.value)
    for name in ("CONTAINER_ID", "PUBLIC_IPADDR", "WORKER_PORT", "VAST_SESSIONS", "UNSECURED"):
        assert name in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONTAINER_ID", "twelve"),
        ("MODEL_SERVER_URL", "127.0.0.1:18288"),
        ("MODEL_SERVER_URL", "https://127.0.0.1:18288"),
        ("MODEL_SERVER_URL", "http://127.0.0.1:18288/path"),
        ("MODEL_SERVER_URL", "http://127.0.0.1:notaport"),
        ("VAST_MAX_QUEUE_TIME", "-1"),
        ("VAST_MAX_QUEUE_TIME", "nan"),
        ("VAST_BENCHMARK_RUNS", "0"),
        ("VAST_BENCHMARK_RUNS", "2.5"),
        ("WORKER_CONCURRENCY", "0"),
        ("SHUTDOWN_GRACE_S", "soon"),
        ("REPORT_ADDR", "https://cloud.vast.ai/api/v0"),
    ],
)
def test_wrong_value_is_named(name: str, value: str) -> None:
    """
    A value that cannot work is refused by its variable's name.
    """
    assert name in problems(**{name: value})


def test_legacy_mode_needs_a_model() -> None:
    """
    BACKEND=comfyui without COMFY_MODEL names the two; another name may be a template of the operator.
    """
    assert "flux or sd3" in problems(BACKEND="comfyui")
    assert load(BACKEND="comfyui", COMFY_MODEL="SD3").legacy_model == "sd3"
    assert load(COMFY_MODEL="mine").legacy_model == "mine"
    assert load(BACKEND="comfyui-json").legacy_model is None


def test_log_never_goes_below_info() -> None:
    """
    At DEBUG the SDK writes whole reports.
    """
    assert load(LOG_LEVEL="debug").log_level == "INFO"
    assert load(LOG_LEVEL="warning").log_level == "WARNING"


def test_token_of_the_router_is_not_shown() -> None:
    """
    A printed configuration has no secret in it.
    """
    assert "secret-token" not in repr(load(MASTER_TOKEN="secret-token"))


@pytest.mark.parametrize("name", config.VARIABLES)
def test_every_variable_is_documented(name: str) -> None:
    """
    Each variable stands on the page about Vast.
    """
    assert f"`{name}`" in (ROOT / "docs" / "howto" / "deploy-vast.md").read_text(encoding="utf-8")


def test_list_of_variables_is_complete() -> None:
    """
    Each variable that the code reads is in the list.
    """
    text = (ROOT / "src" / "comfy_worker" / "pyworker" / "config.py").read_text(encoding="utf-8")
    read = set(re.findall(r'read\.\w+\(\s*"([A-Z][A-Z_]+)"', text))

    assert len(read) > 20
    assert read - {"WORKSPACE_DIR"} <= set(config.VARIABLES)
