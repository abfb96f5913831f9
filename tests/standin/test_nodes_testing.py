"""
The nodes for tests: that they do what tests will rely on.
"""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfy_worker.standin.failures import type_name
from comfy_worker.standin.node import Blocked, Interrupted
from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.nodes_testing import TEST_NODES

from .desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """
    A desk with empty folders.
    """
    return Desk(tmp_path)


def test_test_nodes_shadow_no_real_one() -> None:
    """
    A workflow for ComfyUI means the same with and without them.
    """
    assert not set(TEST_NODES) & set(NODES)
    assert all(name.startswith("Standin") and name == node.class_type for name, node in TEST_NODES.items())


def test_sleep_ticks_between_its_waits(desk: Desk) -> None:
    """
    The seconds are spread over the steps, each followed by its tick.
    """
    returned = desk.run("StandinSleep", seconds=2.0, steps=4, any="x")

    assert returned.values == ("x",)
    assert desk.slept == [0.5] * 4
    assert desk.ticks == [(step, 4) for step in (1, 2, 3, 4)]


def test_sleep_ends_at_the_first_tick_after_an_interrupt(desk: Desk) -> None:
    """
    An interrupt acts at a tick.
    """
    desk.interrupted = True

    with pytest.raises(Interrupted):
        desk.run("StandinSleep", seconds=2.0, steps=4)

    assert len(desk.slept) == 1


def test_hang_waits_without_a_tick(desk: Desk) -> None:
    """
    Nothing but the end of the engine ends it, so it sleeps once, for long, and then notices.
    """
    desk.interrupted = True

    with pytest.raises(Interrupted):
        desk.run("StandinHang")

    assert desk.slept[0] > 3600
    assert len(desk.slept) == 1


def test_raise_and_out_of_memory_have_the_types_that_clients_know(desk: Desk) -> None:
    """
    One is a RuntimeError with the message given, the other is named as a GPU's.
    """
    with pytest.raises(RuntimeError, match="boo"):
        desk.run("StandinRaise", message="boo")
    with pytest.raises(RuntimeError) as failure:
        desk.run("StandinOutOfMemory")

    assert type_name(failure.value) == "torch.OutOfMemoryError"


@pytest.mark.parametrize(("message", "blocked"), [("", Blocked()), ("loud", Blocked("loud"))])
def test_blocker_blocks_silently_or_aloud(desk: Desk, message: str, blocked: Blocked) -> None:
    """
    Without a message it is silent, and switched off it hands on what came in.
    """
    assert desk.value("StandinBlocker", block=True, message=message, any="x") == blocked
    assert desk.value("StandinBlocker", block=False, message=message, any="x") == "x"


def test_list_gives_pictures_from_black_to_white(desk: Desk) -> None:
    """
    The list output has the count asked for, each of its own brightness.
    """
    images = desk.value("StandinList", count=3, size=4)

    assert [float(image.mean()) for image in images] == [0.0, 0.5, 1.0]
    assert desk.value("StandinList", count=0, size=4) == []


def test_expansions_link_into_their_own_graph(desk: Desk) -> None:
    """
    Every link of an expansion leads to a node of it, and all classes exist.
    """
    for name in ("StandinExpand", "StandinCycle"):
        returned = desk.run(name, size=8, color=0)
        assert returned.expand is not None
        links = [returned.values[0], *(i for n in returned.expand.values() for i in n["inputs"].values())]
        assert {link[0] for link in links if isinstance(link, list)} <= set(returned.expand)
        assert {node["class_type"] for node in returned.expand.values()} <= set(NODES)


def test_never_cached_has_a_fingerprint_that_equals_nothing(desk: Desk) -> None:
    """
    NaN keeps a node out of the cache.
    """
    fingerprint = TEST_NODES["StandinNeverCached"].fingerprint
    assert fingerprint is not None

    assert math.isnan(fingerprint({}, desk.folders))


def test_fail_validation_says_what_it_was_told_to(desk: Desk) -> None:
    """
    The message is the complaint, an empty one is none.
    """
    check = TEST_NODES["StandinFailValidation"].check
    assert check is not None

    assert check({"message": "no"}, desk.folders) == "no"
    assert check({"message": ""}, desk.folders) is None


def test_big_file_has_the_size_and_key_asked_for(desk: Desk) -> None:
    """
    Megabytes are 1024 x 1024 bytes, fractions count.
    """
    options = {"megabytes": 2.5, "key": "things", "extension": "dat", "filename_prefix": "sub/big"}

    returned = desk.run("StandinBigFile", **options)

    (path,) = desk.files(returned, "things")
    assert path.name == "big_00001_.dat"
    assert path.stat().st_size == 2.5 * 1024 * 1024


def test_any_key_lists_files_as_other_packs_do(desk: Desk) -> None:
    """
    Key, type, count and format are free; without a format there is none.
    """
    options = {"extension": "mp4", "filename_prefix": "a", "type": "temp"}

    gifs = desk.run("StandinAnyKey", key="gifs", count=2, format="video/h264-mp4", **options)
    bare = desk.run("StandinAnyKey", key="files", count=1, format="", **options)

    assert gifs.ui is not None
    assert bare.ui is not None
    assert [item["format"] for item in gifs.ui["gifs"]] == ["video/h264-mp4"] * 2
    assert bare.ui["files"] == [{"filename": "a_00003_.mp4", "subfolder": "", "type": "temp"}]
    assert all(path.is_file() for path in desk.files(gifs, "gifs"))


def test_ksampler_shows_a_preview_per_step_and_depends_on_the_seed_only(desk: Desk) -> None:
    """
    Previews are JPEGs that fit into 512 by 512; the same seed gives the same picture.
    """
    latent = {"samples": np.zeros((1, 4, 8, 16), np.float32)}
    options = {"steps": 3, "seconds_per_step": 0.01, "size": 512, "latent_image": latent}

    first, again, other = (desk.value("StandinKSampler", seed=seed, **options) for seed in (5, 5, 6))

    assert first.shape == (1, 64, 128, 3)
    assert (first == again).all()
    assert (first != other).any()
    assert desk.ticks[:3] == [(1, 3), (2, 3), (3, 3)]
    preview = Image.open(io.BytesIO(desk.previews[0] or b""))
    assert (preview.format, preview.size) == ("JPEG", (512, 256))
