"""Keyword arguments of environments and wrappers, as words of a command line and as JSON.

JSON has no tuples, and some environments take nothing else: in words a tuple is written as in Python, and in files
``(64, 64)`` is ``{"tuple": [64, 64]}``.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_TUPLE = "tuple"


def of_word(text: str) -> Any:
    """Return the value of a word: a number, true, false, none, JSON, which may hold tuples of Python, or else text.

    >>> [
    ...     of_word(text)
    ...     for text in ("5.0", "1_000", "False", "8x8", "[1, 2]", "(64, 64)", '{"shape": (64,), "on": true}')
    ... ]
    [5.0, 1000, False, '8x8', [1, 2], (64, 64), {'shape': (64,), 'on': True}]
    """
    if text in _WORDS:
        return _WORDS[text]
    for read in (int, _json, _python):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def to_word(value: Any) -> str:
    """Return a word that :func:`of_word` reads as this value, of those that are plain.

    >>> [to_word(value) for value in (5.0, None, "8x8", "8", [1, 2], {"shape": (64,)})]
    ['5.0', 'null', '8x8', '"8"', '[1, 2]', "{'shape': (64,)}"]
    """
    if isinstance(value, str):
        return value if of_word(value) == value else json.dumps(value)
    if value in (math.inf, -math.inf):
        return "1e999" if value > 0.0 else "-1e999"
    return json.dumps(value) if _to_json(value) == value else repr(value)


def to_json(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return keyword arguments as JSON has them here; ``None`` if JSON cannot keep a value."""
    return {name: _to_json(value) for name, value in kwargs.items()} if all(map(is_plain, kwargs.values())) else None


def of_json(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of which :func:`to_json` made this."""
    return {name: decoded(value) for name, value in kwargs.items()}


def is_plain(value: Any) -> bool:
    """Tell whether a file gives back the same value."""
    try:
        return bool(decoded(json.loads(json.dumps(_to_json(value)))) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _to_json(value: Any) -> Any:
    if type(value) is tuple:  # and not one with names
        return {_TUPLE: [_to_json(x) for x in value]}
    if isinstance(value, list):
        return [_to_json(x) for x in value]
    return {key: _to_json(x) for key, x in value.items()} if isinstance(value, dict) else value


def decoded(data: Any) -> Any:
    """Return data of a file with tuples where it has them."""
    if isinstance(data, list):
        return [decoded(x) for x in data]
    if not isinstance(data, dict):
        return data
    if data.keys() == {_TUPLE} and isinstance(data[_TUPLE], list):
        return tuple(decoded(x) for x in data[_TUPLE])
    return {key: decoded(x) for key, x in data.items()}


def _json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


class _Constants(ast.NodeTransformer):
    """JSON's constants as those of Python."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node


def _python(text: str) -> Any:
    """Read a tuple, a list or a dict of Python that JSON can keep.

    Raises:
        ValueError: it is none.
    """
    try:
        value = ast.literal_eval(_Constants().visit(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, TypeError, MemoryError) as error:
        raise ValueError from error
    if not isinstance(value, (tuple, list, dict)) or not is_plain(value):
        raise ValueError
    return value
