"""
Outputs: each one returned, in the order of the graph, under names of their own, and nothing left on the disk.
"""

import base64
from pathlib import Path
from typing import Any

from support.pictures import empty_workflow, node
from support.served import Served

from comfy_worker.standin.thread import EngineThread


def left_in(engine: EngineThread, word: str) -> list[Path]:
    """
    Return the files of the output folder whose names hold a word.
    """
    return [path for path in engine.folders.output.rglob("*") if word in path.name]


def test_salad_s11_outputs_in_subfolders_are_returned(served: Served) -> None:
    """A prefix with a slash saves into a folder, and its file is returned all the same."""
    body = served.post("/prompt", {"id": "s11", "prompt": empty_workflow(0x111111, prefix="a/b")}).json()

    assert body["filenames"] == ["b_00001_.png"]
    assert body["images_info"][0]["subfolder"] == "s11_a"


def test_salad_s12_order_is_that_of_the_graph(served: Served) -> None:
    """Images come in the order of the nodes as they were sent, then of their index, every time."""
    prompt: dict[str, Any] = {}
    for number in (7, 3, 9, 1):
        prompt[f"e{number}"] = node("EmptyImage", width=8, height=8, batch_size=3, color=number)
        prompt[str(number)] = node("SaveImage", images=(f"e{number}", 0), filename_prefix=f"p{number}")

    for _ in range(3):
        names = served.post("/prompt", {"id": "s12", "prompt": prompt}).json()["filenames"]
        expected = [f"s12_p{number}_{index:05}_.png" for number in (7, 3, 9, 1) for index in (1, 2, 3)]
        assert names == expected


def test_salad_s13_equal_names_are_both_returned(served: Served) -> None:
    """Two files of one name in two folders are two entries; the second carries its folder."""
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x/same"),
        "3": node("EmptyImage", width=8, height=8, batch_size=1, color=2),
        "4": node("SaveImage", images=("3", 0), filename_prefix="y/same"),
    }

    body = served.post("/prompt", {"id": "s13", "prompt": prompt}).json()

    assert body["filenames"] == ["same_00001_.png", "s13_y/same_00001_.png"]
    assert body["images"][0] != body["images"][1]


def test_salad_s14_previews_and_other_ui_outputs_are_skipped(served: Served) -> None:
    """Temporary previews and texts are no images, and no error."""
    prompt = empty_workflow(0x141414)
    prompt["3"] = node("PreviewImage", images=("1", 0))
    prompt["4"] = node("PreviewAny", source="hello")
    prompt["5"] = node(
        "StandinAnyKey", key="odd", type="temp", count=1, extension="png", format="", filename_prefix="odd"
    )

    reply = served.post("/prompt", {"prompt": prompt})

    assert reply.status_code == 200, reply.text
    assert len(reply.json()["images"]) == 1


def test_outputs_of_every_kind_are_images(served: Served) -> None:
    """A video is in `images` too, as bare base64."""
    prompt = empty_workflow(0x141415)
    prompt["3"] = node(
        "StandinAnyKey",
        key="gifs",
        extension="mp4",
        format="",
        count=1,
        type="output",
        filename_prefix="clip",
    )

    body = served.post("/prompt", {"id": "kinds", "prompt": prompt}).json()

    assert body["filenames"] == ["kinds_out_00001_.png", "kinds_clip_00001_.mp4"]
    assert len(base64.b64decode(body["images"][1])) == 64


def test_salad_s19_images_info_names_node_and_type(served: Served) -> None:
    """Beside `images` stands which node made what."""
    body = served.post("/prompt", {"prompt": empty_workflow(0x191919)}).json()

    [info] = body["images_info"]
    assert (info["node_id"], info["mime"], info["subfolder"]) == ("2", "image/png", "")
    assert info["size_bytes"] == len(base64.b64decode(body["images"][0]))


def test_salad_s22_large_output_is_returned(served: Served) -> None:
    """There is no ceiling for the size of a reply."""
    prompt = {
        "1": node("StandinBigFile", megabytes=24.0, key="files", extension="bin", filename_prefix="big")
    }

    reply = served.post("/prompt", {"prompt": prompt})

    assert reply.status_code == 200
    assert len(base64.b64decode(reply.json()["images"][0])) == 24 << 20


def test_salad_s24_output_files_are_removed_on_every_path(served: Served, engine: EngineThread) -> None:
    """After a success and after a failure, nothing of the request is left, and what was there before stays."""
    kept = engine.folders.output / "s24-kept.png"
    kept.write_bytes(b"x")
    failing = empty_workflow(0x242425)
    failing["9"] = node("StandinRaise", message="s24", any=("1", 0))
    failing["8"] = node("SaveImage", images=("9", 0), filename_prefix="late")

    good = served.post("/prompt", {"id": "s24", "prompt": empty_workflow(0x242424)})
    bad = served.post("/prompt", {"id": "s24", "prompt": failing})

    assert [good.status_code, bad.status_code] == [200, 500]
    assert left_in(engine, "s24") == [kept]
    kept.unlink()


def test_salad_s22_large_files_are_written_in_pieces(served: Served) -> None:
    """A reply with large files, small ones and URLs beside them is one JSON text of the length it says."""
    prompt = {
        "1": node("StandinBigFile", megabytes=2.0, key="files", extension="bin", filename_prefix="a"),
        "2": node("StandinBigFile", megabytes=0.01, key="files", extension="bin", filename_prefix="b"),
        "3": node("StandinBigFile", megabytes=1.5, key="files", extension="bin", filename_prefix="c"),
    }

    reply = served.post("/prompt", {"id": "p", "prompt": prompt})

    body = reply.json()
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    sizes = [len(base64.b64decode(image)) for image in body["images"]]
    assert sizes == [entry["size_bytes"] for entry in body["images_info"]]
    assert body["filenames"] == ["p_a_00001_.bin", "p_b_00001_.bin", "p_c_00001_.bin"]
