"""Evaluation of whole batches of images in pieces: in one, float32 pixels and activations take many times the bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from klrl.policy.pieces import joined

T = TypeVar("T")
ROWS = 64
"""States in a piece: enough for the arithmetic to be all that costs."""


def in_pieces(function: Callable[[Tensor], T], observations: Tensor) -> T:
    """Return a function of states ``[n, *O]`` that treats each for itself, evaluated on some after the other."""
    return joined([function(piece) for piece in observations.split(ROWS)])
