"""
Inputs -> files in ComfyUI's folder and a workflow that names them: which name becomes which, and what is released.
"""

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.pictures import b64, invert_workflow, node, png

from comfy_worker.comfy.cached import cached_name, is_cached
from comfy_worker.comfy.files import SharedFiles
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobCancelled, JobFailed, JobTimedOut
from comfy_worker.fetch import Item
from comfy_worker.job import Bucket, InputFile, Job
from comfy_worker.stage import PlainNames, Staged, Stager

PICTURE = png((4, 4), (1, 2, 3))
INFO: Mapping[str, Any] = {
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "LoadOther": {
        "input": {"required": {"upload": ["COMBO", {"file_upload": True}], "note": ["STRING", {}]}}
    },
    "Prose": {"input": {"required": {"text": ["STRING", {"multiline": True}]}}},
}


@dataclass
class Web:
    """
    A fetcher whose web is a dict: URL -> bytes.
    """

    pages: Mapping[str, bytes]
    asked: list[str] = field(default_factory=list)
    readers: list[Any] = field(default_factory=list)

    def fetch_all(
        self, items: Sequence[Item], deadline: Deadline, *, max_bytes: int, s3: Any = None
    ) -> dict[str, str]:
        """
        Write the pages there are, and tell of those there are not.
        """
        self.readers.append(s3)
        failures = {}
        for item in items:
            self.asked.append(item.url)
            if item.url in self.pages:
                item.to.write_bytes(self.pages[item.url])
            else:
                failures[item.field] = f"'{item.field}' could not be fetched"
        return failures


@dataclass
class Stage:
    """
    A stager on a folder, and the job that it stages.
    """

    stager: Stager
    files: Any
    input: Path
    web: Web
    scratch: Path

    @contextmanager
    def __call__(
        self, workflow: Any, *inputs: InputFile, deadline: Deadline | None = None
    ) -> Iterator[Staged]:
        """
        Stage a job of this workflow and these files while the block runs.
        """
        self.scratch.mkdir(exist_ok=True)
        job = Job("job-1", workflow, inputs)
        with self.stager.staged(job, deadline or Deadline(10), self.scratch) as staged:
            yield staged

    def there(self) -> list[str]:
        """
        Return the files in the input folder.
        """
        return sorted(str(path.relative_to(self.input)) for path in self.input.rglob("*") if path.is_file())


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """
    A stager on an empty input folder, with a web of one picture.
    """
    return staging(tmp_path)


def staging(tmp_path: Path, files: Any = None, max_bytes: int = 100_000) -> Stage:
    """
    Make a stager below a folder.
    """
    folder = tmp_path / "input"
    folder.mkdir(exist_ok=True)
    files = files or SharedFiles(folder, tmp_path / "output", None)
    web = Web({"https://a.example/pictures/x.png?sig=1": PICTURE})
    stager = Stager(
        files,
        web,
        lambda name: INFO.get(name, {}),
        lambda bucket: bucket,
        max_bytes=max_bytes,  # type: ignore[arg-type]
    )
    return Stage(stager, files, folder, web, tmp_path / "scratch")


def image(name: str = "in.png", data: str = b64(PICTURE)) -> InputFile:
    """
    Return a picture of `images`.
    """
    return InputFile(name, "images[0].image", data=data, must_be_image=True)


def content_name(data: bytes, suffix: str) -> str:
    """
    Return the content-addressed name of bytes.
    """
    return f"cw-{hashlib.sha256(data).hexdigest()[:32]}{suffix}"


def test_referred_picture_is_named_by_its_content(stage: Stage) -> None:
    """A picture that a node reads must be placed under a name of its content, and the node must name that."""
    wanted = content_name(PICTURE, ".png")

    with stage(invert_workflow("In.PNG"), image("In.PNG")) as staged:
        assert staged.workflow["1"]["inputs"]["image"] == wanted
        assert stage.there() == [wanted]
        assert (stage.input / wanted).read_bytes() == PICTURE
    assert stage.there() == [wanted]


def test_name_that_no_node_has_is_placed_as_it_is(stage: Stage) -> None:
    """A file that no node names must stand under its own name while the job runs, and be gone after it."""
    with stage(invert_workflow("other.png"), image("a/b/plain.png")) as staged:
        assert staged.workflow == invert_workflow("other.png")
        assert stage.there() == ["a/b/plain.png"]
    assert stage.there() == []
    assert not (stage.input / "a").exists()


@pytest.mark.parametrize(
    ("value", "name", "suffix"),
    [
        ("in.png [input]", "in.png", " [input]"),
        ("in.png [input]", "in.png [input]", ""),
        ("a\\in.png", "a/in.png", ""),
        ("a\\in.png [input]", "a/in.png", " [input]"),
    ],
)
def test_other_spellings_of_a_name_are_followed(stage: Stage, value: str, name: str, suffix: str) -> None:
    """A node may spell a name with an annotation, or with the slashes of Windows."""
    with stage(invert_workflow(value), image(name)) as staged:
        found = staged.workflow["1"]["inputs"]["image"]

    assert found.endswith(suffix)
    assert is_cached(found.removesuffix(suffix))


@pytest.mark.parametrize("value", ["in.png [output]", "in.png [temp]", "IN.PNG", "xin.png", "in.png "])
def test_other_values_are_left_alone(stage: Stage, value: str) -> None:
    """A value that names a file of another folder, or another file, must not be touched."""
    with stage(invert_workflow(value), image()) as staged:
        assert staged.workflow["1"]["inputs"]["image"] == value
        assert stage.there() == ["in.png"]


def test_free_text_is_not_a_name(stage: Stage) -> None:
    """A prompt that consists of a file's name must stay a prompt, and the file is placed as it is."""
    workflow = {"1": node("Prose", text="in.png")}

    with stage(workflow, image()) as staged:
        assert staged.workflow == workflow
        assert stage.there() == ["in.png"]


def test_name_inside_a_list_is_found_as_well(stage: Stage) -> None:
    """A file that one node names and another has in a list must be there for both."""
    workflow = {"1": node("LoadImage", image="in.png"), "2": node("Many", names=[["in.png", "b.png"]])}

    with stage(workflow, image()) as staged:
        assert staged.workflow["2"] == workflow["2"]
        assert stage.there() == [content_name(PICTURE, ".png"), "in.png"]
    assert stage.there() == [content_name(PICTURE, ".png")]


def test_link_to_a_node_called_like_a_file_is_left_alone(stage: Stage) -> None:
    """A node id that equals a file's name must go on linking."""
    workflow = {"in.png": node("LoadImage", image="in.png"), "2": node("SaveImage", images=("in.png", 0))}

    with stage(workflow, image()) as staged:
        assert staged.workflow["2"]["inputs"]["images"] == ["in.png", 0]
        assert is_cached(staged.workflow["in.png"]["inputs"]["image"])


def test_url_in_the_place_of_a_file_is_fetched(stage: Stage) -> None:
    """A URL where a node takes a file must be fetched once, named by its content, wherever it stands."""
    url = "https://a.example/pictures/x.png?sig=1"
    workflow = {
        "1": node("LoadImage", image=url),
        "2": node("LoadOther", upload=url, note=url),
        "3": node("A", a=url),
    }
    wanted = content_name(PICTURE, ".png")

    with stage(workflow) as staged:
        inputs = [staged.workflow[node_id]["inputs"] for node_id in "123"]

    assert inputs == [{"image": wanted}, {"upload": wanted, "note": url}, {"a": url}]
    assert stage.web.asked == [url]


def test_data_uri_in_the_place_of_a_file_is_decoded(stage: Stage) -> None:
    """A data URI where a node takes a file must become that file, with an ending by its bytes."""
    with stage({"1": node("LoadImage", image=f"DATA:image/png;base64,{b64(PICTURE)}")}) as staged:
        assert staged.workflow["1"]["inputs"]["image"] == content_name(PICTURE, ".png")


def test_picture_by_url_is_fetched(stage: Stage) -> None:
    """A picture of `images` may be a URL; its own name decides the ending."""
    file = InputFile(
        "in.webp", "images[0].image", url="https://a.example/pictures/x.png?sig=1", must_be_image=True
    )

    with stage(invert_workflow("in.webp"), file) as staged:
        assert staged.workflow["1"]["inputs"]["image"] == content_name(PICTURE, ".webp")


def test_bucket_of_the_job_reads_its_s3_urls(stage: Stage) -> None:
    """What reads s3 URLs must be the reader of the job's own bucket."""
    bucket = Bucket(None, "key", SecretStr("secret"), "b")
    job = Job("job-1", invert_workflow())
    job = replace(job, delivery=replace(job.delivery, bucket=bucket))
    stage.scratch.mkdir()

    with stage.stager.staged(job, Deadline(10), stage.scratch):
        pass

    assert stage.web.readers == [bucket]


def test_equal_bytes_share_a_file(stage: Stage) -> None:
    """Two names of the same bytes and ending must be one file."""
    workflow = {"1": node("LoadImage", image="a.png"), "2": node("LoadImage", image="b.png")}
    files = (image("a.png"), InputFile("b.png", "images[1].image", data=b64(PICTURE)))

    with stage(workflow, *files) as staged:
        assert staged.workflow["1"] == staged.workflow["2"]
        assert len(stage.there()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b64(PICTURE),
        f"data:image/png;base64,{b64(PICTURE)}",
        f"Data:image/png;charset=utf-8;base64,{b64(PICTURE)}",
        f"anything,{b64(PICTURE)}",
        f"data:{'x' * 1000},{b64(PICTURE)}",
        f" \r\n{base64.encodebytes(PICTURE).decode()}\t\f\v",
        f"  data:image/png;base64,\n{base64.encodebytes(PICTURE).decode()}",
    ],
)
def test_every_form_of_base64_is_decoded(stage: Stage, data: str) -> None:
    """Base64 must be taken plain, in lines, and behind anything that ends with a comma."""
    with stage(invert_workflow(), image(data=data)) as staged:
        assert staged.workflow["1"]["inputs"]["image"] == content_name(PICTURE, ".png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "'images[0].image' is empty"),
        (" \n", "'images[0].image' is empty"),
        ("data:image/png;base64,", "'images[0].image' is empty"),
        ("data:image/png;base64", "'images[0].image' is empty"),
        ("!!!!", "Only base64 data is allowed"),
        ("QUJ", "Incorrect padding"),
        ("QU-_", "Only base64 data is allowed"),
        ("QÄJD", "string argument should contain only ASCII characters"),
        ("\ud800", "string argument should contain only ASCII characters"),
        ("https//a.example/x.png", "Only base64 data is allowed"),
    ],
)
def test_bad_base64_is_told_with_its_file(stage: Stage, data: str, reason: str) -> None:
    """Text that is no base64, or is empty, must be told in the words users know, and nothing must be placed."""
    with pytest.raises(InputUnavailable) as caught, stage(invert_workflow(), image(data=data)):
        pass

    assert str(caught.value) == "Failed to upload one or more input images"
    [text] = caught.value.details["details"]
    assert text.startswith("Error decoding base64 for in.png: ")
    assert reason in text
    assert caught.value.details["field"] == "images[0].image"
    assert stage.there() == []


def test_every_failure_is_told_in_order(stage: Stage) -> None:
    """All bad files must be told at once, in the order of the job, and none of the good ones placed."""
    files = (
        InputFile("a.png", "images[0].image", data="!"),
        InputFile("b.png", "images[1].image", url="https://a.example/missing"),
        InputFile("c.png", "images[2].image", data=b64(b"no picture"), must_be_image=True),
        InputFile("d.png", "images[3].image", data=b64(PICTURE), must_be_image=True),
        InputFile("e.bin", "files[0].data", data=b64(b"anything")),
    )

    with pytest.raises(InputUnavailable) as caught, stage(invert_workflow("a.png"), *files):
        pass

    assert [text.partition(":")[0] for text in caught.value.details["details"]] == [
        "Error decoding base64 for a.png",
        "'images[1].image' could not be fetched",
        "Error uploading c.png",
    ]
    assert stage.there() == []


def test_size_is_bounded_before_decoding(tmp_path: Path) -> None:
    """A text that would be larger than a file may be must be refused by its length, the largest one taken."""
    stage = staging(tmp_path, max_bytes=300)

    with stage(invert_workflow(), InputFile("in.png", "files[0].data", data=b64(bytes(300)))):
        assert len(stage.there()) == 1
    with pytest.raises(InputUnavailable) as caught, stage(invert_workflow(), image(data="A" * 4000)):
        pass

    assert caught.value.details["details"] == [
        "Error uploading in.png: 'images[0].image' is larger than 300 bytes (INPUT_MAX_MB)"
    ]


def test_long_data_uri_is_not_repeated_in_its_error(stage: Stage) -> None:
    """A data URI in the workflow is its own name, which no message may hold."""
    with (
        pytest.raises(InputUnavailable) as caught,
        stage({"1": node("LoadImage", image="data:,!" + "A" * 5000)}),
    ):
        pass

    [text] = caught.value.details["details"]
    assert text.startswith("Error decoding base64 for workflow.1.inputs.image: ")
    assert len(text) < 300


def test_cancelled_job_places_nothing_more(stage: Stage) -> None:
    """A job that was told to stop must end while staging, and hold nothing afterwards."""
    deadline = Deadline(10)
    deadline.cancel()

    with pytest.raises(JobCancelled), stage(invert_workflow(), image(), deadline=deadline):
        pass

    with stage({}, image()):
        assert stage.there() == ["in.png"]


def test_plain_name_is_waited_for_and_then_had(stage: Stage) -> None:
    """Two jobs with one plain name must have it one after the other, each with its own bytes."""
    names = PlainNames()
    names.hold("a", Deadline(1))
    got = threading.Event()
    other = threading.Thread(target=lambda: (names.hold("a", Deadline(10)), got.set()), name="second-job")
    other.start()

    assert not got.wait(0.3)
    names.release("a")
    assert got.wait(5)
    other.join(5)


def test_plain_name_is_waited_for_within_the_deadline() -> None:
    """A name that stays taken must end the wait by the job's own time limit."""
    names = PlainNames()
    names.hold("a", Deadline(1))

    with pytest.raises(JobTimedOut):
        names.hold("a", Deadline(0.05))


def test_two_jobs_with_two_plain_names_in_other_order_both_end(stage: Stage) -> None:
    """Jobs that need the same two plain names in opposite order must not wait for each other for ever."""
    files = [InputFile(name, f"files[{name}].data", data=b64(b"x")) for name in ("a", "b", "c")]
    begin, failures = threading.Barrier(2), []

    def run(number: int) -> None:
        scratch = stage.scratch.with_name(f"scratch-{number}")
        scratch.mkdir()
        mine = tuple(files if number else reversed(files))
        begin.wait(5)
        for _ in range(50):
            try:
                with stage.stager.staged(Job(f"job-{number}", {}, mine), Deadline(5), scratch):
                    pass
            except JobTimedOut as exc:
                failures.append(exc)
                return

    jobs = [threading.Thread(target=run, args=(number,), name=f"job-{number}") for number in (0, 1)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join(30)
    assert not failures
    assert stage.there() == []


class FullDisk:
    """
    Files on a disk that takes no more after `room` files.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.released: list[str] = []

    def place(self, name: str, source: Path) -> str:
        """
        Take a file while there is room.
        """
        if self.room == 0:
            raise OSError(28, "No space left on device", "/host/path")
        self.room -= 1
        return name

    def release(self, name: str) -> None:
        """
        Remember that it was let go.
        """
        self.released.append(name)


def test_full_disk_fails_the_job_without_a_path(tmp_path: Path) -> None:
    """A disk that takes no file must fail the job in words without a path, and let go of what was placed."""
    files = FullDisk(1)
    stage = staging(tmp_path, files)
    both = (image("a.png"), InputFile("b.png", "images[1].image", data=b64(PICTURE)))

    with pytest.raises(JobFailed, match="disk is full") as caught, stage({}, *both):
        pass

    assert "/host" not in str(caught.value)
    assert files.released == ["a.png"]

    files.room = 9
    with stage({}, both[1], deadline=Deadline(1)):
        assert files.released == ["a.png"]


def test_renamed_upload_is_followed(tmp_path: Path) -> None:
    """When ComfyUI stores an upload under another name, the workflow must name that."""

    class Renaming(FullDisk):
        def place(self, name: str, source: Path) -> str:
            return f"{name} (1)"

    stage = staging(tmp_path, Renaming(9))

    with stage(invert_workflow(), image()) as staged:
        name = staged.workflow["1"]["inputs"]["image"]
    assert name == content_name(PICTURE, ".png") + " (1)"
    assert staged.names == (name,)


@pytest.mark.parametrize(
    ("file", "data", "suffix"),
    [
        (InputFile("a.PNG", ""), b"", ".png"),
        (InputFile("a.tar.gz", ""), b"", ".gz"),
        (InputFile("a", "", url="https://x/b.webp?c=d.exe"), b"", ".webp"),
        (InputFile("a", "", url="https://x/b%2Ejpg"), b"", ".jpg"),
        (InputFile("https://x/b.png", "", url="https://x/b.png"), b"", ".png"),
        (InputFile("https://x/b", "", url="https://x/b"), PICTURE, ".png"),
        (InputFile("a", ""), PICTURE, ".png"),
        (InputFile("a.p/g", ""), PICTURE, ".png"),
        (InputFile("a.very-odd", ""), PICTURE, ".png"),
        (InputFile("a." + "x" * 13, ""), PICTURE, ".png"),
        (InputFile("data:image/png;base64,AAAA.exe", ""), PICTURE, ".png"),
        (InputFile("a", ""), b"nothing known", ""),
    ],
)
def test_cached_name_gets_a_safe_ending(file: InputFile, data: bytes, suffix: str, tmp_path: Path) -> None:
    """The ending must come from the name, the URL or the bytes, and hold nothing but letters and digits."""
    source = tmp_path / "source"
    source.write_bytes(data)

    name = cached_name(file, source)

    assert name == content_name(data, suffix)
    assert is_cached(name)
