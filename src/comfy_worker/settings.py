"""
Every environment variable once: name, type, default, one sentence. `load(environ)` reads them all, once.

Entry points call `load`; everything below is given the values it needs. docs/reference/environment.md is written from
this table and a test compares the two.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from comfy_worker.errors import ConfigInvalid

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})
OWN_FLAGS = frozenset(
    {"--port", "--listen", "--base-directory", "--input-directory", "--output-directory", "--temp-directory"}
)

ACCOUNT = ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "NAME")

Parser = Callable[[str], Any]


def boolean(text: str) -> bool:
    """
    Read true, 1, yes, on and their opposites, in any case.
    """
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise ValueError("true or false (also 1/0, yes/no, on/off)")
    return word in TRUE


def number(low: float, high: float = float("inf"), *, whole: bool = False) -> Parser:
    """
    Make a parser of numbers within `low`..`high`.
    """
    wanted = f"{'a whole number' if whole else 'a number'} from {low:g}" + (
        f" to {high:g}" if high < 1e18 else ""
    )

    def parse(text: str) -> float:
        try:
            value: float = int(text) if whole else float(text)
        except ValueError:
            raise ValueError(wanted) from None
        if not (low <= value <= high and math.isfinite(value)):
            raise ValueError(wanted)
        return value

    return parse


def choice(*names: str) -> Parser:
    """
    Make a parser of one of `names`, in any case; the spelling given here is returned.
    """
    by_word = {name.lower(): name for name in names}

    def parse(text: str) -> str:
        try:
            return by_word[text.strip().lower()]
        except KeyError:
            raise ValueError(f"one of {', '.join(names)}") from None

    return parse


def http_url(text: str) -> str:
    """
    Read an http(s) URL with a host and without user or query; a trailing slash is dropped.
    """
    problem = "an http(s) URL with a host, without user, password or query"
    try:
        parts = urlsplit(text.strip())
        usable = (
            parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        usable = None
    if not usable or "@" in parts.netloc or re.search(r"[\s?#\\]", text.strip()):
        raise ValueError(problem)
    return text.strip().rstrip("/")


def address(text: str) -> str:
    """
    Read `host:port` or an http(s) URL as the URL of a ComfyUI.
    """
    return http_url(text if "://" in text else f"http://{text}")


def arguments(text: str) -> tuple[str, ...]:
    """
    Split extra ComfyUI arguments as a shell would; flags that the worker itself sets are refused.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as exc:
        raise ValueError(f"arguments a shell could split ({exc})") from None
    for word in words:
        if word.split("=")[0] in OWN_FLAGS:
            raise ValueError(f"arguments without {word.split('=')[0]}, which the worker sets itself")
    return words


def folder(text: str) -> Path:
    """
    Read a path; `~` is the home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("a path whose `~` is a known home folder") from None


def setting(
    default: Any,
    text: str,
    parse: Parser = str,
    *,
    group: str,
    names: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """
    Declare one variable; `names` are its environment names where they differ from the upper-case field name.
    """
    meta = {"text": text, "parse": parse, "group": group, "names": names, "secret": secret}
    return field(default=default, metadata=meta)


LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MEGABYTE = 1_000_000
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Settings:
    """
    All settings of a worker, checked. A field is its variable's name in lower case unless `names` says otherwise.
    """

    # fmt: off
    comfyui_url: str | None = setting(None, "Address of a running ComfyUI (`http://host:port` or `host:port`); the worker then starts none and moves files over HTTP.", address, group="ComfyUI", names=("COMFYUI_URL", "COMFY_HOST"))
    comfyui_path: Path | None = setting(None, "Folder of the ComfyUI that the worker starts (the one with `main.py`).", folder, group="ComfyUI")
    comfyui_python: Path | None = setting(None, "Python that runs ComfyUI; by default a virtual environment inside its folder, else the worker's own.", folder, group="ComfyUI")
    comfyui_args: tuple[str, ...] = setting((), "Extra arguments for ComfyUI, split as a shell does, for example `--cpu`.", arguments, group="ComfyUI")
    comfy_port: int = setting(8188, "Port for the ComfyUI that the worker starts, on 127.0.0.1; 0 takes a free one.", number(0, 65535, whole=True), group="ComfyUI")
    comfy_log_level: str = setting("INFO", "How much ComfyUI logs: DEBUG, INFO, WARNING, ERROR or CRITICAL.", choice(*LEVELS), group="ComfyUI")
    comfy_boot_timeout_s: float = setting(600.0, "Seconds ComfyUI may take to answer after its start, while its process lives.", number(1), group="ComfyUI")
    comfy_api_available_interval_ms: int = setting(50, "Milliseconds between two looks whether ComfyUI answers yet.", number(1, 60_000, whole=True), group="ComfyUI")
    comfy_api_available_max_retries: int = setting(0, "How often to look for a ComfyUI at COMFYUI_URL before giving up; 0 looks 500 times.", number(0, 1e9, whole=True), group="ComfyUI")
    comfy_restart_delay: float = setting(5.0, "Seconds before a dead ComfyUI is started again.", number(0, 3600), group="ComfyUI")
    comfy_max_rapid_restarts: int = setting(5, "After so many deaths within COMFY_RAPID_RESTART_WINDOW the worker gives up.", number(1, 1000, whole=True), group="ComfyUI")
    comfy_rapid_restart_window: float = setting(60.0, "Seconds in which COMFY_MAX_RAPID_RESTARTS are counted.", number(1), group="ComfyUI")
    comfy_input_dir: Path | None = setting(None, "ComfyUI's input folder, when the ComfyUI at COMFYUI_URL shares this disk; set together with COMFY_OUTPUT_DIR.", folder, group="ComfyUI")
    comfy_output_dir: Path | None = setting(None, "ComfyUI's output folder, when the ComfyUI at COMFYUI_URL shares this disk.", folder, group="ComfyUI")
    comfy_org_api_key: SecretStr | None = setting(None, "Key for ComfyUI's API nodes; a job's own key wins.", SecretStr, group="ComfyUI", secret=True)
    websocket_reconnect_attempts: int = setting(5, "How often in a row a lost websocket is opened again while a job waits; the job itself goes on by polling.", number(0, 1e6, whole=True), group="ComfyUI")
    websocket_reconnect_delay_s: float = setting(3.0, "Seconds between two attempts to open the websocket.", number(0, 3600), group="ComfyUI")
    websocket_trace: bool = setting(False, "Log the type of every websocket message (never its content).", boolean, group="ComfyUI")

    job_timeout_s: float = setting(3600.0, "Seconds a job may take when it names no `timeout_s`.", number(0.1), group="Jobs")
    job_timeout_max_s: float = setting(DAY_S, "The largest `timeout_s` a job may ask for.", number(0.1), group="Jobs")
    worker_concurrency: int = setting(1, "Jobs in the pipeline at once; with 2 the next job's inputs are fetched and its prompt waits in ComfyUI while the present one runs.", number(1, 64, whole=True), group="Jobs")
    strict: bool = setting(False, "Refuse a workflow when ComfyUI drops some of its outputs as invalid, instead of running the rest.", boolean, group="Jobs")
    fail_on_node_error: bool = setting(True, "A node error fails the job even when other outputs were finished; false completes it with `errors`.", boolean, group="Jobs")
    cancel_grace_s: float = setting(30.0, "Seconds a cancelled prompt may take to leave ComfyUI before the worker counts ComfyUI as stuck.", number(0.1, 3600), group="Jobs")
    strip_metadata: bool = setting(False, "Remove the workflow and other metadata from the images of every reply.", boolean, group="Jobs")
    keep_outputs: bool = setting(False, "Leave the files of a job in ComfyUI's output folder after they were delivered.", boolean, group="Jobs")
    reply_limit_mb: float = setting(10.0, "Largest reply in megabytes (1,000,000 bytes) to a `/run` job; RunPod drops a larger one.", number(0.01, 100_000), group="Jobs")
    reply_limit_sync_mb: float = setting(20.0, "The same for a `/runsync` job (its id starts with `sync-`).", number(0.01, 100_000), group="Jobs")

    input_max_mb: float = setting(2048.0, "Largest input file in megabytes, fetched or decoded.", number(0.001), group="Inputs")
    input_threads: int = setting(8, "Input files fetched at once, per job.", number(1, 64, whole=True), group="Inputs")
    input_cache_mb: float = setting(4096.0, "Megabytes of unused input files kept in ComfyUI's input folder.", number(0), group="Inputs")
    input_cache_age_s: float = setting(86_400.0, "Seconds after which an unused input file is removed.", number(0), group="Inputs")
    allow_private_urls: bool = setting(False, "Let jobs fetch inputs from private, loopback and link-local addresses; only for a trusted network.", boolean, group="Inputs")

    bucket_endpoint_url: str | None = setting(None, "S3 endpoint; setting it switches the output to URLs.", http_url, group="Storage", names=("BUCKET_ENDPOINT_URL", "S3_ENDPOINT_URL"))
    bucket_access_key_id: str | None = setting(None, "Access key of the bucket.", group="Storage", names=("BUCKET_ACCESS_KEY_ID", "S3_ACCESS_KEY_ID"), secret=True)
    bucket_secret_access_key: SecretStr | None = setting(None, "Secret key of the bucket.", SecretStr, group="Storage", names=("BUCKET_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY"), secret=True)
    bucket_name: str | None = setting(None, "Bucket; unset keeps the legacy layout, in which the month stands in its place.", group="Storage", names=("BUCKET_NAME", "S3_BUCKET_NAME"))
    bucket_prefix: str = setting("", "First part of every key; needs BUCKET_NAME.", group="Storage")
    bucket_region: str | None = setting(None, "Region; by default read from the endpoint.", group="Storage", names=("BUCKET_REGION", "S3_REGION"))
    bucket_addressing_style: Literal["auto", "path", "virtual"] | None = setting(None, "`path`, `virtual` or `auto`; by default path without BUCKET_NAME and auto with it.", choice("auto", "path", "virtual"), group="Storage")
    bucket_url_expiry_s: int = setting(604_800, "Life of a presigned link in seconds.", number(1, 604_800, whole=True), group="Storage")
    bucket_public_url: str | None = setting(None, "Base of plain public URLs, instead of presigned ones.", http_url, group="Storage")
    upload_threads: int = setting(4, "Output files uploaded at once, per job.", number(1, 64, whole=True), group="Storage")

    refresh_worker: bool = setting(False, "Recycle the worker after each job.", boolean, group="RunPod")
    progress_updates: bool = setting(True, "Send progress to `/status`, at most once a second.", boolean, group="RunPod")
    runpod_endpoint_id: str | None = setting(None, "Set by RunPod; switches the log to RunPod's JSON lines.", group="RunPod")
    runpod_webhook_get_job: str | None = setting(None, "Set by RunPod; without it `handler.py` runs `test_input.json` once.", group="RunPod")
    runpod_webhook_post_output: str | None = setting(None, "Set by RunPod: where results and progress are posted.", group="RunPod", secret=True)
    runpod_pod_id: str | None = setting(None, "Set by RunPod: the id of this worker.", group="RunPod")
    runpod_ai_api_key: SecretStr | None = setting(None, "Set by RunPod: the worker's key for the job API.", SecretStr, group="RunPod", secret=True)

    log_level: str = setting("INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL.", choice(*LEVELS), group="Log")
    log_format: Literal["auto", "json", "text"] = setting("auto", "`json`, `text`, or `auto`: JSON on RunPod, text elsewhere.", choice("auto", "json", "text"), group="Log")
    # fmt: on

    def secrets(self) -> Iterator[str]:
        """
        Yield every secret text of these settings, for masking.
        """
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.metadata["secret"] and value:
                yield value.get_secret_value() if isinstance(value, SecretStr) else value


def names_of(entry: Any) -> tuple[str, ...]:
    """
    Return the environment names of one dataclass field, the preferred one first.
    """
    return entry.metadata["names"] or (entry.name.upper(),)


def load(environ: Mapping[str, str]) -> Settings:
    """
    Read and check all settings. An empty variable counts as unset.

    Raises:
        ConfigInvalid: names every wrong variable and what it takes, never the value of a secret.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    given = {name: text for name, text in environ.items() if text.strip()}
    if any(f"BUCKET_{name}" in given for name in ACCOUNT):
        # Two families of names, two accounts: one never fills the gaps of the other.
        given = {name: text for name, text in given.items() if not name.startswith("S3_")}
    for entry in fields(Settings):
        name = next((name for name in names_of(entry) if name in given), None)
        if name is None:
            continue
        try:
            values[entry.name] = entry.metadata["parse"](environ[name].strip())
        except ValueError as exc:
            # A URL may hold a password, and a signature.
            is_open = not entry.metadata["secret"] and not re.search(r"[@?]", environ[name])
            shown = repr(environ[name]) if is_open else "its value"
            problems.append(f"{name} must be {exc}, not {shown}")
    problems.extend(contradictions(values))
    if problems:
        raise ConfigInvalid(problems)
    return Settings(**values)


def contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """
    Yield what is wrong between variables, one sentence each.
    """
    keys = ("bucket_access_key_id", "bucket_secret_access_key")
    switches = ("bucket_endpoint_url", *keys, "bucket_name", "bucket_public_url")
    given = [name.upper() for name in switches if name in values]
    missing = [name.upper() for name in keys if name not in values]
    if "bucket_endpoint_url" not in values and "bucket_name" not in values:
        missing.insert(0, "BUCKET_ENDPOINT_URL")
    if given and missing:
        yield (
            f"{', '.join(missing)} must be set too: {given[0]} switches object storage on, which needs an endpoint "
            "(or, for AWS, a bucket name) and both keys (the names may also be S3_ENDPOINT_URL, S3_ACCESS_KEY_ID, ...)"
        )
    if values.get("bucket_prefix") and "bucket_name" not in values:
        yield "BUCKET_PREFIX needs BUCKET_NAME: without a bucket name the legacy layout is used"
    if ("comfy_input_dir" in values) != ("comfy_output_dir" in values):
        yield "COMFY_INPUT_DIR and COMFY_OUTPUT_DIR must be set together"
    most = values.get("job_timeout_max_s", DAY_S)
    if values.get("job_timeout_s", 0) > most:
        yield f"JOB_TIMEOUT_S must not be larger than JOB_TIMEOUT_MAX_S, which is {most:g}"
