"""
Every numbered defect of the peer is tested by its number, or says in DEFECTS.md why not.
"""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
LAST = 86


def numbered() -> set[int]:
    """
    Return the numbers that have a test.
    """
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    return {
        int(number) for text in texts for number in re.findall(r"^def test_salad_s(\d+)_", text, re.MULTILINE)
    }


def listed() -> set[int]:
    """
    Return the numbers of the table.
    """
    page = (Path(__file__).parent / "DEFECTS.md").read_text(encoding="utf-8")
    return {int(number) for number in re.findall(r"^\| S(\d+) \|", page, re.MULTILINE)}


def test_every_defect_has_a_test_or_a_reason() -> None:
    """No number is forgotten, and none has both."""
    assert numbered() | listed() == set(range(1, LAST + 1))
    assert numbered() & listed() == set()
