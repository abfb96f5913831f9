"""
Files of URLs: the cache on disk, models into ComfyUI's folders, and /download.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.http_desk import Answer, HttpDesk
from support.pictures import invert_workflow, node, png
from support.salad_fixtures import ServeSalad
from support.served import Served

from comfy_worker.cache import UrlCache
from comfy_worker.cache_names import extension_of, key_of
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobInvalid
from comfy_worker.faces.salad_auth import glob_matches
from comfy_worker.fetch import Fetched, Fetcher, Item
from comfy_worker.fetch_guard import is_public
from comfy_worker.job import UrlAuth
from comfy_worker.model_files import ModelFiles, checked_name

CIVITAI = "https://civitai.com/api/download/models/128713?type=Model&format=SafeTensor&size=pruned&fp=fp16"
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(4)


@pytest.fixture
def served(serve_salad: ServeSalad) -> Served:
    """
    The face with folders of its own for each test.
    """
    return serve_salad()


@pytest.fixture
def cache(tmp_path: Path) -> UrlCache:
    """
    A cache in an empty folder.
    """
    return UrlCache(tmp_path / "cache", Fetcher(allow_private=True, pauses_s=(0.01, 0.01)))


def item(url: str, **fields: Any) -> Item:
    """
    Return an item to be obtained.
    """
    return Item(url, Path(), "url", **fields)


def obtained(cache: UrlCache, url: str, **fields: Any) -> Path:
    """
    Obtain a URL and let go of it.
    """
    path = cache.obtain(item(url, **fields), Deadline(20), max_bytes=1 << 30)
    cache.release(path)
    return path


def headers(**values: str) -> UrlAuth:
    """
    Return a credential of headers.
    """
    return UrlAuth(tuple((name, SecretStr(value)) for name, value in values.items()))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (CIVITAI, "Pk6VSKLStckZydwGhX0bM8TqaqHEW9yt.safetensors"),
        ("https://example.com/a/image.png", "pOmfHmYDeBA-3uTqioQSFgcA0ll-5dEL.png"),
        ("https://example.com/a/image.png?x=1", "Qpr6orn_6Q__V3KiNBW6sQVOWSI6PmbQ.png"),
        ("s3://my-bucket/path/to/model.safetensors", "rwoV7xT0_ErM9xzYb4UYbhz64QztwVr9.safetensors"),
    ],
)
def test_names_of_the_cache_are_those_of_the_peer(tmp_path: Path, url: str, name: str) -> None:
    """Volumes filled by the peer stay valid: known URLs have the known names."""
    fetched = Fetched(tmp_path, 1, None, "", "model.safetensors")

    assert key_of(url) + extension_of(url, fetched) == name


def test_cached_file_has_its_sidecar_and_is_used_again(cache: UrlCache, desk: HttpDesk) -> None:
    """One transfer serves every later request, of another process too."""
    url = desk.put("/a.png", b"picture")

    path = obtained(cache, url)
    again = obtained(UrlCache(path.parent, Fetcher()), url)

    meta = json.loads(path.with_name(path.name + ".meta").read_text())
    assert path == again
    assert len(desk.seen) == 1
    assert (meta["url"], meta["authRequired"], set(meta)) == (url, False, {"url", "authRequired", "cachedAt"})


def test_one_transfer_serves_everybody_who_waits(cache: UrlCache, desk: HttpDesk) -> None:
    """Two requests for a URL at the same time make one download."""
    url = desk.put("/slow.bin", b"x" * 1000, delay_s=0.3)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(obtained(cache, url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(found) == 4
    assert len(set(found)) == len(desk.seen) == 1


def test_salad_s36_broken_transfer_leaves_nothing(cache: UrlCache, desk: HttpDesk, tmp_path: Path) -> None:
    """A server that hangs up early is a refusal, and nothing of it is in the cache."""
    url = desk.put("/cut.bin", b"x" * 5000, cut_after=100)

    with pytest.raises(InputUnavailable):
        obtained(cache, url)

    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_salad_s36_request_with_a_broken_input_is_a_400(served: Served, desk: HttpDesk) -> None:
    """The request is refused, and the next one is served."""
    broken = desk.put("/cut.png", b"x" * 5000, cut_after=100)
    whole = desk.put("/whole.png", png((4, 4), (1, 2, 3)))

    assert served.post("/prompt", {"prompt": invert_workflow(broken)}).status_code == 400
    assert served.post("/prompt", {"prompt": invert_workflow(whole)}).status_code == 200


def test_salad_s37_short_transfer_is_tried_again(cache: UrlCache, desk: HttpDesk) -> None:
    """A transfer that ends before its length is repeated, and the whole file is kept."""
    desk.answers["/b.bin"] = [Answer(b"x" * 100, cut_after=10), Answer(b"x" * 100)]

    path = obtained(cache, f"{desk.url}/b.bin")

    assert path.read_bytes() == b"x" * 100


def test_salad_s38_stalled_transfer_ends_with_the_request(cache: UrlCache, desk: HttpDesk) -> None:
    """The deadline of a request bounds its downloads."""
    from comfy_worker.errors import JobTimedOut

    url = desk.put("/stall.bin", b"x", delay_s=3.0)

    with pytest.raises(JobTimedOut):
        cache.obtain(item(url), Deadline(0.5), max_bytes=1000)


def test_salad_s38_silent_host_is_given_up(tmp_path: Path, desk: HttpDesk) -> None:
    """A transfer that stands still is a refusal with the reason, long before the deadline."""
    url = desk.put("/silent.bin", b"x", delay_s=5.0)
    fetcher = Fetcher(allow_private=True, read_timeout_s=0.2, pauses_s=())
    began = time.monotonic()

    with pytest.raises(InputUnavailable, match="did not answer in time"):
        obtained(UrlCache(tmp_path / "cache", fetcher), url)

    assert time.monotonic() - began < 4.0


def test_salad_s38_size_is_bounded_when_asked(cache: UrlCache, desk: HttpDesk, tmp_path: Path) -> None:
    """A file above the given size is refused, and nothing of it stays."""
    url = desk.put("/large.bin", b"x" * 5000)

    with pytest.raises(InputUnavailable):
        cache.obtain(item(url), Deadline(20), max_bytes=4999)

    assert list((tmp_path / "cache").iterdir()) == []


def test_salad_s39_cache_files_have_hash_names(served: Served, desk: HttpDesk, tmp_path: Path) -> None:
    """Two downloads of one file name are two files, whatever name was asked for."""
    one, two = desk.put("/x/m.safetensors", SAFETENSORS), desk.put("/y/m.safetensors", SAFETENSORS + b"!")
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "models" / "vae").mkdir(parents=True)

    for url, type_ in ((one, "loras"), (two, "vae")):
        reply = served.post("/download", {"url": url, "model_type": type_, "wait": True})
        assert reply.status_code == 200, reply.text

    names = {path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".meta"}
    assert names == {f"{key_of(one)}.safetensors", f"{key_of(two)}.safetensors"}
    assert (tmp_path / "models" / "vae" / "m.safetensors").read_bytes().endswith(b"!")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a*",
        'a"',
        "a.",
        "a ",
        "con",
        "LPT1.txt",
        "a\n",
        "a\x7f",
        "é" * 128,
        "\uff0e\uff0e",
        "a\uff0fb",
    ],
)
def test_salad_s40_file_name_must_be_one(name: str) -> None:
    """What is no name of a single file is refused, in its compatible form too."""
    with pytest.raises(JobInvalid, match="expected a single file name"):
        checked_name(name)


def test_salad_s40_download_writes_inside_the_folder_only(
    served: Served, desk: HttpDesk, tmp_path: Path
) -> None:
    """A name with a path in it is refused before anything is fetched."""
    (tmp_path / "models" / "loras").mkdir(parents=True)
    body = {"url": desk.put("/m.bin", b"x"), "model_type": "loras", "filename": "../../escaped", "wait": True}

    reply = served.post("/download", body)

    assert reply.status_code == 400
    assert reply.json()["error"] == "Invalid download filename: expected a single file name"
    assert desk.seen == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_salad_s41_public_addresses_are_allowed(address: str) -> None:
    """Globally routable unicast may be asked."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *(
            "192.0.2.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
        ),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "198.18.0.1"),
    ],
)
def test_salad_s41_other_addresses_are_refused(address: str) -> None:
    """Every kind of private, special or translated address is closed."""
    assert not is_public(address)


@pytest.mark.slow
def test_salad_s41_inputs_come_from_public_addresses_only(serve_salad: ServeSalad, desk: HttpDesk) -> None:
    """A URL that leads into the private network is a 400, unless its origin is trusted."""
    body = {"prompt": invert_workflow(desk.put("/in.png", png((4, 4), (5, 5, 5))))}

    closed = serve_salad(allow_private_urls=False).post("/prompt", body)
    trusting = serve_salad(allow_private_urls=False, http_trusted_origins=(desk.url,)).post("/prompt", body)

    assert (closed.status_code, trusting.status_code) == (400, 200)
    assert "not a public address" in closed.json()["error"]


def test_salad_s42_download_replaces_its_own_link_and_no_file(
    served: Served, desk: HttpDesk, tmp_path: Path
) -> None:
    """A second URL under a name replaces the link; a file of somebody else stays."""
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "mine.bin").write_bytes(b"mine")

    def download(path: str, name: str) -> int:
        url = desk.put(path, path.encode())
        body = {"url": url, "model_type": "loras", "filename": name, "wait": True}
        return served.post("/download", body).status_code

    assert [download("/1", "m.bin"), download("/2", "m.bin"), download("/3", "mine.bin")] == [200, 200, 400]
    assert (folder / "m.bin").read_bytes() == b"/2"
    assert (folder / "mine.bin").read_bytes() == b"mine"


def test_salad_s43_extension_comes_from_the_reply(served: Served, desk: HttpDesk, tmp_path: Path) -> None:
    """A URL without an extension gets that of the reply's file name, or of its content."""
    (tmp_path / "models" / "loras").mkdir(parents=True)
    named = desk.put(
        "/api/1", SAFETENSORS, headers={"Content-Disposition": 'attachment; filename="m.safetensors"'}
    )
    plain = desk.put("/api/2", SAFETENSORS, headers={"Content-Type": "application/octet-stream"})

    names = [
        served.post("/download", {"url": url, "model_type": "loras", "wait": True}).json()["filename"]
        for url in (named, plain)
    ]

    assert names == ["1.safetensors", "2.safetensors"]


def test_salad_s44_hugging_face_gets_its_token_and_nobody_else() -> None:
    """HF_TOKEN goes to huggingface.co over https only; a request's own credential goes first."""
    from comfy_worker.faces.salad_auth import Trust, resolved

    trust = Trust(hf_token=SecretStr("hf_secret"))
    _, auth = resolved("https://huggingface.co/a/b/resolve/main/c.safetensors", (), trust)
    others = [
        resolved(url, (), trust)[1]
        for url in (
            "http://huggingface.co/a",
            "https://huggingface.co.evil.com/a",
            "https://example.com/huggingface.co",
        )
    ]

    assert auth is not None
    assert auth.headers[0][1].get_secret_value() == "Bearer hf_secret"
    assert others == [None, None, None]


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/a/b/resolve/main/c.safetensors",
        "https://account.blob.core.windows.net/box/c.safetensors",
    ],
)
def test_salad_s44_supplied_credential_is_used(url: str) -> None:
    """On Hugging Face and Azure too, the request's own credential is shown, and no token of the operator beside it."""
    from comfy_worker.faces.salad_auth import Trust, resolved
    from comfy_worker.faces.salad_models import BearerAuth, Credential

    own = Credential(url_pattern=f"{url[:20]}**", auth=BearerAuth(type="bearer", token=SecretStr("own")))

    asked, auth = resolved(url, (own,), Trust(hf_token=SecretStr("hf_secret")))

    assert auth is not None
    assert asked == url
    assert [(name, value.get_secret_value()) for name, value in auth.headers] == [
        ("Authorization", "Bearer own")
    ]


def test_salad_s49_least_recently_used_goes_first(tmp_path: Path, desk: HttpDesk) -> None:
    """Over the limit the longest unused file goes, with sidecar and links; one in use and the newest stay."""
    models, told = ModelFiles(tmp_path / "models"), []
    cache = UrlCache(
        tmp_path / "cache",
        Fetcher(allow_private=True),
        limit_bytes=250,
        told=lambda *facts: told.append(facts[:2]),
        evicted=models.drop_links_to,
    )
    urls = [desk.put(f"/{number}.bin", b"x" * 100) for number in range(4)]
    used = cache.obtain(item(urls[0]), Deadline(20), max_bytes=1000)
    idle = obtained(cache, urls[1])
    link = models.link("loras", "idle.bin", idle)
    os.utime(used, (1, 1))
    os.utime(idle, (2, 2))

    newest = obtained(cache, urls[2])

    assert used.exists()
    assert newest.exists()
    assert not idle.exists()
    assert not idle.with_name(idle.name + ".meta").exists()
    assert not link.is_symlink()
    assert ("file_deleted", urls[1]) in told


def test_salad_s50_private_file_asks_every_caller(cache: UrlCache, desk: HttpDesk) -> None:
    """What was fetched with credentials is given to who shows good ones, checked live, and the file stays."""
    url = desk.put("/private.bin", b"secret")
    path = obtained(cache, url, auth=headers(Authorization="Bearer good"))

    with pytest.raises(InputUnavailable, match="Authentication required"):
        obtained(cache, url)
    desk.answers["/private.bin"] = Answer(status=403)
    with pytest.raises(InputUnavailable, match="Auth validation failed"):
        obtained(cache, url, auth=headers(Authorization="Bearer bad"))
    desk.answers["/private.bin"] = Answer(b"secret")
    assert obtained(cache, url, auth=headers(Authorization="Bearer good")) == path
    assert [seen.method for seen in desk.seen] == ["GET", "HEAD", "HEAD"]


def test_model_of_a_url_is_linked_for_the_run(served: Served, desk: HttpDesk, tmp_path: Path) -> None:
    """A loader's URL is fetched, linked into its folder, and the graph names the link."""
    url = desk.put("/m.safetensors", SAFETENSORS)
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=url),
        "2": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
        "3": node("SaveImage", images=("2", 0), filename_prefix="m"),
    }

    reply = served.post("/prompt", {"prompt": prompt})

    # The built-in engine has no such class and refuses the graph, which names the model by then.
    link = tmp_path / "models" / "checkpoints" / f"{key_of(url)}.safetensors"
    assert "CheckpointLoaderSimple" in reply.json()["error"]
    assert link.is_symlink()
    assert link.read_bytes() == SAFETENSORS


def test_model_that_cannot_be_had_is_a_400(served: Served, desk: HttpDesk) -> None:
    """The refusal has the peer's words and location."""
    prompt = {
        "4": node("LoraLoader", lora_name=f"{desk.url}/none.safetensors"),
        "3": node("SaveImage", images=("4", 0), filename_prefix="m"),
    }

    reply = served.post("/prompt", {"prompt": prompt})

    assert reply.status_code == 400
    assert reply.json()["error"] == "Failed to process model for node 4: Error downloading file: Not Found"
    assert reply.json()["location"] == "prompt.4.inputs"


def test_download_waits_or_not(served: Served, desk: HttpDesk, tmp_path: Path) -> None:
    """`wait` decides between 200 with size and duration, and 202."""
    (tmp_path / "models" / "loras").mkdir(parents=True)
    url = desk.put("/w.bin", b"12345")

    waited = served.post("/download", {"url": url, "model_type": "loras", "filename": "a.bin", "wait": True})
    started = served.post("/download", {"url": url, "model_type": "loras", "filename": "b.bin"})

    assert waited.status_code == 200
    assert set(waited.json()) == {"url", "model_type", "filename", "status", "size", "duration"}
    assert (waited.json()["status"], waited.json()["size"], waited.json()["filename"]) == (
        "completed",
        5,
        "a.bin",
    )
    assert (started.status_code, started.json()["status"]) == (202, "started")
    end = time.monotonic() + 10
    while not (tmp_path / "models" / "loras" / "b.bin").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_download_is_refused_with_a_reason(served: Served, desk: HttpDesk, tmp_path: Path) -> None:
    """Unknown types, schemes and answers are told apart."""
    (tmp_path / "models" / "loras").mkdir(parents=True)

    def error(**fields: Any) -> str:
        reply = served.post("/download", {"model_type": "loras", "wait": True, **fields})
        assert reply.status_code == 400, reply.text
        return str(reply.json()["error"])

    assert error(url=f"{desk.url}/none") == "Error downloading file: Not Found"
    assert error(url="ftp://x/y") == "No storage provider found for URL: ftp://x/y"
    assert error(url=f"{desk.url}/m", model_type="nope").startswith(
        "Unknown model type: nope. Available types: "
    )
    assert error(model_type="loras") == "Bad Request"


def test_salad_s82_models_never_fail(served: Served, tmp_path: Path) -> None:
    """/models is the union of ComfyUI's types and the folders on the disk."""
    (tmp_path / "models" / "of_my_own").mkdir(parents=True)
    (tmp_path / "models" / "of_my_own" / "x.bin").write_bytes(b"x")
    (tmp_path / "models" / "of_my_own" / "put_models_here").write_bytes(b"")

    found = served.get("/models").json()

    assert found["of_my_own"] == ["x.bin"]
    assert isinstance(found["checkpoints"], list)


@pytest.mark.parametrize(
    ("pattern", "url", "fits"),
    [
        ("https://example.com/*", "https://example.com/f.txt", True),
        ("https://example.com/*", "https://example.com/a/b.txt", False),
        ("https://example.com/**", "https://example.com/f.txt", True),
        ("https://example.com/**", "https://example.com/a/b.txt", True),
        ("https://*.s3.amazonaws.com/**", "https://mybucket.s3.amazonaws.com/m/f.safetensors", True),
        ("s3://my-bucket/*", "s3://my-bucket/a/b", False),
        ("https://h/x?y=1", "https://h/x?y=1", True),
        ("https://h/x?y=1", "https://h/xAy=1", True),
        ("https://h/**", "https://u:p@h/x", False),
    ],
)
def test_patterns_of_credentials(pattern: str, url: str, fits: bool) -> None:
    """The patterns mean what they mean in the peer."""
    assert glob_matches(pattern, url) is fits


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["example.com", "ftp://example.com", "https://[", "https://h:99999"])
@pytest.mark.parametrize("wait", [True, False])
def test_download_with_an_endpoint_that_is_no_url_is_no_fault_of_the_worker(
    serve_salad: ServeSalad, tmp_path: Path, endpoint: str, wait: bool
) -> None:
    """Keys for an S3 endpoint that is no URL are refused; the worker does not fail on them."""
    served = serve_salad(allow_private_urls=False)
    (tmp_path / "models" / "loras").mkdir(parents=True)
    auth = {"type": "s3", "access_key_id": "a", "secret_access_key": "b", "endpoint": endpoint}
    body = {"url": "s3://box/m.safetensors", "model_type": "loras", "auth": auth, "wait": wait}

    reply = served.post("/download", body)

    assert reply.status_code == (400 if wait else 202), reply.text
