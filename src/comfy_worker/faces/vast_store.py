"""
The requests of the Vast face: those under way, and the results of those that are over, bounded by number, bytes and age.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import orjson

from comfy_worker.errors import JobInvalid, WorkerBusy
from comfy_worker.faces.vast_entry import Entry

RESULTS_MOST = 1000
BYTES_MOST = 256_000_000
FORGOTTEN_MOST = 10_000
LEAST_BYTES = 4096


class IdInUse(JobInvalid):
    """
    Another request of the same id is under way.
    """

    http_status = 409


@dataclass(slots=True)
class Desk:
    """
    All requests by id. `most` bounds those under way; `keep_s` is how long a result is kept.

    `evicted` is called for a result that goes. Used on the event loop only.
    """

    most: int
    keep_s: float
    evicted: Callable[[Entry], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    running: dict[str, Entry] = field(default_factory=dict)
    results: "OrderedDict[str, Entry]" = field(default_factory=OrderedDict)
    forgotten: "OrderedDict[str, None]" = field(default_factory=OrderedDict)
    _bytes: int = 0

    def open(self, entry: Entry) -> Entry:
        """
        Take a request on; one with the same id and body that is under way already is returned in its place.

        Raises:
            IdInUse: another body is under way under this id.
            WorkerBusy: there are too many.
        """
        known = self.running.get(entry.order.id)
        if known is not None and not known.is_over:
            if known.order.fingerprint != entry.order.fingerprint:
                name = entry.order.id[:80]
                raise IdInUse(
                    f"Another request with the id '{name}' is under way: wait for it, or send another request_id.",
                    field="input.request_id",
                )
            return known
        if len(self.running) >= self.most:
            raise WorkerBusy(f"Worker at capacity ({self.most} in flight); retry shortly")
        self.running[entry.order.id] = entry
        return entry

    def close(self, entry: Entry) -> None:
        """
        Move a request to the results.
        """
        if self.running.get(entry.order.id) is entry:
            del self.running[entry.order.id]
        former = self.results.pop(entry.order.id, None)
        if former is not None:
            self._drop(former)
        self.results[entry.order.id] = entry
        self.forgotten.pop(entry.order.id, None)
        self._bytes += held_bytes(entry)
        self.tidy()

    def slim(self, entry: Entry) -> None:
        """
        Let go of the base64 of files that a store has, once the result was sent.
        """
        if entry.result is None or self.results.get(entry.order.id) is not entry:
            return
        before = held_bytes(entry)
        slim = tuple(
            replace(output, inline=None) if output.type == "s3_url" else output
            for output in entry.result.outputs
        )
        entry.result = replace(entry.result, outputs=slim)
        self._bytes -= before - held_bytes(entry)

    def find(self, request_id: str) -> Entry | None:
        """
        Return a request by its id, under way or over.
        """
        self.tidy()
        return self.running.get(request_id) or self.results.get(request_id)

    def was_forgotten(self, request_id: str) -> bool:
        """
        Return whether there was a result of this id, which had to go.
        """
        return request_id in self.forgotten

    def stages(self) -> Mapping[str, int]:
        """
        Return how many requests are at each stage.
        """
        return Counter(entry.stage for entry in self.running.values())

    def position(self, entry: Entry) -> tuple[int, int]:
        """
        Return a request's place among those at its stage, from 1, and their number; 0, 0 when it is at none.
        """
        same = [other for other in self.running.values() if other.stage == entry.stage]
        return (same.index(entry) + 1, len(same)) if entry in same else (0, 0)

    def tidy(self) -> None:
        """
        Let go of results that are too old or too many, the oldest first; the newest one stays.
        """
        now = self.clock()
        while self.results:
            oldest = next(iter(self.results.values()))
            too_old = oldest.times.ended is not None and now - oldest.times.ended > self.keep_s
            too_many = len(self.results) > RESULTS_MOST or self._bytes > BYTES_MOST
            if not too_old and not (too_many and len(self.results) > 1):
                return
            del self.results[oldest.order.id]
            self._drop(oldest)
            self.forgotten[oldest.order.id] = None
            while len(self.forgotten) > FORGOTTEN_MOST:
                self.forgotten.popitem(last=False)

    def _drop(self, entry: Entry) -> None:
        self._bytes -= held_bytes(entry)
        self.evicted(entry)


def held_bytes(entry: Entry) -> int:
    """
    Return about how much memory the result of a request takes.
    """
    if entry.result is None:
        return LEAST_BYTES
    record = orjson.dumps(entry.result.history, default=str, option=orjson.OPT_NON_STR_KEYS)
    files = sum(len(output.inline or "") + len(output.data) for output in entry.result.outputs)
    return LEAST_BYTES + files + len(record)
