"""
Raw JSON -> Job. Pure; every refusal names the field and the way out, with the message texts RunPod users know.

Source of the fixed texts and their order: worker-comfyui 5.8.5 as observed from outside.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson
from pydantic import SecretStr

from comfy_worker import convert, graph
from comfy_worker.comfy.cached import is_cached
from comfy_worker.errors import JobInvalid
from comfy_worker.job import Bucket, Conversion, Delivery, InputFile, Job
from comfy_worker.parse_bucket import own_bucket
from comfy_worker.templates import Built, Templates

IMAGES_TEXT = "'images' must be a list of objects with 'name' and 'image' keys"
FILES_TEXT = "'files' must be a list of objects with 'name' and 'data' or 'url' keys"
KNOWN_KEYS = (
    "workflow",
    "template",
    "params",
    "images",
    "files",
    "comfy_org_api_key",
    "api_key_comfy_org",
    "timeout_s",
    "strict",
    "dry_run",
    "include_temp",
    "extra_pnginfo",
    "convert_output",
    "strip_metadata",
    "s3",
    "s3Config",
)
NAME_LIMIT = 200
NO_TEMPLATES = Templates({})
UNNAMED_JOB = "local"
"""The id of a job that came without one: its seeds are drawn anew each time."""

TYPO_KEYS = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """
    The operator's part of a job: defaults, bounds, and the bucket of the worker.
    """

    timeout_s: float = 3600.0
    timeout_max_s: float = 86_400.0
    strict: bool = False
    strip_metadata: bool = False
    comfy_org_api_key: SecretStr | None = None
    bucket: Bucket | None = None
    limit_bytes: int = 10_000_000
    templates: Templates = NO_TEMPLATES


def parse(job_id: str, raw: Any, rules: Rules, *, s3_config: Any = None) -> Job:
    """
    Check and translate one job's input; `s3_config` is the envelope's `s3Config` where the platform has one.

    Raises:
        JobInvalid: a field is missing or wrong; its text names the field.
    """
    data = _object(raw)
    built = _built(job_id, data, rules.templates)
    inputs = (*_images(data.get("images")), *_files(data.get("files")), *built.inputs)
    _refuse_twins(inputs)
    workflow = graph.check_shape(built.workflow)
    flag = _flags(data)
    conversion = _conversion(data.get("convert_output"))
    own = own_bucket(data, s3_config)
    return Job(
        id=job_id,
        workflow=workflow,
        inputs=inputs,
        delivery=Delivery(
            bucket=own or rules.bucket,
            spill=own or rules.bucket,
            limit_bytes=rules.limit_bytes,
            conversion=conversion,
            strip_metadata=flag("strip_metadata", rules.strip_metadata),
        ),
        timeout_s=_timeout(data.get("timeout_s"), rules),
        strict=flag("strict", rules.strict),
        dry_run=flag("dry_run", False),
        include_temp=flag("include_temp", False),
        comfy_org_api_key=_api_key(data) or rules.comfy_org_api_key,
        extra_pnginfo=_pnginfo(data.get("extra_pnginfo")),
        warnings=(*_typos(data), *built.warnings),
        params=built.echo if data.get("template") is not None else None,
    )


def _refuse(text: str, field: str) -> NoReturn:
    raise JobInvalid(text, field=field)


def _object(raw: Any) -> dict[str, Any]:
    if raw is None:
        _refuse("Please provide input", "input")
    if isinstance(raw, str):
        try:
            raw = orjson.loads(raw)
        except ValueError:
            _refuse("Invalid JSON format in input", "input")
    if not isinstance(raw, dict):
        _refuse(f"'input' must be an object with a 'workflow' key, not {graph.kind_of(raw)}", "input")
    return raw


def _built(job_id: str, data: Mapping[str, Any], templates: Templates) -> Built:
    """
    Return the workflow that a job brings, or the one its template makes.
    """
    if data.get("template") is None:
        if data.get("workflow") is None:
            _refuse("Missing 'workflow' parameter", "workflow")
        strange = (
            ("'params' was ignored: it belongs to a 'template'.",) if data.get("params") is not None else ()
        )
        return Built(data["workflow"], (), {}, {}, strange)
    if data.get("workflow") is not None:
        _refuse("'workflow' and 'template' cannot both be given: a template is a workflow", "template")
    seed_of = None if job_id == UNNAMED_JOB else job_id
    return templates.get(data["template"]).build(data.get("params"), seed_of=seed_of)


def _images(raw: Any) -> Iterator[InputFile]:
    if raw is None:
        return
    if not isinstance(raw, list):
        _refuse(IMAGES_TEXT, "images")
    for index, item in enumerate(raw):
        field = f"images[{index}]"
        if not isinstance(item, dict) or "name" not in item or "image" not in item:
            _refuse(IMAGES_TEXT, field)
        name = _file_name(item["name"], f"{field}.name")
        yield _input_file(name, item["image"], f"{field}.image", must_be_image=True)


def _files(raw: Any) -> Iterator[InputFile]:
    if raw is None:
        return
    if not isinstance(raw, list):
        _refuse(FILES_TEXT, "files")
    for index, item in enumerate(raw):
        field = f"files[{index}]"
        keys = [key for key in ("data", "url") if isinstance(item, dict) and item.get(key) is not None]
        if not keys or len(keys) > 1 or "name" not in item:
            _refuse(FILES_TEXT, field)
        [key] = keys
        name = _file_name(item["name"], f"{field}.name")
        file = _input_file(name, item[key], f"{field}.{key}", must_be_image=False)
        if key == "url" and file.url is None:
            _refuse(f"'{field}.url' must be an http, https or s3 URL", f"{field}.url")
        yield file


def _input_file(name: str, content: Any, field: str, *, must_be_image: bool) -> InputFile:
    if not isinstance(content, str):
        _refuse(
            f"'{field}' of {name} must be a string (base64, a data URI, or an http, https or s3 URL), "
            f"not {graph.kind_of(content)}",
            field,
        )
    if content.lstrip()[:8].lower().startswith(graph.URL_SCHEMES):
        return InputFile(name, field, url=content.strip(), must_be_image=must_be_image)
    return InputFile(name, field, data=content, must_be_image=must_be_image)


def _file_name(name: Any, field: str) -> str:
    if not isinstance(name, str) or not name.strip():
        _refuse(f"'{field}' must be a file name", field)
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or any(part in {"", ".", ".."} for part in parts) or ":" in parts[0]:
        _refuse(
            f"'{field}' must be a relative file name without '..', such as 'face.png' or 'faces/a.png'", field
        )
    if len(name.encode(errors="replace")) > NAME_LIMIT or any(
        ord(char) < 32 or ord(char) == 127 for char in name
    ):
        _refuse(f"'{field}' must be at most {NAME_LIMIT} bytes long and hold no control characters", field)
    if any(0xD800 <= ord(char) <= 0xDFFF for char in name):
        _refuse(f"'{field}' must be valid Unicode", field)
    if is_cached(name):
        _refuse(f"'{field}' must not look like a name of this worker's own files (cw-...)", field)
    return name.replace("\\", "/")


def _refuse_twins(inputs: tuple[InputFile, ...]) -> None:
    seen: dict[str, InputFile] = {}
    for file in inputs:
        if file.name in seen:
            first, second = seen[file.name].field.split(".")[0], file.field.split(".")[0]
            _refuse(
                f"'{first}' and '{second}' have the same name '{file.name}': give each file its own", second
            )
        seen[file.name] = file


def _flags(data: Mapping[str, Any]) -> Callable[[str, bool], bool]:
    def flag(name: str, default: bool) -> bool:
        value = data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            _refuse(f"'{name}' must be true or false, not {graph.kind_of(value)}", name)
        return value

    return flag


def _timeout(value: Any, rules: Rules) -> float:
    if value is None:
        return min(rules.timeout_s, rules.timeout_max_s)
    # A NaN fails every comparison, so the test is for what is allowed.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= rules.timeout_max_s:
        _refuse(
            f"'timeout_s' must be a number of seconds above 0 and at most {rules.timeout_max_s:g} (JOB_TIMEOUT_MAX_S)",
            "timeout_s",
        )
    return float(value)


def _api_key(data: Mapping[str, Any]) -> SecretStr | None:
    for name in ("comfy_org_api_key", "api_key_comfy_org"):
        value = data.get(name)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            _refuse(f"'{name}' must be a string", name)
        return SecretStr(value)
    return None


def _pnginfo(value: Any) -> Mapping[str, Any] | None:
    # ComfyUI 0.27 answers 500 to everybody's GET /api/jobs while such a prompt is known, so it is never posted.
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("workflow", {}), dict):
        _refuse(
            "'extra_pnginfo' must be an object, and its 'workflow' (if there is one) too", "extra_pnginfo"
        )
    if not graph.is_json([value]):
        _refuse(f"'extra_pnginfo' cannot be sent to ComfyUI: {graph.NOT_JSON}", "extra_pnginfo")
    return value


def _conversion(raw: Any) -> Conversion | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        _refuse("'convert_output' must be an object with a 'format'", "convert_output")
    unknown = set(raw) - {"format", "options", "keep_metadata"}
    if unknown:
        _refuse(
            f"'convert_output.{min(unknown)}' is unknown; use 'format', 'options' and 'keep_metadata'",
            "convert_output",
        )
    format_, keep = raw.get("format"), raw.get("keep_metadata", False)
    if format_ not in ("png", "jpeg", "jpg", "webp", "avif"):
        _refuse("'convert_output.format' must be png, jpeg, jpg, webp or avif", "convert_output.format")
    if not isinstance(keep, bool):
        _refuse("'convert_output.keep_metadata' must be true or false", "convert_output.keep_metadata")
    options = raw.get("options")
    if options is not None and not isinstance(options, dict):
        _refuse("'convert_output.options' must be an object", "convert_output.options")
    return Conversion(format_, convert.check_options(format_, options or {}), keep)


def _typos(data: Mapping[str, Any]) -> Iterator[str]:
    strange = [key for key in list(data)[:TYPO_KEYS] if key not in KNOWN_KEYS and len(key) < 60]
    for key in strange:
        if near := difflib.get_close_matches(key, KNOWN_KEYS, 1, 0.75):
            yield f"Unknown key '{key}' in 'input' was ignored. Did you mean '{near[0]}'?"
