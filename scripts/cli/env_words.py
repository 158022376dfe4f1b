"""Words for environments on the command line: keyword arguments and wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from klrl.keywords import of_word
from klrl.validation import Pattern

KeyValue = Annotated[str, Pattern(r"(?s)[^\W\d]\w*=.*", "key=value")]
WrapperWord = Annotated[str, Pattern(r"(?s)\w[\w.]*:\w+|[^\W\d]\w*=.*", "MODULE:NAME, then key=value")]
Wrappers = tyro.conf.UseAppendAction[tuple[tuple[WrapperWord, ...], ...]]
"""Wrappers of an environment, each MODULE:NAME and then its arguments."""


def keywords(words: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments, with values as :func:`~klrl.keywords.of_word` reads them.

    >>> keywords(["g=5.0", "map_name=8x8", "shape=(64, 64)"])
    {'g': 5.0, 'map_name': '8x8', 'shape': (64, 64)}
    """
    return {key: of_word(text) for key, _, text in (word.partition("=") for word in words)}
