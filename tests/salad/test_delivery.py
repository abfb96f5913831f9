"""
Outputs to storage: where they go, what the reply says, and that a failed upload is a failed request.
"""

import base64
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from pydantic import SecretStr
from support.http_desk import Answer, HttpDesk
from support.pictures import empty_workflow, node
from support.salad_fixtures import BUCKET, S3Server, ServeSalad
from support.served import Served

from comfy_worker import kinds
from comfy_worker.storage.http_put import url_of


def test_http_upload_puts_each_file(served: Served, desk: HttpDesk) -> None:
    """One PUT per file with its content type, and its URL in `images`."""
    block = {"url_prefix": f"{desk.url}/files/"}

    body = served.post("/prompt", {"id": "put", "prompt": empty_workflow(1), "http_upload": block}).json()

    [put] = desk.wait(1, "PUT")
    assert body["images"] == [f"{desk.url}/files/put_out_00001_.png"]
    assert put.path == "/files/put_out_00001_.png"
    assert put.headers["content-type"] == "image/png"
    assert put.body.startswith(b"\x89PNG")
    assert body["http_upload"] == {**block, "async": False}


def test_user_of_an_upload_url_becomes_a_header(served: Served, desk: HttpDesk) -> None:
    """A user and password in `url_prefix` are sent as Basic, and shown nowhere."""
    prefix = desk.url.replace("http://", "http://ann:pass-of-ann@")

    reply = served.post("/prompt", {"prompt": empty_workflow(2), "http_upload": {"url_prefix": prefix}})

    [put] = desk.wait(1, "PUT")
    assert put.headers["authorization"] == f"Basic {base64.b64encode(b'ann:pass-of-ann').decode()}"
    assert "pass-of-ann" not in reply.text
    assert reply.json()["images"][0].startswith(f"{desk.url}/")


def test_s3_upload_sync(serve_salad: ServeSalad, s3_server: S3Server) -> None:
    """The object lies under prefix and file name, and `images` has its s3 URL."""
    served = serve_salad(**s3_server.settings())
    block = {"bucket": BUCKET, "prefix": "some/where/"}

    reply = served.post("/prompt", {"id": "s3", "prompt": empty_workflow(3), "s3": block})

    assert reply.status_code == 200, reply.text
    assert reply.json()["images"] == [f"s3://{BUCKET}/some/where/s3_out_00001_.png"]
    data, mime = s3_server.get("some/where/s3_out_00001_.png")
    assert (data[:4], mime) == (b"\x89PNG", "image/png")


def test_s3_upload_async(serve_salad: ServeSalad, s3_server: S3Server, desk: HttpDesk) -> None:
    """With `async` the answer is a 202, and the webhook has the URLs."""
    served = serve_salad(**s3_server.settings())
    block = {"bucket": BUCKET, "prefix": "later/", "async": True}

    reply = served.post(
        "/prompt", {"id": "a", "prompt": empty_workflow(4), "s3": block, "webhook_v2": desk.url}
    )

    [hook] = desk.wait(1)
    assert reply.status_code == 202
    assert hook.json()["images"] == [f"s3://{BUCKET}/later/a_out_00001_.png"]
    assert s3_server.get("later/a_out_00001_.png")[0]


def test_s3_input(serve_salad: ServeSalad, s3_server: S3Server) -> None:
    """An s3 URL in the graph is read with the worker's keys."""
    from support.pictures import invert_workflow, png

    served = serve_salad(**s3_server.settings())
    url = s3_server.put("in/picture.png", png((4, 4), (9, 9, 9)))

    assert served.post("/prompt", {"prompt": invert_workflow(url)}).status_code == 200


@pytest.mark.slow
def test_first_storage_block_counts(serve_salad: ServeSalad, s3_server: S3Server, desk: HttpDesk) -> None:
    """Of several blocks, s3 is used and the others are only echoed."""
    served = serve_salad(**s3_server.settings())
    blocks = {"s3": {"bucket": BUCKET, "prefix": "x/"}, "http_upload": {"url_prefix": desk.url}}

    body = served.post("/prompt", {"prompt": empty_workflow(5), **blocks}).json()

    assert body["images"][0].startswith("s3://")
    assert "http_upload" in body
    assert desk.seen == []


def test_salad_s21_prefix_is_optional(serve_salad: ServeSalad, s3_server: S3Server) -> None:
    """Without a prefix the key is the file name."""
    served = serve_salad(**s3_server.settings())

    body = served.post("/prompt", {"id": "s21", "prompt": empty_workflow(6), "s3": {"bucket": BUCKET}}).json()

    assert body["images"] == [f"s3://{BUCKET}/s21_out_00001_.png"]
    assert body["s3"] == {"bucket": BUCKET, "prefix": "", "async": False}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["a b/", "x#y/", "q?z=1/", "ü/"])
def test_salad_s48_keys_are_taken_literally(
    serve_salad: ServeSalad, s3_server: S3Server, prefix: str
) -> None:
    """Blanks, `#`, `?` and other letters of a prefix are part of the key."""
    served = serve_salad(**s3_server.settings())

    reply = served.post(
        "/prompt", {"id": "k", "prompt": empty_workflow(7), "s3": {"bucket": BUCKET, "prefix": prefix}}
    )

    assert reply.status_code == 200, reply.text
    assert s3_server.get(f"{prefix}k_out_00001_.png")[0]


@pytest.mark.parametrize("status", [403, 404])
def test_salad_s57_failed_upload_fails_the_request(served: Served, desk: HttpDesk, status: int) -> None:
    """A refused PUT is a 500 with status and file."""
    desk.answers["/up/s57_out_00001_.png"] = Answer(status=status)

    reply = served.post(
        "/prompt", {"id": "s57", "prompt": empty_workflow(8), "http_upload": {"url_prefix": f"{desk.url}/up"}}
    )

    body = reply.json()
    assert (reply.status_code, body["code"]) == (500, "delivery_failed")
    assert f"Upload failed with status {status}: " in body["message"]
    assert body["failures"][0]["filename"] == "s57_out_00001_.png"


def test_salad_s57_failed_s3_upload_fails_the_request(serve_salad: ServeSalad, s3_server: S3Server) -> None:
    """No URL is made up for an object that S3 did not take."""
    served = serve_salad(**s3_server.settings())

    reply = served.post(
        "/prompt", {"prompt": empty_workflow(9), "s3": {"bucket": "no-such-bucket", "prefix": ""}}
    )

    assert reply.status_code == 500
    assert "NoSuchBucket" in reply.json()["message"]


def test_salad_s59_upload_is_tried_again(served: Served, desk: HttpDesk) -> None:
    """A server that fails for a moment gets the file a second time."""
    desk.answers["/up/s59_out_00001_.png"] = [Answer(status=503), Answer()]

    reply = served.post(
        "/prompt",
        {"id": "s59", "prompt": empty_workflow(10), "http_upload": {"url_prefix": f"{desk.url}/up"}},
    )

    puts = desk.wait(2, "PUT")
    assert reply.status_code == 200, reply.text
    assert puts[0].body == puts[1].body


def test_salad_s62_query_of_a_prefix_stays_behind_the_name() -> None:
    """The file's name goes in front of a query, percent-encoded."""
    assert url_of("https://h/a?sig=x%2Fy", "b c.png") == "https://h/a/b%20c.png?sig=x%2Fy"
    assert url_of("https://h/a///", "b.png") == "https://h/a/b.png"
    assert url_of("https://h", "sub/ü.png") == f"https://h/sub/{quote('ü')}.png"


@pytest.mark.parametrize(
    ("name", "mime"),
    [
        ("a.flac", "audio/flac"),
        ("a.m4a", "audio/mp4"),
        ("a.mkv", "video/x-matroska"),
        ("a.opus", "audio/ogg"),
        ("a.avif", "image/avif"),
        ("a.apng", "image/apng"),
        ("a.glb", "model/gltf-binary"),
        ("a.safetensors", "application/octet-stream"),
    ],
)
def test_salad_s63_media_types_of_newer_formats(name: str, mime: str) -> None:
    """Formats that the peer does not know have a media type."""
    found = kinds.by_name(name)
    assert found is not None
    assert found[0] == mime


def test_salad_s63_video_is_uploaded_with_its_type(served: Served, desk: HttpDesk) -> None:
    """The content type of an upload follows the extension."""
    prompt: dict[str, Any] = {
        "1": node(
            "StandinAnyKey",
            key="gifs",
            extension="mkv",
            format="",
            count=1,
            type="output",
            filename_prefix="v",
        )
    }

    served.post("/prompt", {"prompt": prompt, "http_upload": {"url_prefix": desk.url}})

    assert desk.wait(1, "PUT")[0].headers["content-type"] == "video/x-matroska"


def test_salad_s41_uploads_go_to_public_addresses_only(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """A private address of a target is refused unless its origin is trusted."""
    body = {"prompt": empty_workflow(11), "http_upload": {"url_prefix": desk.url}}

    closed = serve_salad(allow_private_urls=False).post("/prompt", body)
    origin = desk.url
    trusting = serve_salad(allow_private_urls=False, http_trusted_origins=(origin,)).post("/prompt", body)

    assert (closed.status_code, closed.json()["location"]) == (400, "http_upload.url_prefix")
    assert "not a public address" in closed.json()["error"]
    assert trusting.status_code == 200, trusting.text


def hub(desk: HttpDesk, repo: str, path: str, kind: str = "models") -> dict[str, Any]:
    """
    Let a web server answer as the Hub does for one small file; return the settings that lead there.
    """
    files = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False}]}
    commit = {
        "success": True,
        "commitOid": "0" * 40,
        "commitUrl": f"{desk.url}/{repo}/commit/0",
        "hookOutput": "",
    }
    json = {"Content-Type": "application/json"}
    desk.answers[f"/api/{kind}/{repo}/preupload/main"] = Answer(orjson.dumps(files), headers=json)
    desk.answers[f"/api/{kind}/{repo}/commit/main"] = Answer(orjson.dumps(commit), headers=json)
    return {"hf_token": SecretStr("hf_token-of-the-tests"), "hf_endpoint": desk.url}


@pytest.mark.slow
@pytest.mark.parametrize(("directory", "folder"), [("/", ""), ("out put/x", "out put/x/"), ("/a/", "a/")])
def test_salad_s61_hugging_face_upload(
    serve_salad: ServeSalad, desk: HttpDesk, directory: str, folder: str
) -> None:
    """The real client commits each file, and the URL has single slashes and encoded parts."""
    path = f"{folder}hf_out_00001_.png"
    served = serve_salad(**hub(desk, "ann/outputs", path))
    block = {"repo": "ann/outputs", "directory": directory}

    reply = served.post("/prompt", {"id": "hf", "prompt": empty_workflow(12), "hf_upload": block})

    assert reply.status_code == 200, reply.text
    assert reply.json()["images"] == [f"https://huggingface.co/ann/outputs/resolve/main/{quote(path)}"]
    assert reply.json()["hf_upload"] == {**block, "repo_type": "model", "revision": "main", "async": False}
    commit = next(seen for seen in desk.seen if seen.path.startswith("/api/models/ann/outputs/commit/"))
    assert commit.headers["authorization"] == "Bearer hf_token-of-the-tests"
    assert orjson.loads(commit.body.splitlines()[1])["value"]["path"] == path


def test_refusal_of_hugging_face_fails_the_request(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """A repository that refuses is a 500 with its status; names that are none are a 400."""
    served = serve_salad(hf_token=SecretStr("hf_token-of-the-tests"), hf_endpoint=desk.url)
    desk.answers["/api/datasets/ann/outputs/preupload/main"] = Answer(b"{}", status=403)

    def post(**block: Any) -> tuple[int, str]:
        reply = served.post("/prompt", {"prompt": empty_workflow(13), "hf_upload": block})
        return reply.status_code, reply.text

    status, text = post(repo="ann/outputs", repo_type="dataset")
    assert (status, "status 403" in text) == (500, True)
    assert post(repo="a/b/c")[0] == 400
    assert post(repo="a/b", directory="../x")[0] == 400
