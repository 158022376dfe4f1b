"""Classes of agents by the names of their algorithms, those of a user's own that were imported included."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any


def by_algorithm(base: Any) -> dict[str, Any]:
    """Return the classes of agents that are derived from one, by their algorithms' names.

    A name belongs to the class that was first, and to that one made anew where it was defined again, as in a notebook.
    """
    known: dict[str, Any] = {}
    for cls in _derived(base):
        algorithm = getattr(getattr(cls, "config_class", None), "algorithm", None)
        if algorithm is None or inspect.isabstract(cls):
            continue
        first = known.setdefault(algorithm, cls)
        if (first.__module__, first.__qualname__) == (cls.__module__, cls.__qualname__):
            known[algorithm] = cls
    return known


def _derived(cls: Any) -> Iterator[Any]:
    """Yield the classes derived from one, each before its own, so that the first of an algorithm's name is its own."""
    for derived in cls.__subclasses__():
        yield derived
        yield from _derived(derived)
