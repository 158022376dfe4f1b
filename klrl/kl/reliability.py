"""Doubts about a sample mean and its standard error: few samples, heavy tails, skewness, no variation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from klrl.text import warn_user

FEWEST = 30
"""Independent samples (clusters, effective samples) below which an interval is doubtful."""
LARGEST_DEFICIT = 2.0
"""Standard errors by which a mean may be below its known expectation; by chance it is so in one case of 44."""
_CHUNK = 2**20


class DoubtfulEstimateWarning(RuntimeWarning):
    """The interval of an estimate may miss the true value far more often than it says, or there is no mean at all."""


class Doubt(NamedTuple):
    """Numbers that tell of the reliability of a mean, one per mean, ``[*B]``."""

    independent: Tensor
    """Number of independent samples, or of what they are worth."""
    skewness: Tensor
    """Sample skewness of what is averaged."""
    khat: Tensor
    """Tail index by :func:`pareto_k`."""
    constant: Tensor
    """True where all samples have one value, other than the 0 of equal distributions."""
    deficit: Tensor = torch.zeros(())
    """Standard errors by which weights or ratios, whose expectation is 1, have a smaller mean."""

    def reasons(self, n: int) -> list[str]:
        """Describe what is doubtful, ``n`` being the number of samples.

        For a skewed quantity Cochran's rule asks for n >= 25 g1^2 (Cochran 1977, "Sampling Techniques", section 2.15).
        """
        few, skewed = self.independent < FEWEST, self.independent < 25.0 * self.skewness.square()
        heavy = self.khat > largest_khat(n)
        found = []
        if few.any():
            found.append(f"{self.independent.min().item():.3g} independent samples; allowed: >= {FEWEST}")
        if heavy.any():
            worst = self.khat[heavy].max().item()
            note = ", and no mean exists from 1 on" if worst > 1.0 else ""
            found.append(f"Pareto k-hat {worst:.2g} of the tail; allowed: <= {largest_khat(n):.2g}{note}")
        if skewed.any():
            worst = self.skewness[skewed].abs().max().item()
            found.append(f"skewness {worst:.3g}, which asks for {25.0 * worst * worst:.0f} independent samples")
        if self.constant.any():
            found.append("all samples have one value: what is rare was not seen")
        short = self.deficit > LARGEST_DEFICIT
        if short.any():
            worst = self.deficit.max().item()
            by = "without spread below" if worst == math.inf else f"{worst:.2g} standard errors below"
            found.append(f"weights or ratios have a mean {by} 1, their expectation: samples miss where they are large")
        states = few | heavy | skewed | self.constant | short
        if found and states.numel() > 1:
            found.append(f"in {int(states.sum())} of {states.numel()} states")
        return found

    def warn(self, what: str, n: int) -> None:
        """Warn of an estimate whose interval is doubtful."""
        if found := self.reasons(n):
            warn_user(f"{what}: the standard error cannot be trusted: {'; '.join(found)}", DoubtfulEstimateWarning)


def largest_khat(n: int) -> float:
    """Return the largest k-hat at which n samples suffice, min(1 - 1 / log10 n, 0.7) (Vehtari et al. 2024)."""
    return min(1.0 - 1.0 / math.log10(n), 0.7) if n > 10 else 0.0


def tail_size(n: int) -> int:
    """Return the number of largest samples that are the tail: min(n / 5, 3 sqrt(n)) (Vehtari et al. 2024, eq. 5)."""
    return math.ceil(min(0.2 * n, 3.0 * n**0.5))


def tail(x: Tensor, n: int) -> Tensor:
    """Return what :func:`pareto_k` wants of samples ``[m, *B]``: the largest, as many as are the tail of n, and one."""
    return x.topk(min(tail_size(n) + 1, len(x)), 0).values


def pareto_k(largest: Tensor) -> Tensor:
    r"""Estimate the shape k of a tail, ``[*B]``: moments of order 1 / k and more do not exist. NaN without a tail.

    Fits a generalised Pareto distribution to what the tail exceeds its lower end by (Zhang & Stephens 2009, "A New and
    Efficient Estimation Method for the Generalized Pareto Distribution"), with the weak prior of Vehtari et al. 2024,
    "Pareto Smoothed Importance Sampling", appendix G: as if 10 more samples said 1/2.

    Args:
        largest: the M + 1 largest samples, ``[M + 1, *B]``, in any order; >= 5 are a tail.
    """
    m = len(largest) - 1
    if m < 5:
        return largest.new_full(largest.shape[1:], math.nan)
    ordered = largest.flatten(1).sort(0).values if largest.ndim > 1 else largest.sort(0).values.unsqueeze(1)
    parts = (ordered[1:] - ordered[0]).split(max(1, _CHUNK // (m * (30 + math.isqrt(m)))), 1)
    return torch.cat([_fit(x) for x in parts]).reshape(largest.shape[1:])


def _fit(excess: Tensor) -> Tensor:
    """Return k of ``[M, N]`` excesses in rising order, ``[N]``."""
    m, count = len(excess), 30 + math.isqrt(len(excess))
    quartile, top = excess[int(m / 4 + 0.5) - 1], excess[-1]
    usable = (quartile > 0.0) & top.isfinite()
    x = torch.where(usable, excess, torch.arange(1.0, m + 1.0, dtype=excess.dtype, device=excess.device).unsqueeze(1))
    steps = torch.arange(1.0, count + 1.0, dtype=x.dtype, device=x.device).unsqueeze(1)
    theta = (1.0 - (count / (steps - 0.5)).sqrt()) / (3.0 * x[int(m / 4 + 0.5) - 1]) + 1.0 / x[-1]
    k = (-theta.unsqueeze(1) * x).log1p().mean(1)
    likelihood = m * ((-theta / k).log() - k - 1.0)
    best = (likelihood.softmax(0) * theta).sum(0)
    shape = (-best * x).log1p().mean(0)
    return torch.where(usable, (m * shape + 5.0) / (m + 10.0), math.nan)


def skewness(x: Tensor) -> Tensor:
    """Return the sample skewness of ``[n]``; 0 where nothing varies."""
    centred = x - x.mean()
    variance = centred.square().mean()
    return torch.where(variance > 0.0, centred.pow(3).mean() / variance.clamp_min(1e-300).pow(1.5), 0.0)


def student(level: float, groups: float) -> float:
    """Return Student's t that an interval of this level around a mean of so many independent numbers takes.

    Raises:
        ValueError: a level that is not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level = {level}; allowed: a number between 0 and 1")
    from scipy.special import stdtrit

    return float(stdtrit(groups - 1.0, 0.5 + 0.5 * level)) if groups > 1.0 else math.nan
