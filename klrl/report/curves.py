"""Curves small enough for a page: thinned without losing their extremes, and averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from klrl.report.intervals import band

POINTS = 150
"""Points of an average over seeds."""


def thinned(y: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of at most ``most`` points (4 at least), the smallest and largest of every stretch among them.

    The first and the last point are always there. A stretch is what a screen shows as one column, so that the picture
    stays the same: no peak is averaged away.
    """
    n = len(y)
    if n <= most:
        return np.arange(n)
    edges = np.linspace(0, n, max(1, (most - 2) // 2) + 1).astype(int)
    kept = {0, n - 1}
    for a, b in pairwise(edges):
        stretch = y[a:b]
        if np.isfinite(stretch).any():
            kept |= {a + int(np.nanargmin(stretch)), a + int(np.nanargmax(stretch))}
    return np.array(sorted(kept))


def peaks(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of all points, or of the largest of each of ``most`` stretches of x where points lie.

    Marks that are nearer to each other than that would cover each other; the largest stays.
    """
    if len(x) <= most:
        return np.arange(len(x))
    width = (x.max() - x.min()) / most or 1.0
    place = np.floor((x - x.min()) / width).astype(int)
    order = np.lexsort((y, place))
    return np.sort(order[np.r_[place[order][1:] != place[order][:-1], True]])


def average(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x, mean, lower and upper end of the interval, and number of seeds, ``[points]`` each.

    Seeds are interpolated linearly between their points, and count only where they have some on both sides; where fewer
    than half of them do, the average ends: it would be that of the few that went on.

    Args:
        curves: x and y of each seed; x increases.
    """
    xs = np.unique(np.concatenate([x for x, _ in curves]))
    xs = xs if len(xs) <= POINTS else np.linspace(xs[0], xs[-1], POINTS)
    ys = np.stack([np.interp(xs, x, y, left=np.nan, right=np.nan) if len(x) else np.nan * xs for x, y in curves])
    some = 2 * np.isfinite(ys).sum(0) >= len(curves)
    mean, low, high, n = band(ys[:, some])
    return xs[some], mean, low, high, n
