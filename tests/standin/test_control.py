"""
Queue, history, jobs and the rest of the HTTP side that recordings alone do not pin down.
"""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests

from comfy_worker.standin.thread import EngineThread

from .client import Client
from .gate import Gate, chain, picture

OLD = {"profile": "0.3"}
CYCLE = {
    "1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


def _ids(rows: list[list[Any]]) -> list[str]:
    return [row[1] for row in rows]


def test_pending_prompts_can_be_deleted_and_running_ones_cannot(client: Client, gate: Gate) -> None:
    """
    A deleted prompt vanishes without history; each real change is one status, two when the only pending one goes.
    """
    socket = client.socket()
    running = client.queue(chain("Gate"), "a")
    gate.entered.wait(5)
    pending = [client.queue(picture(str(index)), "a") for index in range(3)]

    client.post("/queue", {"delete": [pending[1], running, "unknown"]})
    left = client.get("/queue").json()
    client.post("/queue", {"clear": True})
    gate.open.set()
    client.history(running)

    assert _ids(left["queue_running"]) == [running]
    assert sorted(_ids(left["queue_pending"])) == sorted([pending[0], pending[2]])
    assert client.get(f"/history/{pending[1]}").json() == {}
    socket.until(lambda message: message["type"] == "status" and _remaining(message) == 0)
    counts = [
        _remaining(frame) for frame in socket.frames if isinstance(frame, dict) and frame["type"] == "status"
    ]
    assert counts == [0, 1, 1, 2, 3, 4, 3, 1, 0]


def _remaining(message: dict[str, Any]) -> int:
    return int(message["data"]["status"]["exec_info"]["queue_remaining"])


def test_front_and_small_numbers_overtake(client: Client, gate: Gate) -> None:
    """
    Smaller numbers run first; `front` makes a number smaller than all given so far.
    """
    first = client.queue(chain("Gate"), "a")
    gate.entered.wait(5)
    late = client.queue(picture("late"), "a", number=99)
    usual = client.queue(picture("usual"), "a")
    front = client.queue(picture("front"), "a", front=True)

    gate.open.set()
    client.history(late)

    assert list(client.get("/history").json()) == [first, front, usual, late]


def test_the_same_id_and_number_twice_is_500_and_runs_all_the_same(client: Client, gate: Gate) -> None:
    """
    The reply lies: both are queued, and history shows the one that ran last.
    """
    running = client.queue(chain("Gate"), "a")
    gate.entered.wait(5)
    twin = str(uuid.uuid4())
    client.queue(picture("one"), "a", prompt_id=twin, number=1)

    reply = client.post(
        "/prompt", {"prompt": picture("two"), "prompt_id": twin, "number": 1, "client_id": "a"}
    )
    pending = client.get("/queue").json()["queue_pending"]
    gate.open.set()
    client.history(running)
    client.history(client.queue(picture("last"), "a", number=2))

    assert (reply.status_code, reply.text) == (
        500,
        "500 Internal Server Error\n\nServer got itself in trouble",
    )
    assert _ids(pending) == [twin, twin]
    assert client.history(twin)["outputs"]["2"]["images"][0]["filename"] == "two_00001_.png"


def test_history_can_be_read_in_windows_and_deleted(client: Client) -> None:
    """
    Entries come oldest first; max_items alone means the newest.
    """
    ids = [client.queue(picture(str(index)), "a") for index in range(4)]
    for prompt_id in ids:
        client.history(prompt_id)

    windows = [
        list(client.get(f"/history{query}").json())
        for query in ("", "?max_items=1", "?max_items=2&offset=0", "?offset=3&max_items=1", "?max_items=0")
    ]
    client.post("/history", {"delete": [ids[0], "unknown"]})
    after_delete = list(client.get("/history").json())
    client.post("/history", {"clear": True})

    assert windows == [ids, ids[3:], ids[:2], ids[3:], []]
    assert after_delete == ids[1:]
    assert client.get("/history").json() == {}
    assert client.get("/history?max_items=abc").status_code == 500


def test_a_job_is_found_in_every_state(client: Client, gate: Gate) -> None:
    """
    Pending, in_progress, completed, failed and cancelled, each with the keys that it has.
    """
    completed = client.queue(picture(), "a", extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}})
    failed = client.queue(picture("../../out"), "a")
    client.history(failed)
    cancelled = client.queue(chain("Gate", "Gate"), "a")
    gate.entered.wait(5)
    pending = client.queue(picture("later"), "a")
    states = {prompt_id: client.get(f"/api/jobs/{prompt_id}").json() for prompt_id in (cancelled, pending)}
    client.post(f"/api/jobs/{cancelled}/cancel")
    gate.open.set()
    client.history(cancelled)

    jobs = {job["id"]: job for job in client.get("/api/jobs").json()["jobs"]}

    assert (states[cancelled]["status"], states[pending]["status"]) == ("in_progress", "pending")
    assert sorted(states[pending]) == ["create_time", "id", "outputs_count", "priority", "status"]
    assert [jobs[one]["status"] for one in (completed, failed, cancelled)] == [
        "completed",
        "failed",
        "cancelled",
    ]
    assert jobs[completed]["workflow_id"] == "w"
    assert jobs[completed]["preview_output"]["filename"] == "p_00001_.png"
    assert jobs[failed]["execution_error"]["node_id"] == "2"
    assert "outputs" not in jobs[completed]
    assert "outputs" in client.get(f"/api/jobs/{completed}").json()
    assert client.get(f"/api/jobs/{uuid.uuid4()}").json() == {"error": "Job not found"}


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (
            "status=nope",
            "Invalid status value(s): nope. Valid values: pending, in_progress, completed, failed, cancelled",
        ),
        ("sort_by=nope", "sort_by must be 'created_at' or 'execution_duration'"),
        ("sort_order=up", "sort_order must be 'asc' or 'desc'"),
        ("limit=0", "limit must be a positive integer"),
        ("limit=x", "limit must be an integer"),
        ("offset=x", "offset must be an integer"),
    ],
)
def test_a_bad_query_for_jobs_is_refused(query: str, error: str, client: Client) -> None:
    """
    Each wrong value has its own text.
    """
    reply = client.get(f"/api/jobs?{query}")

    assert (reply.status_code, reply.json()) == (400, {"error": error})


def test_jobs_are_filtered_sorted_and_paged(client: Client) -> None:
    """
    Newest first, states whatever their case, and a page says whether more follows.
    """
    ids = [client.queue(picture(str(index)), "a", number=index) for index in range(3)]
    for prompt_id in ids:
        client.history(prompt_id)

    page = client.get("/api/jobs?limit=2&sort_order=asc&status=COMPLETED").json()
    rest = client.get("/api/jobs?offset=2&limit=2&sort_order=asc").json()

    assert page["pagination"] == {"offset": 0, "limit": 2, "total": 3, "has_more": True}
    assert rest["pagination"] == {"offset": 2, "limit": 2, "total": 3, "has_more": False}
    assert sorted(job["id"] for job in page["jobs"] + rest["jobs"]) == sorted(ids)
    assert client.get("/api/jobs?status=failed").json()["jobs"] == []
    assert client.get("/api/jobs?offset=-3&limit=1").json()["pagination"]["offset"] == 0


def test_jobs_are_cancelled_one_by_one_and_in_lists(client: Client, gate: Gate) -> None:
    """
    A pending job goes at once, a running one stays true until it ends, and one bad id cancels nothing.
    """
    running = client.queue(chain("Gate", "Gate"), "a")
    gate.entered.wait(5)
    pending = [client.queue(picture(str(index)), "a") for index in range(3)]

    single = [client.post(f"/api/jobs/{pending[0]}/cancel").json() for _ in range(2)]
    bad = client.post("/api/jobs/cancel", {"job_ids": [pending[1], "bad", 5, {}]})
    batch = [client.post("/api/jobs/cancel", {"job_ids": pending[1:]}).json() for _ in range(2)]
    twice = [client.post(f"/api/jobs/{running}/cancel").json() for _ in range(2)]
    gate.open.set()
    client.history(running)

    assert single == [{"cancelled": True}, {"cancelled": False}]
    assert (bad.status_code, bad.json()["invalid_ids"]) == (400, ["bad", "5", "{}"])
    assert batch == [{"cancelled": True}, {"cancelled": False}]
    assert twice == [{"cancelled": True}, {"cancelled": True}]
    assert client.post(f"/api/jobs/{running}/cancel").json() == {"cancelled": False}
    assert client.post("/api/jobs/cancel", {"job_ids": "x"}).json() == {"error": "job_ids must be a list"}
    assert client.http.post(client.url + "/api/jobs/cancel", timeout=5).json() == {
        "error": "Request body must be valid JSON"
    }


def test_the_only_pending_job_goes_with_two_equal_statuses(client: Client, gate: Gate) -> None:
    """
    As in 0.27.0, where removing the last one counts as clearing the queue too.
    """
    client.queue(chain("Gate"), "a")
    gate.entered.wait(5)
    pending = client.queue(picture(), "a")
    socket = client.socket()

    client.post(f"/api/jobs/{pending}/cancel")
    seen = [socket.next() for _ in range(2)]

    assert [_remaining(message) for message in seen if isinstance(message, dict)] == [1, 1]


def test_secrets_are_shown_nowhere(client: Client, gate: Gate) -> None:
    """
    Keys of comfy.org are neither in the queue, nor in history, nor in jobs.
    """
    secrets = {"api_key_comfy_org": "SECRET1", "auth_token_comfy_org": "SECRET2", "x": 1}
    prompt_id = client.queue(chain("Gate"), "a", extra_data=secrets)
    gate.entered.wait(5)

    texts = [client.get("/queue").text]
    gate.open.set()
    client.history(prompt_id)
    texts += [client.get(path).text for path in ("/history", f"/api/jobs/{prompt_id}")]

    assert all("SECRET" not in text for text in texts)
    assert client.history(prompt_id)["prompt"][3]["x"] == 1


def test_the_old_profile_differs_where_0_3_64_did(tmp_path: Path, gate: Gate) -> None:
    """
    No jobs, unchecked ids, no errors for cycles, secrets in the queue.
    """
    with EngineThread(tmp_path, gate.nodes(), **OLD) as engine, Client(engine.url) as client:
        jobs = client.get("/api/jobs?limit=1")
        cancel = client.post("/api/jobs/x/cancel")
        odd = client.post("/prompt", {"prompt": picture(), "prompt_id": 42}).json()
        cycle = client.post("/prompt", {"prompt": CYCLE})
        client.queue(chain("Gate"), "a", extra_data={"api_key_comfy_org": "SECRET"})
        gate.entered.wait(5)
        queue = client.get("/queue").text
        gate.open.set()
        version = client.get("/system_stats").json()["system"]["comfyui_version"]

    assert (jobs.status_code, jobs.text) == (404, "")
    assert (cancel.status_code, cancel.text) == (405, "405: Method Not Allowed")
    assert odd["prompt_id"] == "42"
    assert (cycle.status_code, cycle.json()["node_errors"]) == (400, {})
    assert "SECRET" in queue
    assert version == "0.3.64"


def test_the_engine_says_that_it_is_not_comfyui(client: Client) -> None:
    """
    /system_stats carries ComfyUI's version for clients that look at it, and the truth beside it.
    """
    system = client.get("/system_stats").json()["system"]

    assert system["comfyui_version"] == "0.27.0"
    assert system["engine"] == "comfy-worker built-in engine (not ComfyUI)"


def test_bodies_over_the_limit_are_refused(tmp_path: Path) -> None:
    """
    The limit bounds uploads and prompts alike, and /features shows a given one as float.
    """
    with EngineThread(tmp_path, max_upload_mb=1.0) as engine, Client(engine.url) as client:
        small = client.http.post(
            client.url + "/upload/image", files={"image": ("a.bin", bytes(1_000_000))}, timeout=5
        )
        large = client.http.post(
            client.url + "/upload/image", files={"image": ("b.bin", bytes(1_048_576))}, timeout=5
        )
        prompt = client.post("/prompt", {"prompt": picture(), "pad": "x" * 1_048_576})
        features = client.get("/features").text

    text = "Maximum request body size 1048576 exceeded."
    assert small.status_code == 200
    assert [(reply.status_code, reply.text) for reply in (large, prompt)] == [(413, text), (413, text)]
    assert '"max_upload_size": 1048576.0' in features


def test_json_is_written_as_python_writes_it(client: Client) -> None:
    """
    Default separators and escapes, so that bytes can be compared with a recording's.
    """
    prompt_id = client.queue(picture("ü"), "a")
    client.history(prompt_id)

    text = client.get(f"/history/{prompt_id}").text

    assert text == json.dumps(json.loads(text))
    assert "\\u00fc" in text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Host": "comfy.example"}, 403),
        ({"Origin": "http://evil.example", "Host": "comfy.example"}, 200),
    ],
)
def test_pages_of_other_sites_are_kept_out_of_http_and_socket(
    headers: dict[str, str], status: int, client: Client
) -> None:
    """
    A foreign Origin at a loopback Host is 403, and cross-site at any Host.
    """
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x" * 24,
    }

    plain = client.get("/queue", headers=headers)
    socket = (
        requests.get(client.url + "/ws", headers=headers | upgrade, timeout=5, stream=True)
        if status == 403
        else plain
    )
    socket.close()

    assert (plain.status_code, socket.status_code) == (status, status)


def test_cors_opens_the_engine_to_other_sites(tmp_path: Path) -> None:
    """
    With --enable-cors-header neither check exists and the header is there.
    """
    with EngineThread(tmp_path, cors="*") as engine, Client(engine.url) as client:
        reply = client.get("/queue", headers={"Origin": "http://evil.example"})

    assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (200, "*")
