"""Intervals over seeds: the one place from which reports and figures take their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from klrl.studies.statistics import FEWEST, Interval, student

__all__ = ["FEWEST", "Interval", "band", "over_seeds"]


def over_seeds(scores: Sequence[float]) -> Interval:
    """Return the mean of one score per seed with Student's 95 % interval; runs without a score are not counted."""
    return student([x for x in scores if np.isfinite(x)])


def band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, lower and upper end of Student's 95 % interval, and number of seeds, at every point at once.

    The same as :func:`klrl.studies.statistics.student` at each point, which would take half a minute for a page.

    Args:
        curves: ``[seeds, points]``; NaN where a seed has no value.

    Returns:
        Four arrays ``[points]``; the ends are NaN where fewer than three seeds have a value.
    """
    from scipy.special import stdtrit

    there = np.isfinite(curves)
    n = there.sum(0)
    mean = np.divide(np.where(there, curves, 0.0).sum(0), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = (np.where(there, curves - mean, 0.0) ** 2).sum(0)
    enough = n >= FEWEST
    t = stdtrit(np.where(enough, n - 1, np.nan), 0.975)
    half = t * np.sqrt(np.divide(squares, n * (n - 1), out=np.full(n.shape, np.nan), where=enough))
    return mean, mean - half, mean + half, n
