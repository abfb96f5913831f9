"""
A worker as Vast's own `comfyui-json` one is set up: it follows a log file, and the SDK's server is in front.

Arguments: the model server's port, its log file. Facts: the settings of vast-ai/pyworker 0e08881 (log tokens, one route, one line,
10 s, a warm-up and 8 runs).
"""

import random
import sys
import uuid

from vastai.serverless.server.worker import (
    BenchmarkConfig,
    HandlerConfig,
    LogActionConfig,
    Worker,
    WorkerConfig,
)


def payload() -> dict:
    """
    Return a job without models; its picture differs each time.
    """
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": random.randint(0, 0xFFFFFF)},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "stock"}},
    }
    return {"input": {"request_id": f"test-{uuid.uuid4()}", "workflow_json": graph}}


if __name__ == "__main__":
    Worker(
        WorkerConfig(
            model_server_url="http://127.0.0.1",
            model_server_port=int(sys.argv[1]),
            model_log_file=sys.argv[2],
            model_healthcheck_url="/health",
            handlers=[
                HandlerConfig(
                    route="/generate/sync",
                    allow_parallel_requests=False,
                    max_queue_time=10.0,
                    benchmark_config=BenchmarkConfig(generator=payload),
                )
            ],
            log_action_config=LogActionConfig(
                on_load=["BACKENDS_READY: "],
                on_error=["BACKENDS_READY_TIMEOUT", "BACKEND_UNRECOVERABLE", "Application startup failed"],
            ),
        )
    ).run(host="127.0.0.1")
