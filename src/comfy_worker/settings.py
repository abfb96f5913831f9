"""
Every environment variable once: name, type, default, one sentence. `load(environ)` reads them all, once.

Entry points call `load`; everything below is given the values it needs. docs/reference/environment.md is written from
this table and a test compares the two.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr

from comfy_worker.azure import account_key, account_name, connection_string, secrets_in
from comfy_worker.errors import ConfigInvalid
from comfy_worker.settings_parsers import (
    Parser,
    address,
    arguments,
    boolean,
    cached_models,
    choice,
    folder,
    folders,
    http_url,
    level,
    metadata,
    names_of_buckets,
    number,
    origins,
    receiver,
    several,
    threshold,
    words,
)

ACCOUNT = ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "NAME")
OTHER_FAMILY = frozenset(
    {"S3_ENDPOINT_URL", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "S3_BUCKET_NAME", "S3_REGION"}
)


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


SYSTEM_EVENTS = (
    *("status", "progress", "progress_state", "executing", "execution_start", "execution_cached", "executed"),
    *("execution_success", "execution_interrupted", "execution_error"),
    *("file_downloaded", "file_uploaded", "file_deleted"),
)
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
    comfyui_path: Path | None = setting(None, "Folder of the ComfyUI that the worker starts (the one with `main.py`).", folder, group="ComfyUI", names=("COMFYUI_PATH", "COMFY_HOME"))
    comfyui_python: Path | None = setting(None, "Python that runs ComfyUI; by default a virtual environment inside its folder, else the worker's own.", folder, group="ComfyUI")
    comfyui_args: tuple[str, ...] = setting((), "Extra arguments for ComfyUI, split as a shell does, for example `--cpu`.", arguments, group="ComfyUI")
    comfyui_command: tuple[str, ...] = setting((), "Command that starts ComfyUI in place of the worker's own, split as a shell does and run in the worker's folder; it must listen on 127.0.0.1 at the port in COMFYUI_PORT_HOST, which is set for it. The Salad face takes CMD for it.", words, group="ComfyUI")
    comfy_port: int = setting(8188, "Port for the ComfyUI that the worker starts, on 127.0.0.1; 0 takes a free one.", number(0, 65535, whole=True), group="ComfyUI", names=("COMFY_PORT", "COMFYUI_PORT_HOST"))
    comfy_log_level: str = setting("INFO", "How much ComfyUI logs: DEBUG, INFO, WARNING, ERROR or CRITICAL.", choice(*LEVELS), group="ComfyUI")
    comfy_boot_timeout_s: float = setting(600.0, "Seconds ComfyUI may take to answer after its start, while its process lives.", number(1), group="ComfyUI")
    comfy_api_available_interval_ms: int = setting(50, "Milliseconds between two looks whether ComfyUI answers yet.", number(1, 60_000, whole=True), group="ComfyUI")
    comfy_api_available_max_retries: int = setting(0, "How often to look for a ComfyUI at COMFYUI_URL before giving up; 0 looks 500 times.", number(0, 1e9, whole=True), group="ComfyUI")
    comfy_restart_delay: float = setting(5.0, "Seconds before a dead ComfyUI is started again; twice as long after each further rapid death, up to 60.", number(0, 3600), group="ComfyUI")
    comfy_max_rapid_restarts: int = setting(5, "After so many rapid deaths in a row the worker gives up.", number(1, 1000, whole=True), group="ComfyUI")
    comfy_rapid_restart_window: float = setting(60.0, "A death is rapid when ComfyUI lived for fewer seconds than this, or had not answered yet.", number(1), group="ComfyUI")
    gpu_check: bool = setting(True, "Look at the GPU and its driver while ComfyUI boots, for the log and for a better reason when ComfyUI dies; costs the boot nothing.", boolean, group="ComfyUI")
    comfy_input_dir: Path | None = setting(None, "The input folder of the ComfyUI at COMFYUI_URL, when that shares this disk, or another one for the ComfyUI that the worker starts; set together with COMFY_OUTPUT_DIR.", folder, group="ComfyUI", names=("COMFY_INPUT_DIR", "INPUT_DIR"))
    comfy_output_dir: Path | None = setting(None, "The output folder, likewise.", folder, group="ComfyUI", names=("COMFY_OUTPUT_DIR", "OUTPUT_DIR"))
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

    warmup_workflow: str | None = setting(None, "Workflow that runs before the first job is taken: a file's path, the JSON itself, or a URL. A whole job (`{\"input\": ...}`) works too.", group="Worker", secret=True, names=("WARMUP_WORKFLOW", "WARMUP_PROMPT_FILE", "WARMUP_PROMPT_URL"))
    warmup_required: bool = setting(False, "End the worker with exit code 1 when the warm-up fails, instead of taking jobs all the same.", boolean, group="Worker")
    shutdown_grace_s: float = setting(30.0, "Seconds a running job may take to finish after the worker was told to stop (SIGTERM); then it is cancelled. Keep it some seconds below what the platform allows.", number(0, DAY_S), group="Worker")
    oom_retry: bool = setting(False, "Run a job that ran out of memory once more, after ComfyUI freed its memory.", boolean, group="Worker")
    min_free_disk_mb: float = setting(500.0, "With fewer megabytes free on a disk that jobs write to, the worker removes what it can spare, then refuses the job (`disk_full`) and asks to be recycled; 0 turns it off.", number(0), group="Worker")
    min_free_memory_mb: float = setting(500.0, "With fewer megabytes of memory (RAM) available after a job, ComfyUI is told to free its own; when that does not help, the worker asks to be recycled. 0 turns it off.", number(0), group="Worker")
    old_outputs_age_s: float = setting(0.0, "When a disk is almost full (MIN_FREE_DISK_MB), files in ComfyUI's output folder that are so many seconds old are removed too; 0 leaves them. The Vast face takes 86400 by default.", number(0), group="Worker")
    orphan_age_s: float = setting(DAY_S, "At its start the worker removes what jobs of a crashed worker left, once it is so many seconds old; keep it above the longest job. 0 leaves everything.", number(0), group="Worker")

    input_max_mb: float = setting(2048.0, "Largest input file in megabytes, fetched or decoded.", number(0.001), group="Inputs")
    input_threads: int = setting(8, "Input files fetched at once, per job.", number(1, 64, whole=True), group="Inputs")
    input_cache_mb: float = setting(4096.0, "Megabytes of unused input files kept in ComfyUI's input folder.", number(0), group="Inputs")
    input_cache_age_s: float = setting(86_400.0, "Seconds after which an unused input file is removed.", number(0), group="Inputs")
    input_roots: tuple[Path, ...] = setting((), "Further folders, with `:` between them, whose files a request to the Salad face may name by their path.", folders, group="Inputs")
    allow_private_urls: bool = setting(False, "Let jobs fetch inputs from private, loopback and link-local addresses; only for a trusted network.", boolean, group="Inputs")

    models_manifest: str | None = setting(None, "Models to have before the first job: a variant's name, a manifest's path or URL, or the manifest itself (TOML).", group="Models")
    model_dir: Path | None = setting(None, "Where models are put, and ComfyUI reads them: those of MODELS_MANIFEST (by default into `models` on the first volume, else into ComfyUI's own folder), and links to those that a job names by URL (by default into ComfyUI's own folder).", folder, group="Models")
    manifest: str | None = setting(None, "Manifest of comfyui-api, as a file's path (YAML or JSON) or, as MANIFEST_JSON, the text itself; only the Salad face reads it, and only its `models`.", group="Models", names=("MANIFEST_JSON", "MANIFEST"))
    models_threads: int = setting(4, "Model files fetched at once.", number(1, 32, whole=True), group="Models")
    models_timeout_s: float = setting(3600.0, "Seconds the models may take at the start; what came is kept for the next start.", number(1), group="Models")
    hf_token: SecretStr | None = setting(None, "Token for Hugging Face, sent to that host only; needed for gated and private models.", SecretStr, group="Models", names=("HF_TOKEN", "HUGGINGFACE_ACCESS_TOKEN", "HUGGING_FACE_HUB_TOKEN"), secret=True)
    hf_endpoint: str | None = setting(None, "Base URL instead of huggingface.co, for a mirror; it is given HF_TOKEN in its place.", http_url, group="Models")
    civitai_token: SecretStr | None = setting(None, "Token for Civitai, sent to civitai.com only.", SecretStr, group="Models", secret=True)
    volume_roots: tuple[Path, ...] = setting((Path("/runpod-volume"), Path("/workspace")), "Folders where volumes may be mounted, with `:` between them; ComfyUI reads `models` and `ComfyUI/models` on those that are there.", folders, group="Models")
    volume_custom_nodes: bool = setting(False, "Let ComfyUI load `custom_nodes` of the volumes, which is code; their packages are not installed.", boolean, group="Models")
    cached_models: tuple[str, ...] = setting((), "Files of Hugging Face models that RunPod has cached, for ComfyUI to find: `owner/name[@revision]:path -> category[/name]`, with commas or new lines between.", cached_models, group="Models")
    network_volume_debug: bool = setting(False, "Once ComfyUI answers, log what lies on the volumes and what ComfyUI sees of it.", boolean, group="Models")

    cache_dir: Path | None = setting(None, "Folder that keeps files of URLs between jobs, named by the hash of the URL; `serve --face salad` takes `~/.cache/comfyui-api` by default.", folder, group="Inputs")
    lru_cache_size_gb: float = setting(0.0, "GiB that CACHE_DIR may hold; the files unused for longest are removed. 0 keeps everything.", number(0), group="Inputs")
    http_trusted_origins: tuple[str, ...] = setting((), "Origins (`https://host:port`, commas between them) that inputs, uploads and buckets of jobs may use although their addresses are private.", origins, group="Inputs")
    http_auth_header_name: str | None = setting(None, "Header that goes with requests to HTTP_AUTH_ALLOWED_ORIGINS (Salad face).", group="Inputs")
    http_auth_header_value: SecretStr | None = setting(None, "The value of that header.", SecretStr, group="Inputs", secret=True)
    http_auth_allowed_origins: tuple[str, ...] = setting((), "Origins that get that header, with commas between them.", origins, group="Inputs")

    bucket_endpoint_url: str | None = setting(None, "S3 endpoint; setting it switches the output to URLs.", http_url, group="Storage", names=("BUCKET_ENDPOINT_URL", "S3_ENDPOINT_URL"))
    bucket_access_key_id: str | None = setting(None, "Access key of the bucket.", group="Storage", names=("BUCKET_ACCESS_KEY_ID", "S3_ACCESS_KEY_ID"), secret=True)
    bucket_secret_access_key: SecretStr | None = setting(None, "Secret key of the bucket.", SecretStr, group="Storage", names=("BUCKET_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY"), secret=True)
    bucket_name: str | None = setting(None, "Bucket; unset keeps the legacy layout, in which the month stands in its place.", group="Storage", names=("BUCKET_NAME", "S3_BUCKET_NAME"))
    bucket_prefix: str = setting("", "First part of every key; needs BUCKET_NAME.", group="Storage")
    bucket_region: str | None = setting(None, "Region; by default read from the endpoint.", group="Storage", names=("BUCKET_REGION", "S3_REGION"))
    bucket_addressing_style: Literal["auto", "path", "virtual"] | None = setting(None, "`path`, `virtual` or `auto`; by default path without BUCKET_NAME and auto with it.", choice("auto", "path", "virtual"), group="Storage")
    bucket_url_expiry_s: int = setting(604_800, "Life of a presigned link in seconds.", number(1, 604_800, whole=True), group="Storage")
    bucket_public_url: str | None = setting(None, "Base of plain public URLs, instead of presigned ones.", http_url, group="Storage")
    aws_region: str | None = setting(None, "Region of the Salad face's `s3` block and s3 URLs; setting it switches both on.", group="Storage", names=("AWS_REGION", "AWS_DEFAULT_REGION"))
    aws_access_key_id: str | None = setting(None, "Access key for them; without it boto3 looks for the machine's own.", group="Storage", secret=True)
    aws_secret_access_key: SecretStr | None = setting(None, "Secret key for them.", SecretStr, group="Storage", secret=True)
    aws_session_token: SecretStr | None = setting(None, "Session token for them.", SecretStr, group="Storage", secret=True)
    aws_endpoint_url: str | None = setting(None, "Endpoint of a store that is not AWS, for them.", http_url, group="Storage")
    azure_storage_connection_string: SecretStr | None = setting(None, "Connection string of the account behind the Salad face's `azure_blob_upload` and Azure URLs; wins over the other three.", connection_string, group="Storage", secret=True)
    azure_storage_account: str | None = setting(None, "Name of that account; with neither key nor SAS token Azure's default credential chain is asked (azure-identity).", account_name, group="Storage")
    azure_storage_key: SecretStr | None = setting(None, "Key of that account.", account_key, group="Storage", secret=True)
    azure_storage_sas_token: SecretStr | None = setting(None, "SAS token for that account, with or without `?`.", SecretStr, group="Storage", secret=True)
    upload_threads: int = setting(4, "Output files uploaded at once, per job.", number(1, 64, whole=True), group="Storage")

    max_body_size_mb: float = setting(100.0, "Largest body of a request to the Salad face, in megabytes.", number(0.001), group="HTTP server")
    max_queue_depth: int = setting(0, "With so many jobs running or waiting, `/ready` of the Salad face says 503; 0 is no limit.", number(0, 1e9, whole=True), group="HTTP server")
    prepend_filenames: bool = setting(True, "Files of the Salad face are called `<id>_<prefix>_00001_.png`; false leaves the prefix out.", boolean, group="HTTP server")
    system_meta: tuple[tuple[str, str], ...] = setting((), "`metadata` of every system event: the variables that begin so, and the `SALAD_*` ones of the platform.", group="Webhooks", names=("SYSTEM_META_*",))
    queue_limit: int = setting(1000, "Jobs that may wait in front of the pipeline; more are answered with 503.", number(1, 1_000_000, whole=True), group="HTTP server")
    server_api_key: SecretStr | None = setting(None, "Key that clients of `comfy-worker serve` must send as `Authorization: Bearer <key>`; without it everybody may.", SecretStr, group="HTTP server", secret=True)
    serve_api_locally: bool = setting(False, "Let `handler.py` serve RunPod's HTTP API on this machine instead of taking jobs (as `--rp_serve_api` does).", boolean, group="HTTP server")

    workflow_dir: Path = setting(Path("/workflows"), "Folder of your own templates (YAML with JSON, or Python, which is run); one that is not there is empty.", folder, group="Templates")

    webhook_secret: SecretStr = setting(SecretStr(""), "Secret that webhooks are signed with, base64 with or without `whsec_` before it; without it they are signed with an empty key.", SecretStr, group="Webhooks", secret=True)
    prompt_webhook_retries: int = setting(3, "How often a webhook is tried in all.", number(1, 1000, whole=True), group="Webhooks")
    system_webhook_url: str | None = setting(None, "Receiver of system events; it may have a private address.", receiver, group="Webhooks")
    system_webhook_events: frozenset[str] = setting(frozenset(), "System events to send: `all`, or names with commas between them.", several(*SYSTEM_EVENTS), group="Webhooks")

    max_queue_size: int = setting(100, "Unfinished requests that the Vast face takes on at once; more are answered with 503.", number(1, 1e6, whole=True), group="Vast")
    api_cache_ttl: float = setting(21_600.0, "Seconds that the Vast face keeps a result, and the files of a job that were neither stored nor sent as base64.", number(1), group="Vast")
    include_comfyui_response: bool = setting(True, "Put ComfyUI's own record into the results of the Vast face, as `comfyui_response`.", boolean, group="Vast")
    output_base64_max_bytes: int = setting(10_485_760, "Largest file that the Vast face sends as base64.", number(1, whole=True), group="Vast")
    backend_failure_threshold: int = setting(3, "After so many jobs in a row that found no ComfyUI, `/health` of the Vast face says 503 for good.", threshold, group="Vast")
    vast_url_inputs: Literal["files", "all"] = setting("files", "Which whole texts of a workflow that are URLs the Vast face fetches: those that name files, or `all`.", choice("files", "all"), group="Vast")
    s3_allowed_buckets: tuple[str, ...] = setting((), "Buckets, with commas between them, that a request to the Vast face may name while it uses the operator's keys; by default the configured one.", names_of_buckets, group="Vast")
    s3_connect_timeout: float = setting(60.0, "Seconds a store may take to be reached from the Vast face.", number(1, 3600), group="Vast")
    s3_connect_attempts: int = setting(3, "How often the Vast face tries to store a file.", number(1, 100, whole=True), group="Vast")
    keep_local_outputs: bool = setting(False, "Never remove the output files of the Vast face.", boolean, group="Vast")
    webhook_url: str | None = setting(None, "Receiver of every result of the Vast face that names none of its own; it may have a private address.", receiver, group="Vast")
    webhook_timeout: float = setting(30.0, "Seconds a receiver of the Vast face may take to answer.", number(1, 60), group="Vast")
    comfy_model: str | None = setting(None, "Model that `/prompt` of the Vast face draws with: `flux`, `sd3`, or a template of yours with the same parameters.", group="Vast")
    vast_backend: str | None = setting(None, "`comfyui`: the former template, which needs COMFY_MODEL.", group="Vast", names=("BACKEND",))
    vast_sessions: int = setting(0, "Sessions that the PyWorker allows at once; 0 leaves their routes out.", number(0, 1e6, whole=True), group="Vast")
    worker_http_port: int | None = setting(None, "The PyWorker's plain port, where sessions are ended; by default WORKER_PORT + 1.", number(1, 65_535, whole=True), group="Vast")
    provisioning_script: str | None = setting(None, "URL of a script that the Vast face runs once before it starts ComfyUI, as Vast's images do; it may have a private address.", receiver, group="Vast")
    provisioning_timeout_s: float = setting(3600.0, "Seconds the provisioning may take; then it is stopped.", number(1, DAY_S), group="Vast")
    provisioning_required: bool = setting(True, "End the worker with exit code 1 when the provisioning fails; false goes on, as Vast's images do.", boolean, group="Vast")
    vast_log_file: Path = setting(Path("/var/log/portal/api-wrapper.log"), "File that the Vast face logs to as well, where its folder exists; Vast's stock worker reads it.", folder, group="Vast")

    refresh_worker: bool = setting(False, "Recycle the worker after each job.", boolean, group="RunPod")
    progress_updates: bool = setting(True, "Send progress to `/status`, at most once a second.", boolean, group="RunPod")
    runpod_endpoint_id: str | None = setting(None, "Set by RunPod; switches the log to RunPod's JSON lines.", group="RunPod")
    runpod_webhook_get_job: str | None = setting(None, "Set by RunPod; without it `handler.py` runs `test_input.json` once.", group="RunPod")
    runpod_webhook_post_output: str | None = setting(None, "Set by RunPod: where results and progress are posted.", group="RunPod", secret=True)
    runpod_pod_id: str | None = setting(None, "Set by RunPod: the id of this worker.", group="RunPod")
    runpod_ai_api_key: SecretStr | None = setting(None, "Set by RunPod: the worker's key for the job API.", SecretStr, group="RunPod", secret=True)

    log_level: str = setting("INFO", "DEBUG, INFO, WARNING, ERROR or CRITICAL (also trace, warn, fatal).", level, group="Log")
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
        yield from secrets_in(self.azure_storage_connection_string)


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
        given = {name: text for name, text in given.items() if name not in OTHER_FAMILY}
    if not {"INPUT_DIR", "OUTPUT_DIR"} <= set(given):
        # Names that other programs use as well; one alone is not meant for us.
        given = {name: text for name, text in given.items() if name not in {"INPUT_DIR", "OUTPUT_DIR"}}
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
    values["system_meta"] = metadata(environ)
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
