"""
What ComfyUI's classes look like, from /object_info, remembered per class. For questions about kinds, not for choices:
the choices of an input (files, models) change, its kind does not.
"""

import threading
from collections.abc import Mapping
from typing import Any

from comfy_worker.comfy.client import Client
from comfy_worker.errors import ComfyUnavailable


class Catalog:
    """
    Classes by name, asked for once. Thread-safe.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._known: dict[str, Mapping[str, Any]] = {}

    def __call__(self, class_type: str) -> Mapping[str, Any]:
        """
        Return a class's entry; empty when ComfyUI has no such class or does not answer.
        """
        with self._lock:
            found = self._known.get(class_type)
        if found is None:
            found = self.fresh(class_type)
            if found:
                with self._lock:
                    self._known[class_type] = found
        return found

    def fresh(self, class_type: str) -> Mapping[str, Any]:
        """
        Return a class's entry as it is now, with the files and models there are now.
        """
        try:
            return self._client.object_info(class_type)
        except ComfyUnavailable:
            return {}
