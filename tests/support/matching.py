"""
Does a reply look as a contract case says? Exact values, and placeholders for what varies.

`{"$any": true}` is anything but null, `{"$starts": text}`, `{"$has": text}` and `{"$pattern": regex}` are texts,
`{"$count": n}` is a list of that length, `{"$some": {...}}` an object with at least these keys.
"""

import re
from typing import Any


def difference(expected: Any, actual: Any, path: str = "reply") -> str | None:
    """
    Return where and how `actual` differs first, None when it fits.
    """
    if isinstance(expected, dict) and len(expected) == 1 and next(iter(expected)).startswith("$"):
        [(rule, value)] = expected.items()
        return None if RULES[rule](value, actual) else f"{path}: {actual!r:.300} is not {rule} {value!r}"
    if isinstance(expected, dict) and isinstance(actual, dict):
        if set(expected) != set(actual):
            missing, extra = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
            return f"{path}: missing {missing}, unexpected {extra}"
        found = (difference(expected[key], actual[key], f"{path}.{key}") for key in expected)
        return next(filter(None, found), None)
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        found = (difference(one, other, f"{path}[{index}]") for index, (one, other) in pairs)
        return next(filter(None, found), None)
    same = type(expected) is type(actual) and expected == actual
    return None if same else f"{path}: {actual!r:.300} is not {expected!r:.300}"


def _some(value: dict[str, Any], actual: Any) -> bool:
    return isinstance(actual, dict) and all(
        key in actual and difference(item, actual[key]) is None for key, item in value.items()
    )


RULES = {
    "$any": lambda _, actual: actual is not None,
    "$starts": lambda value, actual: isinstance(actual, str) and actual.startswith(value),
    "$has": lambda value, actual: isinstance(actual, str) and value in actual,
    "$pattern": lambda value, actual: (
        isinstance(actual, str) and re.fullmatch(value, actual, re.S) is not None
    ),
    "$count": lambda value, actual: isinstance(actual, list) and len(actual) == value,
    "$some": _some,
}
