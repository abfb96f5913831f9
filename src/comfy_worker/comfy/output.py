"""
What ComfyUI prints -> lines of our log, each with a level. Pure.

ComfyUI 0.27.0 begins a log line with a coloured `[LEVEL]`; 0.3.64 prints the bare text. Tracebacks, progress bars and
what custom nodes print have no level at all.
"""

import logging
import re

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]")
TAG = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\] ?")
TRACEBACK = "Traceback (most recent call last):"
RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)\b")
FAILED_IMPORT = re.compile(r"\(IMPORT FAILED\):\s*(.+?)\s*$")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
LONGEST = 4000
"""Characters of a line that are kept: some nodes print whole tensors."""


class Reader:
    """
    Reads one process's output line by line; it remembers whether a traceback goes on.
    """

    def __init__(self) -> None:
        self._within = False

    def read(self, raw: bytes) -> tuple[int, str] | None:
        """
        Return the level and the text of one line, without colours; None for an empty one.

        Of a progress bar, which overwrites itself, only the last state is kept.
        """
        states = ANSI.sub("", raw.decode("utf-8", "replace")).rstrip().split("\r")
        text = CONTROL.sub("", next((state for state in reversed(states) if state.strip()), "")).rstrip()
        tag = TAG.match(text)
        if tag is not None:
            text = text[tag.end() :]
        if not text:
            return None
        level = self._level(text, is_tagged=tag is not None)
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        return (logging.getLevelNamesMapping()[tag[1]] if tag else level), text

    def _level(self, text: str, *, is_tagged: bool) -> int:
        was_within = self._within and not is_tagged
        self._within = text.strip() == TRACEBACK or (was_within and text.startswith(" "))
        if self._within or (was_within and RAISED.match(text)):
            return logging.ERROR
        return logging.INFO


def failed_import(text: str) -> str | None:
    """
    Return the name of the custom node pack that ComfyUI could not import, if this line says so.
    """
    found = FAILED_IMPORT.search(text)
    return re.split(r"[/\\]", found[1])[-1].removesuffix(".py") if found else None
