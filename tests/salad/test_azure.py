"""
Azure Blob Storage behind the Salad face: blobs as inputs and outputs, with a key, a SAS token, or Azure's own chain.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.credentials import AccessToken
from pydantic import SecretStr
from support.azure_desk import ACCOUNT, KEY, SAS, AzureDesk, Blob
from support.pictures import empty_workflow, invert_workflow, png
from support.salad_fixtures import ServeSalad
from support.served import Served

from comfy_worker.azure import AzureAccount, AzureTarget, account_of
from comfy_worker.errors import ConfigInvalid, DeliveryFailed, JobCancelled
from comfy_worker.settings import load
from comfy_worker.storage import azure, azure_access
from comfy_worker.storage.azure import AzureStore, url_of
from comfy_worker.storage.azure_access import NO_IDENTITY, NO_LIBRARY, reading


@pytest.fixture
def blobs() -> Iterator[AzureDesk]:
    """
    A server of the account of the tests, with the container `outputs`.
    """
    with AzureDesk("outputs") as running:
        yield running


@pytest.fixture
def cloud(blobs: AzureDesk, serve_salad: ServeSalad) -> Served:
    """
    The face over a worker that has the account's key.
    """
    return serve_salad(azure_storage_connection_string=SecretStr(blobs.by_key()))


def upload(served: Served, request_id: str, **block: Any) -> Any:
    """
    Run a small graph whose output goes to Azure.
    """
    body = {"id": request_id, "prompt": empty_workflow(41), "azure_blob_upload": block}
    return served.post("/prompt", body)


def nothing() -> None:
    """
    Let an upload go on.
    """


def target(blobs: AzureDesk, connection: str | None = None) -> AzureTarget:
    """
    Return the container of the tests.
    """
    account = account_of(SecretStr(connection or blobs.by_key()), None, None, None)
    assert account is not None
    return AzureTarget(account, "outputs", "p/")


def test_blob_upload(cloud: Served, blobs: AzureDesk) -> None:
    """Each output is a block blob with its content type, and the echo has the defaults."""
    reply = upload(cloud, "blob", container="outputs", blob_prefix="/some where/")

    assert reply.status_code == 200, reply.text
    blob = blobs.blobs[f"/{ACCOUNT}/outputs/some where/blob_out_00001_.png"]
    assert (blob.body[:4], blob.mime) == (b"\x89PNG", "image/png")
    assert [asked.signed for asked in blobs.asked] == ["key"]
    wanted = {"container": "outputs", "blob_prefix": "/some where/", "async": False}
    assert reply.json()["azure_blob_upload"] == wanted


@pytest.mark.parametrize("way", ["by_key", "by_sas"])
def test_salad_s60_url_has_single_slashes_and_no_token(
    serve_salad: ServeSalad, blobs: AzureDesk, way: str
) -> None:
    """The URL is base, container, prefix and name, whatever the base ends in and however it was opened."""
    connection = SecretStr(getattr(blobs, way)())

    reply = upload(serve_salad(azure_storage_connection_string=connection), "s60", container="outputs")

    assert reply.status_code == 200, reply.text
    assert reply.json()["images"] == [f"{blobs.url}/outputs/s60_out_00001_.png"]
    assert "sig=" not in reply.text
    assert list(blobs.blobs) == [f"/{ACCOUNT}/outputs/s60_out_00001_.png"]


def test_salad_s65_local_host_names_stay() -> None:
    """An endpoint at localhost:10000 stands in the URL as it was given."""
    connection = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://localhost:10000/{ACCOUNT}"
    account = account_of(SecretStr(connection), None, None, None)

    assert account is not None
    url = url_of(AzureTarget(account, "outputs"), "a b/c#.png")
    assert url == f"http://localhost:10000/{ACCOUNT}/outputs/a%20b/c%23.png"


@pytest.mark.parametrize(("way", "signed"), [("by_key", "link"), ("by_sas", "sas")])
def test_salad_s47_azure_url_is_read_with_the_account(
    serve_salad: ServeSalad, blobs: AzureDesk, way: str, signed: str
) -> None:
    """A private blob of the worker's account is an input, and the request comes to an end."""
    served = serve_salad(azure_storage_connection_string=SecretStr(getattr(blobs, way)()))
    blobs.blobs[f"/{ACCOUNT}/outputs/in put.png"] = Blob(png((4, 4), (9, 9, 9)), "image/png")

    reply = served.post("/prompt", {"prompt": invert_workflow(f"{blobs.url}/outputs/in%20put.png")})

    assert reply.status_code == 200, reply.text
    assert {asked.signed for asked in blobs.asked} == {signed}
    assert "sig=" not in reply.text


def test_salad_s47_blob_that_is_not_there_ends_the_request(cloud: Served, blobs: AzureDesk) -> None:
    """A missing blob is a 400 with its status, without the link that asked for it."""
    reply = cloud.post("/prompt", {"prompt": invert_workflow(f"{blobs.url}/outputs/none.png")})

    assert (reply.status_code, "Not Found" in reply.text) == (400, True), reply.text
    assert "sig=" not in reply.text


@pytest.mark.parametrize(
    ("container", "sas", "status", "code"),
    [("outputs", "sv=1&sig=wrong", 403, "AuthenticationFailed"), ("nowhere", SAS, 404, "ContainerNotFound")],
)
def test_salad_s57_failed_blob_upload_fails_the_request(
    serve_salad: ServeSalad, blobs: AzureDesk, container: str, sas: str, status: int, code: str
) -> None:
    """What Azure refuses is a 500 with status, code and file, and without the token."""
    served = serve_salad(azure_storage_connection_string=SecretStr(blobs.by_sas(sas)))

    reply = upload(served, "s57", container=container)

    assert reply.status_code == 500
    assert f"Upload failed with status {status}: Azure refused the file ({code}" in reply.json()["message"]
    assert reply.json()["failures"][0]["filename"] == "s57_out_00001_.png"
    assert "sig=" not in reply.text
    assert len(blobs.asked) == 1


@pytest.mark.slow
def test_salad_s59_busy_azure_is_asked_again(cloud: Served, blobs: AzureDesk) -> None:
    """A 503 is no failure when the next attempt is taken."""
    blobs.failures = [503]

    assert upload(cloud, "s59", container="outputs").status_code == 200
    assert len(blobs.asked) == 2


def test_attempts_are_bounded(blobs: AzureDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Azure that stays busy is asked three times, then the file has failed."""
    monkeypatch.setattr(azure, "PAUSE_S", 0)
    blobs.failures = [503] * 9

    with pytest.raises(DeliveryFailed, match=r"status 503: Azure refused the file \(ServerBusy\)"):
        AzureStore(target(blobs)).put("a.png", b"x", "image/png", nothing)
    assert len(blobs.asked) == 3


def test_large_file_goes_in_blocks(blobs: AzureDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond one block is sent in blocks, which are signed each, and is whole again."""
    monkeypatch.setattr(azure, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * 700)

    url = AzureStore(target(blobs)).put("a.mp4", path, "video/mp4", nothing)

    blob = blobs.blobs[f"/{ACCOUNT}/outputs/p/a.mp4"]
    assert (blob.body, blob.mime, blob.blocks) == (path.read_bytes(), "video/mp4", 3)
    assert url == f"{blobs.url}/outputs/p/a.mp4"
    assert {asked.signed for asked in blobs.asked} == {"key"}


def test_upload_ends_when_the_job_does(
    blobs: AzureDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `check` raises between two blocks ends the upload, and no blob is made."""
    monkeypatch.setattr(azure, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(200_000))

    def check() -> None:
        if blobs.asked:
            raise JobCancelled("stopped")

    with pytest.raises(JobCancelled):
        AzureStore(target(blobs)).put("a.bin", path, "application/octet-stream", check)
    assert (len(blobs.asked), blobs.blobs) == (1, {})


def test_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account without a server is a reason without its key."""
    monkeypatch.setattr(azure, "PAUSE_S", 0)
    connection = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://127.0.0.1:1/{ACCOUNT}"
    account = account_of(SecretStr(connection), None, None, None)
    assert account is not None

    with pytest.raises(DeliveryFailed, match=r"^The file could not be sent: ServiceRequestError$"):
        AzureStore(AzureTarget(account, "outputs")).put("a.png", b"x", "image/png", nothing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "location"),
    [
        ({"container": "a/b"}, "azure_blob_upload.container"),
        ({"container": "UPPER"}, "azure_blob_upload.container"),
        ({"container": "a" * 64}, "azure_blob_upload.container"),
        ({"container": "outputs", "blob_prefix": "a/../"}, "azure_blob_upload.blob_prefix"),
    ],
)
def test_names_that_azure_does_not_take(cloud: Served, blobs: AzureDesk, block: Any, location: str) -> None:
    """Names that would lead elsewhere are a 400 at their field."""
    reply = upload(cloud, "names", **block)

    assert (reply.status_code, reply.json()["location"]) == (400, location)
    assert blobs.asked == []


def test_without_the_library(cloud: Served, blobs: AzureDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload and input are a 400 that names the extra."""
    monkeypatch.setitem(sys.modules, "azure.storage.blob", None)

    up = upload(cloud, "none", container="outputs")
    down = cloud.post("/prompt", {"prompt": invert_workflow(f"{blobs.url}/outputs/a.png")})

    assert (up.status_code, up.json()["error"]) == (400, NO_LIBRARY)
    assert (down.status_code, down.json()["error"]) == (400, NO_LIBRARY)


def test_without_a_key_or_identity(serve_salad: ServeSalad) -> None:
    """A name alone needs azure-identity; without it the 400 says so."""
    reply = upload(serve_salad(azure_storage_account=ACCOUNT), "chain", container="outputs")

    assert (reply.status_code, reply.json()["error"]) == (400, NO_IDENTITY)


def test_default_chain_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With azure-identity the chain's token opens URLs, and the client is given the chain."""

    class Chain:
        def get_token(self, *scopes: str, **_: Any) -> AccessToken:
            return AccessToken(f"token for {scopes[0]}", 2**40)

    module = ModuleType("azure.identity")
    module.DefaultAzureCredential = Chain  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "azure.identity", module)
    azure_access.chain.cache_clear()
    account = account_of(None, ACCOUNT, None, None)
    assert account is not None

    auth = reading(account, f"{account.base}/outputs/a.png")
    with azure._client(AzureTarget(account, "outputs"), "a.png") as client:
        assert isinstance(client.credential, Chain)
    azure_access.chain.cache_clear()

    assert auth is not None
    shown = {name: value.get_secret_value() for name, value in auth.headers}
    assert shown["Authorization"] == "Bearer token for https://storage.azure.com/.default"


@pytest.mark.parametrize(
    "url",
    [
        "https://other.blob.core.windows.net/outputs/a.png",
        f"http://{ACCOUNT}.blob.core.windows.net/outputs/a.png",
        f"https://{ACCOUNT}.blob.core.windows.net.example.com/outputs/a.png",
        f"https://{ACCOUNT}.blob.core.windows.net/outputs/a.png?sv=1&sig=own",
        f"https://{ACCOUNT}.blob.core.windows.net/outputs",
        "https://[",
    ],
)
def test_other_urls_get_nothing(url: str) -> None:
    """Neither a token nor a link goes to a URL outside the account, or to one that is signed already."""
    for key, sas in ((SecretStr(KEY), None), (None, SecretStr(SAS))):
        account = account_of(None, ACCOUNT, key, sas)
        assert account is not None
        assert reading(account, url) is None


def test_link_is_for_one_blob_and_a_day() -> None:
    """A link made with the key may read, for a day, and nothing else."""
    account = AzureAccount(ACCOUNT, f"https://{ACCOUNT}.blob.core.windows.net", key=SecretStr(KEY))

    auth = reading(account, f"{account.base}/outputs/a.png")

    assert auth is not None
    shown = {name: value.get_secret_value() for name, value in auth.query}
    until = datetime.fromisoformat(shown["se"]) - datetime.now(UTC)
    assert (shown["sp"], shown["sr"]) == ("r", "b")
    assert 0.9 < until.total_seconds() / 86_400 <= 1


def test_first_complete_credential_counts() -> None:
    """Connection string, then key, then SAS token with or without its question mark, then the name alone."""
    key, sas = SecretStr("a2V5"), SecretStr(f"?{SAS}")
    connection = SecretStr("AccountName=other1;AccountKey=b3RoZXI=;EndpointSuffix=core.chinacloudapi.cn")
    base = f"https://{ACCOUNT}.blob.core.windows.net"

    other = AzureAccount("other1", "https://other1.blob.core.chinacloudapi.cn", key=SecretStr("b3RoZXI="))
    assert account_of(connection, ACCOUNT, key, sas) == other
    assert account_of(None, ACCOUNT, key, sas) == AzureAccount(ACCOUNT, base, key=key)
    assert account_of(None, ACCOUNT, None, sas) == AzureAccount(ACCOUNT, base, sas=SecretStr(SAS))
    assert account_of(None, ACCOUNT, None, None) == AzureAccount(ACCOUNT, base)
    assert account_of(None, None, key, sas) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=devaccount1"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=devaccount1;AccountKey=never-shown!"),
        ("AZURE_STORAGE_CONNECTION_STRING", f"BlobEndpoint=ftp://x;SharedAccessSignature={SAS}"),
        ("AZURE_STORAGE_KEY", "never-shown!"),
        ("AZURE_STORAGE_ACCOUNT", "evil.example.com/"),
    ],
)
def test_wrong_settings_stop_the_start(name: str, text: str) -> None:
    """A value that cannot be meant is named at the start, without a secret."""
    with pytest.raises(ConfigInvalid) as caught:
        load({name: text})

    assert name in str(caught.value.problems)
    assert "never-shown" not in str(caught.value.problems)


def test_key_in_a_connection_string_is_masked() -> None:
    """The secret parts are masked by themselves too, not only the whole string."""
    text = f"AccountName={ACCOUNT};AccountKey={KEY}"

    assert {text, KEY} <= set(load({"AZURE_STORAGE_CONNECTION_STRING": text}).secrets())


def test_sas_of_a_request_wins(cloud: Served, blobs: AzureDesk) -> None:
    """A SAS token in the URL of an input is what is shown; the account adds nothing."""
    blobs.blobs[f"/{ACCOUNT}/outputs/a.png"] = Blob(png((4, 4), (9, 9, 9)), "image/png")
    url = f"{blobs.url}/outputs/a.png?{SAS}"

    assert cloud.post("/prompt", {"prompt": invert_workflow(url)}).status_code == 200
    assert parse_qs(urlsplit(url).query) == blobs.asked[0].query


def test_salad_s41_account_at_a_private_address(serve_salad: ServeSalad, blobs: AzureDesk) -> None:
    """The operator's own endpoint takes uploads; a request's URL into the same network is judged as any other."""
    connection = SecretStr(blobs.by_key())
    served = serve_salad(azure_storage_connection_string=connection, allow_private_urls=False)

    up = upload(served, "s41", container="outputs")
    down = served.post("/prompt", {"prompt": invert_workflow(f"{blobs.url}/outputs/s41_out_00001_.png")})

    assert (up.status_code, down.status_code) == (200, 400)
    assert "not a public address" in down.json()["error"]
    assert [asked.method for asked in blobs.asked] == ["PUT"]
