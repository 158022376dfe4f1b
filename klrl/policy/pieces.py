"""Results of a function of rows, evaluated on some rows after the other, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from klrl.policy.arrays import concatenate
from klrl.policy.distributions import Distribution, concatenate_records

T = TypeVar("T")


def joined(pieces: Sequence[T]) -> T:
    """Put arrays, records of one family, or tuples of these one after the other, along the first dimension."""
    parts: Sequence[Any] = pieces
    if len(parts) == 1:
        return pieces[0]
    if isinstance(parts[0], tuple):
        return cast("T", tuple(joined(column) for column in zip(*parts, strict=True)))
    return cast("T", concatenate_records(parts) if isinstance(parts[0], Distribution) else concatenate(parts))
