"""Units of a box: which of the environment's numbers a Gaussian's -1, 0 and 1 are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import gymnasium as gym
import numpy as np

from klrl.text import one_line

WIDEST = 1e15
"""Half of a range from which on bounds mean that there are none: the largest float, the largest integer."""


@dataclass(frozen=True, eq=False)
class Units:
    """x = center + half_range a, ``[d]`` each in float64; a = -1 and a = 1 are the bounds of a bounded element.

    An affine map changes no KL, and a log-density by a constant.
    """

    center: np.ndarray
    half_range: np.ndarray

    @classmethod
    def of(cls, space: gym.spaces.Box) -> Units:
        """Those of a box; elements without two bounds that differ keep the environment's unit."""
        low, high = _bounds(space)
        scaled = ~unbounded(space) & (low < high)
        low, high = np.where(scaled, low, -1.0), np.where(scaled, high, 1.0)
        return cls(0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low)

    @classmethod
    def of_environment(cls, space: gym.spaces.Box) -> Units:
        """The environment's own."""
        d = math.prod(space.shape)
        return cls(np.zeros(d), np.ones(d))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Units):
            return NotImplemented
        return np.array_equal(self.center, other.center) and np.array_equal(self.half_range, other.half_range)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def are_environments(self) -> bool:
        """Whether the map changes nothing."""
        return bool((self.center == 0.0).all() and (self.half_range == 1.0).all())

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Actions ``[*B, d]`` in the environment's units."""
        return action if self.are_environments else self.center + self.half_range * action

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_environment`."""
        return action if self.are_environments else (action - self.center) / self.half_range


def unbounded(space: gym.spaces.Box) -> np.ndarray:
    """Elements that lack one bound or both, bool ``[d]``; bounds that no action comes near are none."""
    low, high = _bounds(space)
    return ~(0.5 * high - 0.5 * low < WIDEST)


def caution(space: gym.spaces.Box, log_std: float = 0.0) -> str:
    """In words, what is to be known of a Gaussian that begins in the environment's units; empty if there is nothing.

    Args:
        space: of the actions.
        log_std: of the Gaussian in the beginning.
    """
    (elements,) = unbounded(space).nonzero()
    if len(elements) == 0:
        return ""
    std = math.exp(log_std)
    outside = [_outside(low / std, high / std) for low, high in np.stack(_bounds(space), -1)[elements]]
    which = "all elements" if len(elements) == math.prod(space.shape) else f"elements {elements.tolist()[:8]}"
    text = f"{one_line(space)} lacks bounds in {which}: there a Gaussian begins with mean 0 and std {std:g}"
    if max(outside) > 0.9:
        worst = int(elements[np.argmax(outside)])
        low, high = (x[worst] for x in _bounds(space))
        text += f", of which {max(outside):.1%} is outside of [{low:g}, {high:g}] in element {worst}"
    return text


def _outside(low: float, high: float) -> float:
    """The part of a standard normal that clipping moves to the border."""
    return 0.5 * math.erfc(-low / math.sqrt(2.0)) + 0.5 * math.erfc(high / math.sqrt(2.0))


def _bounds(space: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Of every element, ``[d]`` in float64."""
    low, high = (x.reshape(-1).astype(np.float64) for x in (space.low, space.high))
    return low, high
