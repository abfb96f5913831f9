"""
Faults on demand, for tests of whoever talks to the engine; no real server has them.

They are a JSON object, given per engine (`--faults JSON` at the start, `POST /standin/faults` later; `{}` clears) or per
prompt (`extra_data.standin`), where a prompt's own value wins. Message types are the text types of the socket, `null_event`
(`executing` without a node) and `binary`.

    close_socket_after_frame  int: end the client's socket after that many frames of the prompt (0: before the first)
    close_frame               bool: end it with a proper close frame (1001) and not like a cut cable
    refuse_socket             bool: new sockets are answered 503; per prompt: those of its client, until it is over
    lose                      [types]: never sent
    duplicate                 [types]: sent twice
    delay_ms                  {type: ms}: held back, and everything behind them
    history_delay_ms          ms or [least, most]: from execution_success to the history entry (1 to 5 if not given)
    gc_stall_ms               ms: after the prompt, HTTP and sockets freeze
    post_status               int: POST /prompt answers that status and queues nothing
    queued_but_500            bool: POST /prompt answers 500 and the prompt runs
    lost_but_200              bool: POST /prompt answers 200 and the prompt is forgotten
    die_at_node               id, or {"node": id, "signal": 9} or {"node": id, "exit_code": 3}: the engine dies there
    oom_at_node               id: that node fails as if the memory of a GPU had run out
    hang                      seconds: no answer and no message, the process lives; from the start of the prompt, or at once
    delete_outputs_after_run  bool: the files of the prompt are gone when its history appears
    http_500_on               [path prefixes] or {prefix: times}: those requests fail; per engine only
    http_status               int: with that status in place of 500 (503 comes with a proxy's page)
    slow_upload_ms            ms: every upload takes that much longer; per engine only
    throttle                  bool: false sends every progress tick
"""

import random
import re
import threading
from collections.abc import Mapping
from typing import Any

# The list above is the list, so that the two cannot differ.
NAMES = frozenset(re.findall(r"^    (\w+)  ", __doc__ or "", re.MULTILINE))


class UnknownFault(ValueError):
    """
    A fault with a name or a shape that does not exist.
    """


def checked(given: Any) -> dict[str, Any]:
    """
    Return the faults of a JSON value.

    Raises:
        UnknownFault: it is no object, or a name in it does not exist.
    """
    if not isinstance(given, Mapping):
        raise UnknownFault("Faults are a JSON object.")
    wrong = sorted(set(given) - NAMES)
    if wrong:
        raise UnknownFault(f"No such fault: {', '.join(wrong)}. There are: {', '.join(sorted(NAMES))}.")
    return dict(given)


class OutOfMemoryError(RuntimeError):
    """
    What `oom_at_node` raises; it carries the name under which GPU nodes report it.
    """

    def __init__(self) -> None:
        super().__init__(
            "Allocation on device 0 would exceed allowed memory. (out of memory)\n"
            "Currently allocated     : 21.54 GiB\nRequested               : 4.00 GiB\nDevice limit            : 23.64 GiB"
        )


OutOfMemoryError.__module__ = "torch"


class Faults:
    """
    The faults of the engine and what is left of the counted ones. Thread-safe.
    """

    def __init__(self, given: Mapping[str, Any], rng: random.Random) -> None:
        self._lock = threading.Lock()
        self._rng = rng
        self.set(given)

    def set(self, given: Mapping[str, Any]) -> None:
        """
        Replace all faults of the engine.
        """
        rows = given.get("http_500_on") or {}
        with self._lock:
            self.values = dict(given)
            self._failing = dict(rows) if isinstance(rows, Mapping) else dict.fromkeys(rows)

    def fails(self, path: str) -> int | None:
        """
        Return the status with which a request for `path` must fail, None if it must not; counts it.
        """
        with self._lock:
            for prefix, left in self._failing.items():
                if path.startswith(prefix) and left != 0:
                    self._failing[prefix] = None if left is None else left - 1
                    return int(self.values.get("http_status", 500))
        return None

    def of(self, prompt: Mapping[str, Any]) -> "PromptFaults":
        """
        Return what holds for a prompt that brought `prompt`.
        """
        return PromptFaults({**self.values, **prompt}, self._rng)


class PromptFaults:
    """
    What holds for one prompt, and how many frames its client got.
    """

    def __init__(self, values: Mapping[str, Any], rng: random.Random) -> None:
        self.values = values
        self._rng = rng
        self.frames = 0

    def on(self, name: str) -> bool:
        """
        Tell whether a switch is set.
        """
        return bool(self.values.get(name))

    def seconds(self, name: str) -> float:
        """
        Return a time given in ms (or as a range of them) in seconds.
        """
        value = self.values.get(name, 0)
        return (self._rng.uniform(*value) if isinstance(value, list | tuple) else float(value)) / 1000

    @property
    def history_delay_s(self) -> float:
        """
        Seconds between execution_success and the history entry.
        """
        return (
            self.seconds("history_delay_ms")
            if "history_delay_ms" in self.values
            else self._rng.uniform(0.001, 0.005)
        )

    def copies(self, kind: str) -> int:
        """
        How often a message of that kind is sent: 0, 1 or 2.
        """
        if kind in self.values.get("lose", ()):
            return 0
        return 2 if kind in self.values.get("duplicate", ()) else 1

    def delay_s(self, kind: str) -> float:
        """
        Seconds to hold back a message of that kind.
        """
        return float(self.values.get("delay_ms", {}).get(kind, 0)) / 1000

    def death_at(self, node_id: str) -> Mapping[str, Any] | None:
        """
        Return how to die at that node (`signal` or `exit_code`), None to live on.
        """
        how = self.values.get("die_at_node")
        row = how if isinstance(how, Mapping) else {"node": how}
        return row if how is not None and str(row.get("node")) == node_id else None

    def is_oom(self, node_id: str) -> bool:
        """
        Tell whether that node has to run out of memory.
        """
        return str(self.values.get("oom_at_node")) == node_id
