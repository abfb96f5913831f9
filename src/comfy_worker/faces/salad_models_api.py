"""
The Salad face's routes about models: what there is, and fetching one more. Blocks; the routes call it on threads.
"""

import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from comfy_worker.comfy.client import Client
from comfy_worker.deadline import Deadline
from comfy_worker.errors import ComfyUnavailable, JobInvalid
from comfy_worker.faces import salad_auth
from comfy_worker.faces.salad_auth import Trust
from comfy_worker.faces.salad_models import DownloadRequest
from comfy_worker.fetch import Item
from comfy_worker.job import Bucket
from comfy_worker.model_files import checked_name
from comfy_worker.stage import MODEL_MAX_BYTES, Shelf

SCHEMES = ("http", "https", "s3")


@dataclass(frozen=True, slots=True)
class Library:
    """
    ComfyUI's models, and how more of them get there. `reads` reads s3 URLs with a bucket's keys.
    """

    client: Client
    shelf: Shelf | None
    trust: Trust
    bucket: Bucket | None = None

    def types(self) -> list[str]:
        """
        Return the types of models: ComfyUI's and the folders of MODEL_DIR.
        """
        models = self.shelf.models if self.shelf else None
        return sorted({*self._known(), *(models.types() if models else ())})

    def _known(self) -> list[str]:
        try:
            return self.client.model_types()
        except ComfyUnavailable:
            return []

    def listing(self) -> dict[str, list[str]]:
        """
        Return the files of every type, those that ComfyUI lists and those on the disk.
        """
        known = self._known()
        models = self.shelf.models if self.shelf else None
        found: dict[str, list[str]] = {}
        for type_ in self.types():
            names = set(models.names(type_)) if models else set()
            try:
                names.update(self.client.models(type_) if type_ in known else ())
            except ComfyUnavailable:
                known = []  # it went away meanwhile: the disk still knows
            found[type_] = sorted(names)
        return found

    def check(self, request: DownloadRequest) -> str:
        """
        Return the file name of a download, as far as it is known before.

        Raises:
            JobInvalid: the request cannot be carried out.
        """
        if self.shelf is None or self.shelf.models is None:
            raise JobInvalid(
                "This worker does not know ComfyUI's models folder: set MODEL_DIR.", field="model_type"
            )
        types = self.types()
        if request.model_type not in types:
            text = f"Unknown model type: {request.model_type}. Available types: {', '.join(types)}"
            raise JobInvalid(text, field="model_type")
        try:
            parts = urlsplit(request.url)
        except ValueError:
            raise JobInvalid("'url' must be a URL", field="url") from None
        if parts.scheme.lower() not in SCHEMES or not parts.netloc:
            raise JobInvalid(f"No storage provider found for URL: {request.url}", field="url")
        return checked_name(request.filename or PurePosixPath(parts.path).name or "-")

    def download(self, request: DownloadRequest, deadline: Deadline) -> dict[str, Any]:
        """
        Fetch a model and link it into its folder; return the body of the reply.

        Raises:
            WorkerError: it cannot be had, or not be put there.
        """
        began = time.monotonic()
        name = self.check(request)
        shelf = self.shelf
        if shelf is None or shelf.models is None:
            raise JobInvalid(
                "This worker does not know ComfyUI's models folder: set MODEL_DIR.", field="model_type"
            )
        item = self._item(request, shelf)
        read = shelf.reader(self.bucket) if self.bucket else None
        path = shelf.cache.obtain(item, deadline, max_bytes=MODEL_MAX_BYTES, s3=read)
        try:
            if not request.filename and not PurePosixPath(name).suffix:
                name += path.suffix
            place = shelf.models.link(request.model_type, name, path)
            size = path.stat().st_size
        finally:
            shelf.cache.release(path)
        return {
            "url": request.url,
            "model_type": request.model_type,
            "filename": place.name,
            "status": "completed",
            "size": size,
            "duration": round(time.monotonic() - began, 3),
        }

    def _item(self, request: DownloadRequest, shelf: Shelf) -> Item:
        url, auth = salad_auth.resolved(request.url, (), self.trust)
        if request.auth is not None:
            auth = salad_auth.auth_of(request.auth, self.trust)
        bucket = auth.bucket if auth else None
        if bucket is not None:
            shelf.admit(bucket)
        reader = shelf.reader(bucket) if bucket else None
        return Item(url, Path(), "url", auth, reader, shelf.prober(bucket) if bucket else None)
