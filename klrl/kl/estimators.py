r"""KL from samples, for the cases that have no closed form and as a check on those that do.

Samples x are drawn from p; r = q(x) / p(x), so that E_p[r] = 1 and KL(p||q) = E_p[-log r]:

============  ==============================  ========  =====  ================================================
name          value of one sample             unbiased  >= 0   standard deviation
============  ==============================  ========  =====  ================================================
``k1``        -log r                          yes       no     largest near p = q
``k2``        (log r)^2 / 2                   no        yes    small near p = q
``k3``        r - 1 - log r                   yes       yes    small near p = q, infinite where q is too wide
``optimal``   -log r + alpha (r - 1)          yes       no     least of the family k1 (alpha = 0), k3 (alpha = 1)
============  ==============================  ========  =====  ================================================

An :class:`Estimate` has its interval, and what tells whether that can be trusted.

k1, k2, k3: Schulman 2020, "Approximating KL Divergence". For p = N(0, 1), q = N(mu, 1), k3 beats k1 up to
KL = 0.628 and loses beyond. Its variance contains E_p[r^2], which for normal p and q is infinite from
sigma_q >= sqrt(2) sigma_p on; the standard error is then finite on every sample, but meaningless.
Which of these has the right *gradient* is another question: :mod:`klrl.kl.estimator_gradients`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from klrl.kl.families.bregman import phi
from klrl.kl.reliability import Doubt, pareto_k, skewness, student, tail
from klrl.policy.arrays import Array, tensor

SampleEstimator = Literal["k1", "k2", "k3"]
Estimator = Literal["k1", "k2", "k3", "optimal"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """A sample mean, its standard error (NaN from one sample or one cluster), and the number of samples.

    An interval that cannot be trusted gets a :class:`DoubtfulEstimateWarning` where the estimate is made; with a few
    heavy or skewed samples, or with something rare unseen, the standard error is too small.
    """

    value: float
    stderr: float
    n: int
    groups: int | None = None
    """Number of independent groups of samples: clusters; None for n."""
    ess: float = math.nan
    """Effective sample size (sum w)^2 / sum w^2 of importance weights p / sampler, or q / sampler if that is used."""
    khat: float = math.nan
    """Pareto k-hat, the largest of the weights and of the samples' values: from 0.5 on a variance is infinite, from 1
    on the mean; beyond about 0.7 no standard error helps (Vehtari et al. 2024). NaN where there is no tail."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the ends of the interval value -+ t stderr, with Student's t of one degree less than groups.

        Args:
            level: share of such intervals that hold the true value, between 0 and 1.

        Raises:
            ValueError: another level.
        """
        half = student(level, self.n if self.groups is None else self.groups) * self.stderr
        return self.value - half, self.value + half

    def __repr__(self) -> str:
        return f"Estimate({self.value:.6g} ± {self.stderr:.2g}, n={self.n})"


@torch.no_grad()
def estimate_kl(
    log_p: Array,
    log_q: Array,
    estimator: Estimator = "k3",
    *,
    log_sampler: Array | None = None,
    self_normalized: bool = False,
    clusters: Array | None = None,
) -> Estimate:
    r"""Estimate KL(p||q) in nats as mean w k(r), from log-probabilities of samples; w = p/s is 1 for samples from p.

    With ``log_sampler``, samples may come from any s that covers p and q. For samples from q itself
    (``log_sampler=log_q``), ``"k3"`` is w log w - (w - 1) >= 0 and ``"k1"`` is w log w; both are unbiased.
    ``"k3"`` and ``"optimal"`` use E_s[w r] = 1: mass that q has where s never goes is missing from their mean.

    The alpha of ``"optimal"`` is Cov(log r, r) / Var(r) (of the weighted terms: w log r, w (r - 1)), taken for every
    second sample, or cluster, from the others, so that the estimate stays unbiased; where r does not vary it is k1.

    Args:
        log_p: log p(x) of the samples, of any shape (tensor or array); in float64. -inf only with ``log_sampler``.
        log_q: log q(x), the same shape. -inf where p is possible makes the estimate infinite, as the KL is.
        estimator: ``"k1"``, ``"k2"``, ``"k3"`` or ``"optimal"`` (see the module).
        log_sampler: log s(x) of the distribution that drew the samples, the same shape; by default p.
        self_normalized: divide by the mean weight: often less variance, a bias of order 1/n.
        clusters: integer label of every sample, the same shape: its episode or environment. Samples of one
            cluster may then be correlated, and the standard error is the cluster-robust one
            (Liang and Zeger 1986, Theorem 1, with the factor G / (G - 1) for G clusters).

    Raises:
        ValueError: unknown estimator, different shapes, no samples, impossible samples, overflowing weights.

    Warns:
        DoubtfulEstimateWarning: the interval cannot be trusted; the message says why.

    >>> heads_and_tails = [torch.tensor(x).log().repeat(50) for x in ([0.5, 0.5], [0.75, 0.25])]
    >>> found = estimate_kl(*heads_and_tails)
    >>> round(found.value, 4), round(found.stderr, 4), found.n
    (0.1438, 0.005, 100)
    >>> [round(end, 4) for end in found.interval(0.95)]
    [0.134, 0.1537]
    """
    _check_name(estimator, get_args(Estimator))
    log_p, log_q = tensor(log_p), tensor(log_q)
    p, q, s = _checked(log_p, log_q, log_p if log_sampler is None else tensor(log_sampler))
    labels = torch.arange(p.numel(), device=p.device) if clusters is None else _labels(tensor(clusters), log_p)
    values = _values(estimator, p, q, s, labels % 2 == 0)
    found, residuals = _mean(values, (p - s).exp() if self_normalized else None, labels)
    used = [p - s, *([q - s] if estimator in ("k3", "optimal") else [])]
    found = replace(
        found, ess=min(map(_effective, used)), khat=max(map(tail_index, [values, *(x.exp() for x in used)]))
    )
    if math.isfinite(found.value):
        averaged = [residuals]
        if estimator == "optimal":  # its coefficient is fitted to the ratios
            averaged.append((q - s - (q - s).max()).exp())
        doubt = _doubt(found, values, averaged, same=not ((p != q) & p.isfinite() & q.isfinite()).any())
        if not self_normalized:  # p and q may then lack a factor
            doubt = doubt._replace(deficit=torch.tensor(max(_deficit(x.exp(), labels) for x in used)))
        doubt.warn("estimate_kl", found.n)
    return found


def _values(estimator: Estimator, p: Tensor, q: Tensor, s: Tensor, first: Tensor) -> Tensor:
    """Return what is averaged, ``[n]``; for "optimal" with a coefficient of each half, ``first`` and the rest."""
    # Bounds on what is added up: 0 where p = 0 (but for the q/s below), infinity where only q = 0.
    inside = (p > -math.inf) & (q > -math.inf)
    log_ratio, log_weight = torch.where(inside, q - p, 0.0), p - s
    values = weighted_samples(log_ratio, log_weight, "k1" if estimator == "optimal" else estimator)
    if estimator == "k3":  # w (r - 1 - log r) = q/s - w - w log r
        values = torch.where(p > -math.inf, values, (q - s).exp())
    values = values.masked_fill((p > -math.inf) & (q == -math.inf), math.inf)
    if estimator == "optimal" and values.isfinite().all():
        values = _with_control(values, q - s, log_weight, first)
    return values


def _effective(log_weight: Tensor) -> float:
    """(sum w)^2 / sum w^2."""
    return (2.0 * log_weight.logsumexp(0) - (2.0 * log_weight).logsumexp(0)).exp().item()


def tail_index(x: Tensor) -> float:
    """Return the Pareto k-hat of the distances from the mean; -inf without a tail."""
    if x.min() == x.max():
        return -math.inf
    distances = (x - x.mean()).abs()
    k = pareto_k(tail(distances, len(x))).item()
    return -math.inf if math.isnan(k) else k


def _doubt(found: Estimate, values: Tensor, averaged: list[Tensor], *, same: bool) -> Doubt:
    constant = values.max() - values.min() <= 1e-12 * values.abs().max()
    skewed = torch.zeros(()) if constant else torch.stack([skewness(x).abs() for x in averaged]).max()
    independent = torch.tensor(min(float(len(averaged[0])), found.ess))
    return Doubt(independent, skewed, torch.tensor(found.khat), constant & (not same))


def _deficit(weights: Tensor, labels: Tensor) -> float:
    """Return by how many standard errors the mean of weights, whose expectation is 1, falls short of it."""
    found = mean_estimate(weights, clusters=labels) if weights.sum() > 0.0 else Estimate(0.0, 0.0, len(weights))
    if found.stderr > 1e-12 * found.value or math.isnan(found.stderr):
        return (1.0 - found.value) / found.stderr if math.isfinite(found.stderr) else 0.0
    return math.inf if found.value < 1.0 - 1e-9 else 0.0


def kl_samples(log_ratio: Tensor, estimator: SampleEstimator) -> Tensor:
    """Return the estimator's value for every sample, given log r = log q - log p with samples drawn from p."""
    _check_name(estimator, get_args(SampleEstimator))
    if estimator == "k1":
        return -log_ratio
    return 0.5 * log_ratio.square() if estimator == "k2" else phi(log_ratio)


def weighted_samples(log_ratio: Tensor, log_weight: Tensor, estimator: SampleEstimator) -> Tensor:
    """Return the values w k(r) from log r = log q - log p and log w = log p - log s, differentiable by both."""
    if estimator != "k3":
        return log_weight.exp() * kl_samples(log_ratio, estimator)
    # r may overflow where w is tiny; the product w r = q/s does not.
    far = log_ratio > 1.0
    plain = (log_ratio + log_weight).exp() - log_weight.exp() * (1.0 + log_ratio)
    return torch.where(far, plain, log_weight.exp() * phi(torch.where(far, 0.0, log_ratio)))


def mean_estimate(values: Tensor, weights: Tensor | None = None, clusters: Tensor | None = None) -> Estimate:
    """Return the mean of ``[n]``, or sum(values) / sum(weights), with a (delta-method, cluster-robust) standard error.

    ``clusters``: labels 0 ... G - 1, ``[n]``. With residuals e_i = (value_i - mean * weight_i) / mean weight and
    E_g their sum over cluster g, stderr^2 = G / (G - 1) sum_g E_g^2 / n^2; for G = n this is the textbook s^2 / n.
    """
    return _mean(values, weights, clusters)[0]


def _mean(values: Tensor, weights: Tensor | None, clusters: Tensor | None) -> tuple[Estimate, Tensor]:
    """Return that estimate and the residuals E_g, ``[G]``."""
    n = values.numel()
    weights = torch.ones_like(values) if weights is None else weights
    if not weights.sum() > 0.0:
        raise ValueError("the sum of the weights p/s is 0; allowed: at least one sample that p can draw")
    mean = values.sum() / weights.sum()
    if mean.isinf():
        return Estimate(mean.item(), math.inf, n), values.new_zeros(0)
    residuals = (values - mean * weights) / weights.mean()
    if clusters is not None:
        residuals = residuals.new_zeros(int(clusters.max()) + 1).index_add(0, clusters, residuals)
    groups = residuals.numel()
    stderr = (groups / (groups - 1)) ** 0.5 * residuals.norm().item() / n if groups > 1 else math.nan
    return Estimate(mean.item(), stderr, n, groups), residuals


def _with_control(k1: Tensor, log_other_weight: Tensor, log_weight: Tensor, first: Tensor) -> Tensor:
    """k1 + alpha (w r - w), alpha of each half (``first`` and the rest) by least squares on the other half."""
    # A common factor cancels between alpha and the control variate, so that no r overflows.
    scale = torch.maximum(log_other_weight.max(), log_weight.max()).clamp_min(0.0)
    control = (log_other_weight - scale).exp() - (log_weight - scale).exp()
    alpha = torch.where(first, _coefficient(k1[~first], control[~first]), _coefficient(k1[first], control[first]))
    return k1 + alpha * control


def _coefficient(k1: Tensor, control: Tensor) -> Tensor:
    """Return -Cov(k1, control) / Var(control), which minimises Var(k1 + alpha control); 0 for a constant control."""
    if control.numel() < 2 or control.max() - control.min() <= 1e-12 * control.abs().max():
        return control.new_zeros(())
    centred = control - control.mean()
    return -(centred * (k1 - k1.mean())).sum() / centred.square().sum()


def _check_name(estimator: str, allowed: tuple[str, ...]) -> None:
    if estimator not in allowed:
        raise ValueError(f"estimator = {estimator!r}; allowed: {', '.join(allowed)}")


def _checked(log_p: Tensor, log_q: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all three flat and in float64, after checking that they can belong to samples drawn from s."""
    named = {"log_p": log_p, "log_q": log_q, "log_sampler": log_s}
    if len({x.shape for x in named.values()}) > 1 or log_p.numel() == 0:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in named.items() if x is not log_p or name == "log_p")
        raise ValueError(f"the shapes are {shapes}; allowed: one shape, not empty")
    flat = {name: x.detach().double().flatten() for name, x in named.items()}
    for name, x in flat.items():
        if not (x < math.inf).all():
            raise ValueError(f"{name} = {x[~(x < math.inf)][0].item()} at a sample; allowed: numbers < inf")
    p, q, s = flat.values()
    if (s == -math.inf).any():
        name = "log_p" if log_s is log_p else "log_sampler"
        raise ValueError(f"{name} = -inf at a sample drawn from it; allowed: finite numbers, or another log_sampler")
    if (p - s).max() > _LARGEST_LOG:
        raise ValueError(f"log_p - log_sampler = {(p - s).max():.4g} at a sample; allowed: at most {_LARGEST_LOG:.4g}")
    return p, q, s


_LARGEST_LOG = math.log(torch.finfo(torch.float64).max)


def _labels(clusters: Tensor, like: Tensor) -> Tensor:
    """Return labels 0 ... G - 1, flat, for any integer labels of the samples' shape."""
    if clusters.shape != like.shape:
        raise ValueError(f"clusters has shape {list(clusters.shape)}; allowed: that of log_p, {list(like.shape)}")
    if clusters.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"clusters has type {clusters.dtype}; allowed: integers")
    return torch.unique(clusters.to(like.device).flatten(), return_inverse=True)[1]
