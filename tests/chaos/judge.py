"""
What each job must end as. A violation is a sentence; none is the only good number of them.
"""

import base64
import io
import json
from collections.abc import Collection, Iterator
from typing import Any

from PIL import Image, ImageOps
from support.control_plane import PlaneJob

from chaos.plan import Fate, Kind
from chaos.world import Host, picture_of

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
        "cancelled",
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
    for post in accepted:
        late = post.at - taken_at - timeout_s
        if late > MARGIN_S:
            yield f"the result came {late:.0f} s after the deadline"
        output = post.body.get("output")
        if not isinstance(output, dict):
            yield f"no output: {str(post.body)[:200]}"
        elif "error" in output or "error" in post.body:
            yield from _failed(fate, output, str(post.body.get("error") or output.get("error") or ""), codes)
        else:
            yield from _right(fate, output, host)


def hook_violations(fate: Fate, bodies: Collection[bytes], codes: Collection[str]) -> Iterator[str]:
    """
    Yield what is wrong with what a webhook of the Vast face was told; `bodies` are those that its receiver got.
    """
    if len(set(bodies)) != 1:
        yield f"{len(set(bodies))} different webhooks came"
        return
    if fate.kind == "hook" and len(bodies) != 1:
        yield f"the webhook came {len(bodies)} times, though the first was taken"
    body = json.loads(next(iter(bodies)))
    if body["status"] == "failed":
        yield from _failed(fate, {"error_code": body["error"]["code"]}, body["message"], codes)
    elif body["status"] != "completed":
        yield f"the webhook says {body['status']}"
    elif len(body["output"]) != 1:
        yield f"{len(body['output'])} pictures came back"
    else:
        yield from _picture(fate, base64.b64decode(body["output"][0]["data"]))


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
    said = reason + str(output.get("details"))
    if code == "node_failed" and f"no luck with {fate.number}" not in said:
        yield f"failed with the reason of another job: {said[:300]}"


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
    yield from _picture(fate, data)


def _picture(fate: Fate, data: bytes) -> Iterator[str]:
    """
    Yield what is wrong with a picture; every pixel of it must be the job's own.
    """
    with Image.open(io.BytesIO(data)) as image:
        found = image.convert("RGB")
    if fate.kind.startswith("url"):
        with Image.open(io.BytesIO(picture_of(fate.number))) as sent:
            wanted = ImageOps.invert(sent.convert("RGB"))
    else:
        red, green, blue = fate.number >> 16 & 255, fate.number >> 8 & 255, fate.number & 255
        wanted = Image.new("RGB", found.size, (red, green, blue))
    if found.size != wanted.size or found.tobytes() != wanted.tobytes():
        yield f"the picture is not its own: it begins with {found.tobytes()[:3].hex()}"
