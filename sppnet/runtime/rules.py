"""Rules for values read from untrusted files: what each must be, in words and as a test."""

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether this is an int or float below 1e15 in size."""
    return type(value) in (int, float) and abs(value) < 1e15  # also no NaN


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1e15


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_count(entry) for entry in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


TEXT = Rule("text", lambda value: isinstance(value, str) and value != "")
COUNT = Rule("a whole number from 1", _is_count)
INDEX = Rule("a whole number from 0", lambda value: _is_count(value) or (type(value) is int and value == 0))
SEED = Rule("a whole number from 0 to 2**63 - 1", lambda value: type(value) is int and 0 <= value < 2**63)
POSITIVE = Rule("a number above 0", lambda value: is_number(value) and value > 0)
FRACTION = Rule("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
SIDES = Rule("null or a list of whole numbers from 1", lambda value: value is None or _are_counts(value))
NAMES = Rule("null or a list of text", lambda value: value is None or _are_texts(value))


def read_text(path: Path, limit: int) -> str:
    """Reads a UTF-8 file. Raises ValueError if it has more than `limit` bytes, or is a device or a pipe."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{status.st_size:,} bytes, at most {limit:,}")
    return path.read_text(encoding="utf-8")


def check_plain(content: Any) -> None:
    """Raises ValueError unless `content` is a mapping of values that JSON can hold."""
    if not isinstance(content, dict):
        raise ValueError("must be keys with values")
    try:
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    except TypeError as error:  # dates, sets, bytes, keys of several types
        raise ValueError(str(error)) from error


def check_section(
    section: dict[str, Any], rules: Mapping[str, Rule], options: Mapping[str, Rule], prefix: str = ""
) -> None:
    """Raises ValueError for a value that breaks its rule, and for a missing key of `rules`.

    Args:
        section: the keys and values to check; other keys are allowed.
        rules: of required keys.
        options: rules of keys that may be missing.
        prefix: put before a key in messages.
    """
    for key in rules:
        if key not in section:
            raise ValueError(f"{prefix}{key} is missing")
    for key, rule in {**rules, **options}.items():
        if key in section and not rule.holds(section[key]):
            raise ValueError(f"{prefix}{key} must be {rule.words}")
