"""
Git repositories of models (DiffusersLoader): one folder per URL, complete or not there.

A URL is a job's, so git is let do little: http(s) to judged addresses, no redirects, no hooks, no submodules, no links, no
configuration but ours, no questions. References are those of SaladTechnologies/comfyui-api 1.18.0.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobFailed
from comfy_worker.fetch_guard import Guard, checked

logger = logging.getLogger(__name__)

STAGE = "cloning a repository"
LOOK_S = 0.1
LEAST_FREE_BYTES = 200_000_000
LEAST_VERSION = (2, 37)
"""The first git that connects to given addresses (`http.curloptResolve`)."""

REF = re.compile(r"[\w.+-][\w./+-]{0,199}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
FORMS = (
    r"(?P<base>.+)@(?P<ref>[^/@]+)",
    r"(?P<base>.+?)/-/(?:tree|commit)/(?P<ref>[^/]+)",
    r"(?P<base>.+?)/(?:tree|commit|releases/tag)/(?P<ref>[^/]+)",
    r"(?P<base>.+?)/src/(?P<ref>[^/]+)(?:/.*)?",
    r"(?P<base>.+?)/commits/(?P<ref>[^/]+)",
)
LFS = b"version https://git-lfs.github.com/spec/v1"
NO_REF = "the repository has no such branch, tag or commit"
REASONS = {
    **dict.fromkeys(("remote ref", "not our ref", "unadvertised object", "does not take a path"), NO_REF),
    **dict.fromkeys(("did not match any", "unknown revision", "is not a tree", "pathspec"), NO_REF),
    **dict.fromkeys(
        ("Authentication failed", "could not read Username"), "the repository is private, or there is none"
    ),
    **dict.fromkeys(
        ("redirect", "error: 301", "error: 302"), "the server sends elsewhere: give the repository's own URL"
    ),
    "not found": "there is no such repository",
    "No space left": "the disk is full",
}
NO_LFS = "its files lie in Git LFS, which this worker does not fetch: name the repository as a snapshot in MODELS_MANIFEST"


def parsed(url: str) -> tuple[str, str | None]:
    """
    Return the repository of a URL, and the branch, tag or commit that it names.
    """
    scheme, separator, rest = url.partition("://")
    for form in FORMS:
        found = re.fullmatch(form, rest)
        if found and "/" in found["base"]:
            return f"{scheme}{separator}{found['base']}", found["ref"]
    return url, None


class Repositories:
    """
    The repositories below one folder. `http` allows what is not encrypted. Thread-safe.
    """

    def __init__(self, root: Path, guard: Guard, *, http: bool = False) -> None:
        self._root = root
        self._guard = guard
        self._schemes = ("https", "http") if http else ("https",)
        self._lock = threading.Condition()
        self._busy: set[str] = set()

    def obtain(self, url: str, deadline: Deadline) -> str:
        """
        Have the repository on the disk and return the name of its folder. Without a reference it is brought up to date.

        Raises:
            InputUnavailable: it cannot or may not be had, or what it names is not in it.
            JobFailed: the disk did not take it.
            JobCancelled, JobTimedOut: the deadline said so.
        """
        base, ref = parsed(url)
        name = f"{_name_of(base)}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        if ref is not None and (not REF.fullmatch(ref) or ".." in ref):
            raise InputUnavailable("the reference behind the URL is none that git knows")
        target = self._root / name
        with self._turn(name, deadline):
            if not target.is_dir():
                self._clone(base, ref, target, deadline)
            elif ref is None or not COMMIT.fullmatch(ref):
                self._update(base, ref, target, deadline)
        return name

    @contextlib.contextmanager
    def _turn(self, name: str, deadline: Deadline) -> Iterator[None]:
        with self._lock:
            while name in self._busy:
                self._lock.wait(min(0.25, deadline.left_s))
                deadline.check(STAGE)
            self._busy.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)
                self._lock.notify_all()

    def _clone(self, base: str, ref: str | None, target: Path, deadline: Deadline) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".clone-", dir=self._root) as scratch:
                part = Path(scratch, "clone")
                self._git(base, ["init", "--quiet", "--template=", str(part)], self._root, deadline)
                self._check_out(base, ref, part, deadline)
                with contextlib.suppress(FileExistsError):
                    part.rename(target)
        except OSError as exc:
            if target.is_dir():  # another worker was faster
                return
            raise JobFailed("A repository could not be put into MODEL_DIR: it cannot be written to.") from exc

    def _update(self, base: str, ref: str | None, target: Path, deadline: Deadline) -> None:
        try:
            self._check_out(base, ref, target, deadline)
        except InputUnavailable as exc:
            if ref is not None:
                raise
            logger.warning("A repository was not brought up to date, its copy is used: %s", exc)

    def _check_out(self, base: str, ref: str | None, folder: Path, deadline: Deadline) -> None:
        def git(*arguments: str) -> None:
            self._git(base, arguments, folder, deadline)

        wanted = "FETCH_HEAD"
        try:
            git("fetch", "--quiet", "--depth=1", "--no-tags", "--", base, ref or "HEAD")
        except InputUnavailable:
            if ref is None or not re.fullmatch(r"[0-9a-f]{4,40}", ref):
                raise
            # A server need not give out a commit by its hash alone, and gives none by a part of it.
            git(
                "fetch",
                "--quiet",
                "--",
                base,
                "+refs/heads/*:refs/remotes/origin/*",
                "+refs/tags/*:refs/tags/*",
            )
            wanted = f"{ref}^{{commit}}"
        git("checkout", "--quiet", "--force", "--detach", wanted)
        if _has_pointers(folder):
            raise InputUnavailable(NO_LFS)

    def _git(self, base: str, arguments: Sequence[str], folder: Path, deadline: Deadline) -> None:
        program = shutil.which("git")
        if program is None or _version(program) < LEAST_VERSION:
            raise InputUnavailable("this worker has no git of 2.37 or later, so it clones no repositories")
        command = [program, *_options(self._schemes, self._pin(base)), *arguments]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            try:
                _wait(process, folder, deadline)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.returncode:
                said.seek(0)
                raise InputUnavailable(_reason(said.read(10_000).decode(errors="replace")))

    def _pin(self, base: str) -> str:
        """
        Return curl's `host:port:addresses`, all judged.
        """
        parts = urlsplit(checked(base))
        if parts.scheme not in self._schemes or parts.query or parts.fragment:
            raise InputUnavailable("only https URLs of repositories, without a query, can be cloned")
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
        try:
            found = self._guard.addresses(host, port)
        except OSError as exc:
            raise InputUnavailable("the host has no address") from exc
        return f"{host}:{port}:{','.join(f'[{text}]' if ':' in text else text for text in found)}"


def _name_of(base: str) -> str:
    last = urlsplit(base).path.rstrip("/").rpartition("/")[2].removesuffix(".git")
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[:80] or "repository"


def _options(schemes: Sequence[str], pin: str) -> Iterator[str]:
    settings = {
        "http.curloptResolve": pin,
        "http.followRedirects": "false",
        "http.proxy": "",
        "http.lowSpeedLimit": "1",
        "http.lowSpeedTime": "60",
        "credential.helper": "",
        "core.hooksPath": "/dev/null",
        "core.symlinks": "false",
        "core.fsmonitor": "false",
        "fetch.recurseSubmodules": "false",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "protocol.allow": "never",
        **{f"protocol.{scheme}.allow": "always" for scheme in schemes},
    }
    for name, value in settings.items():
        yield from ("-c", f"{name}={value}")


def _environ() -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }


def _version(program: str) -> tuple[int, ...]:
    ran = subprocess.run([program, "version"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"(\d+)\.(\d+)", ran.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _wait(process: "subprocess.Popen[bytes]", folder: Path, deadline: Deadline) -> None:
    while True:
        try:
            process.wait(min(LOOK_S, max(deadline.left_s, 0.01)))
            return
        except subprocess.TimeoutExpired:
            deadline.check(STAGE)
            if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
                raise JobFailed("The repository does not fit on the disk of MODEL_DIR.") from None


def _has_pointers(folder: Path) -> bool:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size < 1024 and ".git" not in path.relative_to(folder).parts:
            with path.open("rb") as stream:
                if stream.read(len(LFS)) == LFS:
                    return True
    return False


def _reason(text: str) -> str:
    """
    Say why git failed; its own text may hold what a server says, so that only what is known is passed on.
    """
    return next((reason for sign, reason in REASONS.items() if sign in text), "git could not fetch it")
