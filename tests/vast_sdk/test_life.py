"""
A PyWorker from its start to its end: what must be there before it is loaded, what it reports, how it leaves.
"""

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support.vast_autoscaler import Autoscaler
from support.vast_model_server import ModelServer
from support.vast_pyworker import MASTER_TOKEN, act
from vast_sdk.conftest import PyWorkerFactory

UNREADY = {
    "status": "unhealthy",
    "backends": [{"http_ok": False, "http_error": "Connection refused: ComfyUI"}],
}
GRAPH = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 1}},
    "2": {"class_type": "Noise", "inputs": {"noise_seed": 6, "text": "seed"}},
}


def jobs(model_server: ModelServer) -> list[dict[str, Any]]:
    """
    Return the jobs that the benchmark ran.
    """
    return [body["input"] for route, body, _ in model_server.seen if route == "/generate/sync"]


def test_score_is_what_the_job_takes(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    A job of one second scores 100 within a tenth; before, the worker reports itself as loading.
    """
    model_server.act = {"seconds": 1.0}

    last = make_pyworker().loaded() and autoscaler.last

    assert last["max_perf"] == pytest.approx(100, rel=0.1)
    assert (last["id"], last["mtoken"], last["error_msg"]) == (7, MASTER_TOKEN, "")
    assert (autoscaler.statuses[0]["loadtime"], last["loadtime"] > 3.5) == (0.0, True)
    assert len(jobs(model_server)) == 1 + 3


def test_load_is_reported_while_a_job_runs_and_its_end_afterwards(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    The router hears of the load of 100, what was served, and that the request has ended.
    """
    worker = make_pyworker().loaded()
    envelope = worker.envelope(act(seconds=1.5))
    index = envelope["auth_data"]["request_idx"]

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(worker.send, "/generate/sync", envelope)
        autoscaler.wait(lambda: autoscaler.last["cur_load"] == 100)
        assert autoscaler.last["working_request_idxs"] == [index]
        assert reply.result().status_code == 200

    autoscaler.wait(lambda: autoscaler.ended.get(index) == "Success")
    autoscaler.wait(lambda: autoscaler.last["cur_load"] == 0)
    assert sum(status["cur_perf"] for status in autoscaler.statuses) == 100


def test_slow_benchmark_runs_less_often(make_pyworker: PyWorkerFactory, model_server: ModelServer) -> None:
    """
    When the first run took long, as many follow as fit the time, at least one.
    """
    model_server.act = {"seconds": 0.6}

    make_pyworker(VAST_BENCHMARK_RUNS="5", VAST_BENCHMARK_MAX_S="1.5").loaded()

    assert len(jobs(model_server)) == 1 + 2


def test_score_of_the_last_start_is_used(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    The same benchmark is not run a second time.
    """
    make_pyworker(score=12.5).loaded()

    assert autoscaler.last["max_perf"] == 12.5
    assert jobs(model_server) == []


@pytest.mark.parametrize("kept", ["", "12.5"])
def test_score_of_nobody_knows_what_is_measured_anew(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, tmp_path: Path, kept: str
) -> None:
    """
    A broken score, or one without what it was measured with, is removed instead of failing or deceiving the start.
    """
    (tmp_path / "worker-0" / "cwd").mkdir(parents=True)
    (tmp_path / "worker-0" / "cwd" / ".has_benchmark").write_text(kept)

    make_pyworker().loaded()

    assert autoscaler.last["max_perf"] > 100


def test_vast_36_benchmark_that_fails_names_its_reason(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    A missing checkpoint is reported as that; there is no score, and the process stays to say so.
    """
    model_server.act = {
        "status": 422,
        "message": "Node 4: v1-5.safetensors is not in the list of checkpoints",
    }

    worker = make_pyworker()
    error = autoscaler.wait_error()

    assert "v1-5.safetensors is not in the list of checkpoints" in error
    assert "HTTP 422" in error
    assert "BENCHMARK_JSON_PATH" in error
    assert autoscaler.last["max_perf"] == 0
    assert requests.get(f"{worker.url}/ping", timeout=10).ok
    assert not (worker.cwd / ".has_benchmark").exists()


def test_vast_36_benchmark_waits_for_a_stack_that_is_ready(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    No job is sent before `/health` is good, however long that takes.
    """
    model_server.health = (503, UNREADY)
    make_pyworker()
    autoscaler.wait(lambda: autoscaler.statuses)

    before = list(model_server.began)
    model_server.health = (200, {})
    autoscaler.wait_loaded()

    assert before == []
    assert len(jobs(model_server)) == 4


def test_comfyui_that_never_comes_is_named(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    After the time for it, what the model server last said is the error.
    """
    model_server.health = (503, UNREADY)

    make_pyworker(VAST_READY_TIMEOUT_S="1")

    assert "was not ready within 1 s: Connection refused: ComfyUI" in autoscaler.wait_error()
    assert model_server.began == []


def test_model_server_that_is_not_there_is_named(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    An address where nobody listens is named.
    """
    make_pyworker(VAST_READY_TIMEOUT_S="1", MODEL_SERVER_URL="http://127.0.0.1:9")

    assert "http://127.0.0.1:9 does not answer" in autoscaler.wait_error()


def test_gpu_that_failed_for_good_is_not_waited_for(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    A latched fault of the GPU is reported at once.
    """
    gpu = {"unrecoverable": True, "reason": "device-side assert triggered"}
    model_server.health = (503, {"status": "unhealthy", "gpu": gpu})

    make_pyworker()

    assert "device-side assert triggered" in autoscaler.wait_error()


def test_vast_35_worker_is_loaded_only_with_the_public_key(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    While the key cannot be had nothing runs; the first request after the start is let in.
    """
    autoscaler.fail("/pubkey/", 3)

    worker = make_pyworker().loaded()
    reply = worker.post("/generate/sync", act())

    assert reply.status_code == 200
    assert autoscaler.asked.count("/pubkey/") >= 4
    assert autoscaler.asked.index("/worker_status/") > 3


def test_list_of_addresses_is_understood(make_pyworker: PyWorkerFactory, autoscaler: Autoscaler) -> None:
    """
    The key comes from the first address that gives it, although the SDK takes the list for one address.
    """
    addresses = f"https://cloud.vast.ai/api/v0,http://127.0.0.1:9,{autoscaler.url}"

    worker = make_pyworker(REPORT_ADDR=addresses)
    autoscaler.wait(lambda: "/pubkey/" in autoscaler.asked)
    worker.autoscaler.wait(lambda: worker.post("/generate/sync", act()).status_code == 200)

    assert worker.text.count("127.0.0.1:9/pubkey/ does not answer") == 1


def test_vast_34_sigterm_lets_the_running_job_end(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    The job's reply still comes, the router hears of it, new ones are refused, the lifecycle is left, the code is 0.
    """
    worker = make_pyworker().loaded()
    envelope = worker.envelope(act(seconds=2))

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(worker.send, "/generate/sync", envelope)
        autoscaler.wait(lambda: autoscaler.last["cur_load"] == 100)
        worker.tell()
        autoscaler.wait(lambda: "Stopping" in worker.text)
        with pytest.raises(requests.ConnectionError):
            worker.post("/generate/sync", act())
        assert reply.result().status_code == 200

    assert worker.wait() == 0
    assert autoscaler.ended[envelope["auth_data"]["request_idx"]] == "Success"
    assert "This worker takes no more requests" in worker.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_vast_34_job_longer_than_the_grace_is_cancelled(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer, number: signal.Signals
) -> None:
    """
    What does not end in time is cancelled at the model server, and the worker leaves with 0 all the same.
    """
    worker = make_pyworker(SHUTDOWN_GRACE_S="0.3").loaded()

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(worker.post, "/generate/sync", act(seconds=60))
        autoscaler.wait(lambda: act(seconds=60) in model_server.began)
        worker.tell(number)
        assert worker.wait() == 0
        assert reply.exception() is not None or reply.result().status_code != 200

    autoscaler.wait(lambda: act(seconds=60) in model_server.left)


def test_vast_34_worker_that_is_still_loading_leaves_at_once(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    A stop during the start waits for nothing.
    """
    model_server.health = (503, UNREADY)
    worker = make_pyworker()
    autoscaler.wait(lambda: autoscaler.statuses)

    worker.tell()

    assert worker.wait(10.0) == 0


def test_vast_34_worker_without_a_key_leaves_at_once(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    A stop while the key is waited for waits for nothing.
    """
    autoscaler.fail("/pubkey/", 1000)
    worker = make_pyworker()
    autoscaler.wait(lambda: "/pubkey/" in autoscaler.asked)

    worker.tell()

    assert worker.wait(10.0) == 0


def test_vast_40_second_start_says_that_the_port_is_taken(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    The second PyWorker ends with one sentence and a code, and spoils nothing of the first.
    """
    first = make_pyworker().loaded()

    second = make_pyworker(port=first.port)  # type: ignore[arg-type]

    assert second.wait(20.0) == 1
    assert f"Port {first.port} is taken: another PyWorker runs here already" in second.text
    assert "Traceback" not in second.text
    assert first.post("/generate/sync", act()).status_code == 200
    assert {status["error_msg"] for status in autoscaler.statuses} == {""}


def test_start_that_fails_is_reported_until_told_to_stop(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, tmp_path: Path
) -> None:
    """
    A certificate that is none is the router's to know, and ends the worker with 1.
    """
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")

    worker = make_pyworker(USE_SSL="true", VAST_TLS_CERTIFICATE=str(broken), VAST_TLS_KEY=str(broken))
    error = autoscaler.wait_error()
    worker.tell()

    assert error.startswith("Worker Server failed to launch: The certificate")
    assert autoscaler.last["id"] == 7
    assert worker.wait() == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('half installed')", "RuntimeError: half installed"),
        ("import no_such_package", "No module named 'no_such_package'). Install comfy-worker[vast]"),
    ],
)
def test_broken_sdk_is_reported(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, tmp_path: Path, body: str, reason: str
) -> None:
    """
    Whatever the SDK raises on its way is the router's to know, although it is the SDK that reports otherwise.
    """
    (tmp_path / "fake" / "vastai").mkdir(parents=True)
    (tmp_path / "fake" / "vastai" / "__init__.py").write_text(body)

    worker = make_pyworker(PYTHONPATH=str(tmp_path / "fake"))

    assert reason in autoscaler.wait_error()
    worker.tell()
    assert worker.wait() == 1


def test_legacy_template_without_a_model_names_the_two(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler
) -> None:
    """
    BACKEND=comfyui needs COMFY_MODEL: the router and the log say which there are.
    """
    worker = make_pyworker(BACKEND="comfyui")
    error = autoscaler.wait_error()
    worker.tell()

    assert "COMFY_MODEL must be flux or sd3" in error
    assert "COMFY_MODEL must be flux or sd3" in worker.text
    assert worker.wait() == 2


def test_what_vast_sets_is_named_where_it_is_missing(make_pyworker: PyWorkerFactory) -> None:
    """
    Without the variables of an instance there is nobody to report to: each is named, and the code is 2.
    """
    worker = make_pyworker(CONTAINER_ID="", PUBLIC_IPADDR="")

    assert worker.wait(20.0) == 2
    assert "CONTAINER_ID is not set" in worker.text
    assert "PUBLIC_IPADDR is not set" in worker.text


def test_legacy_worker_counts_in_its_own_unit(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    With COMFY_MODEL the benchmark is `/prompt` at 1024 x 1024 in 28 steps, 4600 for flux, and other jobs count the same.
    """
    model_server.act = {"seconds": 0.5}

    worker = make_pyworker(BACKEND="comfyui", COMFY_MODEL="flux").loaded()
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(worker.post, "/generate/sync", act(seconds=1.5))
        autoscaler.wait(lambda: autoscaler.last["cur_load"] == 4600)
        reply.result()

    prompts = [body for route, body, _ in model_server.seen if route == "/prompt"]
    assert autoscaler.statuses[0]["loadtime"] == 0
    assert autoscaler.last["max_perf"] == pytest.approx(4600 / 0.5, rel=0.3)
    assert [(body["width"], body["height"], body["steps"]) for body in prompts] == [(1024, 1024, 28)] * 4
    assert len({body["seed"] for body in prompts}) == 4


def test_vast_37_own_workflow_is_the_benchmark(
    make_pyworker: PyWorkerFactory, model_server: ModelServer, tmp_path: Path
) -> None:
    """
    One variable makes the operator's workflow the benchmark, with ids that are UUIDs.
    """
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GRAPH))

    make_pyworker(BENCHMARK_JSON_PATH=str(path)).loaded()

    ran = jobs(model_server)
    assert len(ran) == 4
    assert {job["workflow_json"]["1"]["class_type"] for job in ran} == {"KSampler"}
    assert {len(job["request_id"]) for job in ran} == {36}


def test_vast_37_own_template_is_the_benchmark(
    make_pyworker: PyWorkerFactory, model_server: ModelServer
) -> None:
    """
    One variable makes the operator's template the benchmark.
    """
    make_pyworker(VAST_BENCHMARK_TEMPLATE="Mine").loaded()

    assert [job["modifier"] for job in jobs(model_server)] == ["Mine"] * 4
    assert jobs(model_server)[0]["modifications"] == {"seed": "__RANDOM_INT__"}


def test_vast_38_each_run_of_a_workflow_has_its_own_seeds(
    make_pyworker: PyWorkerFactory, model_server: ModelServer, tmp_path: Path
) -> None:
    """
    No run is answered from ComfyUI's cache: whole-number seeds differ each time, and nothing else does.
    """
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GRAPH))

    make_pyworker(BENCHMARK_JSON_PATH=str(path)).loaded()

    graphs = [job["workflow_json"] for job in jobs(model_server)]
    assert len({graph["1"]["inputs"].pop("seed") for graph in graphs}) == 4
    assert len({graph["2"]["inputs"].pop("noise_seed") for graph in graphs}) == 4
    assert all(graph == graphs[0] for graph in graphs)


def test_requests_come_over_tls(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, tmp_path: Path
) -> None:
    """
    With USE_SSL the certificate's files are used and the reported address says https.
    """
    certificate, key = tmp_path / "crt", tmp_path / "key"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"], *subject, *files],
        check=True,
        capture_output=True,
    )

    worker = make_pyworker(
        USE_SSL="true", VAST_TLS_CERTIFICATE=str(certificate), VAST_TLS_KEY=str(key)
    ).loaded()
    address = worker.url.replace("http://", "https://")
    reply = requests.post(
        f"{address}/generate/sync", json=worker.envelope(act()), verify=str(certificate), timeout=30
    )

    assert reply.status_code == 200
    assert autoscaler.last["url"] == address


def test_sdk_has_what_is_taken_from_it(vast_python: Path) -> None:
    """
    The private names that the PyWorker leans on are in the installed SDK.
    """
    program = (
        "from vastai.serverless.server.lib.backend import Backend as B; import inspect;"
        "print(inspect.iscoroutinefunction(B._start_tracking), '_pubkey' in inspect.getsource(B.__post_init__))"
    )

    ran = subprocess.run([str(vast_python), "-c", program], capture_output=True, text=True, check=False)

    assert ran.stdout.split() == ["True", "True"], ran.stderr


@pytest.mark.slow
def test_health_that_turns_bad_is_the_routers_to_know(
    make_pyworker: PyWorkerFactory, autoscaler: Autoscaler, model_server: ModelServer
) -> None:
    """
    The SDK asks on; a bad answer after the first good one is reported.
    """
    make_pyworker().loaded()
    began = time.monotonic()

    model_server.health = (503, UNREADY)

    assert "Healthcheck failed with status: 503" in autoscaler.wait_error()
    assert time.monotonic() - began < 30
