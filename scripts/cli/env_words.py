"""Words for environments on the command line: keyword arguments and wrappers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from klrl.validation import Pattern

KeyValue = Annotated[str, Pattern(r"(?s)[^\W\d]\w*=.*", "key=value")]
WrapperWord = Annotated[str, Pattern(r"(?s)\w[\w.]*:\w+|[^\W\d]\w*=.*", "MODULE:NAME, then key=value")]
Wrappers = tyro.conf.UseAppendAction[tuple[tuple[WrapperWord, ...], ...]]
"""Wrappers of an environment, each MODULE:NAME and then its arguments."""
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


def keywords(words: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments, with values that are numbers, true, false, none, JSON, or else text.

    >>> keywords(["g=5.0", "map_name=8x8", "limits=[1, 2]", "n=1_000", "slippery=False"])
    {'g': 5.0, 'map_name': '8x8', 'limits': [1, 2], 'n': 1000, 'slippery': False}
    """
    return {key: _value(text) for key, _, text in (word.partition("=") for word in words)}


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    for read in (int, _json):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)
