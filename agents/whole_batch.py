"""Evaluation of whole batches of images in pieces: in one, float32 pixels and activations take many times the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from klrl.policy.distributions import Distribution

T = TypeVar("T", Tensor, Distribution[Any])
ROWS = 64
"""States in a piece: enough for the arithmetic to be all that costs."""


def in_pieces(function: Callable[[Tensor], T], observations: Tensor) -> T:
    """Return a function of states ``[n, *O]`` that treats each for itself, evaluated on some after the other."""
    found = [function(piece) for piece in observations.split(ROWS)]
    return found[0] if len(found) == 1 else joined(found)


def joined(pieces: Sequence[T]) -> T:
    """Put tensors, or records of one family, one after the other."""
    first = pieces[0]
    if isinstance(first, Tensor):
        return torch.cat(list(pieces))
    fields = zip(*(piece.parameters for piece in pieces), strict=True)
    return first.with_parameters(*(torch.cat(list(field)) for field in fields))
