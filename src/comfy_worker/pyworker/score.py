"""
The score of the benchmark between two starts: the SDK's file, and beside it what it was measured with.

The SDK runs nothing when `.has_benchmark` is there, whatever it was measured with, and fails its start on one that it
cannot read. So a score of another version, another benchmark or nobody knows what is removed before the SDK looks.
"""

import logging
import math
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = ".has_benchmark"
FINGERPRINT = ".has_benchmark.fingerprint"


def keep_or_remove(folder: Path, fingerprint: str) -> float | None:
    """
    Return the score that holds for this benchmark; remove any other, and note what the next one is measured with.
    """
    file, beside = folder / NAME, folder / FINGERPRINT
    score, known = _score(file), _text(beside)
    if score is not None and known == fingerprint:
        return score
    if file.exists():
        file.unlink()
        logger.info(
            "The score in %s was measured with another benchmark or is broken; it is measured anew.", file
        )
    beside.write_text(fingerprint, encoding="utf-8")
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _score(path: Path) -> float | None:
    try:
        found = float(_text(path).partition("\n")[0])
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 else None
