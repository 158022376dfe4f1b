"""Short representations: for a prompt one line, for a notebook a small table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from html import escape
from typing import Any

_FEW = 8
"""Numbers that are shown themselves."""


def array(x: Any) -> str:
    """Type and shape of an array or tensor, or its numbers where these are few.

    >>> import torch
    >>> array(torch.zeros(256, 8)), array(torch.tensor([0.25, 0.75]))
    ('float32[256, 8]', '[0.25, 0.75]')
    """
    shape = tuple(x.shape)
    size = math.prod(shape)
    if 0 < size <= _FEW:
        return _rounded(x.tolist())
    device = str(getattr(x, "device", "cpu"))
    return f"{str(x.dtype).rpartition('.')[2]}{[*shape]}{'' if device == 'cpu' else f' on {device}'}"


def _rounded(x: Any) -> str:
    if isinstance(x, list):
        return f"[{', '.join(map(_rounded, x))}]"
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def changed(instance: Any) -> str:
    """A dataclass as one would write it: its class, and the fields that are not their defaults.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     gamma: float = 0.99
    ...     sizes: tuple[int, ...] = (64, 64)
    >>> changed(Settings()), changed(Settings(gamma=0.9))
    ('Settings()', 'Settings(gamma=0.9)')
    """
    values = ((f, getattr(instance, f.name)) for f in fields(instance) if f.repr)
    return f"{type(instance).__name__}({', '.join(f'{f.name}={x!r}' for f, x in values if not _is_default(f, x))})"


def of_arrays(instance: Any) -> str:
    """A dataclass of arrays: each by its type and shape, other fields as they are."""
    values = ((f.name, getattr(instance, f.name)) for f in fields(instance) if f.repr)
    said = (f"{name}={array(x) if hasattr(x, 'shape') else repr(x)}" for name, x in values)
    return f"{type(instance).__name__}({', '.join(said)})"


def _is_default(field: Field[Any], x: Any) -> bool:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return default is not MISSING and type(x) is type(default) and x == default


def table(title: str, rows: Iterable[Sequence[object]], header: Sequence[object] = ()) -> str:
    """A small table in HTML; without a header, the first cell of every row is its name."""
    lines = ["".join(f"<th>{escape(str(cell))}</th>" for cell in header)] if header else []
    for name, *cells in rows:
        first = f"<td>{escape(str(name))}</td>" if header else f"<th>{escape(str(name))}</th>"
        lines.append(first + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{escape(title)}</caption>{body}</table>"
