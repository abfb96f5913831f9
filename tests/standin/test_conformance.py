"""
The engine says what ComfyUI 0.27.0 said (`old_*`: 0.3.64): recorded conversations, replayed in their order and compared.
"""

import difflib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from comfy_worker.standin.nodes import NODES
from comfy_worker.standin.thread import EngineThread

from .client import Client, Socket, wait_for
from .recorded import Plain, binary
from .recorded_nodes import RECORDED_NODES

HERE = Path(__file__).parent / "conformance"
HEADERS = (
    "Content-Type",
    "Content-Disposition",
    "Allow",
    "X-Content-Type-Options",
    "Content-Range",
    "Accept-Ranges",
)


def _engine(folder: Path, recorded: dict[str, Any]) -> EngineThread:
    return EngineThread(folder, {**NODES, **RECORDED_NODES}, **recorded["settings"])


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _png(letter: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (sum(letter.encode()) % 256, 7, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def _content(name: str, letter: str) -> bytes:
    if letter == "broken":
        return b"\x89PNG\r\n\x1a\n" + b"broken" * 20
    if name.endswith(".txt"):
        return b"hello"
    return _png(letter or name) if name.endswith(".png") else f"{letter}{name}".encode()


def _multipart(fields: dict[str, Any], letter: str) -> tuple[bytes, str]:
    """
    Return a body whose file names are raw UTF-8; HTTP libraries escape some of them.
    """
    parts = []
    for name, value in fields.items():
        head = f'form-data; name="{name}"'
        data = value.encode() if isinstance(value, str) else _content(value["filename"], letter)
        if not isinstance(value, str):
            head += f'; filename="{value["filename"]}"\r\nContent-Type: application/octet-stream'
        parts.append(b"--cut\r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def _send(client: Client, request: dict[str, Any]) -> requests.Response:
    headers = {
        name: re.sub(r":8\d{3}$", client.url[client.url.rindex(":") :], text)
        for name, text in request.get("headers", {}).items()
    }
    body: bytes | None = request["body"].encode() if "body" in request else None
    if "json" in request:
        body = json.dumps(request["json"]).encode()
    if "multipart" in request:
        body, headers["Content-Type"] = _multipart(request["multipart"], request.get("content", ""))
    url = requests.Request(
        request["method"], client.url + request["path"], data=body, headers=headers
    ).prepare()
    return client.http.send(url, timeout=10)


def _reply(response: requests.Response, expected: dict[str, Any], plain: Plain) -> dict[str, Any]:
    """
    Return what the recording kept of a reply, of this one.
    """
    seen: dict[str, Any] = {"status": response.status_code}
    if "headers" in expected:
        seen["headers"] = {
            name: Plain().text(response.headers[name])
            for name in HEADERS
            if name in response.headers and name in expected["headers"]
        }
    if "json" in expected:
        seen["json"] = plain.value(response.json())
    if "keys" in expected:
        body = response.json()
        seen["keys"] = (
            [key for key in sorted(body) if key in expected["keys"]]
            if isinstance(expected["keys"], list)
            else type(body).__name__
        )
    if "text" in expected:
        seen["text"] = plain.text(response.text)
    if "empty" in expected:
        seen["empty"] = not response.content
    return seen


def _same(seen: Any, expected: Any) -> None:
    """
    Fail with the differing lines.
    """
    rows = [json.dumps(side, indent=1, sort_keys=True).splitlines() for side in (expected, seen)]
    assert seen == expected, "\n".join(difflib.unified_diff(*rows, "recorded", "seen", lineterm="", n=1))


def _lines(socket: Socket, plain: Plain) -> list[str]:
    return [binary(frame) if isinstance(frame, bytes) else plain.message(frame) for frame in socket.frames]


def _by_node(lines: list[str]) -> list[str]:
    """
    Return the lines with those of the nodes grouped by node, for prompts whose output nodes run in any order.

    A `progress_state` is cumulative: only what is new in it counts.
    """
    groups: dict[str, list[str]] = {}
    rest, known = [], set[str]()
    for line in lines:
        rows = line.split(" ")[1:] if line.startswith("progress_state ") else []
        new = [row for row in rows if row not in known]
        known.update(new)
        match = re.search(r'"node": "([^"]+)"', line)
        if rows:
            for row in new:
                groups.setdefault(row.split(":")[0], []).append(row)
        elif match:
            groups.setdefault(match.group(1), []).append(line)
        else:
            rest.append(line)
    return rest + [line for name in sorted(groups) for line in groups[name]]


def _collect(socket: Socket, count: int) -> None:
    while len(socket.frames) < count and socket.next(5) is not None:
        pass
    while socket.next(0.03) is not None:
        pass


class Replay:
    """
    One recorded case against a running engine.
    """

    def __init__(self, engine: EngineThread, client: Client, case: dict[str, Any]) -> None:
        self.case = case
        self.client = client
        self.plain = Plain(str(engine.folders.input.parent))
        self.sockets: dict[str, Socket] = {}

    def _open(self) -> None:
        body = self.case["request"].get("json") or {}
        own = self.case.get("client_id") or body.get("client_id") or "main"
        for key, client_id in (("ws", own), ("ws_observer", "observer")):
            if key in self.case:
                self.sockets[key] = self.client.socket(client_id)
        if any(line.startswith("feature_flags") for line in self.case.get("ws", ())):
            self.sockets["ws"].send({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            self.sockets["ws"].next()

    def run(self) -> None:
        """
        Send what was sent, and compare all that came back.
        """
        for step in self.case.get("before", ()):
            _same(_reply(_send(self.client, step["request"]), step["reply"], self.plain), step["reply"])
        self._open()
        response = _send(self.client, self.case["request"])
        _same(_reply(response, self.case["reply"], self.plain), self.case["reply"])
        if response.status_code == 200:
            self._compare_run(response.json()["prompt_id"])
        for socket in self.sockets.values():
            socket.close()

    def _compare_run(self, prompt_id: str) -> None:
        entry = self.client.history(prompt_id)
        history = self.plain.value({prompt_id: entry})
        _same(history, self.case.get("history", history))
        many = len(entry["prompt"][4]) > 1
        for key, socket in self.sockets.items():
            _collect(socket, len(self.case[key]))
            seen, expected = _lines(socket, self.plain), self.case[key]
            _same(_by_node(seen) if many else seen, _by_node(expected) if many else expected)
        for row, (node_id, key, item) in zip(
            self.case.get("view", ()), _files(entry["outputs"]), strict=False
        ):
            found = self.client.get(
                "/view", params={name: item[name] for name in ("filename", "subfolder", "type")}
            )
            assert (found.status_code, found.headers["Content-Type"]) == (row["status"], row["type"]), (
                node_id,
                key,
            )


class Steps:
    """
    One recorded case of single calls against a running engine.
    """

    def __init__(self, engine: EngineThread, client: Client, case: dict[str, Any]) -> None:
        self.case = case
        self._client = client
        self._plain = Plain(str(engine.folders.input.parent))

    def run(self) -> None:
        """
        Make every call and compare every reply.
        """
        for step in self.case["steps"]:
            wait_for(lambda: self._client.get("/prompt").json()["exec_info"]["queue_remaining"] == 0)
            seen = _reply(_send(self._client, step["request"]), step["reply"], self._plain)
            _same([step["request"], seen], [step["request"], step["reply"]])


def _problem(name: str, run: Callable[[], None]) -> list[str]:
    # The cases of one file build on each other, so one that fails must not hide the rest.
    try:
        run()
    except AssertionError as exc:
        return [f"{name}: {exc}"]
    return []


def _files(outputs: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for node_id, ui in outputs.items():
        for key, items in ui.items():
            for item in items:
                if isinstance(item, dict) and "filename" in item:
                    yield node_id, key, item


PROMPTS = (
    "ordinary",
    "errors",
    "cached",
    "kinds",
    "testing",
    "z_default",
    "z_cache_classic",
    "z_cache_lru",
    "z_cache_none",
    "old_prompts",
)
REQUESTS = ("requests", "uploads", "loading", "odd_jobs", "information", "old_requests")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_run_as_recorded(name: str, tmp_path: Path) -> None:
    """
    Replies, messages to both clients, history and served files are those of ComfyUI.
    """
    recorded = _load(HERE / f"{name}.json")

    with _engine(tmp_path, recorded) as engine, Client(engine.url) as client:
        replays = [Replay(engine, client, case) for case in recorded["cases"]]
        wrong = [found for one in replays for found in _problem(one.case["case"], one.run)]

    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_answered_as_recorded(name: str, tmp_path: Path) -> None:
    """
    Status, headers and bodies of single calls are those of ComfyUI.
    """
    recorded = _load(HERE / f"{name}.json")

    with _engine(tmp_path, recorded) as engine, Client(engine.url) as client:
        _put_files(engine)
        steps = [Steps(engine, client, case) for case in recorded["cases"]]
        wrong = [found for one in steps for found in _problem(one.case["case"], one.run)]

    assert not wrong, "\n\n".join(wrong)


def _put_files(engine: EngineThread) -> None:
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(engine.folders.output / "view_34cfe9_00001_.png")
    for extension in re.findall(r"\w+", "html svg js xml json txt glb exr mp4 opus latent avif webm wav"):
        (engine.folders.input / f"v.{extension}").write_text("{}" if extension == "json" else "x")
    (engine.folders.input / 'v"q.png').write_bytes(_png("q"))
    _put_links(engine.folders.input)


def _put_links(folder: Path) -> None:
    outside, inside = folder.parent / "elsewhere", folder / "sub"
    outside.mkdir()
    inside.mkdir()
    for path in (outside / "far.png", inside / "in.png", folder / "in.png"):
        path.write_bytes(_png("far"))
    (folder / "link_out.png").symlink_to(outside / "far.png")
    (folder / "link_in.png").symlink_to(folder / "in.png")
    (folder / "linkdir_out").symlink_to(outside)
    (folder / "linkdir_in").symlink_to(inside)
    (folder / "hard.png").hardlink_to(outside / "far.png")
