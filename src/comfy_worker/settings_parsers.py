"""
What a variable's text may be: one small parser per kind of value. A parser raises `ValueError` with what it takes.
"""

import math
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})
OWN_FLAGS = frozenset(
    {"--port", "--listen", "--base-directory", "--input-directory", "--output-directory", "--temp-directory"}
)

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


def receiver(text: str) -> str:
    """
    Read an http(s) URL with a host; it may have a query, but no user.
    """
    try:
        http_url(text.partition("?")[0])
    except ValueError:
        raise ValueError("an http(s) URL with a host, without user or password") from None
    return text.strip()


def several(*names: str) -> Parser:
    """
    Make a parser of names with commas between them, or `all`; blanks do not matter, nothing is none.
    """

    def parse(text: str) -> frozenset[str]:
        found = {part.strip() for part in text.split(",")} - {""}
        if "all" in found:
            return frozenset(names)
        if found - set(names):
            raise ValueError(f"`all`, or some of these with commas between them: {', '.join(names)}")
        return frozenset(found)

    return parse


def address(text: str) -> str:
    """
    Read `host:port` or an http(s) URL as the URL of a ComfyUI.
    """
    return http_url(text if "://" in text else f"http://{text}")


def words(text: str) -> tuple[str, ...]:
    """
    Split a command as a shell would.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as exc:
        raise ValueError(f"arguments a shell could split ({exc})") from None


def arguments(text: str) -> tuple[str, ...]:
    """
    Split extra ComfyUI arguments as a shell would; flags that the worker itself sets are refused.
    """
    found = words(text)
    for word in found:
        if word.split("=")[0] in OWN_FLAGS:
            raise ValueError(f"arguments without {word.split('=')[0]}, which the worker sets itself")
    return found


def folder(text: str) -> Path:
    """
    Read a path; `~` is the home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("a path whose `~` is a known home folder") from None


def folders(text: str) -> tuple[Path, ...]:
    """
    Read absolute paths with `:` between them; `none` is none.
    """
    if text.strip().lower() == "none":
        return ()
    found = tuple(folder(part.strip()) for part in text.split(":") if part.strip())
    if not all(path.is_absolute() for path in found):
        raise ValueError("absolute paths with `:` between them, or `none`")
    return found


CACHED = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?:(?P<path>[^\s]+)\s*->\s*(?P<target>[\w.-]+(/[\w. /-]+)?)"
)


def cached_models(text: str) -> tuple[str, ...]:
    """
    Read `owner/name[@revision]:path -> category[/name]`, several of them on lines of their own or with commas between.
    """
    found = tuple(part.strip() for part in re.split(r"[\n,]", text) if part.strip())
    for part in found:
        if not CACHED.fullmatch(part) or ".." in re.split(r"[/:\s]", part) or ":/" in part:
            raise ValueError(
                "`owner/name[@revision]:path -> category[/name]`, with commas or new lines between"
            )
    return found


LEVELS = {
    "TRACE": "DEBUG",
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARN": "WARNING",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "FATAL": "CRITICAL",
    "CRITICAL": "CRITICAL",
}


def names_of_buckets(text: str) -> tuple[str, ...]:
    """
    Read names with commas between them.
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def threshold(text: str) -> int:
    """
    Read a positive whole number; everything else is 3, as Vast's users know it.
    """
    try:
        return value if (value := int(text)) > 0 else 3
    except ValueError:
        return 3


def level(text: str) -> str:
    """
    Read a level of the log, by Python's names or by those of pino (`warn`, `fatal`, `trace`).
    """
    try:
        return LEVELS[text.strip().upper()]
    except KeyError:
        raise ValueError("one of DEBUG, INFO, WARNING, ERROR, CRITICAL") from None


def origins(text: str) -> tuple[str, ...]:
    """
    Read origins with commas between them: scheme, host and perhaps a port, nothing else.
    """
    problem = "origins such as https://host:8443 with commas between them, without path, user or wildcard"
    found = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        try:
            parts = urlsplit(part)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme.lower()]
        except (ValueError, KeyError):
            raise ValueError(problem) from None
        if not parts.hostname or parts.path not in {"", "/"} or re.search(r"[@*?#]", part):
            raise ValueError(problem)
        found.append(f"{parts.scheme.lower()}://{parts.hostname.lower()}:{port}")
    return tuple(found)


META = "SYSTEM_META_"
PLATFORM = tuple(
    f"SALAD_{name}"
    for name in (
        *("ORGANIZATION_NAME", "ORGANIZATION_ID", "PROJECT_NAME", "PROJECT_ID"),
        *("CONTAINER_GROUP_NAME", "CONTAINER_GROUP_ID", "INSTANCE_ID", "MACHINE_ID"),
    )
)


def metadata(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """
    Read what every system event carries: SYSTEM_META_<key> as <key>, and the names of Salad's platform in lower case.
    """
    own = [
        (name[len(META) :], value)
        for name, value in environ.items()
        if name.startswith(META) and name != META and value.strip()
    ]
    salad = [(name.lower(), environ[name]) for name in PLATFORM if environ.get(name)]
    return tuple({**dict(own), **dict(salad)}.items())
