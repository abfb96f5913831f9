"""
ComfyUI's folders on this disk and over HTTP: what is placed, what is released when, and that nothing leads out.
"""

import os
from pathlib import Path

import pytest
from support.pictures import png

from comfy_worker.comfy.client import Client
from comfy_worker.comfy.files import (
    MOST_UNUSED,
    PRUNE_EVERY,
    PRUNE_EVERY_S,
    RemoteFiles,
    SharedFiles,
    probe_shared,
)
from comfy_worker.errors import InputUnavailable
from comfy_worker.standin.thread import EngineThread

CACHED = f"cw-{'0' * 32}.png"
OTHER = f"cw-{'1' * 32}.png"


class Disk:
    """
    Shared files below a folder, a clock to move by hand, and sources to place.
    """

    def __init__(self, base: Path, **limits: float) -> None:
        self.base = base
        self.input, self.output, self.temp = base / "input", base / "output", base / "temp"
        for folder in (self.input, self.output, self.temp):
            folder.mkdir()
        self.now = 1_000_000.0
        self.files = SharedFiles(self.input, self.output, self.temp, clock=lambda: self.now, **limits)

    def source(self, data: bytes = b"data") -> Path:
        """
        Return a new file outside of ComfyUI's folders.
        """
        path = self.base / "source"
        path.write_bytes(data)
        return path

    def place(self, name: str, data: bytes = b"data") -> str:
        """
        Place a new file.
        """
        return self.files.place(name, self.source(data))

    def cached(self, number: int, size: int, age_s: float) -> str:
        """
        Put an unused cached file there, of that size and age.
        """
        name = f"cw-{number:032x}.bin"
        self.place(name, bytes(size))
        self.files.release(name)
        os.utime(self.input / name, (self.now - age_s, self.now - age_s))
        return name

    def there(self) -> set[str]:
        """
        Return the files in the input folder, hidden ones too.
        """
        return {str(path.relative_to(self.input)) for path in self.input.rglob("*") if path.is_file()}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """
    Empty folders.
    """
    return Disk(tmp_path)


def test_cached_file_stays_and_is_not_written_again(disk: Disk) -> None:
    """A name made of the content must be written once and survive its jobs."""
    disk.place(CACHED, b"first")
    disk.files.release(CACHED)

    assert disk.place(CACHED, b"never looked at") == CACHED
    disk.files.release(CACHED)
    assert (disk.input / CACHED).read_bytes() == b"first"


def test_plain_file_is_gone_with_its_last_user(disk: Disk) -> None:
    """A plain name must be removed when nobody uses it any more, with the folders that it made."""
    disk.place("a/b/x.png")
    disk.place("a/b/x.png")

    disk.files.release("a/b/x.png")
    assert disk.there() >= {"a/b/x.png"}
    disk.files.release("a/b/x.png")
    assert disk.there() == set()
    assert list(disk.input.iterdir()) == []


def test_folders_that_others_use_are_kept(disk: Disk) -> None:
    """A folder that holds another file must survive."""
    disk.place("a/x.png")
    disk.place("a/y.png")

    disk.files.release("a/x.png")

    assert disk.there() == {"a/y.png"}


def test_file_of_the_operator_is_put_aside_and_comes_back(disk: Disk) -> None:
    """A file that was there before a job must be there after it, whatever the job had under its name."""
    (disk.input / "example.png").write_bytes(b"of the image")

    disk.place("example.png", b"of the job")
    assert (disk.input / "example.png").read_bytes() == b"of the job"
    disk.files.release("example.png")

    assert (disk.input / "example.png").read_bytes() == b"of the image"
    assert disk.there() == {"example.png"}


def test_plain_name_like_a_cached_one_is_no_cached_one(disk: Disk) -> None:
    """A plain name that only begins like a cached one must be written each time, and removed."""
    for data in (b"one", b"two"):
        disk.place("cw-logo.png", data)
        assert (disk.input / "cw-logo.png").read_bytes() == data
        disk.files.release("cw-logo.png")

    assert disk.there() == set()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", ".", "a\x00b", "x" * 300])
def test_name_that_leads_out_is_refused(disk: Disk, name: str) -> None:
    """A name that is not inside the folder must be refused, and leave nothing behind."""
    with pytest.raises((InputUnavailable, OSError)):
        disk.place(name)

    assert disk.there() == set()
    assert {path.name for path in disk.base.iterdir()} == {"input", "output", "temp", "source"}


def test_link_that_leads_out_is_refused(disk: Disk) -> None:
    """A folder or file of the input folder that links elsewhere must not be written through."""
    outside = disk.base / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(b"untouched")
    (disk.input / "folder").symlink_to(outside)
    (disk.input / "x.png").symlink_to(outside / "x.png")

    for name in ("folder/x.png", "folder/new.png", "x.png"):
        with pytest.raises(InputUnavailable, match=f"Error uploading {name}"):
            disk.place(name)

    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"x.png": b"untouched"}


@pytest.mark.parametrize("name", ["taken", "file/x.png", "file/a/b.png"])
def test_name_that_is_taken_by_a_folder_or_file_is_refused(disk: Disk, name: str) -> None:
    """A name whose place is a folder, or whose folder is a file, must be refused with the name and without a path."""
    (disk.input / "taken").mkdir()
    (disk.input / "file").write_bytes(b"x")

    with pytest.raises(InputUnavailable, match=f"Error uploading {name}") as caught:
        disk.place(name)

    assert str(disk.base) not in str(caught.value)
    assert disk.there() == {"file"}


def test_failed_placing_is_not_counted(disk: Disk) -> None:
    """A file that could not be placed must not count as used for ever."""
    with pytest.raises(OSError):
        disk.files.place(CACHED, disk.base / "missing")
    disk.place(CACHED)
    disk.files.release(CACHED)

    assert disk.files.prune(1e12) == 1


def test_release_of_what_cannot_be_removed_goes_on(disk: Disk) -> None:
    """A file that became a folder meanwhile must not keep a job from ending."""
    disk.place("x")
    (disk.input / "x").unlink()
    (disk.input / "x").mkdir()

    disk.files.release("x")
    disk.files.release("never placed")

    assert (disk.input / "x").is_dir()


def test_old_files_are_pruned_and_used_ones_never(tmp_path: Path) -> None:
    """Only unused cached files beyond the age must go."""
    disk = Disk(tmp_path, max_age_s=100.0)
    old, young = disk.cached(1, 10, 101), disk.cached(2, 10, 99)
    used = disk.cached(3, 10, 1000)
    disk.place(used)
    os.utime(disk.input / used, (disk.now - 1000, disk.now - 1000))
    (disk.input / "operator.png").write_bytes(b"x")
    os.utime(disk.input / "operator.png", (0, 0))

    assert disk.files.prune(disk.now) == 1
    assert disk.there() == {young, used, "operator.png"}
    assert old not in disk.there()


def test_oldest_files_are_pruned_until_the_rest_fits(tmp_path: Path) -> None:
    """Beyond the size the oldest unused files must go first, and only as many as needed."""
    disk = Disk(tmp_path, max_bytes=250.0)
    names = [disk.cached(number, 100, 60 - number) for number in range(4)]
    disk.place(names[0])
    os.utime(disk.input / names[0], (disk.now - 1000, disk.now - 1000))

    assert disk.files.prune(disk.now) == 2
    assert disk.there() == {names[0], names[3]}


def test_pruning_happens_by_itself_now_and_then(tmp_path: Path) -> None:
    """A worker that goes on must prune without being asked, and not with every job."""
    disk = Disk(tmp_path, max_age_s=10.0)
    old = disk.cached(1, 10, 100)
    disk.place("x")
    disk.files.release("x")
    assert old in disk.there()

    disk.now += PRUNE_EVERY_S
    disk.place("x")
    disk.files.release("x")
    assert old not in disk.there()


def test_output_is_found_inside_its_folder_only(disk: Disk) -> None:
    """An output must be found in the folder of its type, and nothing outside of it."""
    (disk.output / "sub").mkdir()
    (disk.output / "sub" / "x.png").write_bytes(b"x")
    (disk.temp / "t.png").write_bytes(b"t")
    (disk.base / "secret.txt").write_bytes(b"s")
    (disk.output / "link.txt").symlink_to(disk.base / "secret.txt")
    scratch = disk.base

    def found(type_: str, subfolder: str, filename: str) -> Path | None:
        return disk.files.locate(type_, subfolder, filename, scratch)

    assert found("output", "sub", "x.png") == (disk.output / "sub" / "x.png").resolve()
    assert found("temp", "", "t.png") == (disk.temp / "t.png").resolve()
    gone = [("output", "", "x.png"), ("output", "", "sub"), ("other", "sub", "x.png"), ("output", "sub", "")]
    out = [("output", "..", "secret.txt"), ("output", "", "../secret.txt"), ("output", "", "link.txt")]
    absolute = [("output", "", str(disk.base / "secret.txt")), ("output", str(disk.base), "secret.txt")]
    odd = [("output", "\x00", "x"), ("output", "x" * 5000, "x")]
    assert [found(*names) for names in gone + out + absolute + odd] == [None] * 11


def test_clear_removes_the_run_everywhere(disk: Disk) -> None:
    """The folder of a run must be gone from output and temp, and nothing else."""
    for root in (disk.output, disk.temp):
        (root / "cw-1" / "deep").mkdir(parents=True)
        (root / "cw-2").mkdir()

    disk.files.clear("cw-1")
    disk.files.clear("cw-3")

    assert [path.name for root in (disk.output, disk.temp) for path in root.iterdir()] == ["cw-2", "cw-2"]


def test_temp_folder_may_be_unknown(tmp_path: Path) -> None:
    """Without a known temp folder nothing of it can be found, and nothing fails."""
    files = SharedFiles(tmp_path, tmp_path, None)

    assert files.locate("temp", "", "x.png", tmp_path) is None
    files.clear("cw-1")


@pytest.fixture
def client(engine: EngineThread) -> Client:
    """
    A client of the built-in engine.
    """
    return Client(engine.url)


def test_remote_plain_names_are_overwritten(client: Client, engine: EngineThread, tmp_path: Path) -> None:
    """Over HTTP too a plain name must hold the last job's bytes, in any folder, and a cached one is stored once."""
    files = RemoteFiles(client)
    source = tmp_path / "source"
    for colour in ((1, 2, 3), (3, 2, 1)):
        for name in ("remote.png", "remote folder/ü 'x'.png"):
            source.write_bytes(png((2, 2), colour))
            assert files.place(name, source) == name
            assert (engine.folders.input / name).read_bytes() == source.read_bytes()
            files.release(name)

    assert files.place(OTHER, source) == files.place(OTHER, source) == OTHER
    client.close()


def test_remote_output_is_downloaded(client: Client, engine: EngineThread, tmp_path: Path) -> None:
    """Over HTTP an output must be copied into the job's own folder, and a missing one must be None."""
    files = RemoteFiles(client)
    (engine.folders.output / "remote.bin").write_bytes(b"remote")

    found = files.locate("output", "", "remote.bin", tmp_path)

    assert found is not None
    assert (found.parent, found.suffix, found.read_bytes()) == (tmp_path, ".bin", b"remote")
    assert files.locate("output", "", "missing.bin", tmp_path) is None
    files.clear("cw-1")
    client.close()


def test_shared_folder_is_proved(client: Client, engine: EngineThread, tmp_path: Path) -> None:
    """A folder must count as ComfyUI's only when ComfyUI sees a file of it; the proof leaves nothing behind."""
    before = set(engine.folders.input.iterdir())

    assert probe_shared(engine.folders.input, client)
    assert not probe_shared(tmp_path, client)
    assert not probe_shared(tmp_path / "missing", client)
    assert set(engine.folders.input.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
    client.close()


def test_operators_word_counts_while_comfyui_is_down(tmp_path: Path) -> None:
    """A ComfyUI that does not answer yet must not turn the shared disk off."""
    assert probe_shared(tmp_path, Client("http://127.0.0.1:1"))


def test_spare_removes_every_unused_input_and_no_other(tmp_path: Path) -> None:
    """To make room every unused cached input must go, however new; those in use and those of a person must stay."""
    disk = Disk(tmp_path)
    unused = disk.cached(7, 10, age_s=1.0)
    disk.place(CACHED)
    (disk.input / "example.png").write_bytes(b"x")

    assert disk.files.spare() == 1

    assert not (disk.input / unused).exists()
    assert (disk.input / CACHED).exists()
    assert (disk.input / "example.png").exists()


def test_spare_leaves_what_another_worker_may_just_have_placed(tmp_path: Path) -> None:
    """In a folder that is shared only inputs of some age may be removed."""
    disk = Disk(tmp_path, spare_age_s=3600.0)
    young, old = disk.cached(1, 10, age_s=60.0), disk.cached(2, 10, age_s=7200.0)

    assert disk.files.spare() == 1

    assert (disk.input / young).exists()
    assert not (disk.input / old).exists()


def test_number_of_unused_inputs_is_bounded(tmp_path: Path) -> None:
    """However small they are, only so many unused inputs may stay: the newest."""
    disk = Disk(tmp_path)
    names = [disk.cached(number, 1, age_s=1000.0 - number) for number in range(MOST_UNUSED + 20)]

    disk.files.prune(disk.now)

    assert disk.there() == set(names[20:])


def test_many_small_inputs_are_pruned_without_waiting_for_the_clock(tmp_path: Path) -> None:
    """A burst of jobs must not fill the folder before the next look at the clock is due."""
    disk = Disk(tmp_path)

    for number in range(MOST_UNUSED + 3 * PRUNE_EVERY):
        disk.cached(number, 1, age_s=float(1000 - number))

    assert len(disk.there()) <= MOST_UNUSED + PRUNE_EVERY
