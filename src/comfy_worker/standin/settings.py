"""
What an engine is started with: folders, address, and the choices that ComfyUI's own flags make. No parsing in here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_worker.standin.node import Folders

ENGINE_NAME = "comfy-worker built-in engine (not ComfyUI)"
VERSIONS = {"0.27": "0.27.0", "0.3": "0.3.64"}


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Everything an engine is told at its start.

    `max_upload_mb` bounds every body, in MiB; ComfyUI shows a given value as float and its default as int.
    `cache`: `default`, `classic`, `lru` or `none`. `profile`: `0.27`, or `0.3` for what only older servers do.
    `seed` decides the order of independent output nodes and the delays; None takes a random one.
    """

    folders: Folders
    host: str = "127.0.0.1"
    port: int = 8188
    max_upload_mb: float = 100
    preview_method: str = "none"
    metadata: bool = True
    cache: str = "default"
    cache_size: int = 0
    cors: str | None = None
    profile: str = "0.27"
    seed: int | None = None
    start_delay_s: float = 0.0
    test_nodes: bool = False
    faults: Mapping[str, Any] = field(default_factory=dict)
    argv: tuple[str, ...] = ("main.py",)

    @property
    def old(self) -> bool:
        """
        Whether this engine behaves like 0.3.64 where the two versions differ.
        """
        return self.profile == "0.3"

    @property
    def max_upload_bytes(self) -> int:
        """
        The size limit of a request body.
        """
        return round(self.max_upload_mb * 1024 * 1024)


def folders_in(base: Path) -> Folders:
    """
    Name the four folders of an engine whose base directory is `base`; nothing is created.
    """
    return Folders(base / "input", base / "output", base / "temp", base / "models")
