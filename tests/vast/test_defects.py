"""
Every numbered defect of the peer is tested by its number.
"""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
LAST = 40


def test_every_defect_has_a_test() -> None:
    """No number from 1 to 40 is without a test that names it."""
    texts = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    found = {
        int(number) for text in texts for number in re.findall(r"^def test_vast_(\d+)_", text, re.MULTILINE)
    }
    assert found == set(range(1, LAST + 1))
