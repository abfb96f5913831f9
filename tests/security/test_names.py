"""
No name that a request, ComfyUI or a server gives leads out of the folder it belongs to, on each face.

How paths of outputs are judged, with links: tests/test_collect.py. Names of inputs: tests/test_parse.py. Manifests of
models: tests/models/test_manifest.py. Names in a bucket: tests/storage/test_s3.py.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import WorkerFactory, launch_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from support.every_face import FACES, Entrance
from support.http_desk import Answer, HttpDesk
from support.pictures import b64, invert_workflow, node, png
from support.served import Served

from comfy_worker.collect import collect, inside
from comfy_worker.comfy.files import SharedFiles
from comfy_worker.errors import JobInvalid
from comfy_worker.faces import salad
from comfy_worker.job import Bucket
from comfy_worker.standin.thread import EngineThread
from comfy_worker.storage import keys
from comfy_worker.templates import Templates

HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
MODEL = len(HEADER).to_bytes(8, "little") + HEADER + bytes(4)
PICTURE = b64(png((4, 4), (9, 8, 7)))
BAD = (
    *(
        "../x.png",
        "../../x.png",
        "a/../../x.png",
        "/tmp/x.png",
        "//x.png",
        "..\\x.png",
        "C:\\x.png",
        "\\\\h\\x.png",
    ),
    *(
        "a/./../../x.png",
        "x\x00.png",
        "..",
        ".",
        "",
        " ",
        "a/",
        "~/x.png/..",
        "....//....//../x.png",
        "‥/x.png/../..",
    ),
    *(
        "%2e%2e/x.png/..",
        "x\r\ny.png",
        "x\ny.png",
        "a" * 300 + ".png",
        "con/../../x.png",
        "cw-" + "0" * 32 + ".png",
    ),
)


def outside_of(engine: EngineThread) -> set[Path]:
    """
    Return every file around the folders of an engine, but not in them.
    """
    root = engine.folders.input.parent.parent
    within = [engine.folders.input, engine.folders.output, engine.folders.temp]
    return {path for path in root.rglob("*.png") if not any(path.is_relative_to(folder) for folder in within)}


@pytest.mark.parametrize("name", BAD)
def test_name_of_an_input_stays_inside(engine: EngineThread, shared_entrance: Any, name: str) -> None:
    """A name of an input that leads anywhere must be refused, and nothing written beside the input folder."""
    before = outside_of(engine)
    entrance = shared_entrance(FACES[0])

    assert entrance.send(invert_workflow("x.png"), images=[{"name": name, "image": PICTURE}]).failed
    assert outside_of(engine) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["../x", "/tmp/x", "a/../../x", "x\x00y", "..\\..\\x", "", "a" * 4000, "..", "x\r\nSet-Cookie: a=b"],
)
def test_prefix_of_an_output_stays_inside(entrance: Entrance, engine: EngineThread, name: str) -> None:
    """A file name prefix must not lead a file out of ComfyUI's folders, nor out of a reply's header."""
    before = outside_of(engine)

    said = entrance.send(invert_workflow(f"data:image/png;base64,{PICTURE}", prefix=name), "prefix")

    assert outside_of(engine) == before
    assert "Set-Cookie" not in said.headers


@pytest.mark.slow
@pytest.mark.parametrize(
    "job_id", ["../../x", "/tmp/x", "..", ".", "a/b", "a\x00b", "x\r\nA: b", "a" * 5000, "%2e%2e%2f", "‮", ""]
)
def test_id_of_a_job_is_no_path(entrance: Entrance, engine: EngineThread, job_id: str) -> None:
    """The id that a caller chooses must name no folder outside, whatever becomes of the job."""
    before = outside_of(engine)
    tree = set(engine.folders.output.parent.parent.iterdir())

    said = entrance.send(invert_workflow(f"data:image/png;base64,{PICTURE}"), job_id)

    assert outside_of(engine) == before
    assert set(engine.folders.output.parent.parent.iterdir()) == tree
    assert "A: b" not in said.headers.replace("'", "")


@given(
    st.text(max_size=30) | st.sampled_from(BAD),
    st.text(max_size=10) | st.sampled_from(BAD),
    st.text(max_size=10) | st.sampled_from(BAD),
)
def test_key_in_a_bucket_stays_behind_its_prefix(job_id: str, filename: str, subfolder: str) -> None:
    """Job, folder and file must not lead a key out of the bucket's prefix, nor hold what a reader could stumble over."""
    bucket = Bucket("https://h.example", "a", SecretStr("b"), "bucket", prefix="out/here")
    artifact: Any = SimpleNamespace(filename=filename, subfolder=subfolder, node_id=filename)

    for key in keys.plan(bucket, job_id, [artifact, artifact]):
        parts = key.split("/")
        assert key.startswith("out/here/")
        assert not {"", ".", ".."} & set(parts)
        assert "\\" not in key
        assert key.isprintable()


HOSTILE = (
    *(
        "../secret.png",
        "../../secret.png",
        "/etc/hostname",
        "sub/../../secret.png",
        "link.png",
        "links/secret.png",
    ),
    *("\x00", "a" * 5000, "..", ".", "", "loop.png", "secret.png\x00.png", "..\\secret.png"),
)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """
    Folders with links that lead out of them, beside a secret.
    """
    found = {name: tmp_path / name for name in ("input", "output", "temp")}
    for folder in found.values():
        folder.mkdir()
        (tmp_path / "secret.png").write_bytes(b"secret")
        os.symlink(tmp_path / "secret.png", folder / "link.png")
        os.symlink(tmp_path, folder / "links")
        os.symlink(folder / "loop.png", folder / "loop.png")
    (found["output"] / "good.png").write_bytes(png((2, 2), (1, 1, 1)))
    return found


@pytest.mark.parametrize("type_", ["output", "temp", "input", "../output", "", "models"])
def test_hostile_history_reads_nothing_outside(folders: dict[str, Path], tmp_path: Path, type_: str) -> None:
    """Whatever ComfyUI's record names, in whatever place, nothing outside its folders must become an artifact."""
    files = SharedFiles(folders["input"], folders["output"], folders["temp"])
    entries = [
        {"filename": one, "subfolder": two, "type": type_}
        for one in HOSTILE
        for two in ("", "..", "links", "/", str(tmp_path))
    ]
    strings = [f"{name}{suffix}" for name in HOSTILE for suffix in ("", " [output]", " [input]", " [temp]")]

    found = collect(
        {"1": {"images": entries, "result": strings}},
        {"1": {}},
        [],
        locate=lambda *names: files.locate(*names, tmp_path),
        job_folder="job",
        include_temp=True,
    )

    assert [artifact.filename for artifact in found.artifacts] == []


def test_history_of_a_good_file_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """What is refused above must be refused for where it leads."""
    files = SharedFiles(folders["input"], folders["output"], folders["temp"])

    assert files.locate("output", "", "good.png", tmp_path) == (folders["output"] / "good.png").resolve()
    assert inside(folders["output"], "", "link.png") is None


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "x\x00", "a/../../b", "__class__", ".hidden", "_private"],
)
def test_name_of_a_template_is_looked_up_and_not_opened(tmp_path: Path, name: str) -> None:
    """A template is one of those that were read at the start; its name never becomes a path."""
    (tmp_path / ".hidden.yaml").write_text("graph: {}")
    with pytest.raises(JobInvalid, match="there is no template"):
        Templates.load([tmp_path]).get(name)


@pytest.mark.parametrize("graph", ["../../../etc/hostname", "/etc/hostname", "links/secret.json"])
def test_graph_of_a_template_stays_in_its_folder(tmp_path: Path, graph: str) -> None:
    """A template's YAML must not name a graph outside the folder, by a link neither."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    (tmp_path / "secret.json").write_text('{"1": {"class_type": "A", "inputs": {}}}')
    os.symlink(tmp_path, folder / "links")
    (folder / "t.yaml").write_text(f"graph: {graph}\n")

    found = Templates.load([folder])

    assert not found.by_name
    assert "inside the folder" in found.problems[-1].text


@pytest.fixture
def downloads(
    engine: EngineThread, make_worker: WorkerFactory, tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """
    The download API of the Salad face over folders of its own: `downloads(body)` posts and returns the reply.
    """
    worker = make_worker(
        launch_of(engine),
        allow_private_urls=True,
        model_dir=tmp_path / "models",
        cache_dir=tmp_path / "cache",
    )
    served = Served(salad.app_of(worker))
    yield lambda body: served.post("/download", body)
    served.close()


MODEL_PLACES = (
    "../x",
    "/tmp",
    "checkpoints/../../x",
    "..",
    "check\x00points",
    "no-such-kind",
    "",
    "~",
    "..\\x",
)


def test_model_is_put_into_a_known_folder_only(downloads: Callable[..., Any], tmp_path: Path) -> None:
    """The kind of a model must not lead out of the models' folder."""
    with HttpDesk() as desk:
        url = desk.put("/m.safetensors", MODEL)
        statuses = {
            place: downloads(
                {"url": url, "model_type": place, "filename": "m.safetensors", "wait": True}
            ).status_code
            for place in MODEL_PLACES
        }

    assert not {place: status for place, status in statuses.items() if status < 400}
    assert not list(tmp_path.rglob("m.safetensors"))


MODEL_NAMES = ("../m.bin", "/tmp/m.bin", "a/../../m.bin", "..", "m\x00.bin", "..\\m.bin", "../../m.bin")


def offered(desk: HttpDesk, number: int, name: str, given_by: str) -> dict[str, Any]:
    """
    Return a request for a model whose name comes from the caller, from Content-Disposition, or from the URL.
    """
    headers = {}
    if given_by == "header":
        plain = f'attachment; filename="{name}"'
        headers["Content-Disposition"] = (
            plain if "\x00" not in name else "attachment; filename*=utf-8''..%00%2fm.bin"
        )
    path = f"/{number}/{name}".replace("\x00", "%00") if given_by == "url" else f"/{number}"
    desk.answers[path] = Answer(MODEL, headers=headers)
    body = {"url": desk.url + path, "model_type": "checkpoints", "wait": True}
    return {**body, **({"filename": name} if given_by == "caller" else {})}


@pytest.mark.parametrize("given_by", ["caller", "header", "url"])
def test_name_of_a_model_stays_inside(downloads: Callable[..., Any], tmp_path: Path, given_by: str) -> None:
    """The name of a model, from the request, from Content-Disposition or the URL, must not lead out of its folder."""
    with HttpDesk() as desk:
        for number, name in enumerate(MODEL_NAMES):
            downloads(offered(desk, number, name, given_by))

    written = {path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == MODEL}
    allowed = (tmp_path / "models" / "checkpoints", tmp_path / "cache")
    assert all(any(path.is_relative_to(folder) for folder in allowed) for path in written)
    assert not (tmp_path.parent / "m.bin").exists()
    assert not Path("/tmp/m.bin").exists()


def test_data_uri_and_prefix_of_a_good_job_pass(entrance: Entrance) -> None:
    """The jobs above must fail, where they do, for their names only."""
    said = entrance.send(invert_workflow(f"data:image/png;base64,{PICTURE}", prefix="good/out"), "good")

    assert not said.failed
    assert node("SaveImage")["class_type"] == "SaveImage"
