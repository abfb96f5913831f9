"""
Nodes for sound and video: one row and one small function each. The encoders are in `media`.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from comfy_worker.standin import media, naming, picture_files
from comfy_worker.standin.media import Sound, Video
from comfy_worker.standin.node import Context, Input, Node, Returned
from comfy_worker.standin.nodes_load import check, choices, fingerprint, named
from comfy_worker.standin.nodes_save import HIDDEN, chosen, item, prefix_input

_AUDIO = "comfy_extras.nodes_audio"
_VIDEO = "comfy_extras.nodes_video"
_SOUNDS = frozenset(
    [
        "aac",
        "aif",
        "aiff",
        "flac",
        "m4a",
        "mka",
        "mp2",
        "mp3",
        "mpga",
        "oga",
        "ogg",
        "opus",
        "wav",
        "weba",
        "wma",
    ]
)
_VIDEOS = frozenset(["3gp", "avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "qt", "webm"])
_SPEEDS = {"min": 0.01, "max": 1000.0, "step": 0.01}


def _empty_audio(inputs: Mapping[str, Any], _context: Context) -> Returned:
    rate = inputs["sample_rate"]
    waveform = np.zeros((1, inputs["channels"], round(inputs["duration"] * rate)), np.float32)
    return Returned((Sound(waveform, rate),))


def _load_audio(inputs: Mapping[str, Any], context: Context) -> Returned:
    return Returned((media.decode_sound(named(inputs["audio"], context.folders)),))


def _save_flac(inputs: Mapping[str, Any], context: Context) -> Returned:
    return _save_audio(inputs, context, "flac")


def _save_mp3(inputs: Mapping[str, Any], context: Context) -> Returned:
    return _save_audio(inputs, context, "mp3")


def _save_opus(inputs: Mapping[str, Any], context: Context) -> Returned:
    return _save_audio(inputs, context, "opus")


def _save_advanced(inputs: Mapping[str, Any], context: Context) -> Returned:
    kind = chosen("SaveAudioAdvanced", inputs, _FORMATS)
    return _save_audio({**inputs, "quality": inputs.get("format.quality", "")}, context, kind)


def _preview_audio(inputs: Mapping[str, Any], context: Context) -> Returned:
    return _write_audio(inputs["audio"], "flac", "", naming.temp_prefix(), "temp", context)


def _save_audio(inputs: Mapping[str, Any], context: Context, kind: str) -> Returned:
    quality = inputs.get("quality", "")
    return _write_audio(inputs["audio"], kind, quality, inputs["filename_prefix"], "output", context)


def _write_audio(
    sound: Sound, kind: str, quality: str, prefix: str, place: str, context: Context
) -> Returned:
    root = context.folders.temp if place == "temp" else context.folders.output
    target = naming.target(prefix, root)
    metadata = picture_files.metadata(context)
    items = []
    for index, waveform in enumerate(sound.waveform):
        name = target.name(index, kind, tail="")
        data = media.encode_sound(Sound(waveform[None], sound.sample_rate), kind, quality, metadata)
        (target.folder / name).write_bytes(data)
        items.append(item(name, target.subfolder, place))
    return Returned((sound,), {"audio": items})


def _create_video(inputs: Mapping[str, Any], _context: Context) -> Returned:
    fps = Fraction(inputs["fps"]).limit_denominator(1000)
    return Returned((Video(inputs["images"], fps, inputs.get("audio"), inputs.get("bit_depth", 8)),))


def _load_video(inputs: Mapping[str, Any], context: Context) -> Returned:
    return Returned((media.decode_video(named(inputs["file"], context.folders)),))


def _components(inputs: Mapping[str, Any], _context: Context) -> Returned:
    video: Video = inputs["video"]
    return Returned((video.images, video.sound, float(video.fps), video.bit_depth))


def _save_video(inputs: Mapping[str, Any], context: Context) -> Returned:
    video: Video = inputs["video"]
    target = _video_target(inputs, video.images, context)
    name = target.literal_name("mp4")
    (target.folder / name).write_bytes(media.encode_mp4(video, picture_files.metadata(context)))
    return Returned((video,), {"images": (item(name, target.subfolder),), "animated": (True,)})


def _save_webm(inputs: Mapping[str, Any], context: Context) -> Returned:
    images = inputs["images"]
    target = _video_target(inputs, images, context)
    name = target.literal_name("webm")
    metadata = picture_files.metadata(context)
    data = media.encode_webm(images, inputs["codec"], inputs["fps"], inputs["crf"], metadata)
    (target.folder / name).write_bytes(data)
    return Returned((images,), {"images": (item(name, target.subfolder),), "animated": (True,)})


def _video_target(inputs: Mapping[str, Any], images: Any, context: Context) -> naming.Target:
    return naming.target(inputs["filename_prefix"], context.folders.output, images.shape[2], images.shape[1])


def _saver(class_type: str, run: Any, display_name: str, *inputs: Input) -> Node:
    return Node(
        class_type,
        run,
        inputs=(Input("audio", "AUDIO"), *inputs),
        outputs=("AUDIO",),
        output_names=("audio",),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name=display_name,
        category="audio",
        python_module=_AUDIO,
    )


_MP3 = ("V0", "128k", "320k")
_OPUS = ("64k", "96k", "128k", "192k", "320k")
_PREFIX = prefix_input("audio/ComfyUI", multiline=False)


def _format(key: str, *qualities: str, default: str = "") -> dict[str, Any]:
    options = {"default": default, "multiselect": False, "options": list(qualities)}
    return {"key": key, "inputs": {"required": {"quality": ["COMBO", options]} if qualities else {}}}


_FORMATS = [_format("flac"), _format("mp3", *_MP3, default="V0"), _format("opus", *_OPUS, default="128k")]

AUDIO_NODES = (
    Node(
        "EmptyAudio",
        _empty_audio,
        inputs=(
            Input(
                "duration", "FLOAT", {"default": 60.0, "min": 0.0, "max": 0xFFFFFFFFFFFFFFFF, "step": 0.01}
            ),
            Input("sample_rate", "INT", {"advanced": True, "default": 44100, "min": 1, "max": 192000}),
            Input("channels", "INT", {"advanced": True, "default": 2, "min": 1, "max": 2}),
        ),
        outputs=("AUDIO",),
        v3=True,
        display_name="Empty Audio",
        category="audio",
        python_module=_AUDIO,
    ),
    Node(
        "LoadAudio",
        _load_audio,
        inputs=(Input("audio", choices(_SOUNDS | _VIDEOS), {"audio_upload": True}),),
        outputs=("AUDIO",),
        v3=True,
        display_name="Load Audio",
        category="audio",
        python_module=_AUDIO,
        fingerprint=fingerprint("audio"),
        check=check("audio", "audio"),
    ),
    _saver("SaveAudio", _save_flac, "Save Audio (FLAC) (DEPRECATED)", _PREFIX),
    _saver(
        "SaveAudioMP3",
        _save_mp3,
        "Save Audio (MP3) (DEPRECATED)",
        _PREFIX,
        Input("quality", _MP3, {"default": "V0"}),
    ),
    _saver(
        "SaveAudioOpus",
        _save_opus,
        "Save Audio (Opus) (DEPRECATED)",
        _PREFIX,
        Input("quality", _OPUS, {"default": "128k"}),
    ),
    _saver(
        "SaveAudioAdvanced",
        _save_advanced,
        "Save Audio (Advanced)",
        _PREFIX,
        Input("format", "COMFY_DYNAMICCOMBO_V3", {"options": _FORMATS}),
    ),
    _saver("PreviewAudio", _preview_audio, "Preview Audio"),
)

VIDEO_NODES = (
    Node(
        "CreateVideo",
        _create_video,
        inputs=(
            Input("images", "IMAGE"),
            Input("fps", "FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            Input("audio", "AUDIO", optional=True),
            Input(
                "bit_depth",
                "INT",
                {"default": 8, "min": 8, "max": 10, "step": 2, "display": "number"},
                optional=True,
            ),
        ),
        outputs=("VIDEO",),
        v3=True,
        display_name="Create Video",
        category="video",
        python_module=_VIDEO,
    ),
    Node(
        "LoadVideo",
        _load_video,
        inputs=(Input("file", choices(_VIDEOS), {"video_upload": True}),),
        outputs=("VIDEO",),
        v3=True,
        display_name="Load Video",
        category="video",
        python_module=_VIDEO,
        fingerprint=fingerprint("file"),
        check=check("file", "video"),
    ),
    Node(
        "GetVideoComponents",
        _components,
        inputs=(Input("video", "VIDEO"),),
        outputs=("IMAGE", "AUDIO", "FLOAT", "INT"),
        output_names=("images", "audio", "fps", "bit_depth"),
        v3=True,
        display_name="Get Video Components",
        category="video",
        python_module=_VIDEO,
    ),
    Node(
        "SaveVideo",
        _save_video,
        inputs=(
            Input("video", "VIDEO"),
            prefix_input("video/ComfyUI", multiline=False),
            Input("format", ("auto", "mp4"), {"default": "auto"}),
            Input("codec", ("auto", "h264"), {"default": "auto"}),
        ),
        outputs=("VIDEO",),
        output_names=("video",),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Save Video",
        category="video",
        python_module=_VIDEO,
    ),
    Node(
        "SaveWEBM",
        _save_webm,
        inputs=(
            Input("images", "IMAGE"),
            prefix_input(multiline=False),
            Input("codec", ("vp9", "av1")),
            Input("fps", "FLOAT", {"default": 24.0, **_SPEEDS}),
            Input("crf", "FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1}),
        ),
        outputs=("IMAGE",),
        output_names=("images",),
        hidden=HIDDEN,
        output_node=True,
        v3=True,
        display_name="Save WEBM",
        category="video",
        python_module=_VIDEO,
    ),
)
