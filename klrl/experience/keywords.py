"""Keyword arguments of environments and wrappers, as words of a command line and as JSON.

JSON has no tuples, and some environments take nothing else: in words a tuple is written as in Python, and in files
``(64, 64)`` is ``{"tuple": [64, 64]}``.
"""

from __future__ import annotations

import ast
import json
from typing import Any

_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_TUPLE = "tuple"


def of_word(text: str) -> Any:
    """Return the value of a word: a number, true, false, none, JSON or the same with tuples of Python, or else text.

    >>> [of_word(text) for text in ("5.0", "1_000", "False", "8x8", "[1, 2]", "(64, 64)", "{'shape': (64,)}")]
    [5.0, 1000, False, '8x8', [1, 2], (64, 64), {'shape': (64,)}]
    """
    if text in _WORDS:
        return _WORDS[text]
    for read in (int, _json, _python):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def to_word(value: Any) -> str:
    """Return a word that :func:`of_word` reads as this value.

    >>> [to_word(value) for value in (5.0, None, "8x8", "8", [1, 2], {"shape": (64,)})]
    ['5.0', 'null', '8x8', '"8"', '[1, 2]', "{'shape': (64,)}"]
    """
    if isinstance(value, str):
        return value if of_word(value) == value else json.dumps(value)
    return json.dumps(value) if to_json(value) == value else repr(value)


def to_json(value: Any) -> Any:
    """Return a value with all its tuples as JSON has them here."""
    if isinstance(value, tuple):
        return {_TUPLE: [to_json(x) for x in value]}
    if isinstance(value, list):
        return [to_json(x) for x in value]
    return {key: to_json(x) for key, x in value.items()} if isinstance(value, dict) else value


def of_json(data: Any) -> Any:
    """Return the value of which :func:`to_json` made this."""
    if isinstance(data, list):
        return [of_json(x) for x in data]
    if not isinstance(data, dict):
        return data
    if data.keys() == {_TUPLE} and isinstance(data[_TUPLE], list):
        return tuple(of_json(x) for x in data[_TUPLE])
    return {key: of_json(x) for key, x in data.items()}


def is_plain(value: Any) -> bool:
    """Tell whether JSON gives back the same value."""
    try:
        return of_json(json.loads(json.dumps(to_json(value)))) == value
    except (TypeError, ValueError, RecursionError):
        return False


def _json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _python(text: str) -> Any:
    """Read a tuple, a list or a dict of Python that JSON can keep.

    Raises:
        ValueError: it is none.
    """
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError from error
    if not isinstance(value, (tuple, list, dict)) or not is_plain(value):
        raise ValueError
    return value
