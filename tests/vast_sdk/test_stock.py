"""
The Vast face behind Vast's own worker, which finds it by a log file and asks its health.
"""

from pathlib import Path

from support.control_plane import wait_until
from support.lanes import comfy_folder
from support.pictures import empty_workflow
from support.vast_autoscaler import Autoscaler
from support.vast_pyworker import PyWorker, free_port
from support.worker_process import ROOT, WorkerProcess

STOCK = str(ROOT / "tests" / "vast_sdk" / "stock_worker.py")


def test_stock_worker_finds_the_face_and_serves_by_it(vast_python: Path, tmp_path: Path) -> None:
    """
    The log file has the token that means loaded, nine benchmark jobs run, and requests come through.
    """
    log, port = tmp_path / "portal" / "api-wrapper.log", str(free_port())
    log.parent.mkdir()
    face = WorkerProcess(
        tmp_path / "face",
        {
            "COMFYUI_PATH": str(comfy_folder(tmp_path / "comfy")),
            "COMFY_PORT": "0",
            "VAST_LOG_FILE": str(log),
        },
        program=("-m", "comfy_worker", "serve", "--face", "vast", "--port", port),
    )
    with Autoscaler() as autoscaler:
        extra = {"WORKER_HTTP_PORT": str(free_port())}
        stock = PyWorker(tmp_path / "stock", autoscaler, extra, port, str(log), program=("-u", STOCK))
        try:
            stock.loaded()
            payload = {"input": {"workflow_json": empty_workflow(), "request_id": "mine"}}
            reply = stock.post("/generate/sync", payload)
            wait_until(lambda: face.text.count("POST /generate/sync 200") == 1 + 8 + 1)
        finally:
            stock.close()
            face.close()

    assert (reply.status_code, reply.json()["status"]) == (200, "completed")
    assert autoscaler.last["max_perf"] > 0
    assert log.read_text().count("BACKENDS_READY: ") == 1
