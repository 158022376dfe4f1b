"""Statistics over few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return mean and half-width t s / sqrt(n) of Student's confidence interval for the mean over n seeds.

    With three seeds t is 4.3, and the interval is as wide as three runs warrant; percentiles of a bootstrap would
    always lie between the smallest and the largest of them. It assumes normal values, which returns near a ceiling are
    not. The half-width is NaN for one seed.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.nan
    return mean, student_quantile(level, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


def student_quantile(level: float, df: int) -> float:
    """Return t with P(|T| <= t) = level for Student's T with ``df`` degrees of freedom, by bisection.

    >>> round(student_quantile(0.95, 2), 4)
    4.3027
    """
    low, high = 0.0, math.pi / 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2.0)


def _within(angle: float, df: int) -> float:
    """Return P(|T| <= sqrt(df) tan angle): Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    odd = df % 2
    total, term = 0.0, math.cos(angle) if odd else 1.0
    for j in range(odd, df - 1, 2):
        term *= (j - 1) / j * math.cos(angle) ** 2 if j > 1 else 1.0
        total += term
    series = math.sin(angle) * total
    return 2.0 / math.pi * (angle + series) if odd else series
