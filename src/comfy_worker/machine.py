"""
What the kernel says of this machine: memory that is left, processes it killed for memory, disk that is left.

Numbers of our own control group where there is one, for in a container the machine's are somebody else's. Reads files
only; what cannot be read is None or 0, never a guess.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""A v1 group without a limit says a number close to 2**63."""

M_ARENA_MAX = -8
"""glibc's name of that limit, from malloc.h."""

ARENAS = 2


def oom_kills(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """
    Return how many processes the kernel killed for memory in our own control group so far; 0 where it does not say.

    `memory.events` (v2) and `memory.oom_control` (v1) both have a line `oom_kill N`.
    """
    for folder in _memory_groups(proc, groups):
        for name in ("memory.events", "memory.oom_control"):
            count = _table(folder / name).get("oom_kill")
            if count is not None:
                return count
    return 0


def available_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """
    Return how many bytes of memory this process and its children may still take, None where nothing says so.

    The least of what the machine has and what our control group may have; file cache that can be dropped counts as free.
    """
    found = [left for folder in _memory_groups(proc, groups) if (left := _left_in(folder)) is not None]
    machine = _table(proc / "meminfo").get("MemAvailable:")
    if machine is not None:
        found.append(machine * 1024)
    return min(found, default=None)


def free_disk(folder: Path) -> tuple[int, int] | None:
    """
    Return the number of the disk that `folder` lies on and the bytes that are free there, None where it is not there.
    """
    with suppress(OSError):
        stat = os.statvfs(folder)
        return os.stat(folder).st_dev, stat.f_bavail * stat.f_frsize
    return None


def _left_in(folder: Path) -> int | None:
    for limit_name, used_name, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < UNLIMITED:
            return max(0, limit - used + _table(folder / "memory.stat").get(cache, 0))
    return None


def _memory_groups(proc: Path, groups: Path) -> Iterator[Path]:
    """
    Yield where our own memory group may lie, the most exact place first; inside a container the root is the own group.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own = path.lstrip("/")
        if number == "0" and not controllers:
            yield groups / own
        elif "memory" in controllers.split(","):
            yield groups / "memory" / own
    yield groups
    yield groups / "memory"


def _table(path: Path) -> Mapping[str, int]:
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def share_arenas(most: int = ARENAS) -> bool:
    """
    Have the threads of this process share a few arenas of memory; False where the C library knows no such thing.

    By default glibc gives eight arenas per core to the threads, and what one has freed another cannot use: a worker whose
    threads come and go grows for hours. Only arenas that are made from now on count, so this is called early.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, most))
    except (OSError, AttributeError, TypeError):
        return False


def trim() -> bool:
    """
    Give memory that was freed back to the system; False where the C library knows no such thing. Takes about a millisecond.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):
        return False
