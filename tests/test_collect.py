"""
Tests of collect: which artifacts come out of which `outputs`.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_worker import kinds
from comfy_worker.collect import Collected, collect, inside

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


class Disk:
    """
    ComfyUI's folders, with the files that `put` makes in them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, data: bytes = b"data", type_: str = "output") -> None:
        path = self.root / type_ / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def locate(self, type_: str, subfolder: str, filename: str) -> Path | None:
        path = inside(self.root / type_, subfolder, filename)
        return path if path and path.is_file() else None


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def collected(disk: Disk, outputs: dict[str, Any], *names: str, **options: Any) -> Collected:
    for name in names:
        disk.put(name)
    wanted = {"pictures": [], "job_folder": "", "include_temp": False, "workflow": {}} | options
    return collect(outputs, locate=disk.locate, **wanted)


def entry(filename: str, subfolder: str = "", type_: str = "output", **more: Any) -> dict[str, Any]:
    return {"filename": filename, "subfolder": subfolder, "type": type_, **more}


@pytest.mark.parametrize(
    ("key", "filename", "kind", "mime"),
    [
        ("images", "a_00001_.png", "image", "image/png"),
        ("images", "a_00001_.webp", "image", "image/webp"),
        ("images", "a_00001_.webm", "video", "video/webm"),
        ("images", "a_00001_.mp4", "video", "video/mp4"),
        ("images", "a_00001.exr", "image", "image/aces"),
        ("gifs", "a_00001.mov", "video", "video/quicktime"),
        ("audio", "a_00001.flac", "audio", "audio/flac"),
        ("audio", "a_00001.mp3", "audio", "audio/mpeg"),
        ("audio", "a_00001.opus", "audio", "audio/ogg"),
        ("latents", "a_00001_.latent", "latent", "application/octet-stream"),
        ("3d", "a_00001_.glb", "3d", "model/gltf-binary"),
        ("text_file", "a.txt", "file", "text/plain"),
        ("anything_at_all", "a.SRT", "file", "application/x-subrip"),
    ],
)
def test_runpod_14_17_collect_returns_a_file_under_any_key(
    disk: Disk, key: str, filename: str, kind: str, mime: str
) -> None:
    """An entry with a file name is an artifact whatever its key, and its extension says what it is."""
    (artifact,) = collected(disk, {"9": {key: [entry(filename)]}}, filename).artifacts

    assert (artifact.key, artifact.kind, artifact.mime, artifact.size_bytes) == (key, kind, mime, 4)


def test_collect_takes_the_kind_from_the_format_and_the_type_from_the_name(disk: Disk) -> None:
    """VideoHelperSuite's own `format` decides the kind, the extension the MIME type that is sent."""
    outputs = {"9": {"gifs": [entry("a.webp", format="video/webp"), entry("b.mp4", format="video/h264-mp4")]}}

    first, second = collected(disk, outputs, "a.webp", "b.mp4").artifacts

    assert (first.kind, first.mime) == ("video", "image/webp")
    assert (second.kind, second.mime) == ("video", "video/mp4")


@pytest.mark.parametrize(
    ("head", "kind", "mime"),
    [
        (PNG, "image", "image/png"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image", "image/webp"),
        (b"\0\0\0\x20ftypisom", "video", "video/mp4"),
        (b"\x1aE\xdf\xa3\x01\x42\x82\x84webm", "video", "video/webm"),
        (b"fLaC\0", "audio", "audio/flac"),
        (b"glTF\2\0\0\0", "3d", "model/gltf-binary"),
        (b"whatever", "file", "application/octet-stream"),
        (b"", "file", "application/octet-stream"),
    ],
)
def test_collect_looks_into_a_file_whose_name_says_nothing(
    disk: Disk, head: bytes, kind: str, mime: str
) -> None:
    """An unknown extension is decided by the first bytes, and unknown bytes are a plain file."""
    disk.put("odd.thing", head)

    (artifact,) = collected(disk, {"9": {"things": [entry("odd.thing")]}}).artifacts

    assert (artifact.kind, artifact.mime) == (kind, mime)


def test_collect_marks_an_animated_image_only(disk: Disk) -> None:
    """`animated: [true]` says something about a webp or png, and nothing about a video under `images`."""
    outputs = {
        "1": {"images": [entry("a.webp")], "animated": [True]},
        "2": {"images": [entry("b.mp4")], "animated": [True]},
        "3": {"images": [entry("c.png")], "animated": [False]},
    }

    artifacts = collected(disk, outputs, "a.webp", "b.mp4", "c.png").artifacts

    assert [artifact.animated for artifact in artifacts] == [True, False, False]


def test_collect_returns_text_of_any_form(disk: Disk) -> None:
    """Strings under `text` are texts, in a list, alone or nested, even when they look like a path."""
    outputs = {"1": {"text": ["one", "two [output]"]}, "2": {"text": "häß.glb"}, "3": {"text": [["deep"], 5]}}

    artifacts = collected(disk, outputs).artifacts

    assert [artifact.content for artifact in artifacts] == ["one", "two [output]", "häß.glb", "deep"]
    assert {artifact.kind for artifact in artifacts} == {"text"}
    assert artifacts[2].size_bytes == len("häß.glb".encode())


@pytest.mark.parametrize(
    "odd",
    [
        None,
        True,
        7,
        "plain words",
        [],
        [None, 3.5, False],
        {},
        {"filename": ""},
        {"filename": 5},
        [[{"camera": 1}]],
        "x [elsewhere]",
    ],
)
def test_collect_leaves_odd_entries_alone(disk: Disk, odd: Any) -> None:
    """What is neither file nor text is no artifact and never an error, and what stands beside it is kept."""
    outputs = {"1": {"ui": odd, "result": odd, "images": [entry("a.png")]}, "2": odd}

    artifacts = collected(disk, outputs, "a.png").artifacts

    assert [artifact.filename for artifact in artifacts] == ["a.png"]


def test_collect_names_an_entry_without_a_file_name(disk: Disk) -> None:
    """An image entry without a file name is skipped with a warning that names the node."""
    result = collected(disk, {"12": {"images": [{"subfolder": "", "type": "output"}]}})

    assert result.artifacts == ()
    assert result.warnings == ("Skipping image in node 12 due to missing filename",)


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("mesh.glb", "output"),
        ("sub/mesh.glb", "output"),
        ("mesh.glb", "temp"),
        ("sub/mesh.ply [output]", "output"),
        ("cloud.bin [input]", "input"),
        ("mesh.usdz [temp]", "temp"),
    ],
)
def test_collect_finds_the_file_a_bare_string_names(disk: Disk, text: str, folder: str) -> None:
    """A path in a string is a file of the folder its suffix names, else of output, else of temp."""
    path = text.partition(" [")[0]
    disk.put(path, type_=folder)

    (artifact,) = collected(disk, {"9": {"result": [text, None, [1.0]]}}, include_temp=True).artifacts

    assert (artifact.type, f"{artifact.subfolder}/{artifact.filename}".strip("/")) == (folder, path)


def test_collect_warns_of_a_bare_string_whose_file_is_nowhere(disk: Disk) -> None:
    """A path that leads to no file is a warning, not a failure and not a missing file."""
    result = collected(disk, {"9": {"result": ["gone.glb", "../../etc/passwd [output]"]}})

    assert result.artifacts == () and result.missing == ()
    assert len(result.warnings) == 2 and "Node 9" in result.warnings[0]


def test_runpod_14_23_collect_says_that_there_are_previews_only(disk: Disk) -> None:
    """Temporary previews alone give no artifact and one warning that names SaveImage."""
    disk.put("p.png", type_="temp")
    outputs = {"7": {"images": [entry("p.png", type_="temp")]}}

    result = collected(disk, outputs)

    assert result.only_temp and result.artifacts == () and "SaveImage" in result.warnings[0]
    assert not collected(disk, {"8": {"text": ["x"]}, **outputs}).only_temp
    assert [a.type for a in collected(disk, outputs, include_temp=True).artifacts] == ["temp"]


def test_runpod_14_40_collect_names_the_files_that_are_gone(disk: Disk) -> None:
    """A file that history names and the disk lacks is listed as missing; the others are returned."""
    outputs = {"9": {"images": [entry("a.png", "job/sub"), entry("b.png")]}}

    result = collected(disk, outputs, "b.png", job_folder="job")

    assert result.missing == ("sub/a.png",)
    assert [artifact.filename for artifact in result.artifacts] == ["b.png"]


def test_collect_hides_the_job_folder(disk: Disk) -> None:
    """File and subfolder read as they would without the folder that was put in front, and only without that one."""
    outputs = {"9": {"images": [entry("a.png", "k1"), entry("b.png", "k1/sub"), entry("c.png", "k12")]}}

    artifacts = collected(disk, outputs, "k1/a.png", "k1/sub/b.png", "k12/c.png", job_folder="k1").artifacts

    assert [(artifact.subfolder, artifact.filename) for artifact in artifacts] == [
        ("", "a.png"),
        ("sub", "b.png"),
        ("k12", "c.png"),
    ]


def test_runpod_14_20_collect_tells_files_of_one_name_apart(disk: Disk) -> None:
    """Files of one name in two folders are two artifacts; the same file under two keys is one."""
    outputs = {
        "1": {"images": [entry("a.png", "x")], "again": [entry("a.png", "x")]},
        "2": {"images": [entry("a.png", "y")]},
    }

    artifacts = collected(disk, outputs, "x/a.png", "y/a.png").artifacts

    assert [(a.node_id, a.subfolder) for a in artifacts] == [("1", "x"), ("2", "y")]


def test_collect_follows_the_order_of_the_workflow(disk: Disk) -> None:
    """Artifacts stand in the order of the posted nodes, nodes made at run time with their parent."""
    outputs = {node: {"text": [node]} for node in ("3", "stray", "12.0.0.3", "12", "1")}

    artifacts = collected(disk, outputs, workflow={"12": {}, "1": {}, "3": {}}).artifacts

    assert [artifact.node_id for artifact in artifacts] == ["12.0.0.3", "12", "1", "3", "stray"]


def test_collect_numbers_websocket_pictures_per_node(disk: Disk) -> None:
    """Frames that exist only on the socket become images with a name made from their node."""
    pictures = [("5:3", "image/png", b"1"), ("2", "image/jpeg", b"22"), ("5:3", "image/png", b"333")]

    artifacts = collected(disk, {}, pictures=pictures, workflow={"2": {}, "5:3": {}}).artifacts

    assert [(a.filename, a.type, a.key, a.mime, a.content) for a in artifacts] == [
        ("2_00001_.jpg", "websocket", "images", "image/jpeg", b"22"),
        ("5_3_00001_.png", "websocket", "images", "image/png", b"1"),
        ("5_3_00002_.png", "websocket", "images", "image/png", b"333"),
    ]


def test_runpod_14_21_collect_repairs_names_that_utf8_cannot_hold(tmp_path: Path) -> None:
    """A file name with surrogate escapes is found under its real name and shown as valid text."""
    (tmp_path / "output").mkdir()
    disk = Disk(tmp_path)
    disk.put("caf\udce9.png")

    result = collected(disk, {"1": {"images": [entry("caf\udce9.png")], "text": ["\ud800x"]}})

    assert [a.filename for a in result.artifacts] == ["caf\ufffd.png", ""]
    assert result.artifacts[1].content == "\ufffdx"


def test_inside_follows_links_before_it_judges(tmp_path: Path) -> None:
    """A link that leads out of the folder is refused, one that stays is followed, the folder itself may be one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "real" / "a").write_text("a")
    (tmp_path / "real" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real" / "loop")
    (tmp_path / "real" / "b").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "folder").symlink_to(tmp_path / "real")

    assert inside(tmp_path / "folder", "", "out") is None
    assert inside(tmp_path / "folder", "", "loop") is None
    assert inside(tmp_path / "folder", "", "b") == tmp_path / "real" / "a"


NAMES = st.text(st.sampled_from("ab./\\\0é\udce9 "), max_size=12) | st.sampled_from(
    ["..", "/etc/passwd", "../x", "a/../../x", "~", "x" * 300]
)


@given(subfolder=NAMES, filename=NAMES)
def test_inside_never_leaves_the_folder(subfolder: str, filename: str) -> None:
    """Whatever the names are, the path lies below the folder or there is none."""
    folder = Path("/nowhere/output")

    path = inside(folder, subfolder, filename)

    assert path is None or (folder in path.parents and ".." not in path.parts)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_collect_never_fails_on_any_json(outputs: Any) -> None:
    """No shape that JSON can have makes collect raise."""
    result = collect(
        {"1": outputs, "2": {"images": outputs, "text": outputs}},
        {},
        [],
        locate=lambda *_: None,
        job_folder="j",
        include_temp=True,
    )

    assert all(artifact.kind == "text" for artifact in result.artifacts)


@pytest.mark.parametrize("name", sorted(kinds.BY_EXTENSION))
def test_kinds_table_is_consistent(name: str) -> None:
    """Every extension stands in lower case without a dot, and its MIME type does not contradict its kind."""
    mime, kind = kinds.BY_EXTENSION[name]

    assert name == name.lower().strip(".") and kinds.by_name(f"x.{name.upper()}") == (mime, kind)
    assert kinds.by_mime(mime) in {None, kind}


def test_salad_s63_kinds_knows_the_types_clients_asked_for() -> None:
    """The media that were once sent as octet-stream have their own MIME type."""
    names = ["flac", "m4a", "mkv", "opus", "avif", "apng", "glb"]

    assert kinds.UNKNOWN[0] not in {kinds.BY_EXTENSION[name][0] for name in names}
