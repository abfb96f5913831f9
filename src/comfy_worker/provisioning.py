"""
The provisioning hooks of Vast.ai's images: a script by URL that runs once before ComfyUI starts, and a marker to wait for.

The script is the operator's and may do anything; it is bounded in time, and its lines go to the log. Names of the files
are those of Vast's base image, so that either of the two may have done the work.
"""

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobTimedOut, ProvisioningFailed
from comfy_worker.fetch import Fetcher
from comfy_worker.log import MASK
from comfy_worker.settings import Settings

logger = logging.getLogger(__name__)

ROOT = Path("/")
SETTING = "PROVISIONING_SCRIPT"
OURS = "comfy-worker"
MOST_SCRIPT_BYTES = 1 << 20
MOST_LINE = 2000
LOOK_EVERY_S = 1.0
GRACE_S = 5.0
"""How long a script that is stopped may take to end by itself, and its last lines to arrive."""


@dataclass(frozen=True, slots=True)
class Places:
    """
    The files of one machine: the script, the marker of a provisioning that runs, and how the last one ended.
    """

    script: Path
    running: Path
    complete: Path
    failed: Path


def places_of(root: Path) -> Places:
    """
    Return the files below the root of a file system.
    """
    return Places(
        root / "provisioning.sh",
        root / ".provisioning",
        root / ".provisioning_complete",
        root / ".provisioning_failed",
    )


def at_start(
    config: Settings,
    environ: Mapping[str, str],
    *,
    root: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """
    Wait for a provisioning that somebody else does, then do what is left. Blocks, at most PROVISIONING_TIMEOUT_S.

    With PROVISIONING_REQUIRED=false a failure is logged, and the worker goes on.

    Raises:
        ProvisioningFailed: the script cannot be had, ended with an error, or took too long.
    """
    MASK.add(config.secrets())
    places = places_of(ROOT if root is None else root)
    deadline = Deadline(config.provisioning_timeout_s)
    try:
        _wait_for_others(places, deadline, sleep)
        if config.provisioning_script is not None and not places.complete.exists():
            _provision(config.provisioning_script, places, deadline, environ)
    except ProvisioningFailed as exc:
        if config.provisioning_required:
            raise
        logger.error("%s The worker goes on without it.", exc)


def _wait_for_others(places: Places, deadline: Deadline, sleep: Callable[[float], None]) -> None:
    said = False
    while _is_foreign(places.running):
        if not said:
            logger.info("Waiting for the provisioning of this instance to end (%s).", places.running)
            said = True
        if deadline.left_s <= 0:
            raise ProvisioningFailed(
                f"The provisioning of this instance did not end within {deadline.timeout_s:g} s: {places.running} is "
                "still there. Raise PROVISIONING_TIMEOUT_S, or remove the file."
            )
        sleep(min(LOOK_EVERY_S, deadline.left_s))


def _is_foreign(marker: Path) -> bool:
    # Our own is left by a worker that was killed; the script then runs anew.
    try:
        return not marker.read_text(errors="replace").startswith(OURS)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _provision(url: str, places: Places, deadline: Deadline, environ: Mapping[str, str]) -> None:
    began = time.monotonic()
    try:
        places.running.write_text(f"{OURS}\n")
        try:
            if not places.script.exists():
                _download(url, places.script, deadline)
            _run(places.script, deadline, environ)
            places.complete.touch()
            places.failed.unlink(missing_ok=True)
        except ProvisioningFailed:
            places.failed.touch()
            raise
        finally:
            places.running.unlink(missing_ok=True)
    except OSError as exc:
        raise ProvisioningFailed(
            f"The provisioning script cannot be put in place or started: {exc.strerror}. The worker must be allowed to "
            f"write to {places.script.parent}, as root is."
        ) from exc
    logger.info("Provisioning took %.1f s.", time.monotonic() - began)


def _download(url: str, to: Path, deadline: Deadline) -> None:
    # The operator's own address, which may be a private one.
    fetcher = Fetcher(allowed_hosts=[urlsplit(url).netloc])
    with tempfile.TemporaryDirectory(prefix="comfy-worker-") as folder:
        part = Path(folder, "script")
        try:
            fetcher.fetch(url, part, deadline, field=SETTING, max_bytes=MOST_SCRIPT_BYTES)
        except (InputUnavailable, JobTimedOut) as exc:
            raise ProvisioningFailed(f"The provisioning script could not be fetched: {exc}") from exc
        text = part.read_bytes().replace(b"\r\n", b"\n")
    if text.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise ProvisioningFailed(
            "PROVISIONING_SCRIPT leads to a web page: give the link to the raw text of the script."
        )
    to.write_bytes(text)
    to.chmod(0o700)


def _run(script: Path, deadline: Deadline, environ: Mapping[str, str]) -> None:
    has_interpreter = script.read_bytes().startswith(b"#!")
    if has_interpreter:
        script.chmod(script.stat().st_mode | 0o100)
    logger.info("The provisioning script runs, for at most %.0f s.", deadline.left_s)
    process = subprocess.Popen(
        [str(script)] if has_interpreter else ["bash", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environ),
        cwd=script.parent,
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_log_lines, args=(process.stdout,), name="provisioning", daemon=True)
    reader.start()
    try:
        code = process.wait(deadline.left_s)
    except subprocess.TimeoutExpired:
        raise ProvisioningFailed(
            f"The provisioning script was stopped after {deadline.timeout_s:g} s. Raise PROVISIONING_TIMEOUT_S, or have "
            "the script do less."
        ) from None
    finally:
        _stop(process)
        reader.join(GRACE_S)
    if code:
        raise ProvisioningFailed(
            f"The provisioning script ended with {_ending(code)}; its last lines are in the log. It runs anew at the "
            f"next start, from {script} if that file is still there."
        )


def _ending(code: int) -> str:
    return f"code {code}" if code > 0 else f"signal {-code}"


def _log_lines(stream: IO[bytes]) -> None:
    # A line without an end, as progress bars write it, comes in parts.
    # What the script left in the background may write for days; this thread closes the pipe in the end.
    with stream:
        while line := stream.readline(MOST_LINE):
            text = line.decode("utf-8", "replace").rsplit("\r", 1)[-1].rstrip()
            if text:
                logger.info("provisioning: %s", MASK.text(text))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """
    End the script if it still runs. What a script that ended well has started in the background goes on.
    """
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # children of it that did not listen
