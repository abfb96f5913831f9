"""
The queue of messages and the threads that send them. Nothing waits on it: `send` returns at once.

Messages of one lane go one after the other, in order; lanes go beside each other. A lane that is between two attempts
holds no thread, and one receiver never holds all of them. What may be lost is decided by weight:

    progress   one attempt; a newer one takes the place of one that still waits; dropped when the queue is full
    event      all attempts; dropped when the queue is full
    terminal   all attempts; never dropped for a full queue (short of `most_terminal`), logged when it is given up
"""

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from comfy_worker import log
from comfy_worker.fetch_guard import Guard
from comfy_worker.webhook.post import Answer, Body, Poster, host_of
from comfy_worker.webhook.sign import id_of, signed

logger = logging.getLogger(__name__)

Weight = Literal["progress", "event", "terminal"]

FIRST_PAUSE_S, PAUSE_GROWTH, LONGEST_PAUSE_S = 1.0, 4.0, 300.0
RETRY_AFTER_MOST_S = 600.0
AGE_MOST_S = 3600.0
CLOSING_PAUSE_S = 0.5
IDLE_S = 60.0
JOIN_S = 5.0
TOLD_MOST = 20


def pause_s(attempt: int) -> float:
    """
    Return the seconds to wait after attempt 1, 2, ...: about 1, 4, 16, ... up to 300, each by chance half or half more.
    """
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * PAUSE_GROWTH ** min(attempt - 1, 10)) * random.uniform(
        0.5, 1.5
    )


@dataclass(frozen=True, slots=True)
class Message:
    """
    One POST to make. `id` is its `webhook-id`, on every attempt the same; random when empty.

    `lane` names what is to arrive in order at one URL, usually a job id; a message without one is alone.
    `headers` go with it; `attempt_s` is the limit of each attempt, where it is not the sender's.
    """

    url: str
    body: bytes
    id: str = ""
    lane: str = ""
    weight: Weight = "terminal"
    signed: bool = True
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    attempt_s: float | None = None


@dataclass(slots=True)
class _Waiting:
    message: Message
    id: str
    body: Body
    since: float
    tried: int = 0


@dataclass(slots=True)
class _Lane:
    host: str
    waiting: deque[_Waiting] = field(default_factory=deque)
    ready_at: float = 0.0
    is_busy: bool = False


class Sender:
    """
    Sends messages, signed with `key`. `attempts` is the total per message, `attempt_s` the limit of each.

    `limit` bounds the messages that wait, terminal ones aside; those are bounded by `most_terminal`.
    """

    def __init__(
        self,
        key: bytes,
        guard: Guard,
        *,
        attempts: int = 3,
        attempt_s: float = 30.0,
        threads: int = 8,
        per_host: int = 4,
        limit: int = 1000,
        most_terminal: int = 10_000,
        pause: Callable[[int], float] = pause_s,
    ) -> None:
        self._key = key
        self._guard = guard
        self._attempts, self._attempt_s, self._pause = attempts, attempt_s, pause
        self._most_threads, self._per_host = threads, per_host
        self._limit, self._most_terminal = limit, most_terminal
        self._lock = threading.Condition()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._count: Counter[bool] = Counter()  # by whether it is terminal
        self._hosts: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []
        self._posters: list[Poster] = []
        self._idle = self._busy = 0
        self._is_closing = self._is_over = False
        self.dropped = 0

    def send(self, message: Message) -> bool:
        """
        Take a message on; return whether it was. Never raises, never waits.
        """
        with self._lock:
            if self._drops(message):
                return False
        # A large body goes to disk, which nobody else is to wait for.
        body = Body(message.body)
        entry = _Waiting(replace(message, body=b""), id_of(message.id), body, time.monotonic())
        with self._lock:
            if self._drops(message):
                body.close()
                return False
            key = (message.url, message.lane or f"\0{entry.id}")
            lane = self._lanes.setdefault(key, _Lane(host_of(message.url)))
            self._put(lane, entry)
            if len(self._lanes) - self._busy > self._idle and len(self._threads) < self._most_threads:
                self._start()
            self._lock.notify()
        return True

    @property
    def pending(self) -> int:
        """
        How many messages wait or are on their way.
        """
        with self._lock:
            return self._count.total()

    def close(self, drain_s: float) -> None:
        """
        Take no more, give what waits `drain_s` seconds (pauses are cut short), then let go of the rest. Idempotent.
        """
        end = time.monotonic() + drain_s
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()
            while self._lanes and not self._is_over and (left := end - time.monotonic()) > 0:
                self._lock.wait(left)
            self._is_over = True
            left_over = [entry for lane in self._lanes.values() for entry in lane.waiting]
            posters, threads = list(self._posters), list(self._threads)
            self._lock.notify_all()
        _tell_of(left_over)
        for poster in posters:
            poster.cut()
        end = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        for entry in left_over:
            entry.body.close()

    def _drops(self, message: Message) -> bool:
        is_terminal = message.weight == "terminal"
        has_room = self._count[is_terminal] < (self._most_terminal if is_terminal else self._limit)
        if has_room and not self._is_closing:
            return False
        self.dropped += 1
        why = "the worker is shutting down" if self._is_closing else "too many wait already"
        level = logging.ERROR if is_terminal else logging.DEBUG
        logger.log(level, "A webhook to %s was dropped: %s.", host_of(message.url), why)
        return True

    def _put(self, lane: _Lane, entry: _Waiting) -> None:
        last = lane.waiting[-1] if lane.waiting else None
        on_its_way = lane.is_busy and len(lane.waiting) == 1
        if last is not None and not on_its_way and last.message.weight == entry.message.weight == "progress":
            lane.waiting[-1] = entry
            last.body.close()
            return
        lane.waiting.append(entry)
        self._count[entry.message.weight == "terminal"] += 1

    def _start(self) -> None:
        poster = Poster(self._guard)
        thread = threading.Thread(
            target=self._work, args=(poster,), name=f"webhook-{len(self._threads)}", daemon=True
        )
        self._posters.append(poster)
        self._threads.append(thread)
        thread.start()

    def _work(self, poster: Poster) -> None:
        try:
            while (key := self._next(poster)) is not None:
                with self._lock:
                    entry = self._lanes[key].waiting[0]
                token = log.current_job.set(entry.message.lane or None)
                answer = self._attempt(poster, entry)
                log.current_job.reset(token)
                with self._lock:
                    self._settle(key, entry, answer)
        finally:
            poster.rest()

    def _next(self, poster: Poster) -> tuple[str, str] | None:
        """
        Wait for a lane that may go on, and take it; None once this is over.
        """
        with self._lock:
            while not (self._is_over or (self._is_closing and not self._lanes)):
                now = time.monotonic()
                for key, lane in self._lanes.items():
                    if not lane.is_busy and lane.ready_at <= now and self._hosts[lane.host] < self._per_host:
                        lane.is_busy = True
                        self._busy += 1
                        self._hosts[lane.host] += 1
                        return key
                poster.rest()
                pauses = [lane.ready_at - now for lane in self._lanes.values() if not lane.is_busy]
                self._idle += 1
                self._lock.wait(min([IDLE_S, *(pause for pause in pauses if pause > 0)]))
                self._idle -= 1
            return None

    def _attempt(self, poster: Poster, entry: _Waiting) -> Answer:
        message = entry.message
        entry.tried += 1
        headers = dict(message.headers)
        if message.signed:
            headers |= signed(self._key, entry.id, int(time.time()), entry.body.pieces())
        try:
            answer = poster.post(message.url, headers, entry.body, message.attempt_s or self._attempt_s)
        except Exception:
            logger.exception("A webhook ended by a fault of the worker.")
            answer = Answer("the worker failed on it", final=True)
        if answer.problem is not None:
            self._tell(entry, answer)
        return answer

    def _is_last(self, entry: _Waiting, answer: Answer) -> bool:
        most = 1 if entry.message.weight == "progress" else self._attempts
        return answer.final or entry.tried >= most or time.monotonic() - entry.since > AGE_MOST_S

    def _tell(self, entry: _Waiting, answer: Answer) -> None:
        is_last = self._is_last(entry, answer)
        is_lost = is_last and entry.message.weight == "terminal"
        logger.log(
            logging.ERROR if is_lost else logging.INFO,
            "Webhook %s to %s, attempt %d of %d: %s.%s",
            entry.id,
            host_of(entry.message.url),
            entry.tried,
            self._attempts,
            answer.problem,
            " It is given up." if is_last else "",
        )

    def _settle(self, key: tuple[str, str], entry: _Waiting, answer: Answer) -> None:
        """
        Free the lane after an attempt, behind the others; with its next message, or with a pause before this one's next.
        """
        lane = self._lanes.pop(key)
        lane.is_busy = False
        self._busy -= 1
        self._hosts -= Counter([lane.host])  # forgets a host at 0
        if answer.problem is None or self._is_last(entry, answer):
            lane.waiting.popleft()
            self._count[entry.message.weight == "terminal"] -= 1
            entry.body.close()
            lane.ready_at = 0.0
        else:
            asked = min(answer.again_s, RETRY_AFTER_MOST_S)
            pause = max(self._pause(entry.tried), asked)
            lane.ready_at = time.monotonic() + (min(pause, CLOSING_PAUSE_S) if self._is_closing else pause)
        if lane.waiting:
            self._lanes[key] = lane
        self._lock.notify_all()


def _tell_of(left_over: list[_Waiting]) -> None:
    lost = [entry for entry in left_over if entry.message.weight == "terminal"]
    for entry in lost[:TOLD_MOST]:
        logger.error(
            "Webhook %s to %s was not delivered before the worker ended.",
            entry.id,
            host_of(entry.message.url),
        )
    if len(lost) > TOLD_MOST:
        logger.error("So were %d more.", len(lost) - TOLD_MOST)
