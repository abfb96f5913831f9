"""
The map of secrets: every place where one can be, and the only places where it may come out again.

Each job below carries all the secrets that it can, and ends in another way. Whatever comes out of the worker is searched
for them: the log at DEBUG with its tracebacks, the reply, the events, and what is posted as progress.
"""

import asyncio
import base64
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from conftest import WorkerFactory, launch_of
from pydantic import SecretStr
from storage import sigv4
from support.pictures import empty_workflow, node, png

from comfy_worker import log
from comfy_worker.faces.runpod import RunpodFace
from comfy_worker.job import Event, Job, Observer
from comfy_worker.parse import Rules
from comfy_worker.pool import Ticket
from comfy_worker.standin.thread import EngineThread
from comfy_worker.wiring import Worker

PICTURE = png((4, 4), (1, 2, 3))

# place -> (the secret that stands there, where it may come out). Nowhere else, and `nothing` means nowhere at all.
# url: in the presigned URLs of `data`, which are made of it. picture: in the metadata of the caller's own picture,
# where ComfyUI writes the workflow. header: in the header by which the worker proves itself to the job API.
NOTHING: frozenset[str] = frozenset()
MAP: Mapping[str, tuple[str, frozenset[str]]] = {
    "COMFY_ORG_API_KEY": ("operator-comfy-org-key-5f1c", NOTHING),
    "BUCKET_ACCESS_KEY_ID": ("operator-access-key-id-77aa", frozenset({"url"})),
    "BUCKET_SECRET_ACCESS_KEY": ("operator-secret-access-key-0b3e", NOTHING),
    "RUNPOD_AI_API_KEY": ("operator-runpod-key-91dd", frozenset({"header"})),
    "RUNPOD_WEBHOOK_POST_OUTPUT": ("operator-webhook-token-2c8f", NOTHING),
    "input.comfy_org_api_key": ("job-comfy-org-key-a1b2", NOTHING),
    "input.api_key_comfy_org": ("job-other-comfy-org-key-c3d4", NOTHING),
    "s3Config.accessId": ("job-access-id-e5f6", frozenset({"url"})),
    "s3Config.accessSecret": ("job-access-secret-0718", NOTHING),
    "s3Config.sessionToken": ("job-session-token-2930", frozenset({"url"})),
    "s3.access_key_id": ("job-block-key-id-4a5b", frozenset({"url"})),
    "s3.secret_access_key": ("job-block-secret-6c7d", NOTHING),
    "s3.session_token": ("job-block-token-8e9f", frozenset({"url"})),
    "workflow api_key": ("sk-node-api-key-1a2b3c", frozenset({"picture"})),
    "workflow Authorization": ("node-bearer-token-4d5e6f7a8b", frozenset({"picture"})),
    "images URL query": ("images-url-signature-13", NOTHING),
    "images URL user": ("images-url-password-57", NOTHING),
    "files URL query": ("files-url-signature-79", NOTHING),
    "workflow URL query": ("workflow-url-signature-24", NOTHING),
    "workflow URL user": ("workflow-url-password-68", NOTHING),
}
SECRET = {place: secret for place, (secret, _) in MAP.items()}
OPERATOR = {
    "comfy_org_api_key": SecretStr(SECRET["COMFY_ORG_API_KEY"]),
    "runpod_ai_api_key": SecretStr(SECRET["RUNPOD_AI_API_KEY"]),
    "websocket_trace": True,
    "progress_updates": True,
}


@dataclass
class Outside:
    """
    Everything that came out of a worker, by the channel it came through.
    """

    log: io.StringIO = field(default_factory=io.StringIO)
    replies: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    posts: list[tuple[str, str, str]] = field(default_factory=list)
    api: str = ""
    s3: str = ""
    web: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    def channels(self) -> Iterator[tuple[str, str]]:
        """
        Yield what came out as texts; the channel says what it may hold.
        """
        yield "log", self.log.getvalue()
        yield "events", json.dumps([asdict(event) for event in self.events])
        for headers, _path, body in self.posts:
            yield "header", headers
            yield "posts", body
        for reply in self.replies:
            for entry in (*reply.get("images", ()), *reply.get("videos", ()), *reply.get("files", ())):
                if entry["type"] == "s3_url":
                    yield "url", entry["data"]
                else:
                    yield "picture", base64.b64decode(entry["data"]).decode("latin-1")
            yield (
                "reply",
                json.dumps(reply | {"images": [entry | {"data": ""} for entry in reply.get("images", ())]}),
            )

    def leaks(self) -> list[str]:
        """
        Return the secrets that came out where they must not.
        """
        return [
            f"{place} in {channel}"
            for channel, text in self.channels()
            for place, (secret, may) in MAP.items()
            if secret in text and channel not in may
        ]

    def seen(self, place: str, channel: str) -> bool:
        """
        Tell whether a secret came out through a channel.
        """
        return any(SECRET[place] in text for name, text in self.channels() if name == channel)


def handler_of(outside: Outside) -> type[BaseHTTPRequestHandler]:
    """
    Return a server that keeps what is posted, and gives out pictures.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            outside.posts.append((str(self.headers), self.path, body))
            self._answer(200, b"{}")

        def do_GET(self) -> None:
            self._answer(200, PICTURE) if "good" in self.path else self._answer(403, b"<Error>denied</Error>")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def outside() -> Iterator[Outside]:
    """
    The world around a worker: its log, the job API, an object store, and a web server.
    """
    outside = Outside()
    former = (log.logger.handlers[:], log.logger.level, log.logger.propagate)
    log.configure("DEBUG", as_json=True, stream=outside.log)
    root = logging.StreamHandler(outside.log)
    root.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(outside))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="world")
    thread.start()
    with ExitStack() as stack:
        outside.s3 = stack.enter_context(sigv4.served(sigv4.SigV4(sigv4.sink, outside.keys)))
        outside.web = f"http://127.0.0.1:{server.server_port}"
        outside.api = (
            f"{outside.web}/job-stream/$RUNPOD_POD_ID/$ID?key={SECRET['RUNPOD_WEBHOOK_POST_OUTPUT']}"
        )
        yield outside
    server.shutdown()
    thread.join(10)
    server.server_close()
    logging.getLogger().removeHandler(root)
    log.logger.handlers[:], log.logger.propagate = former[0], former[2]
    log.logger.setLevel(former[1])


WorkerOf = Callable[..., Worker]


@pytest.fixture
def worker_of(outside: Outside, engine: EngineThread, make_worker: WorkerFactory) -> WorkerOf:
    """
    Make workers that have every secret of an operator: `worker_of(bucket=True, ...)`.
    """

    def make(*, bucket: bool = False, **fields: Any) -> Worker:
        if bucket:
            fields |= {
                "bucket_endpoint_url": outside.s3,
                "bucket_access_key_id": SECRET["BUCKET_ACCESS_KEY_ID"],
                "bucket_secret_access_key": SecretStr(SECRET["BUCKET_SECRET_ACCESS_KEY"]),
                "bucket_name": "pictures",
            }
        return make_worker(launch_of(engine), **OPERATOR, runpod_webhook_post_output=outside.api, **fields)

    return make


def workflow() -> dict[str, Any]:
    """
    Return a workflow with secrets in a node that does not mind.
    """
    graph = empty_workflow()
    graph["1"]["inputs"] |= {
        "api_key": SECRET["workflow api_key"],
        "headers": json.dumps({"Authorization": f"Bearer {SECRET['workflow Authorization']}"}),
    }
    return graph


def job(
    job_id: str, graph: dict[str, Any] | None = None, envelope: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """
    Return a job with both spellings of the key.
    """
    keys = {
        "comfy_org_api_key": SECRET["input.comfy_org_api_key"],
        "api_key_comfy_org": SECRET["input.api_key_comfy_org"],
    }
    return {"id": job_id, "input": {"workflow": graph or workflow(), **keys, **fields}, **(envelope or {})}


def s3_config(outside: Outside) -> dict[str, Any]:
    """
    Return a job's own bucket as RunPod spells it.
    """
    names = ("accessId", "accessSecret", "sessionToken")
    keys = {name: SECRET[f"s3Config.{name}"] for name in names}
    return {**keys, "bucketName": "mine", "endpointUrl": outside.s3}


def s3_block(outside: Outside) -> dict[str, Any]:
    """
    Return a job's own bucket as Vast spells it.
    """
    names = ("access_key_id", "secret_access_key", "session_token")
    keys = {name: SECRET[f"s3.{name}"] for name in names}
    return {**keys, "bucket_name": "mine", "endpoint_url": outside.s3}


def run(worker: Worker, outside: Outside, raw: Mapping[str, Any]) -> dict[str, Any]:
    """
    Run a job, and keep what comes out.
    """
    reply = asyncio.run(worker.face.handle(raw, outside.events.append))
    outside.replies.append(reply)
    return reply


def test_map_is_what_the_test_believes() -> None:
    """No secret may be part of another, or a leak of one could hide behind the other."""
    assert not [(one, two) for one in SECRET.values() for two in SECRET.values() if one != two and one in two]


def test_good_jobs_keep_their_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A job that succeeds must bring out its keys in the picture's own metadata only."""
    worker = worker_of()
    for raw in (
        job("good"),
        {**job("text"), "input": json.dumps(job("text")["input"])},
        job("dry", dry_run=True),
    ):
        assert "error" not in run(worker, outside, raw)

    assert outside.leaks() == []
    assert outside.seen("workflow api_key", "picture")


def test_texts_of_nodes_keep_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A text output that repeats a key must come back without it."""
    said = f"the key {SECRET['input.comfy_org_api_key']} and {SECRET['COMFY_ORG_API_KEY']}"
    graph = {"1": node("PrimitiveString", value=said), "2": node("PreviewAny", source=("1", 0))}

    reply = run(worker_of(), outside, job("text", graph))

    assert reply["text"] == [{"node_id": "2", "text": "the key *** and ***"}]
    assert outside.leaks() == []


def test_bucket_of_the_operator_keeps_its_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A presigned URL must hold the key id that it is made of, in `data` alone."""
    outside.keys[SECRET["BUCKET_ACCESS_KEY_ID"]] = SECRET["BUCKET_SECRET_ACCESS_KEY"]

    assert "error" not in run(worker_of(bucket=True), outside, job("bucket"))

    assert outside.leaks() == []
    assert outside.seen("BUCKET_ACCESS_KEY_ID", "url")


def test_buckets_of_jobs_keep_their_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """The same for a job's own bucket in each of its places."""
    for place in ("s3Config.access", "s3.access_key"):
        kind = "Id" if "Config" in place else "_id"
        secret = "s3Config.accessSecret" if "Config" in place else "s3.secret_access_key"
        outside.keys[SECRET[f"{place}{kind}"]] = SECRET[secret]
    worker = worker_of(bucket=True)
    raws = (
        job("envelope", envelope={"s3Config": s3_config(outside)}),
        job("input", s3Config=s3_config(outside)),
        job("block", s3=s3_block(outside)),
    )

    for raw in raws:
        assert "error" not in run(worker, outside, raw)

    assert outside.leaks() == []
    for place in ("s3Config.accessId", "s3Config.sessionToken", "s3.access_key_id", "s3.session_token"):
        assert outside.seen(place, "url")


def test_buckets_that_refuse_keep_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A store that refuses, and repeats the request's headers while it does, must not be repeated by us."""
    worker = worker_of(bucket=True)
    raws = (
        job("operator"),
        job("envelope", envelope={"s3Config": s3_config(outside)}),
        job("block", s3=s3_block(outside)),
    )

    for raw in raws:
        assert run(worker, outside, raw)["error_code"] == "delivery_failed"

    assert outside.leaks() == []


def test_invalid_jobs_keep_their_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A refusal must name the field and never its neighbours' values, however early it comes."""
    worker = worker_of()
    config, block = s3_config(outside), s3_block(outside)
    secret = SECRET["input.comfy_org_api_key"]
    raws = [
        job("no-graph", {"1": secret}),
        {**job("no-workflow"), "input": {**job("x")["input"], "workflow": None}},
        job("typo", envelope={"s3Config": config}, s3configs=config, workflo=secret),
        job("image", images=[{"name": secret, "image": 5}]),
        job("image-name", images=[{"name": f"../{secret}", "image": "x"}]),
        job("image-text", images=[{"name": f"{secret}.png", "image": secret}]),
        job("timeout", timeout_s=secret),
        job("convert", convert_output={"format": secret}),
        job("convert-key", convert_output={secret: 1}),
        job("prefix", empty_workflow(prefix=f"../{secret}")),
        job("key-list", api_key_comfy_org=[SECRET["input.api_key_comfy_org"]], comfy_org_api_key=None),
        *(job(f"config-{key}", envelope={"s3Config": {**config, key: None}}) for key in config),
        *(job(f"block-{key}", s3={**block, key: 5}) for key in block),
        job("endpoint", s3Config={**config, "endpointUrl": f"https://u:{config['accessSecret']}@10.0.0.1"}),
        job("private", s3Config={**config, "endpointUrl": "https://10.0.0.1"}),
    ]

    failed = [raw["id"] for raw in raws if "error" in run(worker, outside, raw)]

    assert len(failed) >= len(raws) - 3
    assert outside.leaks() == []


@pytest.mark.parametrize("allowed", [False, True])
def test_urls_keep_their_secrets(worker_of: WorkerOf, outside: Outside, allowed: bool) -> None:
    """A URL's user, password and query must not come out: when it is fetched, refused, not found, or odd."""
    worker = worker_of(allow_private_urls=allowed)
    host = outside.web.removeprefix("http://")
    image, user = SECRET["images URL query"], SECRET["images URL user"]
    query, password = SECRET["workflow URL query"], SECRET["workflow URL user"]
    loading = {
        "1": node("LoadImage", image="x.png"),
        "2": node("SaveImage", images=("1", 0), filename_prefix="x"),
    }

    def graph(url: str) -> dict[str, Any]:
        return {**loading, "1": node("LoadImage", image=url)}

    raws = [
        job("good", loading, images=[{"name": "x.png", "image": f"{outside.web}/good?sig={image}"}]),
        job("good-graph", graph(f"{outside.web}/good?sig={query}")),
        job("bad", loading, images=[{"name": "x.png", "image": f"{outside.web}/bad?sig={image}"}]),
        job("bad-graph", graph(f"{outside.web}/bad?sig={query}#{query}")),
        job("user", loading, images=[{"name": "x.png", "image": f"http://{user}:{user}@{host}/good"}]),
        job("user-graph", graph(f"http://u:{password}@{host}/good")),
        job("odd", loading, images=[{"name": "x.png", "image": f"http://[::1/{user}?{image}"}]),
        job("odd-port", graph(f"http://u:{password}@h:port/?{query}")),
        job(
            "file",
            loading,
            files=[{"name": "x.png", "url": f"{outside.web}/bad?sig={SECRET['files URL query']}"}],
        ),
        job(
            "file-s3",
            loading,
            files=[{"name": "x.png", "url": f"s3://k:{user}@b/x?{SECRET['files URL query']}"}],
        ),
        job("not-a-file", {**loading, "1": node("EmptyImage", width=f"http://u:{password}@h/?{query}")}),
    ]

    failed = [raw["id"] for raw in raws if "error" in run(worker, outside, raw)]

    assert len(failed) == (9 if allowed else 11)
    assert outside.leaks() == []


def test_failing_nodes_keep_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """What a node says when it fails, and what ComfyUI says of a wrong value, must come out without keys."""
    worker = worker_of()
    node_key = SECRET["workflow api_key"]
    said = f"401 for https://u:{SECRET['workflow URL user']}@api.example/?{SECRET['workflow URL query']}: {node_key}"
    said += f" {SECRET['input.comfy_org_api_key']} Authorization: Bearer {SECRET['workflow Authorization']}"
    saved = node("SaveImage", images=("1", 0), filename_prefix="x")
    raws = [
        job("raises", {"1": node("StandinRaise", message=said, api_key=node_key), "2": saved}),
        job("refused", {"1": node("StandinFailValidation", message=said, api_key=node_key), "2": saved}),
        job("value", {"1": node("EmptyImage", width=node_key, api_key=node_key), "2": saved}),
        job("class", {"1": node(node_key, api_key=node_key), "2": saved}),
        job("dry", {"1": node("EmptyImage", width=node_key, api_key=node_key), "2": saved}, dry_run=True),
        job("half", {**workflow(), "9": node("SaveImage", images=node_key, api_key=node_key)}),
        job("strict", {**workflow(), "9": node("SaveImage", images=node_key, api_key=node_key)}, strict=True),
    ]

    failed = [raw["id"] for raw in raws if "error" in run(worker, outside, raw)]

    assert failed == ["raises", "refused", "value", "class", "dry", "strict"]
    assert outside.leaks() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"post_status": 400},
        {"post_status": 500},
        {"lost_but_200": True},
        {"queued_but_500": True},
        {"delete_outputs_after_run": True},
        {"close_socket_after_frame": 1},
    ],
)
def test_failing_comfyui_keeps_secrets(
    worker_of: WorkerOf, outside: Outside, engine: EngineThread, faults: dict[str, Any]
) -> None:
    """However ComfyUI fails, nothing of the job's keys may be told."""
    worker = worker_of()
    requests.post(f"{engine.url}/standin/faults", json=faults, timeout=5)
    try:
        run(worker, outside, job(f"fault-{next(iter(faults))}"))
    finally:
        requests.post(f"{engine.url}/standin/faults", json={}, timeout=5)

    assert outside.leaks() == []


@pytest.mark.slow
def test_timeouts_and_progress_keep_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A job that runs out of time, and the progress posted meanwhile, must hold no secret but the header's."""
    graph = {
        **workflow(),
        "3": node("StandinSleep", seconds=20, steps=200, any=("1", 0)),
        "4": node("SaveImage", images=("3", 0), filename_prefix="x"),
    }

    reply = run(worker_of(), outside, job("slow", graph, timeout_s=1.5))

    assert reply["error_code"] == "job_timed_out"
    assert outside.posts
    assert outside.seen("RUNPOD_AI_API_KEY", "header")
    assert outside.leaks() == []


def test_cancelled_job_keeps_secrets(worker_of: WorkerOf, outside: Outside) -> None:
    """A job that is taken back must leave no secret in the log."""
    graph = {
        **workflow(),
        "3": node("StandinSleep", seconds=20, steps=200, any=("1", 0)),
        "4": node("SaveImage", images=("3", 0), filename_prefix="x"),
    }
    worker = worker_of()

    async def cancelled() -> None:
        running = asyncio.ensure_future(worker.face.handle(job("cancelled", graph), outside.events.append))
        while not any(event.kind == "running" for event in outside.events):
            await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())

    assert outside.leaks() == []


def test_fault_of_the_worker_is_logged_without_secrets(outside: Outside) -> None:
    """A traceback and the exceptions that led to it must be masked like any other line, and not be replied."""

    def submit(job: Job, observe: Observer) -> Ticket:
        try:
            raise KeyError(SECRET["input.comfy_org_api_key"])
        except KeyError as exc:
            raise ValueError(f"http://u:{SECRET['images URL user']}@h/?{SECRET['images URL query']}") from exc

    face = RunpodFace(submit, Rules(), (1_000_000, 1_000_000))
    reply = asyncio.run(face.handle(job("fault")))
    outside.replies.append(reply)

    assert reply["error_code"] == "worker_error"
    assert "Traceback" in outside.log.getvalue()
    assert "Traceback" not in json.dumps(reply)
    assert outside.leaks() == []
