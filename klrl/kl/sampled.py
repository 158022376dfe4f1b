"""Divergences and entropies from samples, state by state, for any two distributions over the same actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from klrl.kl.families import AnyDistribution
from klrl.kl.families.bregman import jensen_shannon_of
from klrl.kl.families.roots import root
from klrl.kl.reliability import Doubt, pareto_k, student, tail
from klrl.kl.samplers import Sampler, sampler, samplers
from klrl.shown import array

Divergence = Literal["kl", "reverse_kl", "jeffreys", "jensen_shannon", "total_variation", "hellinger"]
CHUNK = 2**20
"""Most numbers of a sample held at a time."""


@dataclass(frozen=True, repr=False)
class StateEstimate:
    """A sample mean per state, its standard error, both ``[*B]``, and the sample size per state."""

    value: Tensor
    stderr: Tensor
    n: int
    khat: Tensor | None = None
    """Pareto k-hat of the averaged values, ``[*B]``: from 1 on they have no mean; NaN where there is no tail."""

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends ``[*B]`` of the interval value -+ t stderr, with Student's t of n - 1 degrees.

        Raises:
            ValueError: a level that is not between 0 and 1.
        """
        half = student(level, self.n) * self.stderr
        return self.value - half, self.value + half

    def __repr__(self) -> str:
        return f"StateEstimate({array(self.value)} ± {array(self.stderr)}, n={self.n})"


def estimate_divergence(
    p: AnyDistribution[Any],
    q: AnyDistribution[Any],
    divergence: Divergence = "kl",
    n: int = 10_000,
    generator: torch.Generator | None = None,
) -> StateEstimate:
    r"""Estimate a divergence per state from n samples of p and n of q, ``[*B]``, nats; without gradients.

    The average over both samples is an average over m = (p + q) / 2. With l = log q - log p and t = tanh(l / 2), so
    that p/m = 1 - t and q/m = 1 + t, the integrand is

    ================  =====================================================================================
    kl                2 t - (1 - t) l, that is p/m (e^l - 1 - l); reverse_kl with -l, jeffreys both
    jensen_shannon    1/2 ((1 + t) log(1 + t) + (1 - t) log(1 - t)), in [0, log 2]
    total_variation   \|t\|, in [0, 1]
    hellinger         1 - 1 / cosh(l / 2), in [0, 1]; H is the root of its mean
    ================  =====================================================================================

    All are >= 0 sample by sample, vanish to second order where p is near q (but for \|t\|), and are unbiased whatever
    the supports; only the root makes H too small by some stderr^2 / (2 H), and its standard error is that of H^2
    divided by 2 H (delta method). The integrand of kl is that of the estimator k3 (Schulman 2020, "Approximating KL
    Divergence"), which over samples of p alone has an infinite variance where q is much wider than p and misses what
    q has where p is 0; over m its variance is finite if that of log p/q is.

    Args:
        p: a record, or a ``torch.distributions`` object with ``sample``, ``log_prob`` and ``support``. Such an object
            draws from torch's global generator, which is set by ours for that time and put back; outside its support
            it has probability 0. Samples that its type rounds to the border of the support bias the estimate: give
            such distributions float64 parameters.
        q: another one over the same actions, of any family.
        divergence: name of the divergence.
        n: number of samples of each per state, >= 2.
        generator: generator of the samples.

    Raises:
        ValueError: an unknown divergence, n < 2, or distributions over different actions.

    Warns:
        DoubtfulEstimateWarning: the interval cannot be trusted; the message says why. Infinite divergences between
            densities show by a Pareto k-hat of about 1 or more.
    """
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence = {divergence!r}; allowed: {', '.join(get_args(Divergence))}")
    a, b = samplers(p, q)

    def integrand(action: Tensor) -> Tensor:
        return _INTEGRANDS[divergence](b.log_prob(action) - a.log_prob(action))

    found = _over_both(*(moments(x, integrand, n, generator) for x in (a, b)))
    value, stderr = found.mean, found.variance.sqrt()
    if divergence == "hellinger":
        value = root(value)
        stderr = torch.where(value > 0.0, stderr / (2.0 * torch.where(value > 0.0, value, 1.0)), 0.0)
    if (most := _BOUNDS.get(divergence)) is not None:  # there is a mean, and a tail that was not seen weighs little
        skewness = torch.where(stderr < 1e-3 * most, 0.0, found.skewness)
        found = found._replace(skewness=skewness, khat=torch.full_like(found.khat, math.nan))
    _warn("estimate_divergence", value, found, n)
    return _estimate(value, stderr, n, torch.promote_types(a.dtype, b.dtype), found.khat)


def estimate_entropy(
    p: AnyDistribution[Any], n: int = 10_000, generator: torch.Generator | None = None
) -> StateEstimate:
    """Estimate H(p) = -E_p[log p] per state, ``[*B]``, nats: for what has no closed form, a mixture say.

    Arguments and errors as in :func:`estimate_divergence`.
    """
    a = sampler(p)
    found = moments(a, lambda x: -a.log_prob(x), n, generator)
    _warn("estimate_entropy", found.mean, found, n)
    return _estimate(found.mean, found.variance.sqrt(), n, a.dtype, found.khat)


class Moments(NamedTuple):
    """Mean of n samples, the variance of that mean, the samples' skewness and their tail's k-hat, ``[*B]``."""

    mean: Tensor
    variance: Tensor
    skewness: Tensor
    khat: Tensor


def _over_both(of_p: Moments, of_q: Moments) -> Moments:
    """Return the moments of a mean over both samples, and the skewness of their sum.

    Where one of the samples does not vary, nothing need be wrong: p may be 0 where q is.
    """
    third = (of_p.skewness * of_p.variance.pow(1.5) + of_q.skewness * of_q.variance.pow(1.5)).nan_to_num(0.0)
    spread = of_p.variance + of_q.variance
    skewness = third / spread.clamp_min(1e-300).pow(1.5)
    return Moments(0.5 * (of_p.mean + of_q.mean), 0.25 * spread, skewness, torch.fmax(of_p.khat, of_q.khat))


def _warn(what: str, value: Tensor, found: Moments, n: int) -> None:
    """Warn of finite values whose standard error is doubtful."""
    finite = value.isfinite()
    independent = torch.full_like(value, n)
    skewed, khat = (torch.where(finite, x, 0.0).nan_to_num(0.0) for x in (found.skewness, found.khat))
    Doubt(independent, skewed, khat, torch.zeros_like(finite)).warn(what, n)


def moments(of: Sampler, function: Callable[[Tensor], Tensor], n: int, generator: torch.Generator | None) -> Moments:
    """Return the moments of a function of n samples, ``[*B]``, in bounded memory.

    Raises:
        ValueError: n < 2.
    """
    if n < 2:
        raise ValueError(f"n = {n}; allowed: >= 2 samples")
    size = max(1, CHUNK // max(1, math.prod(of.batch_shape) * of.width))
    center: Tensor | None = None
    total = squares = cubes = torch.zeros(())
    far: Tensor | None = None
    with torch.no_grad():
        for start in range(0, n, size):
            values = function(of.sample(min(size, n - start), generator))
            if center is None:  # near the mean, so that the squares lose nothing
                center = values.mean(0).nan_to_num(0.0, 0.0, 0.0)
                total = squares = cubes = torch.zeros_like(center)
            values = values - center
            total, squares, cubes = (
                total + values.sum(0),
                squares + values.square().sum(0),
                cubes + values.pow(3).sum(0),
            )
            distances = values.abs() if far is None else torch.cat([far, values.abs()])
            far = tail(distances, n)
        mean = total / n
        variance = (squares / n - mean.square()).clamp_min(0.0)
        third = cubes / n - 3.0 * mean * squares / n + 2.0 * mean.pow(3)
        skewness = torch.where(variance > 0.0, third / variance.clamp_min(1e-300).pow(1.5), 0.0)
        value = mean if center is None else center + mean
        assert far is not None
    variance = torch.where(value.isinf(), math.inf, variance / (n - 1))
    return Moments(value, variance, skewness, pareto_k(far))


def _estimate(value: Tensor, stderr: Tensor, n: int, dtype: torch.dtype, khat: Tensor) -> StateEstimate:
    return StateEstimate(value.to(dtype), stderr.to(dtype), n, khat.to(dtype))


def _kl(log_ratio: Tensor) -> Tensor:
    """2 t - (1 - t) l; 2 where p is 0, infinite where q is 0."""
    share = 2.0 * torch.sigmoid(-log_ratio)
    value = 2.0 * torch.tanh(0.5 * log_ratio) - torch.where(log_ratio == math.inf, 0.0, share * log_ratio)
    return value.clamp_min(0.0)


def _hellinger(log_ratio: Tensor) -> Tensor:
    """1 - 1 / cosh(l / 2) = 2 sinh(l / 4)^2 / cosh(l / 2)."""
    x = log_ratio.clamp(-700.0, 700.0)
    return 2.0 * torch.sinh(0.25 * x).square() / torch.cosh(0.5 * x)


_BOUNDS = {"jensen_shannon": math.log(2.0), "total_variation": 1.0, "hellinger": 1.0}
"""Largest values of the divergences that have one."""
_INTEGRANDS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": _kl,
    "reverse_kl": lambda x: _kl(-x),
    "jeffreys": lambda x: _kl(x) + _kl(-x),
    "jensen_shannon": jensen_shannon_of,
    "total_variation": lambda x: torch.tanh(0.5 * x).abs(),
    "hellinger": _hellinger,
}
