"""
The PyWorker's settings, read once from a mapping. `VARIABLES` is the list that docs/howto/deploy-vast.md shows.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from comfy_worker.pyworker.benchmark import Sources

VARIABLES = (
    *("CONTAINER_ID", "REPORT_ADDR", "WORKER_PORT", "PUBLIC_IPADDR", "MASTER_TOKEN", "USE_SSL", "UNSECURED"),
    *(
        "WORKER_HOST",
        "WORKER_HTTP_PORT",
        "MODEL_SERVER_URL",
        "WORKER_CONCURRENCY",
        "SHUTDOWN_GRACE_S",
        "LOG_LEVEL",
    ),
    *(
        "BACKEND",
        "COMFY_MODEL",
        "VAST_MAX_QUEUE_TIME",
        "VAST_READY_TIMEOUT_S",
        "VAST_MAX_BODY_MB",
        "VAST_PYTHON",
    ),
    *("VAST_BENCHMARK_RUNS", "VAST_BENCHMARK_MAX_S", "VAST_BENCHMARK_TEMPLATE", "BENCHMARK_JSON_PATH"),
    *("BENCHMARK_TEST_WIDTH", "BENCHMARK_TEST_HEIGHT", "BENCHMARK_TEST_STEPS"),
    *("VAST_SESSIONS", "VAST_SESSION_HOSTS", "VAST_TLS_CERTIFICATE", "VAST_TLS_KEY"),
)

DEFAULTS = {"WORKER_PORT": "3000", "REPORT_ADDR": "https://run.vast.ai"}
"""What Vast's start script sets and the SDK demands."""

MODEL_SERVER = "http://127.0.0.1:18288"
REDIS_API = "https://cloud.vast.ai/api/v0"
"""An address in old lists that has neither key nor reports; the SDK skips it too."""

WORDS = {"true": True, "yes": True, "on": True, "1": True, "t": True, "y": True}
NO_WORDS = frozenset({"false", "no", "off", "0", "f", "n", ""})


class Misconfigured(Exception):
    """
    The variables cannot work; `str()` is one sentence per problem.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Identity:
    """
    Who we are to the autoscaler: enough to report, even when nothing else works.
    """

    container_id: int
    report_addresses: tuple[str, ...]
    url: str
    master_token: str = field(repr=False)


NOBODY = Identity(0, (), "", "")


@dataclass(frozen=True)
class Config:
    """
    All settings of the PyWorker, checked. Names are the variables' in lower case, seconds end in `_s`.
    """

    identity: Identity
    host: str | None
    port: int
    http_port: int
    use_ssl: bool
    certificate: Path
    certificate_key: Path
    unsecured: bool
    model_server_url: str
    parallel: int
    max_queue_time_s: float | None
    ready_timeout_s: float
    grace_s: float
    max_body_bytes: int
    log_level: str
    legacy_model: str | None
    benchmark: Sources
    benchmark_runs: int
    benchmark_max_s: float
    sessions: int
    session_hosts: frozenset[str]

    @property
    def model_server(self) -> tuple[str, int]:
        """
        The model server as the SDK wants it: `("http://127.0.0.1", 18288)`.
        """
        parts = urlsplit(self.model_server_url)
        return f"{parts.scheme}://{_host(parts.hostname or '')}", parts.port or 80


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name


class Reader:
    """
    Reads variables and gathers what is wrong with them, so that one start names every problem.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        """
        Return a variable without surrounding space; an empty one counts as absent.
        """
        return self._environ.get(name, "").strip() or default

    def required(self, name: str) -> str:
        """
        Return a variable that must be there.
        """
        found = self.text(name)
        if not found:
            self.problems.append(f"{name} is not set")
        return found

    def number(self, name: str, default: float, least: float, most: float = math.inf) -> float:
        """
        Return a number between two bounds.
        """
        text = self.text(name)
        try:
            found = float(text) if text else default
        except ValueError:
            found = math.nan
        if not least <= found <= most or not math.isfinite(found):
            upper = "" if math.isinf(most) else f" and at most {most:g}"
            self.problems.append(f"{name} must be a number of at least {least:g}{upper}, not {text!r}")
            return default
        return found

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """
        Return a whole number between two bounds.
        """
        text = self.text(name)
        if not text:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            self.problems.append(f"{name} must be a whole number from {least} to {most}, not {text!r}")
            return default
        return int(text)

    def word(self, name: str) -> bool:
        """
        Return a yes or no.
        """
        text = self.text(name).lower()
        if text not in WORDS and text not in NO_WORDS:
            self.problems.append(f"{name} must be true or false, not {text!r}")
        return WORDS.get(text, False)


def identity(environ: Mapping[str, str]) -> Identity:
    """
    Read who we are.

    Raises:
        Misconfigured: a variable that Vast sets in its instances is absent or wrong.
    """
    read = Reader({**DEFAULTS, **{name: text for name, text in environ.items() if text.strip()}})
    container = read.required("CONTAINER_ID")
    if container and not re.fullmatch(r"-?[0-9]{1,18}", container):
        read.problems.append(f"CONTAINER_ID must be a whole number, not {container!r}")
    address, port = read.required("PUBLIC_IPADDR"), read.text("WORKER_PORT")
    public_port = read.required(f"VAST_TCP_PORT_{port}")
    given = [part.strip().rstrip("/") for part in read.text("REPORT_ADDR").split(",")]
    addresses = tuple(part for part in given if part and part != REDIS_API)
    if not addresses:
        read.problems.append("REPORT_ADDR names no address that takes reports")
    if read.problems:
        raise Misconfigured(read.problems)
    scheme = "https" if read.text("USE_SSL") == "true" else "http"
    return Identity(
        int(container), addresses, f"{scheme}://{address}:{public_port}", read.text("MASTER_TOKEN")
    )


def load(environ: Mapping[str, str], program: Path) -> Config:
    """
    Read every variable; `program` is the folder of the worker program, where a benchmark may lie.

    Raises:
        Misconfigured: something is absent or wrong; all of it is named.
    """
    read = Reader(environ)
    who, port = None, read.whole("WORKER_PORT", 3000, 1, 65535)
    try:
        who = identity(environ)
    except Misconfigured as exc:
        read.problems.extend(exc.problems)
    queue_time = read.text("VAST_MAX_QUEUE_TIME").lower()
    limited = queue_time not in {"none", "off"}
    config = Config(
        identity=who or NOBODY,
        host=read.text("WORKER_HOST") or None,
        port=port,
        http_port=read.whole("WORKER_HTTP_PORT", min(port + 1, 65535), 1, 65535),
        use_ssl=read.text("USE_SSL") == "true",  # the SDK reports https for this very text only
        certificate=Path(read.text("VAST_TLS_CERTIFICATE", "/etc/instance.crt")),
        certificate_key=Path(read.text("VAST_TLS_KEY", "/etc/instance.key")),
        unsecured=read.word("UNSECURED"),
        model_server_url=_model_server(read),
        parallel=read.whole("WORKER_CONCURRENCY", 1, 1, 64),
        max_queue_time_s=read.number("VAST_MAX_QUEUE_TIME", 10.0, 0.0) if limited else None,
        ready_timeout_s=read.number("VAST_READY_TIMEOUT_S", 3600.0, 1.0),
        grace_s=read.number("SHUTDOWN_GRACE_S", 30.0, 0.0, 86_400.0),
        max_body_bytes=int(read.number("VAST_MAX_BODY_MB", 100.0, 0.001, 100_000.0) * 1_000_000),
        log_level=_level(read),
        legacy_model=_legacy_model(read),
        benchmark=_sources(read, program),
        benchmark_runs=read.whole("VAST_BENCHMARK_RUNS", 3, 1, 100),
        benchmark_max_s=read.number("VAST_BENCHMARK_MAX_S", 600.0, 0.0),
        sessions=read.whole("VAST_SESSIONS", 0, 0, 10_000),
        session_hosts=_hosts(read),
    )
    if read.problems:
        raise Misconfigured(read.problems)
    return config


def _hosts(read: Reader) -> frozenset[str]:
    parts = read.text("VAST_SESSION_HOSTS").lower().split(",")
    return frozenset(part.strip() for part in parts if part.strip())


def _model_server(read: Reader) -> str:
    text = read.text("MODEL_SERVER_URL", MODEL_SERVER).rstrip("/")
    try:
        parts = urlsplit(text)
        plain = bool(parts.hostname) and parts.path == "" and parts.port != 0
    except ValueError:
        plain = False
    if not plain or parts.scheme != "http":
        read.problems.append(f"MODEL_SERVER_URL must be http://host:port, not {text!r}")
    return text


def _level(read: Reader) -> str:
    # The SDK writes whole reports at DEBUG, so there is no DEBUG.
    text = read.text("LOG_LEVEL", "INFO").upper()
    return text if text in {"WARNING", "ERROR", "CRITICAL"} else "INFO"


def _legacy_model(read: Reader) -> str | None:
    """
    Return COMFY_MODEL in the legacy mode, else None. A name that is neither of the two may be a template of the operator.
    """
    name = read.text("COMFY_MODEL").lower()
    if read.text("BACKEND") == "comfyui" and not name:
        read.problems.append("COMFY_MODEL must be flux or sd3 when BACKEND is comfyui; it is not set")
    return name or None


def _sources(read: Reader, program: Path) -> Sources:
    workspace = Path(read.text("WORKSPACE_DIR", "/workspace"))
    path = read.text("BENCHMARK_JSON_PATH")
    return Sources(
        folders=(program, Path(), workspace / "vast-pyworker"),
        path=Path(path) if path else None,
        template=read.text("VAST_BENCHMARK_TEMPLATE") or None,
        width=read.text("BENCHMARK_TEST_WIDTH"),
        height=read.text("BENCHMARK_TEST_HEIGHT"),
        steps=read.text("BENCHMARK_TEST_STEPS"),
    )
