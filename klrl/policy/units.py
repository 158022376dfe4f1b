"""Units of a box: the environment's numbers for a Gaussian's -1, 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import gymnasium as gym
import numpy as np

from klrl.text import one_line

WIDEST = 1e15
"""Half-width of a range at which bounds are taken for missing: the largest float, the largest integer."""


@dataclass(frozen=True, eq=False)
class Units:
    """x = center + half_range a, ``[d]`` each in float64; a = -1 and a = 1 are the bounds of a bounded element.

    An affine map changes no KL, and a log-density by a constant.
    """

    center: np.ndarray
    half_range: np.ndarray

    @classmethod
    def of(cls, space: gym.spaces.Box) -> Units:
        """Return the units of a box; elements without two different bounds keep the environment's unit."""
        low, high = _bounds(space)
        scaled = ~unbounded(space) & (low < high)
        low, high = np.where(scaled, low, -1.0), np.where(scaled, high, 1.0)
        return cls(0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low)

    @classmethod
    def of_environment(cls, space: gym.spaces.Box) -> Units:
        """Return the environment's own units."""
        d = math.prod(space.shape)
        return cls(np.zeros(d), np.ones(d))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Units):
            return NotImplemented
        return np.array_equal(self.center, other.center) and np.array_equal(self.half_range, other.half_range)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def are_environments(self) -> bool:
        """True if the map is the identity."""
        return bool((self.center == 0.0).all() and (self.half_range == 1.0).all())

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Return actions ``[*B, d]`` in the environment's units."""
        return action if self.are_environments else self.center + self.half_range * action

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Return the inverse of :meth:`to_environment`."""
        return action if self.are_environments else (action - self.center) / self.half_range


def unbounded(space: gym.spaces.Box) -> np.ndarray:
    """Return the elements that lack a bound, bool ``[d]``; bounds beyond the reach of actions count as missing."""
    low, high = _bounds(space)
    return ~(0.5 * high - 0.5 * low < WIDEST)


def caution(space: gym.spaces.Box, log_std: float = 0.0) -> str:
    """Return a warning about a Gaussian that begins in the environment's units; empty if there is nothing to say.

    Args:
        space: action space.
        log_std: initial log_std of the Gaussian.
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
    """Return the probability that a standard normal is clipped to the border."""
    return 0.5 * math.erfc(-low / math.sqrt(2.0)) + 0.5 * math.erfc(high / math.sqrt(2.0))


def _bounds(space: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of all elements, ``[d]`` in float64."""
    low, high = (x.reshape(-1).astype(np.float64) for x in (space.low, space.high))
    return low, high
