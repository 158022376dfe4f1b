"""Closed forms between two classes of ``torch.distributions``, where torch's are wrong at a border, in float64.

Some are wrong in every release; those of a uniform that begins at 0 are NaN in torch 2.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import softplus

from klrl.kl.families.log_sinh import log_sinh
from klrl.policy.distributions.beta import log_beta

Numbers = tuple[Tensor, ...]
"""Parameters of a distribution, in float64."""


def _bernoulli_to_poisson(p: Numbers, q: Numbers) -> Tensor:
    """l - s log l - H(s) with the probability s of success; infinite where l = 0 < s."""
    s, t, rate = p[0].sigmoid(), (-p[0]).sigmoid(), q[0]
    return rate - torch.xlogy(s, rate) + torch.xlogy(s, s) + torch.xlogy(t, t)


def _poisson_to_trials(p: Numbers, q: Numbers) -> Tensor:
    """Infinite; -n log(1 - s) of no success in n trials where l = 0, which torch forgets."""
    n = q[0] if len(q) == 2 else torch.ones_like(q[0])
    none = torch.where(n > 0.0, n * softplus(q[-1]), 0.0)
    return torch.where(p[0] > 0.0, math.inf, none)


def _uniform_to_continuous_bernoulli(p: Numbers, q: Numbers) -> Tensor:
    """S(h) - 2 h (mean - 1/2) - log(length) in [0, 1], else infinite; torch's is infinite on [0, 1] itself."""
    (a, b), h = p, 0.5 * q[0]
    inside = (a >= 0.0) & (b <= 1.0)
    return (log_sinh(h) - h * (a + b - 1.0) - (b - a).log()).masked_fill(~inside, math.inf)


def _uniform_to_beta(p: Numbers, q: Numbers) -> Tensor:
    """log B(c, d) - (c - 1) E[log x] - (d - 1) E[log(1 - x)] - log(length) in [0, 1], else infinite."""
    (a, b), (c, d) = p, q
    inside = (a >= 0.0) & (b <= 1.0)
    logs = (c - 1.0) * _mean_log(a, b) + (d - 1.0) * _mean_log(1.0 - b, 1.0 - a)
    return (log_beta(c, d) - logs - (b - a).log()).masked_fill(~inside, math.inf)


def _uniform_to_gamma(p: Numbers, q: Numbers) -> Tensor:
    """log Gamma(c) - c log r - (c - 1) E[log x] + r E[x] - log(length) with the rate r; infinite below 0."""
    (a, b), (c, r) = p, q
    kl = torch.lgamma(c) - c * r.log() - (c - 1.0) * _mean_log(a, b) + 0.5 * r * (a + b) - (b - a).log()
    return kl.masked_fill(a < 0.0, math.inf)


def _mean_log(a: Tensor, b: Tensor) -> Tensor:
    """E[log x] in [a, b], a >= 0: log b + log(b / a) a / (b - a) - 1."""
    ratio = (b - a) / torch.where(a > 0.0, a, 1.0)
    return b.log() + torch.where(a > 0.0, ratio.log1p() / ratio, 0.0) - 1.0


BETWEEN: dict[tuple[type, type], Callable[[Numbers, Numbers], Tensor]] = {
    (td.Bernoulli, td.Poisson): _bernoulli_to_poisson,
    (td.Poisson, td.Bernoulli): _poisson_to_trials,
    (td.Poisson, td.Binomial): _poisson_to_trials,
    (td.Uniform, td.Beta): _uniform_to_beta,
    (td.Uniform, td.ContinuousBernoulli): _uniform_to_continuous_bernoulli,
    (td.Uniform, td.Gamma): _uniform_to_gamma,
}
"""Formulas by the classes of p and q."""
