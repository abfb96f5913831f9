"""
The nodes that write files: names, formats, metadata, and what the client is told. As seen on ComfyUI 0.27.0.
"""

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from comfy_worker.standin import naming
from comfy_worker.standin.media import Sound, Video
from comfy_worker.standin.pixels import from_bytes

from .desk import Desk

RANDOM = np.random.default_rng(1)
RATE = 8000


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """
    A desk with empty folders.
    """
    return Desk(tmp_path)


def _images(count: int = 1, height: int = 16, width: int = 32, channels: int = 3) -> Any:
    return from_bytes(RANDOM.integers(0, 256, (count, height, width, channels), np.uint8))


def _sound(seconds: float = 0.5, channels: int = 2) -> Sound:
    wave = np.sin(np.arange(int(seconds * RATE)) / 10).astype(np.float32) / 2
    return Sound(np.repeat(wave[None, None], channels, axis=1), RATE)


def _names(desk: Desk, prefix: str, count: int = 1) -> list[str]:
    returned = desk.run("SaveImage", images=_images(count), filename_prefix=prefix)
    return [path.relative_to(desk.folders.output).as_posix() for path in desk.files(returned)]


def test_save_image_writes_the_levels_it_got(desk: Desk) -> None:
    """
    A saved picture, read again, is the picture; values beyond the range are clipped.
    """
    images = _images()
    images[0, 0, 0] = (-0.5, 0.5, 1.5)

    saved = np.array(desk.pictures(desk.run("SaveImage", images=images, filename_prefix="a"))[0])

    assert saved[0, 0].tolist() == [0, 127, 255]
    assert (saved[1:] == (images[0, 1:] * np.float32(255)).astype(np.uint8)).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_save_image_keeps_the_channels(desk: Desk, channels: int, mode: str) -> None:
    """
    One channel is a grey file, four have alpha.
    """
    saved = desk.run("SaveImage", images=_images(channels=channels), filename_prefix="a")

    assert desk.pictures(saved)[0].mode == mode


def test_save_image_carries_the_prompt_and_each_extra(desk: Desk) -> None:
    """
    The text chunks are `prompt` and the keys of extra_pnginfo, each as JSON.
    """
    saved = desk.pictures(desk.run("SaveImage", images=_images(), filename_prefix="a"))[0]

    assert {key: json.loads(text) for key, text in saved.info.items()} == {
        "prompt": desk.prompt,
        "workflow": {"nodes": []},
        "by": "me",
    }


def test_nothing_is_told_in_files_without_metadata(tmp_path: Path) -> None:
    """
    With metadata off, no file says how it was made.
    """
    desk = Desk(tmp_path, metadata=False)
    images = _images(2)
    files = [
        *desk.files(desk.run("SaveImage", images=images, filename_prefix="a")),
        *desk.files(
            desk.run("SaveAnimatedPNG", images=images, filename_prefix="a", fps=6.0, compress_level=4)
        ),
        *desk.files(desk.run("SaveAudio", audio=_sound(), filename_prefix="a"), "audio"),
        *desk.files(desk.run("SaveLatent", samples={"samples": images}, filename_prefix="a"), "latents"),
    ]

    assert not [path.name for path in files if b"class_type" in path.read_bytes()]


def test_counters_go_on_over_all_files_of_a_prefix(desk: Desk) -> None:
    """
    The next number is one more than the highest of that prefix, whatever the extension and whatever is missing between.
    """
    for name in ("a_00007_.webp", "a_00009.flac", "ab_00050_.png", "a_x_.png", "a_00100x.png"):
        (desk.folders.output / name).write_bytes(b"")

    assert _names(desk, "a", 2) == ["a_00010_.png", "a_00011_.png"]
    assert _names(desk, "b") == ["b_00001_.png"]


@pytest.mark.parametrize(
    ("prefix", "pattern"),
    [
        ("%width%x%height%", r"32x16_00001_\.png"),
        ("%year%-%month%-%day%_%hour%%minute%%second%", r"\d{4}-\d\d-\d\d_\d{6}_00001_\.png"),
        ("%date:yyyy%_%EmptyImage.width%", r"%date:yyyy%_%EmptyImage\.width%_00001_\.png"),
        ("deep/er/a", r"deep/er/a_00001_\.png"),
        ("b%batch_num%", r"b0_00001_\.png"),
    ],
)
def test_prefixes_are_expanded_as_the_server_does(desk: Desk, prefix: str, pattern: str) -> None:
    """
    Sizes and times are filled in, what the browser would fill in stays, folders are made.
    """
    assert re.fullmatch(pattern, _names(desk, prefix)[0])


def test_batch_numbers_count_from_zero_and_reuse_the_counter(desk: Desk) -> None:
    """
    `%batch_num%` defeats the counter: a second run overwrites the first one's files.
    """
    first, again = _names(desk, "b%batch_num%", 2), _names(desk, "b%batch_num%", 2)

    assert first == again == ["b0_00001_.png", "b1_00002_.png"]


@pytest.mark.parametrize("prefix", ["../out", "/tmp/out", "a/../../out"])
def test_saving_outside_the_output_folder_fails_and_writes_nothing(desk: Desk, prefix: str) -> None:
    """
    The failure is of the bare type Exception, its text is the one that clients know.
    """
    with pytest.raises(Exception, match="outside the output folder is not allowed") as failure:
        desk.run("SaveImage", images=_images(), filename_prefix=prefix)

    assert type(failure.value) is Exception
    assert not list(desk.folders.output.parent.glob("out*.png"))


def test_annotated_names_choose_the_folder(desk: Desk) -> None:
    """
    ` [temp]` and ` [output]` lead elsewhere, other endings belong to the name.
    """
    assert naming.annotated("a.png [temp]", desk.folders)[1] == desk.folders.temp / "a.png"
    assert naming.annotated("a.png [output]", desk.folders)[1] == desk.folders.output / "a.png"
    assert naming.annotated("a.png [model]", desk.folders)[1] == desk.folders.input / "a.png [model]"


def test_preview_image_writes_temp_files(desk: Desk) -> None:
    """
    Previews have five random letters and type `temp`.
    """
    shown = desk.run("PreviewImage", images=_images(2))

    assert shown.ui is not None
    names = [item["filename"] for item in shown.ui["images"]]
    assert all(re.fullmatch(r"ComfyUI_temp_[a-z]{5}_0000[12]_\.png", name) for name in names)
    assert all(path.is_file() for path in desk.files(shown))


def test_image_compare_has_a_key_per_side(desk: Desk) -> None:
    """
    Only the sides that are given are told of.
    """
    one = desk.run("ImageCompare", compare_view={}, image_b=_images())
    both = desk.run("ImageCompare", compare_view={}, image_a=_images(), image_b=_images())

    assert one.ui is not None
    assert both.ui is not None
    assert list(one.ui) == ["b_images"]
    assert re.fullmatch(r"comfy\.compare\.a_temp_[a-z]{5}_00001_\.png", both.ui["a_images"][0]["filename"])


def test_save_image_websocket_sends_pngs_and_never_reports_the_last_tick(desk: Desk) -> None:
    """
    Before picture k of n goes k/n, and no file is written or told of.
    """
    images = _images(2)

    returned = desk.run("SaveImageWebsocket", images=images)

    assert returned.ui is None
    assert desk.ticks == [(0, 2), (1, 2)]
    sent = [np.array(Image.open(io.BytesIO(data))) for data, mime in desk.images if mime == "image/png"]
    assert (np.stack(sent) == (images * np.float32(255)).astype(np.uint8)).all()
    assert not list(desk.folders.output.iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ü [1]", "ü [1]"),
        (64, "64"),
        (1.5, "1.5"),
        (True, "True"),
        (None, "None"),
        ({"a": ["ü"]}, '{\n    "a": [\n        "\\u00fc"\n    ]\n}'),
    ],
)
def test_preview_any_shows_values_as_text(desk: Desk, value: Any, text: str) -> None:
    """
    Strings stay, numbers are printed, structures become JSON.
    """
    shown = desk.run("PreviewAny", source=value)

    assert shown.ui == {"text": (text,)}
    assert shown.values == (text,)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_animations_have_all_frames_and_say_so(desk: Desk, kind: str) -> None:
    """
    Several pictures are one animated file; its frames last 1000/fps milliseconds, cut off.
    """
    options: dict[str, Any] = {"lossless": True, "quality": 80, "method": "default"} if kind == "WEBP" else {}
    options |= {"compress_level": 4} if kind == "PNG" else {}

    saved = desk.run(
        f"SaveAnimated{kind}", images=_images(3), filename_prefix="%batch_num%", fps=7.3, **options
    )

    assert saved.ui is not None
    assert saved.ui["animated"] == (True,)
    (path,) = desk.files(saved)
    assert path.name == f"%batch_num%_00001_.{kind.lower()}"
    file: Any = desk.pictures(saved)[0]
    file.load()
    assert (file.n_frames, int(file.info["duration"])) == (3, 136)


def test_one_frame_is_not_animated(desk: Desk) -> None:
    """
    A single picture has no `animated`.
    """
    saved = desk.run("SaveAnimatedPNG", images=_images(), filename_prefix="a", fps=6.0, compress_level=4)

    assert saved.ui is not None
    assert list(saved.ui) == ["images"]


def test_animations_carry_the_prompt(desk: Desk) -> None:
    """
    WebP has it in Exif, PNG in chunks of its own after the pictures.
    """
    images = _images(2)
    options = {"lossless": True, "quality": 80, "method": "fastest"}

    webp = desk.run("SaveAnimatedWEBP", images=images, filename_prefix="a", fps=6.0, **options)
    png = desk.run("SaveAnimatedPNG", images=images, filename_prefix="b", fps=6.0, compress_level=1)

    exif = desk.pictures(webp)[0].getexif()
    assert exif[0x0110] == f"prompt:{json.dumps(desk.prompt)}"
    assert exif[0x010F] == 'workflow:{"nodes": []}'
    assert b'comfworkflow\0{"nodes": []}' in desk.files(png)[0].read_bytes()


def test_save_latent_is_a_safetensors_file(desk: Desk) -> None:
    """
    Eight bytes of length, a header of that length, then the numbers.
    """
    latent = desk.value("EmptyLatentImage", width=64, height=48, batch_size=2)
    latent["samples"] += np.float32(0.5)

    saved = desk.run("SaveLatent", samples=latent, filename_prefix="latents/a")

    (path,) = desk.files(saved, "latents")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert path.name == "a_00001_.latent"
    assert header["latent_tensor"] == {"dtype": "F32", "shape": [2, 4, 6, 8], "data_offsets": [0, 1536]}
    assert json.loads(header["__metadata__"]["prompt"]) == desk.prompt
    assert (np.frombuffer(data[8 + length :], "<f4") == 0.5).all()
    assert (length % 8, len(data)) == (0, 8 + length + 1536)


def test_audio_names_have_no_last_underscore(desk: Desk) -> None:
    """
    flac 1, mp3 2, opus 3: one counter, and nothing between number and dot.
    """
    audio = {"audio": _sound(), "filename_prefix": "audio/a"}
    returned = [
        desk.run("SaveAudio", **audio),
        desk.run("SaveAudioMP3", **audio, quality="128k"),
        desk.run("SaveAudioOpus", **audio, quality="64k"),
    ]

    names = [desk.files(one, "audio")[0].name for one in returned]
    assert names == ["a_00001.flac", "a_00002.mp3", "a_00003.opus"]


def test_flac_keeps_every_sample(desk: Desk) -> None:
    """
    A saved sound, loaded again, is the same to 16 bits.
    """
    sound = _sound()
    (path,) = desk.files(desk.run("SaveAudio", audio=sound, filename_prefix="a"), "audio")

    again = desk.value("LoadAudio", audio=desk.put("a.flac", path.read_bytes()))

    assert again.sample_rate == RATE
    assert again.waveform.shape == sound.waveform.shape
    assert np.abs(again.waveform - sound.waveform).max() < 1e-4


@pytest.mark.parametrize(
    ("node", "quality", "codec", "rate"),
    [
        ("SaveAudioMP3", "V0", "mp3", RATE),
        ("SaveAudioMP3", "320k", "mp3", RATE),
        ("SaveAudioOpus", "96k", "opus", 48000),
    ],
)
def test_lossy_sound_is_what_it_says(desk: Desk, node: str, quality: str, codec: str, rate: int) -> None:
    """
    MP3 and Opus files decode, last as long as the sound, and carry the prompt.
    """
    saved = desk.run(node, audio=_sound(), filename_prefix="a", quality=quality)

    (path,) = desk.files(saved, "audio")
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name.startswith(codec)
        samples = sum(frame.samples for frame in container.decode(stream))
        told = {**container.metadata, **stream.metadata}
    assert samples / stream.sample_rate == pytest.approx(0.5, abs=0.15)
    assert stream.sample_rate == rate
    assert json.loads(told["prompt"]) == desk.prompt


@pytest.mark.parametrize(("kind", "more"), [("flac", {}), ("mp3", {"format.quality": "V0"})])
def test_save_audio_advanced_chooses_the_format(desk: Desk, kind: str, more: dict[str, str]) -> None:
    """
    The dynamic choice names the extension.
    """
    saved = desk.run("SaveAudioAdvanced", audio=_sound(), filename_prefix="a", format=kind, **more)

    assert desk.files(saved, "audio")[0].name == f"a_00001.{kind}"


def test_an_unknown_dynamic_choice_fails_at_run_time(desk: Desk) -> None:
    """
    The message is the one of a missing argument.
    """
    with pytest.raises(TypeError, match=r"SaveAudioAdvanced.execute\(\) missing 1 required .*'format'"):
        desk.run("SaveAudioAdvanced", audio=_sound(), filename_prefix="a", format="wav")


def test_preview_audio_is_a_temp_flac(desk: Desk) -> None:
    """
    Previews of sounds have five random letters, too.
    """
    shown = desk.run(
        "PreviewAudio", audio=desk.value("EmptyAudio", duration=0.1, sample_rate=RATE, channels=1)
    )

    assert re.fullmatch(r"ComfyUI_temp_[a-z]{5}_00001\.flac", desk.files(shown, "audio")[0].name)


@pytest.mark.parametrize("depth", [8, 10])
def test_save_video_is_h264_with_every_frame(desk: Desk, depth: int) -> None:
    """
    An MP4 has the frames, the speed and the prompt, and is listed under `images`.
    """
    video = desk.value("CreateVideo", images=_images(5), fps=12.5, bit_depth=depth)

    saved = desk.run("SaveVideo", video=video, filename_prefix="video/%width%", format="auto", codec="auto")

    assert saved.ui is not None
    assert saved.ui["animated"] == (True,)
    (path,) = desk.files(saved)
    assert path.name == "32_00001_.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.codec_context.name, len(frames), float(stream.average_rate)) == ("h264", 5, 12.5)
        assert json.loads(container.metadata["prompt"]) == desk.prompt
    assert frames[0].format.name == {8: "yuv420p", 10: "yuv420p10le"}[depth]


def test_save_video_cuts_the_sound_to_the_pictures(desk: Desk) -> None:
    """
    Sound that is longer than the pictures is cut, and both streams are in the file.
    """
    video = desk.value("CreateVideo", images=_images(10), fps=20.0, audio=_sound(3.0))

    saved = desk.run("SaveVideo", video=video, filename_prefix="a", format="mp4", codec="h264")

    with av.open(str(desk.files(saved)[0])) as container:
        kinds = [stream.codec_context.name for stream in container.streams]
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert kinds == ["h264", "aac"]
    assert samples / RATE == pytest.approx(0.5, abs=0.3)


def test_save_video_refuses_odd_sides(desk: Desk) -> None:
    """
    The encoder fails as it does in ComfyUI, with FFmpeg's own error.
    """
    video = Video(_images(2, 17, 33), desk.value("CreateVideo", images=_images(), fps=8.0).fps)

    with pytest.raises(av.FFmpegError):
        desk.run("SaveVideo", video=video, filename_prefix="a", format="auto", codec="auto")


def test_load_video_gives_back_pictures_sound_and_speed(desk: Desk) -> None:
    """
    What was saved can be loaded and taken apart again.
    """
    smooth = np.linspace(0, 1, 4 * 32 * 32 * 3, dtype=np.float32).reshape(4, 32, 32, 3)
    video = desk.value("CreateVideo", images=smooth, fps=8.0, audio=_sound())
    saved = desk.run("SaveVideo", video=video, filename_prefix="a", format="auto", codec="auto")
    name = desk.put("a.mp4", desk.files(saved)[0].read_bytes())

    images, sound, fps, depth = desk.run(
        "GetVideoComponents", video=desk.value("LoadVideo", file=name)
    ).values

    assert (images.shape, fps, depth) == (smooth.shape, 8.0, 8)
    assert np.abs(images - smooth).mean() < 0.03
    assert sound.waveform.shape[:2] == (1, 2)


@pytest.mark.parametrize(("codec", "channels"), [("vp9", 3), ("vp9", 4), ("av1", 3)])
def test_save_webm_writes_the_codec_chosen(desk: Desk, codec: str, channels: int) -> None:
    """
    WebM files decode with all frames; vp9 keeps alpha.
    """
    images = _images(3, 64, 64, channels)

    saved = desk.run("SaveWEBM", images=images, filename_prefix="a", codec=codec, fps=24.0, crf=32.0)

    (path,) = desk.files(saved)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in {"vp9": ("vp9", "libvpx-vp9"), "av1": ("av1", "libdav1d")}[codec]
        assert len(list(container.decode(stream))) == 3
        assert (stream.metadata.get("alpha_mode") == "1") == (channels == 4)


def test_save_image_advanced_writes_sixteen_bits(desk: Desk) -> None:
    """
    A 16-bit PNG keeps what 8 bits cannot, and carries the prompt.
    """
    image = np.full((1, 16, 32, 3), 0.12345, np.float32)
    options = {"format": "png", "format.bit_depth": "16-bit", "format.input_color_space": "sRGB"}

    saved = desk.run("SaveImageAdvanced", images=image, filename_prefix="a", **options)

    (path,) = desk.files(saved)
    assert path.name == "a_00001.png"
    with av.open(str(path)) as container:
        levels = next(container.decode(video=0)).to_ndarray()
    assert (levels == int(0.12345 * 65535)).all()
    assert json.loads(desk.pictures(saved)[0].info["prompt"]) == desk.prompt


@pytest.mark.parametrize(
    ("space", "light"), [("linear", 0.37058833), ("sRGB", 0.11317993), ("HDR", 0.04577857)]
)
def test_save_image_advanced_writes_linear_exr(desk: Desk, space: str, light: float) -> None:
    """
    An EXR holds light: each curve is undone as recorded from ComfyUI.
    """
    image = np.full((1, 16, 32, 4), (0.37058833, 0.37058833, 0.37058833, 0.5), np.float32)
    options = {"format": "exr", "format.bit_depth": "32-bit float", "format.input_color_space": space}

    (path,) = desk.files(desk.run("SaveImageAdvanced", images=image, filename_prefix="a", **options))

    with av.open(str(path)) as container:
        pixels = next(container.decode(video=0)).to_ndarray()
    assert pixels[3, 4] == pytest.approx([light, light, light, 0.5], rel=1e-5)
    assert json.dumps(desk.prompt).encode() in path.read_bytes()
