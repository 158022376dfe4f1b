"""Intervals over seeds: the one place from which the report takes its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from klrl.studies.statistics import student_quantile

FEWEST = 3
"""Seeds below which there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and its 95 % interval; ``low`` and ``high`` are NaN for fewer than three seeds."""

    value: float
    low: float
    high: float
    n: int


def over_seeds(scores: Sequence[float]) -> Interval:
    """Return the mean of one finite score per seed, with Student's 95 % interval."""
    finite = [x for x in scores if np.isfinite(x)]
    if not finite:
        return Interval(value=np.nan, low=np.nan, high=np.nan, n=0)
    mean, low, high, n = band(np.array(finite, float)[:, None])
    return Interval(value=float(mean[0]), low=float(low[0]), high=float(high[0]), n=int(n[0]))


def band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, lower and upper end of Student's 95 % interval, and number of seeds at each point.

    Args:
        curves: ``[seeds, points]``; NaN where a seed has no value.

    Returns:
        Four arrays ``[points]``; the ends are NaN where fewer than three seeds have a value.
    """
    there = np.isfinite(curves)
    n = there.sum(0)
    mean = np.divide(np.where(there, curves, 0.0).sum(0), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = (np.where(there, curves - mean, 0.0) ** 2).sum(0)
    t = np.array([student_quantile(0.95, k - 1) if k >= FEWEST else np.nan for k in range(n.max(initial=0) + 1)])
    half = t[n] * np.sqrt(np.divide(squares, n * (n - 1), out=np.full(n.shape, np.nan), where=n > 1))
    return mean, mean - half, mean + half, n
