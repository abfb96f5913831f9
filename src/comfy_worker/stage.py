"""
Inputs -> files that ComfyUI's nodes can read, and the workflow renamed to them.

Input files are named by their content: equal bytes share a file and keep ComfyUI's cache warm, different bytes under one
name cannot be mixed up. The references in the workflow follow. A name that no node refers to is also placed as it is.
"""

import base64
import binascii
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_worker import graph, picture
from comfy_worker.comfy.cached import cached_name
from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, JobFailed
from comfy_worker.fetch import Fetcher, Item, ReadS3
from comfy_worker.job import Bucket, InputFile, Job

FAILED_TEXT = "Failed to upload one or more input images"
WHITESPACE = {ord(char): None for char in " \t\r\n\f\v"}


@dataclass(frozen=True, slots=True)
class Staged:
    """
    A workflow whose inputs are in place. `names` are to be released when the job is over.
    """

    workflow: Mapping[str, Any]
    names: tuple[str, ...]


class Stager:
    """
    Stages jobs. `info` gives a class's /object_info entry, `reader` what reads s3 URLs with a bucket's keys; `max_bytes` bounds one file.
    """

    def __init__(
        self,
        files: ComfyFiles,
        fetcher: Fetcher,
        info: Callable[[str], Mapping[str, Any]],
        reader: Callable[[Bucket | None], ReadS3 | None],
        *,
        max_bytes: int,
    ) -> None:
        self._files = files
        self._fetcher = fetcher
        self._info = info
        self._reader = reader
        self._max_bytes = max_bytes
        self._plain = PlainNames()

    @contextmanager
    def staged(self, job: Job, deadline: Deadline, scratch: Path) -> Iterator[Staged]:
        """
        Put the job's files in place while the block runs; `scratch` is an empty folder of the job.

        Raises:
            InputUnavailable: some files could not be had; `details["details"]` has a text for each.
        """
        remote = tuple(self._remote_values(job))
        sources = self._obtain((*job.inputs, *remote), self._reader(job.delivery.bucket), deadline, scratch)
        held = _Held(self._files, self._plain)
        try:
            yield Staged(self._placed(job, remote, sources, held, deadline), tuple(held.names))
        finally:
            held.release()

    def _placed(
        self,
        job: Job,
        remote: Sequence[InputFile],
        sources: Mapping[str, Path],
        held: "_Held",
        deadline: Deadline,
    ) -> Mapping[str, Any]:
        """
        Place every file and return the workflow that names them.
        """
        values = frozenset(file.name for file in remote)
        names = frozenset(file.name for file in job.inputs)

        def referred(place: graph.Place) -> str | None:
            if place.value in values:
                return place.value if self._is_file(job, place) else None
            name = _named(place.value, names)
            if name is None or graph.is_prose(place.input_name, self._info_of(job, place)):
                return None
            return name

        used = {name for place in graph.widgets(job.workflow) if (name := referred(place))}
        plain = (names - used) | names.intersection(graph.nested_texts(job.workflow))
        held.hold(plain, deadline)
        renames: dict[str, str] = {}
        for file in (*job.inputs, *remote):
            deadline.check("staging")
            source = sources[file.name]
            with _told_of(file):
                if file.name in plain:
                    held.place(file.name, _copied(source) if file.name in used else source)
                if file.name in used:
                    renames[file.name] = held.place(cached_name(file, source), source)

        def edit(place: graph.Place) -> str:
            name = referred(place)
            if name is None:
                return place.value
            return renames[name] + place.value[len(name) :]

        return graph.replaced(job.workflow, edit)

    def _info_of(self, job: Job, place: graph.Place) -> Mapping[str, Any]:
        return self._info(job.workflow[place.node_id]["class_type"])

    def _is_file(self, job: Job, place: graph.Place) -> bool:
        class_type = job.workflow[place.node_id]["class_type"]
        return (class_type, place.input_name) in graph.FILE_INPUTS or graph.names_a_file(
            place.input_name, self._info(class_type)
        )

    def _remote_values(self, job: Job) -> Iterator[InputFile]:
        """
        Yield the URLs and data URIs that stand for a file in the workflow itself; their name is the whole value.
        """
        seen = set()
        for place in graph.widgets(job.workflow):
            if place.value in seen or not graph.is_remote(place.value):
                continue
            if self._is_file(job, place):
                seen.add(place.value)
                is_data = place.value[:5].lower() == "data:"
                yield InputFile(
                    place.value,
                    place.field,
                    data=place.value if is_data else None,
                    url=None if is_data else place.value,
                )

    def _obtain(
        self, files: Sequence[InputFile], read_s3: ReadS3 | None, deadline: Deadline, scratch: Path
    ) -> dict[str, Path]:
        """
        Decode and fetch all files into `scratch`; all failures are collected, one fails the job.
        """
        paths = {file.name: scratch / f"in-{index}" for index, file in enumerate(files)}
        failures: dict[str, str] = {}
        wanted = [file for file in files if file.url is not None]
        for file in files:
            if file.data is not None:
                try:
                    data = self._decoded(file)
                except InputUnavailable as exc:
                    failures[file.field] = str(exc)
                    continue
                with _saving():
                    paths[file.name].write_bytes(data)
        items = [Item(str(file.url), paths[file.name], file.field) for file in wanted]
        failures.update(self._fetcher.fetch_all(items, deadline, max_bytes=self._max_bytes, s3=read_s3))
        for file in files:
            if file.must_be_image and file.field not in failures:
                problem = picture.image_problem(paths[file.name])
                if problem:
                    failures[file.field] = (
                        f"Error uploading {file.name}: '{file.field}' is not an image: {problem}"
                    )
        if failures:
            details = [failures[file.field] for file in files if file.field in failures]
            raise InputUnavailable(FAILED_TEXT, details=details, field=next(iter(failures)))
        return paths

    def _decoded(self, file: InputFile) -> bytes:
        name = _shown(file)
        text = file.data or ""
        if text[:5].lower() == "data:" or "," in text[:256]:
            text = text.partition(",")[2]
        if len(text) * 3 // 4 > self._max_bytes + 4:
            raise InputUnavailable(
                f"Error uploading {name}: '{file.field}' is larger than {self._max_bytes:,} bytes (INPUT_MAX_MB)"
            )
        try:
            data = base64.b64decode(text.translate(WHITESPACE), validate=True)
        except (binascii.Error, ValueError) as exc:
            hint = " (send base64, a data URI, or an http, https or s3 URL)"
            raise InputUnavailable(f"Error decoding base64 for {name}: {exc}{hint}") from exc
        if not data:
            raise InputUnavailable(f"Error decoding base64 for {name}: '{file.field}' is empty")
        return data


@contextmanager
def _told_of(file: InputFile) -> Iterator[None]:
    """
    Tell a file that ComfyUI refused by the name the job gave it, in the words for every input that could not be had.
    """
    try:
        yield
    except InputUnavailable as exc:
        reason = str(exc).rpartition(": ")[2]
        text = f"Error uploading {_shown(file)}: {reason}"
        raise InputUnavailable(FAILED_TEXT, details=[text], field=file.field) from exc


def _shown(file: InputFile) -> str:
    return file.name if len(file.name) <= 200 else file.field


class _Held:
    """
    What one job holds in ComfyUI's input folder.
    """

    def __init__(self, files: ComfyFiles, plain: "PlainNames") -> None:
        self._files = files
        self._plain = plain
        self._plain_names: list[str] = []
        self.names: list[str] = []

    def place(self, name: str, source: Path) -> str:
        with _saving():
            placed = self._files.place(name, source)
        self.names.append(placed)
        return placed

    def hold(self, names: Iterable[str], deadline: Deadline) -> None:
        # In one order, or two jobs could each wait for what the other has.
        for name in sorted(names):
            self._plain.hold(name, deadline)
            self._plain_names.append(name)

    def release(self) -> None:
        for name in self.names:
            self._files.release(name)
        for name in self._plain_names:
            self._plain.release(name)


@contextmanager
def _saving() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise JobFailed(
            "An input could not be saved: the worker's disk is full or cannot be written to."
        ) from exc


def _copied(source: Path) -> Path:
    with _saving():
        return Path(shutil.copyfile(source, source.with_name(f"{source.name}-copy")))


def _named(value: str, names: Collection[str]) -> str | None:
    """
    Return which of the job's files a value names, as it is or with ` [input]` behind it.
    """
    value = value.replace("\\", "/")
    if value in names:
        return value
    name, annotation = graph.split_annotation(value)
    return name if annotation == " [input]" and name in names else None


class PlainNames:
    """
    Plain file names in use: a second job with the same one waits until the first is over.
    """

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._freed = threading.Condition()

    def hold(self, name: str, deadline: Deadline) -> None:
        """
        Wait for the name, and take it.
        """
        while True:
            with self._freed:
                if name not in self._held:
                    self._held.add(name)
                    return
                self._freed.wait(min(0.25, deadline.left_s))
            deadline.check("staging")

    def release(self, name: str) -> None:
        """
        Let the next one have it.
        """
        with self._freed:
            self._held.discard(name)
            self._freed.notify_all()
