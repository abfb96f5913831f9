"""
What a running node may ask of the engine: progress, pictures, texts, sleep. The protocol it fulfils is `node.Context`.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from comfy_worker.standin import frames
from comfy_worker.standin.node import Folders, Interrupted
from comfy_worker.standin.outbox import Outbox
from comfy_worker.standin.progress import Names, Throttle


class RunContext:
    """
    The context of one node in one prompt.

    A tick's `progress` message follows a picture sent with it when the client takes event 4, and precedes it otherwise;
    therefore it is held until the node does the next thing.
    """

    def __init__(
        self,
        names: Names,
        outbox: Outbox,
        folders: Folders,
        prompt: Mapping[str, Any],
        extra_pnginfo: Mapping[str, Any] | None,
        metadata: bool,
        previews: bool,
        throttle: bool,
        stopping: threading.Event,
        interrupted: Callable[[], bool],
    ) -> None:
        self.node_id = names.node_id
        self.prompt = prompt
        self.extra_pnginfo = extra_pnginfo
        self.metadata = metadata
        self.folders = folders
        self._names = names
        self._outbox = outbox
        self._previews = previews
        self._throttle = Throttle(throttle)
        self._stopping = stopping
        self._interrupted = interrupted
        self._skipped: tuple[float, float] | None = None
        self._held: tuple[float, float] | None = None

    def progress(self, value: float, maximum: float, preview: bytes | None = None) -> None:
        """
        Report a tick, with an encoded picture so far where there is one. Raises `Interrupted` at a tick that is sent.
        """
        self.flush()
        shown = preview if self._previews else None
        if not self._throttle.passes(value, maximum, always=shown is not None):
            self._skipped = (value, maximum)
            return
        self._tick(value, maximum)
        if shown is not None:
            self._picture(shown, frames.mime_of(shown))

    def _tick(self, value: float, maximum: float) -> None:
        if self._interrupted() or self._stopping.is_set():
            raise Interrupted
        self._skipped = None
        self._outbox.progress.put(self._names, value, maximum, "running")
        self._outbox.state()
        self._held = (value, maximum)
        if not self._outbox.wants_metadata:
            self.flush()

    def flush(self) -> None:
        """
        Send the `progress` message that was held.
        """
        held, self._held = self._held, None
        if held is not None:
            self._outbox.tick(self.node_id, *held)

    def _picture(self, data: bytes, mime: str) -> None:
        self._outbox.picture(self._names, data, mime)
        self.flush()

    def sleep(self, seconds: float) -> None:
        """
        Wait, woken early only by the end of the engine.
        """
        self.flush()
        self._stopping.wait(seconds)

    def send_image(self, data: bytes, mime: str) -> None:
        """
        Send an encoded image to the client; the tick reported before it is sent with it even if it was throttled.
        """
        if self._skipped is not None:
            self._tick(*self._skipped)
        self._picture(data, mime)

    def send_text(self, text: str) -> None:
        """
        Send a text frame (event 3) to every client.
        """
        self.flush()
        self._outbox.text(self.node_id, text)


def has_previews(asked: Any, default: str) -> bool:
    """
    Tell whether pictures of ticks are sent: what the prompt asked for, or the engine's flag where that is no method.
    """
    method = asked if asked in ("none", "auto", "latent2rgb", "taesd") else default
    return method != "none"
