"""
`convert_output` with every option, by its documented meaning.
"""

import base64
import io
import warnings
from typing import Any

import pytest
from PIL import Image
from support.pictures import empty_workflow, node
from support.served import Served

from comfy_worker import convert


def converted(
    served: Served, prompt: dict[str, Any], format_: str, **options: Any
) -> tuple[dict[str, Any], Image.Image]:
    """
    Run a graph with a conversion; return the reply and its first image.
    """
    block = {"format": format_, "options": options}
    reply = served.post("/prompt", {"id": "c", "prompt": prompt, "convert_output": block})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    return body, Image.open(io.BytesIO(base64.b64decode(body["images"][0])))


@pytest.mark.parametrize(("format_", "kind"), [("jpeg", "JPEG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_extension_is_the_format_as_it_was_spelled(served: Served, format_: str, kind: str) -> None:
    """The file is of the format, and called by the very word of the request."""
    body, image = converted(served, empty_workflow(1), format_)

    assert (image.format, body["filenames"]) == (kind, [f"c_out_00001_.{format_}"])


@pytest.mark.parametrize("format_", ["jpeg", "webp"])
def test_salad_s52_echo_has_the_defaults_of_the_chosen_format(served: Served, format_: str) -> None:
    """The echo is filled with the options of the format that was asked for, and of no other."""
    body, _ = converted(served, empty_workflow(2), format_, quality=61)

    assert body["convert_output"]["options"] == convert.with_defaults(format_, {"quality": 61})


def test_salad_s52_webp_options_take_effect(served: Served) -> None:
    """A lossless WebP has the very pixels; a lossy one of a noisy picture has not."""
    prompt = noisy(52)

    _, original = converted(served, prompt, "webp", lossless=True)
    _, lossy = converted(served, prompt, "webp", quality=1)

    assert original.convert("RGB").tobytes() != lossy.convert("RGB").tobytes()


def noisy(seed: int) -> dict[str, Any]:
    """
    Return a graph that saves a picture with noise in it.
    """
    return {
        "1": node("StandinKSampler", seed=seed, steps=1, seconds_per_step=0.0, size=64),
        "2": node("SaveImage", images=("1", 0), filename_prefix="out"),
    }


def test_salad_s53_mozjpeg_is_more_than_a_flag(served: Served) -> None:
    """`mozjpeg` makes a progressive JPEG with optimised coding; an explicit option beside it wins."""
    _, preset = converted(served, noisy(53), "jpeg", mozjpeg=True)
    _, plain = converted(served, noisy(53), "jpeg")
    _, against = converted(served, noisy(53), "jpeg", mozjpeg=True, progressive=False)

    assert [bool(image.info.get("progressive")) for image in (preset, plain, against)] == [True, False, False]


@pytest.mark.parametrize(
    ("format_", "name", "value"),
    [
        ("jpeg", "quality", 0),
        ("jpeg", "quality", 101),
        ("jpeg", "quality", "80"),
        ("jpeg", "chromaSubsampling", "4:1:1"),
        ("jpeg", "quantisationTable", 9),
        ("jpeg", "progressive", 1),
        ("webp", "alphaQuality", -1),
        ("webp", "effort", 7),
        ("webp", "quality", 50.5),
        ("webp", "preset", "cartoon"),
        ("webp", "lossless", "true"),
    ],
)
def test_salad_s54_option_out_of_range_is_refused(
    served: Served, format_: str, name: str, value: Any
) -> None:
    """A wrong option is a 400 that names it, before anything runs."""
    body = {"prompt": empty_workflow(3), "convert_output": {"format": format_, "options": {name: value}}}

    reply = served.post("/prompt", body)

    assert reply.status_code == 400
    assert reply.json()["location"] == f"convert_output.options.{name}"


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("jpeg", {name: option.default for name, option in convert.OPTIONS["jpeg"].items()}),
        ("webp", {name: option.default for name, option in convert.OPTIONS["webp"].items()}),
        ("jpeg", {"trellisQuantisation": True, "overshootDeringing": True, "optimizeScans": True}),
        ("webp", {"nearLossless": True, "smartSubsample": True, "preset": "photo"}),
        ("jpeg", {"effort": 6, "alphaQuality": 4}),
        ("webp", {"mozjpeg": True, "quality": None}),
    ],
)
def test_every_option_is_taken(served: Served, format_: str, options: dict[str, Any]) -> None:
    """Each documented option of either format is accepted, those of the other one are dropped."""
    body, image = converted(served, empty_workflow(4), format_, **options)

    assert image.format in {"JPEG", "WEBP"}
    assert set(body["convert_output"]["options"]) == set(convert.OPTIONS[format_])


def test_salad_s55_animation_stays_one_in_webp(served: Served) -> None:
    """An animated input keeps its frames as WebP, and gives its first as JPEG."""
    frames = [Image.new("RGB", (8, 8), (number * 60, 0, 0)) for number in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=100, lossless=True)

    def made(format_: Any) -> Image.Image:
        from comfy_worker.job import Conversion

        return Image.open(io.BytesIO(convert.convert(buffer.getvalue(), Conversion(format_)).data))

    assert getattr(made("webp"), "n_frames", 1) == 3
    assert getattr(made("jpeg"), "n_frames", 1) == 1


def test_salad_s56_other_outputs_are_left_alone(served: Served) -> None:
    """A file that is no picture keeps bytes and name, without a warning."""
    prompt = empty_workflow(5)
    prompt["3"] = node(
        "StandinAnyKey", key="gifs", extension="mp4", format="", count=1, type="output", filename_prefix="v"
    )

    body, _ = converted(served, prompt, "jpeg")

    assert body["filenames"] == ["c_out_00001_.jpeg", "c_v_00001_.mp4"]
    assert "warnings" not in body


def test_metadata_is_dropped(served: Served) -> None:
    """The workflow that ComfyUI writes into a PNG is not in the converted file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, image = converted(served, empty_workflow(6), "webp")

    assert not image.getexif()
    assert "icc_profile" not in image.info
