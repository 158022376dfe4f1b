"""Families of ``klrl benchmark accuracy`` that only torch has: their textbook formulas in mpmath, to 40 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mpmath import mp
from torch import Tensor
from torch import distributions as td

UNCHECKED = False
"""Disabled validation of arguments, as the search for a level of KL passes extreme ones."""


@dataclass(frozen=True)
class Numbers:
    """Parameters of a batch of distributions, each ``[N, ...]``."""

    values: tuple[Tensor, ...]

    def map(self, f: Callable[[Tensor], Tensor]) -> Numbers:
        """Return the same with a function applied to every tensor."""
        return Numbers(tuple(map(f, self.values)))


@dataclass(frozen=True)
class OfTorch:
    """A family: coordinates, their distributions in torch, and the textbook's KL of two of them."""

    n: int
    numbers: Callable[[Tensor], tuple[Tensor, ...]]
    made: Callable[..., td.Distribution]
    kl: Callable[..., Any]
    """KL of p's numbers and q's, one pair, in mpmath's."""
    direction: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    """Directions in which q's support has all of p's."""
    held: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    """Numbers that torch's object keeps, in the precision of those that it is given."""

    def truth(self, p: Numbers, q: Numbers) -> Tensor:
        """KL of every pair, rounded to float64; NaN where a search for a level ended at no numbers."""
        rows = zip(*(self.held(v).tolist() for v in (*p.values, *q.values)), strict=True)
        with mp.workdps(40):
            return torch.tensor([self._of_pair(row) for row in rows], dtype=torch.float64)

    def _of_pair(self, row: tuple[Any, ...]) -> float:
        numbers = _exact([*row])
        try:
            return float(self.kl(*numbers)) if _largest(numbers) < 1e8 else math.nan
        except (ZeroDivisionError, OverflowError):
            return math.nan


def _largest(x: Any) -> Any:
    return max(map(_largest, x)) if isinstance(x, list) else abs(x)


def _exact(x: Any) -> Any:
    return [_exact(y) for y in x] if isinstance(x, list) else mp.mpf(x)


# -- textbook formulas --------------------------------------------------------------------------


def _gamma(a: Any, r: Any, c: Any, s: Any) -> Any:
    gammas = mp.loggamma(c) - mp.loggamma(a)
    return (a - c) * mp.digamma(a) + gammas + c * (mp.log(r) - mp.log(s)) + a * (s - r) / r


def _dirichlet(a: Any, c: Any) -> Any:
    A, C = mp.fsum(a), mp.fsum(c)
    gammas = mp.loggamma(A) - mp.loggamma(C)
    each = (
        mp.loggamma(y) - mp.loggamma(x) + (x - y) * (mp.digamma(x) - mp.digamma(A)) for x, y in zip(a, c, strict=True)
    )
    return gammas + mp.fsum(each)


def _laplace(m: Any, b: Any, n: Any, c: Any) -> Any:
    d = abs(m - n)
    return mp.log(c / b) + d / c + b / c * mp.exp(-d / b) - 1


def _gumbel(m: Any, b: Any, n: Any, c: Any) -> Any:
    return mp.log(c / b) + (m - n) / c + mp.euler * (b / c - 1) + mp.exp((n - m) / c) * mp.gamma(1 + b / c) - 1


def _weibull(scale: Any, k: Any, other: Any, h: Any) -> Any:
    heads = mp.log(k) - k * mp.log(scale) - mp.log(h) + h * mp.log(other)
    return heads + (k - h) * (mp.log(scale) - mp.euler / k) + (scale / other) ** h * mp.gamma(1 + h / k) - 1


def _normal(m: Any, s: Any, n: Any, t: Any) -> Any:
    return mp.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - mp.mpf(1) / 2


def _cauchy(m: Any, s: Any, n: Any, t: Any) -> Any:
    return mp.log(((s + t) ** 2 + (m - n) ** 2) / (4 * s * t))


def _probability(logit: Any) -> Any:
    return 1 / (1 + mp.exp(-logit))


def _trial(a: Any, b: Any) -> Any:
    """KL of one trial, from logits."""
    return mp.fsum(_probability(x) * mp.log(_probability(x) / _probability(y)) for x, y in ((a, b), (-a, -b)))


def _multinomial(a: Any, b: Any) -> Any:
    sums = [mp.fsum(map(mp.exp, x)) for x in (a, b)]
    terms = (mp.exp(x) / sums[0] * (x - y + mp.log(sums[1] / sums[0])) for x, y in zip(a, b, strict=True))
    return TRIALS * mp.fsum(terms)


def _continuous_bernoulli(a: Any, b: Any) -> Any:
    def normaliser(x: Any) -> Any:
        return mp.log(mp.expm1(x) / x)

    return normaliser(b) - normaliser(a) - (b - a) * (mp.exp(a) / mp.expm1(a) - 1 / a)


def _wishart(n: Any, L: Any, m: Any, K: Any) -> Any:
    d = len(L)
    V, W = (mp.matrix(x) * mp.matrix(x).T for x in (L, K))
    log_v, log_w = (2 * mp.fsum(mp.log(x[i][i]) for i in range(d)) for x in (L, K))
    inside = W**-1 * V
    trace = mp.fsum(inside[i, i] for i in range(d))
    halves = [mp.mpf(i) / 2 for i in range(d)]
    gammas = mp.fsum(mp.loggamma(m / 2 - i) - mp.loggamma(n / 2 - i) for i in halves)
    slopes = mp.fsum(mp.digamma(n / 2 - i) for i in halves)
    return (m * (log_w - log_v) + n * trace - n * d + (n - m) * slopes) / 2 + gammas


# -- families -----------------------------------------------------------------------------------

TRIALS = 10
"""Trials of Binomial, Multinomial; failures of NegativeBinomial."""


def _positive(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.exp().unbind(-1))


def _place(x: Tensor) -> tuple[Tensor, ...]:
    return x[:, 0], (0.5 * x[:, 1]).exp()


def _one(x: Tensor) -> tuple[Tensor, ...]:
    return (2.0 * x[:, 0],)


def _scatter(x: Tensor) -> tuple[Tensor, ...]:
    rows, columns = torch.tril_indices(3, 3)
    L = x.new_zeros(len(x), 3, 3)
    L[:, rows, columns] = 0.3 * x[:, 1:]
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    return 3.0 + x[:, 0].exp(), L - torch.diag_embed(diagonal) + torch.diag_embed(diagonal.exp())


def _unchecked(cls: Callable[..., td.Distribution], *first: int) -> Callable[..., td.Distribution]:
    return lambda *numbers: cls(*first, *numbers, validate_args=UNCHECKED)


def _by_logits(cls: Callable[..., td.Distribution], *first: int) -> Callable[..., td.Distribution]:
    return lambda x: cls(*first, logits=x, validate_args=UNCHECKED)


FAMILIES = {
    "Exponential": OfTorch(1, _positive, _unchecked(td.Exponential), lambda a, b: mp.log(a / b) + b / a - 1),
    "Gamma": OfTorch(2, _positive, _unchecked(td.Gamma), _gamma),
    "InverseGamma": OfTorch(2, _positive, _unchecked(td.InverseGamma), _gamma),
    "Dirichlet(6)": OfTorch(6, lambda x: (x.exp(),), _unchecked(td.Dirichlet), _dirichlet),
    "Laplace": OfTorch(2, _place, _unchecked(td.Laplace), _laplace),
    "Uniform": OfTorch(2, lambda x: (-x[:, 0].exp(), x[:, 1].exp()), _unchecked(td.Uniform),
                       lambda a, b, c, d: mp.log((d - c) / (b - a)), torch.abs),
    "Gumbel": OfTorch(2, _place, _unchecked(td.Gumbel), _gumbel),
    "Weibull": OfTorch(2, lambda x: _positive(0.5 * x), _unchecked(td.Weibull), _weibull),
    "Pareto": OfTorch(2, lambda x: ((-x[:, 0]).exp(), x[:, 1].exp()), _unchecked(td.Pareto),
                      lambda m, a, n, c: mp.log(a / c) + c * mp.log(m / n) + c / a - 1, torch.abs),
    "HalfNormal": OfTorch(1, _positive, _unchecked(td.HalfNormal), lambda s, t: _normal(0, s, 0, t)),
    "LogNormal": OfTorch(2, _place, _unchecked(td.LogNormal), _normal),
    "Cauchy": OfTorch(2, _place, _unchecked(td.Cauchy), _cauchy),
    "HalfCauchy": OfTorch(1, _positive, _unchecked(td.HalfCauchy), lambda s, t: _cauchy(0, s, 0, t)),
    "ContinuousBernoulli": OfTorch(1, _one, _by_logits(td.ContinuousBernoulli), _continuous_bernoulli),
    "Poisson": OfTorch(1, _positive, _unchecked(td.Poisson), lambda a, b: a * mp.log(a / b) + b - a),
    "Geometric": OfTorch(1, _one, _by_logits(td.Geometric), lambda a, b: _trial(a, b) / _probability(a)),
    f"Binomial({TRIALS})": OfTorch(1, _one, _by_logits(td.Binomial, TRIALS), lambda a, b: TRIALS * _trial(a, b)),
    f"NegativeBinomial({TRIALS})": OfTorch(1, _one, _by_logits(td.NegativeBinomial, TRIALS),
                                           lambda a, b: TRIALS * _trial(a, b) / _probability(-a)),
    f"Multinomial({TRIALS}; 6)": OfTorch(6, lambda x: (2.0 * x,), _by_logits(td.Multinomial, TRIALS), _multinomial,
                                      held=lambda x: x - x.logsumexp(-1, keepdim=True)),
    "Wishart(3 x 3)": OfTorch(7, _scatter,
                              lambda n, L: td.Wishart(n, scale_tril=L, validate_args=UNCHECKED), _wishart),
}  # fmt: skip
