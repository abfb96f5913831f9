"""
Files come whole or not at all: parallel, resumed, checked, each by one worker, the token to its own host only.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.model_host import Entry, ModelHost

from comfy_worker.deadline import Deadline
from comfy_worker.errors import JobCancelled, ModelUnavailable
from comfy_worker.fetch_guard import Guard
from comfy_worker.models.download import Downloader, Habits
from comfy_worker.models.plan import Item
from comfy_worker.models.tokens import Tokens

BODY = random.Random(7).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
TOKEN = "hf_marker_of_this_test"
QUICK = Habits(first_pause_s=0.01)


@pytest.fixture
def host() -> Iterator[ModelHost]:
    """
    A host with one model.
    """
    with ModelHost() as running:
        running.files["/m.bin"] = Entry(BODY)
        yield running


def item_of(host: ModelHost, to: Path, at: str = "/m.bin", **fields: Any) -> Item:
    """
    Describe a file of the host, with its size and checksum.
    """
    known = {"size": len(BODY), "sha256": SHA256} | fields
    return Item(f"owner/name{at}", f"{host.url}{at}", to, **known)


def downloader(tokens: dict[str, str] | None = None, habits: Habits = QUICK, **options: Any) -> Downloader:
    """
    Make a downloader that may connect to loopback.
    """
    secrets = Tokens({origin: SecretStr(token) for origin, token in (tokens or {}).items()})
    return Downloader(secrets, Guard(allow_private=True), habits, **options)


def left_beside(to: Path) -> list[str]:
    """
    Name what lies in the folder of a target besides it.
    """
    return sorted(path.name for path in to.parent.iterdir() if path != to)


def test_file_is_complete_and_alone(host: ModelHost, tmp_path: Path) -> None:
    """
    A fetched file has its name and content, its folder was made, and nothing else is left there.
    """
    to = tmp_path / "checkpoints" / "m.bin"

    assert downloader().fetch([item_of(host, to)], Deadline(30)) == ["fetched"]

    assert to.read_bytes() == BODY
    assert left_beside(to) == []


def test_several_files_come_at_once(host: ModelHost, tmp_path: Path) -> None:
    """
    As many files are under way at once as there are threads, no more, and outcomes keep the order.
    """
    gate = threading.Event()
    names = [f"/{number}.bin" for number in range(6)]
    host.files |= {name: Entry(BODY, gate=gate) for name in names}
    items = [item_of(host, tmp_path / name[1:], name) for name in names]
    opener = threading.Thread(target=lambda: (host.several.wait(20), gate.set()))
    opener.start()

    outcomes = downloader(habits=Habits(threads=3, first_pause_s=0.01)).fetch(items, Deadline(30))
    opener.join(20)

    assert outcomes == ["fetched"] * 6
    assert 2 <= host.most <= 3
    assert {path.read_bytes() for path in tmp_path.glob("*.bin")} == {BODY}


def test_cut_download_goes_on_where_it_was(host: ModelHost, tmp_path: Path) -> None:
    """
    After a broken connection only the rest is asked for, under the ETag of the first part.
    """
    host.files["/m.bin"].cuts = [100_000, 50_000]

    downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

    assert host.ranges_of("/m.bin") == [None, "bytes=100000-", "bytes=150000-"]
    assert host.requests[1][1]["if-range"] == '"v1"'
    assert (tmp_path / "m.bin").read_bytes() == BODY


def test_partial_file_of_an_earlier_run_is_used(host: ModelHost, tmp_path: Path) -> None:
    """
    What a run left that was given up is not fetched again.
    """
    host.files["/m.bin"].cuts = [120_000]
    host.files["/m.bin"].statuses = []
    item = item_of(host, tmp_path / "m.bin")
    host.files["/m.bin"].cuts += [0, 0, 0, 0]
    with pytest.raises(ModelUnavailable):
        downloader().fetch([item], Deadline(30))
    before = len(host.requests)

    downloader().fetch([item], Deadline(30))

    assert [headers.get("range") for _, headers in host.requests[before:]] == ["bytes=120000-"]
    assert item.to.read_bytes() == BODY
    assert left_beside(item.to) == []


@pytest.mark.parametrize("checked", [True, False])
def test_changed_file_is_started_anew(host: ModelHost, tmp_path: Path, checked: bool) -> None:
    """
    When the host has another version by now, two versions are not sewn together, with or without a checksum.
    """
    new = BODY[::-1]
    host.files["/m.bin"].cuts = [100_000, 0, 0, 0, 0, 0]
    old = item_of(host, tmp_path / "m.bin", sha256=SHA256 if checked else None)
    with pytest.raises(ModelUnavailable):
        downloader().fetch([old], Deadline(30))
    host.files["/m.bin"] = Entry(new, etag='"v2"')
    wanted = hashlib.sha256(new).hexdigest() if checked else None

    downloader().fetch([item_of(host, tmp_path / "m.bin", sha256=wanted)], Deadline(30))

    assert (tmp_path / "m.bin").read_bytes() == new


def test_host_without_ranges_is_read_from_the_start(host: ModelHost, tmp_path: Path) -> None:
    """
    A host that ignores ranges costs a second download, not a broken file.
    """
    host.files["/m.bin"].ranges = False
    host.files["/m.bin"].cuts = [100_000]

    downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

    assert (tmp_path / "m.bin").read_bytes() == BODY


def test_without_anything_to_compare_nothing_is_resumed(host: ModelHost, tmp_path: Path) -> None:
    """
    Without an ETag and without a checksum a partial file proves nothing, so the whole is asked for.
    """
    host.files["/m.bin"].etag = ""
    host.files["/m.bin"].cuts = [100_000]

    downloader().fetch([item_of(host, tmp_path / "m.bin", sha256=None)], Deadline(30))

    assert host.ranges_of("/m.bin") == [None, None]


def test_spoilt_partial_file_is_given_a_second_chance(host: ModelHost, tmp_path: Path) -> None:
    """
    A checksum that fails after resuming another run's part is no verdict on the host: the whole is fetched.
    """
    (tmp_path / ".m.bin.part").write_bytes(b"x" * 5000)

    downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

    assert host.ranges_of("/m.bin") == ["bytes=5000-", None]
    assert (tmp_path / "m.bin").read_bytes() == BODY


def test_wrong_checksum_is_refused_and_removed(host: ModelHost, tmp_path: Path) -> None:
    """
    A file with another content never gets its name, nor stays as a part.
    """
    to = tmp_path / "m.bin"

    with pytest.raises(ModelUnavailable, match=rf"has sha256 {SHA256}, not {'0' * 64}.*removed"):
        downloader().fetch([item_of(host, to, sha256="0" * 64)], Deadline(30))

    assert list(tmp_path.iterdir()) == []


def test_wrong_size_is_refused_before_it_is_fetched(host: ModelHost, tmp_path: Path) -> None:
    """
    When the announced size is not the manifest's, no byte is stored.
    """
    with pytest.raises(ModelUnavailable, match="300,000 bytes, not 5 as"):
        downloader().fetch([item_of(host, tmp_path / "m.bin", size=5)], Deadline(30))

    assert list(tmp_path.iterdir()) == []


def test_short_answer_is_no_file(host: ModelHost, tmp_path: Path) -> None:
    """
    An answer with fewer bytes than it announced is tried again and then refused, naming the file.
    """
    host.files["/m.bin"].lies = 10

    with pytest.raises(ModelUnavailable, match=r"owner/name/m\.bin: .*attempts"):
        downloader().fetch([item_of(host, tmp_path / "m.bin", size=None, sha256=None)], Deadline(30))

    assert not (tmp_path / "m.bin").exists()


def test_file_that_is_there_is_left_alone(host: ModelHost, tmp_path: Path) -> None:
    """
    A file of the right size is not asked for; with `verify` its content counts.
    """
    to = tmp_path / "m.bin"
    to.write_bytes(b"y" * len(BODY))

    assert downloader().fetch([item_of(host, to)], Deadline(30)) == ["there"]
    assert host.requests == []
    assert downloader(habits=Habits(verify=True)).fetch([item_of(host, to)], Deadline(30)) == ["fetched"]
    assert to.read_bytes() == BODY


def test_file_of_another_size_is_replaced(host: ModelHost, tmp_path: Path) -> None:
    """
    A target that cannot be the wanted file is fetched over.
    """
    to = tmp_path / "m.bin"
    to.write_bytes(b"half of it")

    downloader().fetch([item_of(host, to)], Deadline(30))

    assert to.read_bytes() == BODY


def test_cached_file_is_linked(host: ModelHost, tmp_path: Path) -> None:
    """
    What is on the machine already is linked, not fetched.
    """
    source = tmp_path / "cache" / "blob"
    source.parent.mkdir()
    source.write_bytes(BODY)
    to = tmp_path / "models" / "m.bin"

    assert downloader(cached=lambda _: source).fetch([item_of(host, to)], Deadline(30)) == ["linked"]

    assert to.resolve() == source
    assert host.requests == []


# Tokens and redirects.


def test_token_goes_to_its_own_host_only(host: ModelHost, tmp_path: Path) -> None:
    """
    The token is sent to the host it is for, and not to the one that host redirects to.
    """
    with ModelHost() as storage:
        storage.files["/blob"] = Entry(BODY)
        host.files["/m.bin"] = Entry(b"", token=TOKEN, redirect=f"{storage.url}/blob")

        downloader({host.url: TOKEN}).fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

        assert host.requests[0][1]["authorization"] == f"Bearer {TOKEN}"
        assert "authorization" not in storage.requests[0][1]
    assert (tmp_path / "m.bin").read_bytes() == BODY


def test_other_hosts_get_no_token(host: ModelHost, tmp_path: Path) -> None:
    """
    A host that no token is for is asked without one; a blank token is none.
    """
    tokens = {"https://huggingface.co": TOKEN, host.url: "  "}

    downloader(tokens).fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

    assert "authorization" not in host.requests[0][1]


def test_redirect_back_gets_its_token_again(host: ModelHost, tmp_path: Path) -> None:
    """
    Each address of a chain is judged by itself.
    """
    host.files["/first"] = Entry(b"", redirect="/m.bin")
    host.files["/m.bin"].token = TOKEN

    downloader({host.url: TOKEN}).fetch([item_of(host, tmp_path / "m.bin", "/first")], Deadline(30))

    assert (tmp_path / "m.bin").read_bytes() == BODY


def test_endless_redirects_end(host: ModelHost, tmp_path: Path) -> None:
    """
    A circle of redirects is an error, soon.
    """
    host.files["/m.bin"].redirect = "/m.bin"

    with pytest.raises(ModelUnavailable, match="redirects more than"):
        downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))


def test_redirect_to_a_private_address_is_refused(host: ModelHost, tmp_path: Path) -> None:
    """
    The host that the operator named may be private; where it redirects to may not.
    """
    with ModelHost() as inside:
        host.files["/m.bin"].redirect = f"{inside.url}/m.bin"
        guard = Guard(allowed_hosts=[host.url.removeprefix("http://")])
        with pytest.raises(ModelUnavailable, match="not a public address"):
            Downloader(Tokens({}), guard, QUICK).fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

        assert inside.requests == []


def test_gated_file_without_a_token_fails_at_once(host: ModelHost, tmp_path: Path) -> None:
    """
    Nothing is fetched when something gated has no token, and the sentence says where to get one.
    """
    gated = item_of(host, tmp_path / "g.bin", gated=True, repo="owner/name", path="g.bin")

    with pytest.raises(
        ModelUnavailable, match=r"is gated and there is no token.*huggingface\.co/owner/name.*HF_TOKEN"
    ):
        downloader().fetch([item_of(host, tmp_path / "m.bin"), gated], Deadline(30))

    assert host.requests == []


@pytest.mark.parametrize(
    ("status", "with_token", "sentence"),
    [
        (
            401,
            False,
            "wants a token \\(401\\): accept the conditions on https://huggingface.co/owner/name and set HF_TOKEN",
        ),
        (403, True, "refused the token \\(403\\)"),
        (404, True, "has no such file \\(404\\)"),
        (410, True, "answered 410"),
    ],
)
def test_refusal_names_host_and_file_and_no_secret(
    host: ModelHost, tmp_path: Path, status: int, with_token: bool, sentence: str
) -> None:
    """
    401, 403 and 404 are not tried again, and the sentence names the host and the file, not the token or the query.
    """
    host.files["/m.bin"].statuses = [status] * 5
    item = Item(
        "owner/name/m.bin",
        f"{host.url}/m.bin?signature=query-marker",
        tmp_path / "m.bin",
        repo="owner/name",
        path="m.bin",
    )

    with pytest.raises(ModelUnavailable, match=sentence) as caught:
        downloader({host.url: TOKEN} if with_token else {}).fetch([item], Deadline(30))

    assert len(host.requests) == 1
    assert "owner/name/m.bin" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "marker" not in str(caught.value)


def test_passing_failures_are_tried_again(host: ModelHost, tmp_path: Path) -> None:
    """
    429 and 5xx are waited out, as long as the server asks for.
    """
    host.files["/m.bin"].statuses = [503, 429, 500]
    host.files["/m.bin"].headers = {"Retry-After": "0"}

    downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

    assert len(host.requests) == 4


def test_dead_host_is_given_up(tmp_path: Path) -> None:
    """
    A host that is not there is an error after some attempts, and one line per file.
    """
    with ModelHost() as gone:
        pass
    items = [item_of(gone, tmp_path / name, f"/{name}") for name in ("a", "b")]

    with pytest.raises(ModelUnavailable) as caught:
        downloader().fetch(items, Deadline(30))

    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["owner/name/a", "owner/name/b"]


# The disk and the time.


def test_too_little_space_is_said_before_anything_is_fetched(host: ModelHost, tmp_path: Path) -> None:
    """
    The sum of what is missing must fit, with a margin; what is there already does not count.
    """
    there = item_of(host, tmp_path / "there.bin")
    there.to.write_bytes(BODY)
    items = [there, item_of(host, tmp_path / "m.bin")]

    with pytest.raises(ModelUnavailable, match=r"0\.0 GB are needed for 1 files"):
        downloader(free=lambda _: len(BODY)).fetch(items, Deadline(30))
    assert host.requests == []
    assert downloader(free=lambda _: len(BODY) * 2).fetch(items, Deadline(30)) == ["there", "fetched"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_full_disk_is_a_sentence_and_leaves_nothing(host: ModelHost, tmp_path: Path) -> None:
    """
    When the disk fills up in the middle, that is what is said, and the part does not keep it full.
    """
    (tmp_path / ".m.bin.part").symlink_to("/dev/full")

    with pytest.raises(ModelUnavailable, match=r"owner/name/m\.bin: the disk is full"):
        downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(30))

    assert list(tmp_path.iterdir()) == []


def test_read_only_folder_is_a_sentence(host: ModelHost, tmp_path: Path) -> None:
    """
    A models folder that is no folder is named as the fault, without a path of the machine.
    """
    (tmp_path / "models").write_text("a file")

    with pytest.raises(ModelUnavailable, match="the models folder cannot be written to") as caught:
        downloader().fetch([item_of(host, tmp_path / "models" / "m.bin")], Deadline(30))

    assert str(tmp_path) not in str(caught.value)


def test_time_limit_keeps_what_came(host: ModelHost, tmp_path: Path) -> None:
    """
    At the limit the error names the setting, and the part is there for the next start.
    """
    host.files["/m.bin"].gate = threading.Event()

    with pytest.raises(ModelUnavailable, match=r"not complete after 0\.5 s.*MODELS_TIMEOUT_S"):
        downloader().fetch([item_of(host, tmp_path / "m.bin")], Deadline(0.5))

    assert (tmp_path / ".m.bin.part").stat().st_size > 0


def test_cancel_ends_it(host: ModelHost, tmp_path: Path) -> None:
    """
    A cancelled deadline ends the download at once, as a cancel.
    """
    host.files["/m.bin"].gate = threading.Event()
    deadline = Deadline(30)
    threading.Timer(0.3, deadline.cancel).start()

    with pytest.raises(JobCancelled):
        downloader().fetch([item_of(host, tmp_path / "m.bin")], deadline)


# Two workers on one volume.


def _worker(url: str, to: str, results: Any) -> None:
    item = Item("owner/name/m.bin", f"{url}/m.bin", Path(to), size=len(BODY), sha256=SHA256)
    results.put((os.getpid(), downloader().fetch([item], Deadline(30))[0]))


@pytest.fixture
def spawn() -> Iterator[Callable[..., Any]]:
    """
    Start worker processes; `spawn(url, to)` returns the process, `spawn.results` has what they say.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    running: list[Any] = []

    def start(url: str, to: Path) -> Any:
        process = context.Process(target=_worker, args=(url, str(to), results))
        process.start()
        running.append(process)
        return process

    start.results = results  # type: ignore[attr-defined]
    yield start
    for process in running:
        process.join(30)
        if process.is_alive():
            process.kill()
            process.join(10)
    results.close()
    results.join_thread()


@pytest.mark.slow
def test_two_workers_fetch_once(host: ModelHost, tmp_path: Path, spawn: Any) -> None:
    """
    Of two processes on one volume one fetches, and the other waits and takes the finished file.
    """
    gate = host.files["/m.bin"].gate = threading.Event()
    to = tmp_path / "m.bin"
    first = spawn(host.url, to)
    _until(lambda: len(host.requests) == 1)
    spawn(host.url, to)
    opener = threading.Timer(2.0, gate.set)
    opener.start()

    outcomes = dict(spawn.results.get(timeout=30) for _ in range(2))

    assert outcomes[first.pid] == "fetched"
    assert sorted(outcomes.values()) == ["by another", "fetched"]
    assert len(host.requests) == 1
    assert to.read_bytes() == BODY
    assert left_beside(to) == []


def test_killed_worker_is_followed_at_once(host: ModelHost, tmp_path: Path, spawn: Any) -> None:
    """
    When the worker that fetches is killed, the next one goes on from its part.
    """
    gate = host.files["/m.bin"].gate = threading.Event()
    to = tmp_path / "m.bin"
    first = spawn(host.url, to)
    _until(lambda: (tmp_path / ".m.bin.part").exists() and (tmp_path / ".m.bin.part").stat().st_size > 0)
    os.kill(first.pid, signal.SIGKILL)
    first.join(10)
    gate.set()

    assert downloader().fetch([item_of(host, to)], Deadline(30)) == ["fetched"]

    assert host.ranges_of("/m.bin")[-1] is not None
    assert to.read_bytes() == BODY
    assert left_beside(to) == []


def test_worker_that_was_counted_as_dead_waits_for_its_successor(host: ModelHost, tmp_path: Path) -> None:
    """
    When a worker on another machine has taken a download over, this one waits and takes the finished file.
    """
    gate = host.files["/m.bin"].gate = threading.Event()
    note = tmp_path / ".m.bin.lock"
    part = tmp_path / ".m.bin.part"

    def successor() -> None:
        _until(lambda: part.exists() and part.stat().st_size > 0)
        note.write_text('{"owner": "successor", "host": "another-machine"}')
        time.sleep(0.3)  # until the next sign of life is due
        gate.set()
        _until(lambda: not part.exists() or len(host.requests) > 1 or host.now == 0)
        note.touch()
        (tmp_path / "m.bin").write_bytes(BODY)
        note.unlink()

    other = threading.Thread(target=successor)
    other.start()
    outcomes = downloader(habits=Habits(first_pause_s=0.01, stale_s=4.8)).fetch(
        [item_of(host, tmp_path / "m.bin")], Deadline(30)
    )
    other.join(20)

    assert outcomes == ["by another"]
    assert len(host.requests) == 1


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(400):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc, which Linux has")
def test_many_files_keep_no_connection_open(host: ModelHost, tmp_path: Path) -> None:
    """
    However many files a fetch has, what a finished one had open is closed before the next ones.
    """
    most = 0
    host.files |= {f"/{number}.bin": Entry(b"x", cuts=[0]) for number in range(60)}

    def count(_: Item) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    items = [
        item_of(host, tmp_path / str(number), f"/{number}.bin", size=1, sha256=None) for number in range(60)
    ]
    downloader(habits=Habits(threads=2, first_pause_s=0.001), cached=count).fetch(items, Deadline(60))

    assert most - before < 30
