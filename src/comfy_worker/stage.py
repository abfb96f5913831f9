"""
Inputs -> files that ComfyUI's nodes can read, and the workflow renamed to them.

Input files are named by their content: equal bytes share a file and keep ComfyUI's cache warm, different bytes under one
name cannot be mixed up. The references in the workflow follow. A name that no node refers to is also placed as it is.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comfy_worker import graph, inline, parallel, picture
from comfy_worker.buckets import Probe
from comfy_worker.cache import UrlCache
from comfy_worker.comfy.cached import cached_name
from comfy_worker.comfy.files import ComfyFiles
from comfy_worker.deadline import Deadline
from comfy_worker.errors import InputUnavailable, WorkerError
from comfy_worker.fetch import Fetcher, Item
from comfy_worker.fetch_file import ReadS3
from comfy_worker.holding import Held, PlainNames, copied, saving, taken
from comfy_worker.job import Bucket, InputFile, Job
from comfy_worker.model_files import ModelFiles
from comfy_worker.models.repositories import Repositories

FAILED_TEXT = "Failed to upload one or more input images"
NO_MODELS = "this worker takes no models from URLs: it does not know ComfyUI's models folder (MODEL_DIR)"
MODEL_MAX_BYTES = 1 << 50
MODELS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Staged:
    """
    A workflow whose inputs are in place. `names` are to be released when the job is over.
    """

    workflow: Mapping[str, Any]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shelf:
    """
    What is kept beyond one job: files of URLs and ComfyUI's models; and how s3 URLs are looked up, read and allowed.
    """

    cache: UrlCache
    models: ModelFiles | None
    prober: Callable[[Bucket], Probe]
    reader: Callable[[Bucket | None], ReadS3 | None]
    admit: Callable[[Bucket | None], None]
    repositories: Repositories | None = None


class Stager:
    """
    Stages jobs. `info` gives a class's /object_info entry, `reader` what reads s3 URLs with a bucket's keys; `max_bytes` bounds one file.

    With a `shelf`, files of URLs come from its cache, and a job may bring models.
    """

    def __init__(
        self,
        files: ComfyFiles,
        fetcher: Fetcher,
        info: Callable[[str], Mapping[str, Any]],
        reader: Callable[[Bucket | None], ReadS3 | None],
        *,
        max_bytes: int,
        shelf: Shelf | None = None,
    ) -> None:
        self._files = files
        self._fetcher = fetcher
        self._info = info
        self._reader = reader
        self._max_bytes = max_bytes
        self._shelf = shelf
        self._plain = PlainNames()

    @contextmanager
    def staged(self, job: Job, deadline: Deadline, scratch: Path) -> Iterator[Staged]:
        """
        Put the job's files in place while the block runs; `scratch` is an empty folder of the job.

        Raises:
            InputUnavailable: some files could not be had; `details["details"]` has a text for each.
        """
        remote = tuple(self._remote_values(job))
        inputs = tuple(file for file in job.inputs if file.folder is None)
        read_s3 = self._reader(job.reads or job.delivery.bucket)
        sources = self._obtain((*inputs, *remote), read_s3, deadline, scratch)
        held = Held(self._files, self._plain)
        try:
            models = self._models(job, read_s3, deadline, held)
            workflow = self._placed(job, inputs, remote, sources, held, deadline)
            workflow = graph.replaced(workflow, lambda place: models.get(place.value, place.value))
            yield Staged(workflow, tuple(held.names))
        finally:
            held.release()

    def _placed(
        self,
        job: Job,
        inputs: Sequence[InputFile],
        remote: Sequence[InputFile],
        sources: Mapping[str, Path],
        held: Held,
        deadline: Deadline,
    ) -> Mapping[str, Any]:
        """
        Place every file and return the workflow that names them.
        """
        values = frozenset(file.name for file in remote)
        names = frozenset(file.name for file in inputs)

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
        for file in (*inputs, *remote):
            deadline.check("staging")
            source = sources[file.name]
            with _told_of(file):
                if file.name in plain:
                    held.place(file.name, copied(source) if file.name in used else source)
                if file.name in used:
                    renames[file.name] = held.place(cached_name(file, source), source)

        def edit(place: graph.Place) -> str:
            name = referred(place)
            if name is None:
                return place.value
            return renames[name] + place.value[len(name) :]

        return graph.replaced(job.workflow, edit)

    def _item(self, file: InputFile, to: Path) -> Item:
        bucket = file.auth.bucket if file.auth else None
        return Item(
            str(file.url),
            to,
            file.field,
            file.auth,
            self._reader(bucket) if bucket else None,
            self._shelf.prober(bucket) if bucket and self._shelf else None,
        )

    def _models(self, job: Job, read_s3: ReadS3 | None, deadline: Deadline, held: Held) -> dict[str, str]:
        """
        Fetch the models of a job, link them into place, and return what each is called there, by name.
        """
        wanted = [file for file in job.inputs if file.folder is not None]
        if not wanted:
            return {}
        if self._shelf is None or self._shelf.models is None:
            text = (
                "this worker takes no models from URLs: it does not know ComfyUI's models folder (MODEL_DIR)"
            )
            raise InputUnavailable(text, details=[text], field=wanted[0].field)
        cache, models, repositories = self._shelf.cache, self._shelf.models, self._shelf.repositories
        names = dict[str, str]()

        def fetch(file: InputFile) -> None:
            if file.is_repository and repositories is not None:
                names[file.name] = repositories.obtain(str(file.url), deadline)
                return
            path = cache.obtain(self._item(file, Path()), deadline, max_bytes=MODEL_MAX_BYTES, s3=read_s3)
            held.keep(partial(cache.release, path))
            models.link(str(file.folder), path.name, path)
            names[file.name] = path.name

        tasks = [partial(fetch, file) for file in wanted]
        results = parallel.each(tasks, threads=MODELS_AT_ONCE, deadline=deadline, stage="fetching models")
        for file, result in zip(wanted, results, strict=True):
            if isinstance(result, WorkerError):
                result.details |= {"details": [str(result)], "field": file.field}
                raise result
        return names

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
            if file.url is not None:
                continue
            try:
                self._take(file, paths[file.name])
            except InputUnavailable as exc:
                failures[file.field] = str(exc)
        source = self._shelf.cache if self._shelf else self._fetcher
        items = [self._item(file, paths[file.name]) for file in wanted]
        failures.update(source.fetch_all(items, deadline, max_bytes=self._max_bytes, s3=read_s3))
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

    def _take(self, file: InputFile, to: Path) -> None:
        if file.path is not None:
            taken(file, to, self._max_bytes)
        elif file.data is not None:
            data = inline.decoded(file, self._max_bytes)
            with saving():
                to.write_bytes(data)


@contextmanager
def _told_of(file: InputFile) -> Iterator[None]:
    """
    Tell a file that ComfyUI refused by the name the job gave it, in the words for every input that could not be had.
    """
    try:
        yield
    except InputUnavailable as exc:
        reason = str(exc).rpartition(": ")[2]
        text = f"Error uploading {inline.shown(file)}: {reason}"
        raise InputUnavailable(FAILED_TEXT, details=[text], field=file.field) from exc


def _named(value: str, names: Collection[str]) -> str | None:
    """
    Return which of the job's files a value names, as it is or with ` [input]` behind it.
    """
    value = value.replace("\\", "/")
    if value in names:
        return value
    name, annotation = graph.split_annotation(value)
    return name if annotation == " [input]" and name in names else None
