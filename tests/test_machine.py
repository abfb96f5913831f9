"""
The kernel's own numbers, read from files as it writes them: memory of a group and of the machine, kills, room on a disk.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from comfy_worker import machine

MEMINFO = "MemTotal:       24685568 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\n"


def kernel(base: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """
    Write files below `proc` and `groups`, and return the two.
    """
    for name, text in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return base / "proc", base / "groups"


V2_OWN = {
    "proc/self/cgroup": "0::/user.slice/worker\n",
    "groups/user.slice/worker/memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n",
    "groups/memory.events": "oom_kill 99\n",
}
V2_CONTAINER = {"proc/self/cgroup": "0::/\n", "groups/memory.events": "oom 1\noom_kill 1\noom_group_kill 0\n"}
V1_OWN = {
    "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n",
    "groups/memory/docker/abc/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
}
V1_CONTAINER = {
    "proc/self/cgroup": "4:memory:/docker/abc\n",
    "groups/memory/memory.oom_control": "oom_kill_disable 0\noom_kill 7\n",
}


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        (V2_OWN, 2),
        (V2_CONTAINER, 1),
        (V1_OWN, 4),
        (V1_CONTAINER, 7),
        ({}, 0),
        ({"groups/memory.events": "\n"}, 0),
    ],
    ids=["v2", "v2-container", "v1", "v1-container", "nothing", "empty"],
)
def test_kills_are_counted_in_the_own_group(tmp_path: Path, files: dict[str, str], kills: int) -> None:
    """Kills for memory must be read from the own group, of either version, and never be guessed."""
    assert machine.oom_kills(*kernel(tmp_path, files)) == kills


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (
            {
                "proc/self/cgroup": "0::/\n",
                "groups/memory.max": "1000000000\n",
                "groups/memory.current": "900000000\n",
                "groups/memory.stat": "anon 5\ninactive_file 300000000\n",
            },
            400_000_000,
        ),
        (
            {"proc/self/cgroup": "0::/\n", "groups/memory.max": "max\n", "groups/memory.current": "9\n"},
            2_048_000_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/abc\n",
                "groups/memory/memory.limit_in_bytes": "500000000\n",
                "groups/memory/memory.usage_in_bytes": "450000000\n",
                "groups/memory/memory.stat": "cache 1\ntotal_inactive_file 10000000\n",
            },
            60_000_000,
        ),
        (
            {
                "groups/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "groups/memory/memory.usage_in_bytes": "1\n",
            },
            2_048_000_000,
        ),
    ],
    ids=["v2", "v2-without-limit", "v1", "v1-without-limit"],
)
def test_memory_that_is_left_is_the_least_of_group_and_machine(
    tmp_path: Path, files: dict[str, str], left: int
) -> None:
    """What is left must be the tightest bound, with cache that can be dropped counted as free."""
    assert machine.available_memory(*kernel(tmp_path, {"proc/meminfo": MEMINFO, **files})) == left


def test_memory_is_unknown_where_nothing_says_so(tmp_path: Path) -> None:
    """Without any file there must be no number."""
    assert machine.available_memory(*kernel(tmp_path, {})) is None


def test_room_on_a_disk_is_told_with_its_number(tmp_path: Path) -> None:
    """Two folders of one disk must be told to be one, and a folder that is not there must give None."""
    (tmp_path / "a").mkdir()
    found, same = machine.free_disk(tmp_path), machine.free_disk(tmp_path / "a")

    assert found is not None and same is not None
    assert found[0] == same[0]
    assert found[1] > 0
    assert machine.free_disk(tmp_path / "missing") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's arenas")
def test_threads_share_a_few_arenas() -> None:
    """Memory that many threads have freed must lie in few arenas, which `malloc_info` counts."""
    program = (
        "import ctypes, sys, threading\n"
        "from comfy_worker import machine\n"
        "if sys.argv[1] == 'shared' and not machine.share_arenas(): sys.exit(77)\n"
        "hold = threading.Barrier(25)\n"
        "def work():\n"
        "    kept = [bytes(100_000) for _ in range(20)]\n"
        "    hold.wait(20)\n"
        "threads = [threading.Thread(target=work) for _ in range(24)]\n"
        "[thread.start() for thread in threads]\n"
        "hold.wait(20)\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.fopen.restype = ctypes.c_void_p\n"
        "out = ctypes.c_void_p(libc.fopen(b'/dev/stdout', b'w'))\n"
        "libc.malloc_info(0, out), libc.fflush(out)\n"
    )
    counts = {}
    for mode in ("shared", "default"):
        ran = subprocess.run(
            [sys.executable, "-c", program, mode], capture_output=True, text=True, check=False, timeout=60
        )
        if ran.returncode:
            pytest.skip("this C library has no arenas to limit")
        counts[mode] = ran.stdout.count("<heap nr=")

    assert counts["shared"] <= machine.ARENAS
    assert counts["default"] > counts["shared"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_freed_memory_goes_back_to_the_system() -> None:
    """What was freed below something that lives on must leave the process with a trim."""
    program = (
        "import sys\n"
        "from comfy_worker import machine\n"
        "def rss():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4\n"
        "kept = [bytearray(60_000) for _ in range(1000)]\n"
        "last = bytearray(60_000)\n"
        "del kept\n"
        "before = rss()\n"
        "sys.exit(77) if not machine.trim() else print(before - rss())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    if ran.returncode == 77:
        pytest.skip("nothing to trim with this C library")

    assert int(ran.stdout) > 20_000
