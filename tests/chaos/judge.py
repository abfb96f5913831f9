"""
What each job must end as. A violation is a sentence; none is the only good number of them.
"""

import base64
import io
import json
from collections.abc import Collection, Iterator
from typing import Any

from PIL import Image
from support.control_plane import PlaneJob

from chaos.plan import Fate, Kind
from chaos.world import BITS, Host

OWN: dict[Kind, frozenset[str]] = {
    "url_gone": frozenset({"input_unavailable"}),
    "url_truncated": frozenset({"input_unavailable"}),
    "url_half": frozenset({"input_unavailable"}),
    "url_flaky": frozenset(),
    "store_refused": frozenset({"delivery_failed"}),
    "raises": frozenset({"node_failed"}),
    "unknown_node": frozenset({"workflow_invalid"}),
    "invalid": frozenset({"job_invalid", "workflow_invalid"}),
    "cancelled": frozenset({"job_cancelled"}),
    "too_late": frozenset({"job_timed_out"}),
}
"""The reasons that a job of a kind ends with by itself."""

ALWAYS_FAILS: frozenset[Kind] = frozenset(
    {
        "url_gone",
        "url_truncated",
        "url_half",
        "store_refused",
        "raises",
        "unknown_node",
        "invalid",
        "too_late",
    }
)
MARGIN_S = 20.0
"""How much later than its deadline a result may be posted, on a busy machine."""


def violations(
    fate: Fate, job: PlaneJob, codes: Collection[str], host: Host, timeout_s: float, taken_at: float
) -> Iterator[str]:
    """
    Yield what is wrong with the end of a job; `codes` are the reasons that the weather of its life allows.
    """
    accepted = [post for post in job.results if post.status == 200]
    if fate.kind == "cancelled" and not accepted:
        return
    # A job that is delivered twice while it runs is one run with a result for each delivery.
    if len(accepted) not in ((1, 2) if fate.kind == "twice" else (1,)):
        yield f"{len(accepted)} results were accepted"
        return
    late = accepted[0].at - taken_at - timeout_s
    if late > MARGIN_S:
        yield f"the result came {late:.0f} s after the deadline"
    body = accepted[0].body
    output = body.get("output")
    if not isinstance(output, dict):
        yield f"no output: {str(body)[:200]}"
    elif "error" in output or "error" in body:
        yield from _failed(fate, output, str(body.get("error") or output.get("error") or ""), codes)
    else:
        yield from _right(fate, output, host)


def hook_violations(fate: Fate, bodies: Collection[bytes], codes: Collection[str]) -> Iterator[str]:
    """
    Yield what is wrong with what a webhook of the Vast face was told; `bodies` are those that its receiver got.
    """
    if len(set(bodies)) != 1:
        yield f"{len(set(bodies))} different webhooks came"
        return
    body = json.loads(next(iter(bodies)))
    if body["status"] == "failed":
        yield from _failed(fate, {"error_code": body["error"]["code"]}, body["message"], codes)
    elif body["status"] != "completed":
        yield f"the webhook says {body['status']}"
    elif len(body["output"]) != 1:
        yield f"{len(body['output'])} pictures came back"
    elif (number := colour_of(base64.b64decode(body["output"][0]["data"]))) != fate.number:
        yield f"the picture is that of job {number}"


def outcome_of(job: PlaneJob) -> str:
    """
    Return how a job ended, in a word.
    """
    accepted = [post for post in job.results if post.status == 200]
    if not accepted:
        return "no result"
    output = accepted[0].body.get("output")
    code = output.get("error_code") if isinstance(output, dict) else None
    return str(code or "right")


def _failed(fate: Fate, output: dict[str, Any], reason: str, codes: Collection[str]) -> Iterator[str]:
    code = output.get("error_code")
    allowed = OWN.get(fate.kind, frozenset()) | set(codes)
    if code not in allowed:
        yield f"failed with {code}, which nothing explains: {reason[:300]}"
    if not reason:
        yield "failed without a reason"


def _right(fate: Fate, output: dict[str, Any], host: Host) -> Iterator[str]:
    if fate.kind in ALWAYS_FAILS:
        yield "succeeded, and could not have"
        return
    images = output.get("images", [])
    if len(images) != 1:
        yield f"{len(images)} pictures came back"
        return
    item = images[0]
    if item["type"] == "base64":
        data = base64.b64decode(item["data"])
    else:
        path = "/" + item["data"].partition("?")[0].split("/", 3)[3]
        if path not in host.stored:
            yield f"{path} was told of and is not there"
            return
        data = host.stored[path]
    number = inverted_number_of(data) if fate.kind.startswith("url") else colour_of(data)
    if number != fate.number:
        yield f"the picture is that of job {number}"


def colour_of(data: bytes) -> int:
    """
    Return the colour of the first pixel.
    """
    with Image.open(io.BytesIO(data)) as image:
        red, green, blue = image.convert("RGB").tobytes()[:3]
    return red << 16 | green << 8 | blue


def inverted_number_of(data: bytes) -> int:
    """
    Return the number of a picture of `world.picture_of` that was inverted.
    """
    with Image.open(io.BytesIO(data)) as image:
        levels = image.convert("L").crop((0, 0, BITS, 1)).tobytes()
    return sum(1 << place for place, level in enumerate(levels) if level < 128)
