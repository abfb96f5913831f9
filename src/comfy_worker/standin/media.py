"""
Sound and video as files, with PyAV: encoding what nodes made, decoding what users uploaded.

A sound is float32 [batch, channels, samples] in -1..1 with its sample rate. No nodes and no names of files in here.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from comfy_worker.standin import picture_files
from comfy_worker.standin.pixels import Array, to_bytes

_LAYOUTS = {1: "mono", 2: "stereo"}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Sound:
    """
    An AUDIO value: `waveform` [batch, channels, samples], samples per second.
    """

    waveform: Array
    sample_rate: int


@dataclass(frozen=True, slots=True)
class Video:
    """
    A VIDEO value: pictures [frames, height, width, channels], frames per second, perhaps a sound, bits per level.
    """

    images: Array
    fps: Fraction
    sound: Sound | None = None
    bit_depth: int = 8


def encode_sound(sound: Sound, kind: str, quality: str, metadata: Mapping[str, str]) -> bytes:
    """
    Return the first sound of the batch as a file; `kind` is `flac`, `mp3` or `opus`.

    `quality` is `V0` (mp3: variable, best) or a bit rate such as `128k`; flac has none.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format={"opus": "ogg"}.get(kind, kind)) as container:
        container.metadata.update(metadata)
        stream = _sound_stream(container, _codec_of(kind), sound)
        if quality == "V0":
            stream.codec_context.options = {"flags": "+qscale", "global_quality": "0"}
        elif quality:
            stream.codec_context.bit_rate = int(quality.removesuffix("k")) * 1000
        _encode(container, stream, _sound_frames(sound))
    return buffer.getvalue()


def _codec_of(kind: str) -> str:
    return {"mp3": "libmp3lame", "opus": "libopus"}.get(kind, kind)


def _sound_stream(container: Any, codec: str, sound: Sound) -> Any:
    rate = sound.sample_rate
    if codec == "libopus" and rate not in _OPUS_RATES:
        rate = min((known for known in _OPUS_RATES if known > rate), default=_OPUS_RATES[-1])
    return container.add_stream(codec, rate=rate, layout=_LAYOUTS[sound.waveform.shape[1]])


def _encode(container: Any, stream: Any, frames: Iterable[Any]) -> None:
    for frame in frames:
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _sound_frames(sound: Sound) -> Iterator[Any]:
    waveform = np.ascontiguousarray(sound.waveform[0])
    # Half a second at a time: encoders cut it into their own frames.
    step = max(_CHUNK, sound.sample_rate // 2)
    for start in range(0, waveform.shape[1], step):
        part = np.ascontiguousarray(waveform[:, start : start + step])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=_LAYOUTS[len(part)])
        frame.sample_rate, frame.pts, frame.time_base = (
            sound.sample_rate,
            start,
            Fraction(1, sound.sample_rate),
        )
        yield frame


def encode_mp4(video: Video, metadata: Mapping[str, str]) -> bytes:
    """
    Return an H.264 MP4, with AAC sound cut to the length of the pictures.

    Raises:
        av.FFmpegError: the encoder refuses, as it does for odd sides.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata)
        pixel_format = "yuv420p10le" if video.bit_depth == 10 else "yuv420p"
        pictures = _picture_stream(container, "libx264", video, pixel_format, {})
        # Before the first picture is written: afterwards no stream can be added.
        sound = _sound_stream(container, "aac", video.sound) if video.sound is not None else None
        _encode(container, pictures, _picture_frames(video.images, pixel_format, video.bit_depth == 10))
        if video.sound is not None:
            samples = round(len(video.images) / video.fps * video.sound.sample_rate)
            cut = Sound(video.sound.waveform[..., :samples], video.sound.sample_rate)
            _encode(container, sound, _sound_frames(cut))
    return buffer.getvalue()


def encode_webm(images: Array, codec: str, fps: float, crf: float, metadata: Mapping[str, str]) -> bytes:
    """
    Return a WebM without sound; `codec` is `vp9` or `av1`, a lower `crf` (0..63) is better.
    """
    video = Video(images, _rate(fps))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        container.metadata.update(metadata)
        pixel_format, encoder, options = _webm_settings(codec, images.shape[3])
        stream = _picture_stream(container, encoder, video, pixel_format, {"crf": str(int(crf)), **options})
        _encode(container, stream, _picture_frames(images, pixel_format))
    return buffer.getvalue()


def _webm_settings(codec: str, channels: int) -> tuple[str, str, dict[str, str]]:
    if codec == "av1":
        return "yuv420p10le", "libsvtav1", {"preset": "6"}
    # A bit rate of 0 leaves the quality to crf alone.
    return "yuva420p" if channels == 4 else "yuv420p", "libvpx-vp9", {"b": "0"}


def _rate(fps: float) -> Fraction:
    return Fraction(round(fps * 1000), 1000)


def _picture_stream(
    container: Any, codec: str, video: Video, pixel_format: str, options: dict[str, str]
) -> Any:
    stream = container.add_stream(codec, rate=video.fps, options=options)
    stream.height, stream.width = video.images.shape[1:3]
    stream.pix_fmt = pixel_format
    return stream


def _picture_frames(images: Array, pixel_format: str, deep: bool = False) -> Iterator[Any]:
    for image in images:
        levels = np.clip(image * np.float32(65535), 0, 65535).astype(np.uint16) if deep else to_bytes(image)
        source = "rgb48le" if deep else ("rgba" if image.shape[-1] == 4 else "rgb24")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), format=source)
        yield frame.reformat(format=pixel_format)


def decode_video(path: Path) -> Video:
    """
    Return the pictures, the speed and the sound of a video file.

    Raises:
        av.FFmpegError: FFmpeg cannot read it.
        ValueError: there is no picture in it.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"No video stream found in file '{path.name}'.")
        stream = container.streams.video[0]
        fps, depth = Fraction(stream.average_rate or 1), 10 if "10" in (stream.pix_fmt or "") else 8
        frames = [picture_files.turned(frame)[0] for frame in container.decode(stream)]
        has_sound = bool(container.streams.audio)
    return Video(np.stack(frames), fps, decode_sound(path) if has_sound else None, depth)


def decode_sound(path: Path) -> Sound:
    """
    Return the first sound of a file.

    Raises:
        av.FFmpegError: FFmpeg cannot read it.
        ValueError: there is no sound in it.
    """
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise ValueError("No audio stream found in the file.")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")
        parts = [
            part.to_ndarray() for frame in container.decode(stream) for part in resampler.resample(frame)
        ]
        return Sound(np.concatenate(parts, axis=1, dtype=np.float32)[None], stream.sample_rate)
