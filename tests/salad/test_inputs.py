"""
Inputs in the graph: base64, data URIs, URLs, paths and names, each understood as the peer does or better.
"""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.http_desk import Answer, HttpDesk
from support.pictures import b64, invert_workflow, node, png
from support.salad_fixtures import S3Server, ServeSalad
from support.served import Served

from comfy_worker.faces import salad_graph, salad_media
from comfy_worker.faces.salad_graph import Surroundings
from comfy_worker.standin.thread import EngineThread

PICTURE = png((8, 6), (10, 20, 30))


def inverted(body: dict[str, Any]) -> tuple[int, ...]:
    """
    Return the first pixel of the first image of a reply.
    """
    image = Image.open(io.BytesIO(base64.b64decode(body["images"][0]))).convert("RGB")
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return tuple(int(value) for value in pixel)


def ran(served: Served, value: Any, **fields: Any) -> tuple[int, ...]:
    """
    Run load -> invert -> save on a value of LoadImage; return the first pixel.
    """
    reply = served.post("/prompt", {"prompt": invert_workflow(value), **fields})
    assert reply.status_code == 200, reply.text
    return inverted(reply.json())


def around(**fields: Any) -> Surroundings:
    """
    Return the surroundings of a graph without a ComfyUI.
    """
    return Surroundings(**{"info": lambda _: {}, "auth": lambda url: (url, None), "key": "k", **fields})


def test_every_form_of_an_image_is_staged(served: Served, desk: HttpDesk, s3_server: S3Server) -> None:
    """Bare base64, a data URI and a URL give the same picture."""
    url = desk.put("/in.png", PICTURE)

    assert ran(served, b64(PICTURE)) == (245, 235, 225)
    assert ran(served, url) == (245, 235, 225)


def test_salad_s26_data_uris_decode(served: Served) -> None:
    """A data URI, with parameters too, is decoded without its prefix."""
    assert ran(served, f"data:image/png;base64,{b64(PICTURE)}") == (245, 235, 225)
    assert ran(served, f"data:image/png;name=a.png;base64,{b64(PICTURE)}") == (245, 235, 225)


@pytest.mark.parametrize("name", ["s27.png", "s27/x.png", "s27.png [input]"])
def test_salad_s27_name_of_an_input_passes_through(served: Served, engine: EngineThread, name: str) -> None:
    """What is in ComfyUI's input folder can be named as it is."""
    path = engine.folders.input / name.removesuffix(" [input]")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(PICTURE)

    reply = served.post("/prompt", {"prompt": invert_workflow(name)})

    assert reply.status_code == 200, reply.text
    assert reply.json()["prompt"]["1"]["inputs"]["image"] == name


def test_salad_s28_nodes_that_want_base64_keep_it() -> None:
    """A class that takes text, or is called after base64, is not rewritten; an unknown one is, as in the peer."""
    text = b64(PICTURE)
    plain = {"input": {"required": {"image": ["STRING", {"multiline": False}]}}}
    prompt = {
        "1": node("ETN_LoadImageBase64", image=text),
        "2": node("TakesText", image=text),
        "3": node("Unknown", image=text),
        "4": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }

    reading = salad_graph.read(prompt, "id", around(info=lambda name: plain if name == "TakesText" else {}))

    assert reading.prompt["1"]["inputs"]["image"] == text
    assert reading.prompt["2"]["inputs"]["image"] == text
    assert reading.prompt["3"]["inputs"]["image"] == "k-0"
    assert [file.field for file in reading.inputs] == ["prompt.3.inputs.image"]


def test_salad_s29_local_paths_stay_inside(served: Served, engine: EngineThread, tmp_path: Path) -> None:
    """A path inside ComfyUI's folders works; any other is a 400, also over a link."""
    inside = engine.folders.input / "s29.png"
    inside.write_bytes(PICTURE)
    outside = tmp_path / "secret.png"
    outside.write_bytes(PICTURE)
    link = engine.folders.input / "s29-link.png"
    link.symlink_to(outside)

    assert ran(served, str(inside)) == (245, 235, 225)
    for value in (str(outside), "/etc/passwd", "../../etc/passwd", str(link)):
        reply = served.post("/prompt", {"prompt": invert_workflow(value)})
        assert reply.status_code == 400, value
        assert reply.json()["location"] == "prompt.1.inputs.image"
        assert reply.json()["error"].startswith("Failed to download image for node 1: ")
    link.unlink()


def test_salad_s29_further_roots_are_the_operators(serve_salad: ServeSalad, tmp_path: Path) -> None:
    """A path inside INPUT_ROOTS works too, as a copy; beside it, above it or over a link out of it none does."""
    root = tmp_path / "shared"
    (root / "deep").mkdir(parents=True)
    file = root / "deep" / "s29.png"
    file.write_bytes(PICTURE)
    outside = tmp_path / "shared-not" / "secret.png"
    outside.parent.mkdir()
    outside.write_bytes(PICTURE)
    (root / "link.png").symlink_to(outside)
    served = serve_salad(input_roots=(root, tmp_path / "not there"))

    assert ran(served, str(file)) == (245, 235, 225)
    assert file.read_bytes() == PICTURE
    for value in (outside, root / "link.png", f"{root}/../shared-not/secret.png", root / "gone.png", root):
        reply = served.post("/prompt", {"prompt": invert_workflow(str(value))})
        assert reply.status_code == 400, value
        assert reply.json()["location"] == "prompt.1.inputs.image"


def test_salad_s29_classes_of_paths_keep_the_path(tmp_path: Path) -> None:
    """A class that reads paths itself is given the real one, and nothing is copied."""
    file = tmp_path / "v.mp4"
    file.write_bytes(b"video")
    prompt = {
        "1": node("VHS_LoadVideoPath", video=str(file)),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }

    reading = salad_graph.read(prompt, "id", around(roots=(tmp_path,)))

    assert reading.prompt["1"]["inputs"]["video"] == str(file.resolve())
    assert reading.inputs == []


def test_salad_s30_directory_keeps_the_order(tmp_path: Path) -> None:
    """An array of images becomes a folder whose names sort as the array does."""
    values = [b64(png((4, 4), (number, 0, 0))) for number in range(3)] + ["https://example.com/z.jpg?x=1"]
    prompt = {
        "10": node("VHS_LoadImages", directory=values),
        "11": node("VHS_LoadImagesPath", directory=values[:1]),
        "12": node("SaveImage", images=("10", 0), filename_prefix="x"),
    }

    reading = salad_graph.read(prompt, "id", around(folders={"input": tmp_path}))

    assert reading.prompt["10"]["inputs"]["directory"] == "k-10"
    assert reading.prompt["11"]["inputs"]["directory"] == str(tmp_path / "k-11")
    names = [file.name for file in reading.inputs if file.name.startswith("k-10/")]
    assert names == ["k-10/00000.png", "k-10/00001.png", "k-10/00002.png", "k-10/00003.jpg"]
    assert reading.spots["prompt.10.inputs.directory[3]"].location == "prompt.10.inputs.directory"


def test_salad_s31_more_kinds_of_inputs_are_staged() -> None:
    """Sounds, videos and 3D models are staged by their classes."""
    prompt = {
        "1": node("VHS_LoadAudioUpload", audio="https://e.com/a.wav"),
        "2": node("LoadAudio", audio="https://e.com/a.mp3"),
        "3": node("LoadVideo", file="https://e.com/a.mp4"),
        "4": node("VHS_LoadVideoPath", video="https://e.com/b.mp4"),
        "5": node("Load3D", model_file="https://e.com/c.glb"),
        "6": node("LoadImageMask", image="https://e.com/d.png", channel="red"),
        "7": node("SaveImage", images=("6", 0), filename_prefix="x"),
    }

    reading = salad_graph.read(prompt, "id", around())

    assert [file.url for file in reading.inputs] == [
        f"https://e.com/{name}" for name in ("a.wav", "a.mp3", "a.mp4", "b.mp4", "c.glb", "d.png")
    ]
    assert reading.spots["prompt.3.inputs.file"].location == "prompt.3.inputs.video"


def test_salad_s32_staged_inputs_are_not_kept_for_ever(served: Served, engine: EngineThread) -> None:
    """Staged files carry names of the worker's own cache, which is pruned by age and size."""
    reply = served.post("/prompt", {"prompt": invert_workflow(b64(png((5, 5), (3, 2, 32))))})

    name = reply.json()["prompt"]["1"]["inputs"]["image"]
    files = served.worker.files  # type: ignore[attr-defined]
    assert name.startswith("cw-")
    assert (engine.folders.input / name).is_file()
    assert files.prune(4e9) >= 1
    assert not (engine.folders.input / name).exists()


def test_salad_s33_inputs_are_fetched_at_once_and_each_url_once(served: Served, desk: HttpDesk) -> None:
    """Several URLs are fetched side by side, the same one a single time."""
    urls = [desk.put(f"/s33-{number}.png", png((8, 8), (number, 1, 1)), delay_s=0.4) for number in range(4)]
    prompt: dict[str, Any] = {}
    for number, url in enumerate([*urls, urls[0]]):
        prompt[f"l{number}"] = node("LoadImage", image=url)
        prompt[f"s{number}"] = node("SaveImage", images=(f"l{number}", 0), filename_prefix=f"p{number}")

    body = served.post("/prompt", {"prompt": prompt}).json()

    assert len(body["images"]) == 5
    assert body["stats"]["preprocess_time"] < 4 * 400
    assert len([seen for seen in desk.seen if seen.method == "GET"]) == 4


def test_salad_s34_credentials_apply_to_media(served: Served, desk: HttpDesk) -> None:
    """A credential whose pattern fits goes with the download, and with no other."""
    url = desk.put("/s34.png", PICTURE)
    auth = {"type": "header", "header_name": "X-Key", "header_value": "opened-by-s34"}

    pixel = ran(served, url, credentials=[{"url_pattern": f"{desk.url}/*", "auth": auth}])

    assert pixel == (245, 235, 225)
    assert desk.seen[-1].headers["x-key"] == "opened-by-s34"


def test_credentials_do_not_follow_a_redirect(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """What opens one origin is not shown to another."""
    with HttpDesk() as other:
        url = other.put("/end.png", PICTURE)
        desk.answers["/go.png"] = Answer(b"", 302, {"Location": url})
        auth = {"type": "bearer", "token": "only-for-the-first"}

        ran(serve_salad(), f"{desk.url}/go.png", credentials=[{"url_pattern": "**", "auth": auth}])

        assert desk.seen[-1].headers["authorization"] == "Bearer only-for-the-first"
        assert "authorization" not in other.seen[-1].headers


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (b"\x00\x00\x00\x20ftypavc1", "mp4"),
        (b"\x00\x00\x00\x20ftypiso5", "mp4"),
        (b"\x00\x00\x00\x20ftypavif", "avif"),
        (b"\x00\x00\x00\x20ftypheic", "heic"),
        (b"\x00\x00\x00\x20ftypqt  ", "mov"),
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"RIFF\x00\x00\x00\x00WAVE", "wav"),
        (b"BM\x00\x00\x00\x00", "bmp"),
        (b"\xff\xfb\x90", "mp3"),
        (b"\x1aE\xdf\xa3....webm", "webm"),
        (b"some plain text of a note", "txt"),
        (b"\x00\x01\x02\x03\x04\x05\x80\x90", None),
    ],
)
def test_salad_s35_types_are_known_by_first_bytes(head: bytes, extension: str | None) -> None:
    """Each format that the peer knows has its extension, and any brand of MP4 is one."""
    assert salad_media.extension_of(head + bytes(16) if extension != "txt" else head) == extension


def test_base64_of_a_jpeg_is_no_path() -> None:
    """JPEG as base64 begins with a slash."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")

    assert b64(buffer.getvalue()).startswith("/9j/")
    assert salad_media.sort_of(b64(buffer.getvalue())) == "base64"
    assert salad_media.sort_of("/data/a.png") == "path"


@pytest.mark.parametrize("value", ["not base64 at all", "AAAA", "data:image/png;base64,"])
def test_value_that_is_nothing_is_refused(served: Served, value: str) -> None:
    """A value that cannot be understood names its node and the reason."""
    reply = served.post("/prompt", {"prompt": invert_workflow(value)})

    assert reply.status_code == 400
    assert reply.json()["error"] == (
        "Failed to download image for node 1: Failed to parse base64 encoded file: "
        "Could not determine file type from base64 data"
    )
    assert reply.json()["location"] == "prompt.1.inputs.image"


def test_download_that_fails_names_node_and_reason(served: Served, desk: HttpDesk) -> None:
    """A URL that answers 404 is a 400 with the peer's words, for asynchronous requests too."""
    body = {"prompt": invert_workflow(f"{desk.url}/none.png")}

    replies = [served.post("/prompt", body), served.post("/prompt", {**body, "webhook_v2": desk.url})]

    for reply in replies:
        assert reply.status_code == 400
        assert reply.json()["error"] == (
            "Failed to download image for node 1: Error downloading file: Not Found"
        )
        assert reply.json()["location"] == "prompt.1.inputs.image"


def test_model_urls_go_to_the_folders_of_their_classes() -> None:
    """Each loader's URL becomes a model of the right folder."""
    rows = [
        ("CheckpointLoaderSimple", "ckpt_name", "checkpoints"),
        ("LoraLoader", "lora_name", "loras"),
        ("VAELoader", "vae_name", "vae"),
        ("ControlNetLoader", "control_net_name", "controlnet"),
        ("UNETLoader", "unet_name", "diffusion_models"),
        ("CLIPLoader", "clip_name", "text_encoders"),
        ("CLIPVisionLoader", "clip_name", "clip_vision"),
        ("DualCLIPLoader", "clip_name2", "text_encoders"),
        ("QuadrupleCLIPLoader", "clip_name4", "text_encoders"),
        ("UnetLoaderGGUF", "unet_name", "diffusion_models"),
        ("UpscaleModelLoader", "model_name", "upscale_models"),
        ("StyleModelLoader", "style_model_name", "style_models"),
        ("GLIGENLoader", "gligen_name", "gligen"),
    ]
    prompt = {
        str(n): node(kind, **{name: f"https://e.com/{n}.safetensors"})
        for n, (kind, name, _) in enumerate(rows)
    }
    prompt["s"] = node("SaveImage", images=("0", 0), filename_prefix="x")

    reading = salad_graph.read(prompt, "id", around())

    assert [file.folder for file in reading.inputs] == [folder for _, _, folder in rows]
    assert reading.spots["prompt.0.inputs.ckpt_name"].opening == "Failed to process model for node 0: "
    assert reading.spots["prompt.0.inputs.ckpt_name"].location == "prompt.0.inputs"


def test_salad_s45_unet_and_clip_vision_land_where_comfyui_looks() -> None:
    """UNETLoader's models are diffusion models, CLIPVisionLoader's are clip_vision."""
    assert salad_graph.MODEL_FOLDERS["unet_name"] == "diffusion_models"
    assert salad_graph.CLASS_FOLDERS["CLIPVisionLoader", "clip_name"] == "clip_vision"


def test_salad_s46_other_loaders_go_by_the_name_of_their_input() -> None:
    """A class that nobody knows still gets its model when its input is named as usual."""
    prompt = {
        "1": node("ImageOnlyCheckpointLoader", ckpt_name="https://e.com/a.safetensors"),
        "2": node("TripleCLIPLoader", clip_name3="s3://b/c.safetensors", clip_name1="local.safetensors"),
        "3": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }

    reading = salad_graph.read(prompt, "id", around())

    assert [file.folder for file in reading.inputs] == ["checkpoints", "text_encoders"]
    assert reading.prompt["2"]["inputs"]["clip_name1"] == "local.safetensors"
