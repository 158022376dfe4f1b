r"""Closed forms for families that ``torch.distributions`` has and no policy, in float64.

All are sums of terms >= 0 where torch's formulas subtract nearly equal numbers: phi(x) = e^x - 1 - x, and Bregman
divergences B_f(a, b) = f(a) - f(b) - (a - b) f'(b) of convex f. Between different families torch's formulas are used,
but for those in :mod:`klrl.kl.families.between`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from klrl.kl.families.between import BETWEEN, Numbers
from klrl.kl.families.bregman import RULE, phi
from klrl.kl.families.categorical import categorical_kl
from klrl.kl.families.gaussian import FullGaussianFamily
from klrl.kl.families.log_sinh import curvature_of_log_sinh, log_sinh, slope_of_log_sinh
from klrl.kl.precision import in_float64
from klrl.policy.distributions import Categorical, FullGaussian, NoClosedForm
from klrl.policy.distributions.from_torch import log_odds, logits_of

_NEAR = 1.2
"""Largest ratio of two arguments at which a Bregman divergence is integrated (error below 1e-12 of the value)."""


def kl_of_torch(p: td.Distribution, q: td.Distribution) -> Tensor | None:
    """KL(p||q) of two objects of which at least one has no record, ``[*B, d]``, d the dimensions of an ``Independent``.

    Returns:
        ``None`` where both have records, or the classes are not known here.

    Raises:
        NoClosedForm: the pair has no closed form.
        ValueError: different numbers of classes or dimensions.
    """
    events = 0
    while isinstance(p, td.Independent) and isinstance(q, td.Independent):
        if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
            return None
        events += p.reinterpreted_batch_ndims
        p, q = p.base_dist, q.base_dist
    first, second = _class_of(p), _class_of(q)
    if first is None or second is None or (first is second and first in _WITH_RECORDS):
        return None
    kl = _between(first, second, p, q)
    kl = kl.clamp_min(0.0).to(torch.promote_types(_dtype(p), _dtype(q)))
    return kl.flatten(-events) if events else kl.unsqueeze(-1)


def entropy_of_torch(p: td.Distribution) -> Tensor | None:
    """H(p) of an object that has no record, ``[*B]``, by torch's formula; ``None`` where the class is not known here.

    Raises:
        NoClosedForm: torch has no formula for the class, or none in float64.
    """
    if isinstance(p, td.Independent):
        inner = entropy_of_torch(p.base_dist)
        events = p.reinterpreted_batch_ndims
        return inner.flatten(-events).sum(-1) if inner is not None and events else inner
    cls = _class_of(p)
    if cls is None or cls in _WITH_RECORDS:
        return None
    if cls in _WITHOUT_ENTROPY:
        raise NoClosedForm(f"no closed form for the entropy of {cls.__name__}; allowed: klrl.kl.estimate_entropy")
    return in_float64(p).entropy().to(_dtype(p))


def _between(first: type, second: type, p: td.Distribution, q: td.Distribution) -> Tensor:
    a, b = _READ[first](p), _READ[second](q)
    if {first, second} == {td.Exponential, td.Gamma}:
        a, b = (x if len(x) == 2 else (torch.ones_like(x[0]), x[0]) for x in (a, b))
        first = second = td.Gamma
    if first is second:
        return _KL[first](a, b)
    if (own := BETWEEN.get((first, second))) is not None:
        return own(a, b)
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)  # which torch does not do for all of its pairs
    try:
        return td.kl_divergence(in_float64(p).expand(shape), in_float64(q).expand(shape))
    except NotImplementedError as error:
        raise NoClosedForm(
            f"no closed form for KL between {first.__name__} and {second.__name__}; allowed: "
            "estimate_divergence(p, q, 'kl')"
        ) from error


def _class_of(x: td.Distribution) -> type | None:
    return next((cls for cls in type(x).__mro__ if cls in _READ), None)


def _dtype(x: td.Distribution) -> torch.dtype:
    """Return the type of an object's numbers, that of its first parameter with a fraction, or the wider float32."""
    made_of = getattr(x, "_categorical", getattr(x, "base_dist", x))
    found = (v.dtype for v in vars(made_of).values() if isinstance(v, Tensor) and v.is_floating_point())
    return torch.promote_types(next(found, torch.get_default_dtype()), torch.float32)


# -- readings -----------------------------------------------------------------------------------


def _named(*names: str) -> Callable[[Any], Numbers]:
    return lambda x: tuple(getattr(x, name).double() for name in names)


def _trials(x: Any) -> Numbers:
    return x.total_count.double(), log_odds(x, Tensor.double)


_READ: dict[type, Callable[[Any], Numbers]] = {
    td.Bernoulli: lambda x: (log_odds(x, Tensor.double),),
    td.Beta: _named("concentration1", "concentration0"),
    td.Binomial: _trials,
    td.Cauchy: _named("loc", "scale"),
    td.ContinuousBernoulli: lambda x: (log_odds(x, Tensor.double),),
    td.Dirichlet: _named("concentration"),
    td.Exponential: _named("rate"),
    td.Gamma: _named("concentration", "rate"),
    td.Geometric: lambda x: (log_odds(x, Tensor.double),),
    td.Gumbel: _named("loc", "scale"),
    td.HalfCauchy: _named("scale"),
    td.HalfNormal: _named("scale"),
    td.InverseGamma: _named("concentration", "rate"),
    td.Laplace: _named("loc", "scale"),
    td.LogNormal: _named("loc", "scale"),
    td.Multinomial: lambda x: (torch.tensor(float(x.total_count)), logits_of(x._categorical, Tensor.double)),
    td.NegativeBinomial: _trials,
    td.Normal: _named("loc", "scale"),
    td.Pareto: _named("scale", "alpha"),
    td.Poisson: _named("rate"),
    td.Uniform: _named("low", "high"),
    td.Weibull: _named("scale", "concentration"),
    td.Wishart: _named("df", "scale_tril"),
}
_WITH_RECORDS: set[type | None] = {td.Bernoulli, td.Beta, td.Normal}
_WITHOUT_ENTROPY = {td.Multinomial, td.NegativeBinomial, td.Poisson}
"""Classes without an entropy: torch computes log n! of a Multinomial in float32, and has no formula for the others."""


# -- formulas -----------------------------------------------------------------------------------


Function = Callable[[Tensor], Tensor]


def _bregman(f: Function, slope: Function, curvature: Function) -> Callable[[Tensor, Tensor], Tensor]:
    """Return B_f: f(a) - f(b) - (a - b) f'(b), where a is near b as int_0^1 (1 - t) (a - b)^2 f''(b + t (a - b)) dt."""

    def divergence(a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        near = torch.maximum(a, b) <= _NEAR * torch.minimum(a, b)
        u = torch.where(near, a - b, 0.0)
        remainder = sum(w * (1.0 - t) * u.square() * curvature(b + t * u) for t, w in RULE)
        far = torch.where(near, b, a)
        return torch.where(near, remainder, f(far) - f(b) - (far - b) * slope(b))

    return divergence


def _trigamma(a: Tensor) -> Tensor:
    return torch.polygamma(1, a)


_log_gamma = _bregman(torch.lgamma, torch.digamma, _trigamma)
_log_gamma_part = _bregman(
    lambda a: torch.lgamma(a) - torch.xlogy(a, a) + a,
    lambda a: torch.digamma(a) - a.log(),
    lambda a: _trigamma(a) - 1.0 / a,
)
"""B_f of f(a) = log Gamma(a) - a log a + a."""


def _gamma(p: Numbers, q: Numbers) -> Tensor:
    """a_q phi(log(a_p b_q / (a_q b_p))) + B_f(a_q, a_p), f(a) = log Gamma(a) - a log a + a, with the rates b."""
    (a, r), (c, s) = p, q
    return c * phi((a / c).log() + (s / r).log()) + _log_gamma_part(c, a)


def _dirichlet(p: Numbers, q: Numbers) -> Tensor:
    """sum_i B(c_i, a_i) - B(sum c, sum a) with B of log Gamma; near p as the integral of its second derivative."""
    a, c = torch.broadcast_tensors(_classes(p, q)[0], q[0])
    near = (torch.maximum(a, c) <= _NEAR * torch.minimum(a, c)).all(-1)
    u = torch.where(near.unsqueeze(-1), c - a, 0.0)
    total = torch.zeros_like(a[..., 0])
    for t, w in RULE:
        x = a + t * u
        curvature = (_trigamma(x) * u.square()).sum(-1) - _trigamma(x.sum(-1)) * u.sum(-1).square()
        total = total + w * (1.0 - t) * curvature
    plain = _log_gamma(c, a).sum(-1) - _log_gamma(c.sum(-1), a.sum(-1))
    return torch.where(near, total, plain)


def _classes(p: Numbers, q: Numbers) -> Numbers:
    """Return p's numbers if q has as many classes.

    Raises:
        ValueError: it has not.
    """
    if (n := p[-1].shape[-1]) != (m := q[-1].shape[-1]):
        raise ValueError(f"p has {n} classes, q has {m}; they must agree")
    return p


def _laplace(p: Numbers, q: Numbers) -> Tensor:
    """phi(-s) + e^-s phi(-|mu_p - mu_q| / b_p) with s = log(b_q / b_p)."""
    s = (q[1] / p[1]).log()
    return phi(-s) + (-s).exp() * phi(-(p[0] - q[0]).abs() / p[1])


def _uniform(p: Numbers, q: Numbers) -> Tensor:
    """log of the ratio of the lengths where q's interval has p's in it, else infinite."""
    (a, b), (c, d) = p, q
    inside = (c <= a) & (b <= d)
    longer = torch.where(inside, (d - b) + (a - c), 0.0)
    return (longer / (b - a)).log1p().masked_fill(~inside, math.inf)


def _gumbel(p: Numbers, q: Numbers) -> Tensor:
    """phi(log Gamma(1 + r) - d) + B(1 + r, 2) + phi(log r), r = s_p / s_q, d = (mu_p - mu_q) / s_q, B of log Gamma."""
    r, d = p[1] / q[1], (p[0] - q[0]) / q[1]
    return phi(torch.lgamma(1.0 + r) - d) + _log_gamma(1.0 + r, torch.full_like(r, 2.0)) + phi(r.log())


def _weibull(p: Numbers, q: Numbers) -> Tensor:
    """KL of -log x, which has Gumbel's distribution with location -log(scale) and scale 1 / concentration."""
    return _gumbel(*((-scale.log(), 1.0 / k) for scale, k in (p, q)))


def _pareto(p: Numbers, q: Numbers) -> Tensor:
    """phi(log(a_q / a_p)) + a_q log(m_p / m_q) where p's least value m_p is at least q's, else infinite."""
    (m, a), (n, c) = p, q
    inside = n <= m
    return (phi((c / a).log()) + c * torch.where(inside, (m - n) / n, 0.0).log1p()).masked_fill(~inside, math.inf)


def _scales(p: Numbers, q: Numbers) -> Tensor:
    """1/2 phi(2 log(s_p / s_q)), of normals with equal means and of what is made of their absolute values."""
    return 0.5 * phi(2.0 * (p[-1] / q[-1]).log())


def _normal(p: Numbers, q: Numbers) -> Tensor:
    return _scales(p, q) + 0.5 * ((p[0] - q[0]) / q[1]).square()


def _cauchy(p: Numbers, q: Numbers) -> Tensor:
    """log(1 + ((s_p - s_q)^2 + (mu_p - mu_q)^2) / (4 s_p s_q)) (Chyzak & Nielsen 2019)."""
    shift = p[0] - q[0] if len(p) == 2 else torch.zeros_like(p[0])
    return (((p[-1] - q[-1]).square() + shift.square()) / (4.0 * p[-1] * q[-1])).log1p()


def _poisson(p: Numbers, q: Numbers) -> Tensor:
    """l_p phi(log(l_q / l_p)); l_q where l_p = 0, infinite where only l_q = 0."""
    a, b = torch.broadcast_tensors(p[0], q[0])
    both = (a > 0.0) & (b > 0.0)
    x = torch.where(both, b, 1.0).log() - torch.where(both, a, 1.0).log()
    return torch.where(both, a * phi(x), torch.where(a > 0.0, math.inf, b))


def _success(p: Tensor, q: Tensor) -> Tensor:
    """KL of one trial with these log-odds of success."""
    return categorical_kl(*(Categorical(torch.stack([x, torch.zeros_like(x)], -1)) for x in (p, q)))


def _geometric(p: Numbers, q: Numbers) -> Tensor:
    """KL of one trial times the expected number of trials, 1 / (probability of success)."""
    return _success(p[0], q[0]) / p[0].sigmoid()


def _binomial(p: Numbers, q: Numbers) -> Tensor:
    """n times the KL of one trial; infinite where p has more trials than q."""
    _same_trials("Binomial", p[0], q[0], fewer=True)
    one = _success(p[1], q[1])
    n = p[0]
    return torch.where(n == 0.0, 0.0, n * one).masked_fill(n > q[0], math.inf)


def _negative_binomial(p: Numbers, q: Numbers) -> Tensor:
    """r times the KL of one trial times 1 / (probability of failure), for r failures."""
    _same_trials("NegativeBinomial", p[0], q[0])
    return p[0] * _success(p[1], q[1]) / (-p[1]).sigmoid()


def _multinomial(p: Numbers, q: Numbers) -> Tensor:
    """n times the KL of one trial; infinite for different numbers of trials."""
    one = categorical_kl(*(Categorical(x[1]) for x in (_classes(p, q), q)))
    return p[0] * one if bool(p[0] == q[0]) else torch.full_like(one, math.inf)


def _same_trials(name: str, n: Tensor, m: Tensor, *, fewer: bool = False) -> None:
    """Refuse numbers of trials without a closed form; ``fewer``: only where p has fewer than q."""
    if bool(((n < m) if fewer else (n != m)).any()):
        raise NoClosedForm(
            f"no closed form for KL between {name} with different total_count; allowed: equal ones, or "
            "estimate_divergence(p, q, 'kl')"
        )


def _continuous_bernoulli(p: Numbers, q: Numbers) -> Tensor:
    """B_S(h_q, h_p) with half the log-odds h and S(h) = log(sinh(h) / h), the log-normaliser but for h itself."""
    h, k = torch.broadcast_tensors(0.5 * p[0], 0.5 * q[0])
    near = (h - k).abs() < 0.2
    u = torch.where(near, k - h, 0.0)
    remainder = sum(w * (1.0 - t) * u.square() * curvature_of_log_sinh(h + t * u) for t, w in RULE)
    far = torch.where(near, h, k)
    return torch.where(near, remainder, log_sinh(far) - log_sinh(h) - (far - h) * slope_of_log_sinh(h))


def _wishart(p: Numbers, q: Numbers) -> Tensor:
    """n_p KL(N(0, V_p)||N(0, V_q)) + 1/2 (n_p - n_q) log(|V_p| / |V_q|) + sum_i B((n_q - i) / 2, (n_p - i) / 2)."""
    (n, L), (m, K) = p, _dimensions(p, q)
    d = L.shape[-1]
    normals = [FullGaussian(x.new_zeros(x.shape[:-1]), x) for x in (L, K)]
    normal = FullGaussianFamily().covariance_part(*normals).squeeze(-1)
    log_ratio = sum((1 if x is L else -1) * x.diagonal(dim1=-2, dim2=-1).log().sum(-1) for x in (L, K))
    half = 0.5 * torch.arange(d, dtype=n.dtype, device=n.device)
    gammas = _log_gamma(0.5 * m.unsqueeze(-1) - half, 0.5 * n.unsqueeze(-1) - half).sum(-1)
    return n * normal + (n - m) * log_ratio + gammas


def _dimensions(p: Numbers, q: Numbers) -> Numbers:
    """Return q's numbers if p has as many dimensions."""
    if (n := p[1].shape[-1]) != (m := q[1].shape[-1]):
        raise ValueError(f"p has {n} dimensions, q has {m}; they must agree")
    return q


_KL: dict[type, Callable[[Numbers, Numbers], Tensor]] = {
    td.Binomial: _binomial,
    td.Cauchy: _cauchy,
    td.ContinuousBernoulli: _continuous_bernoulli,
    td.Dirichlet: _dirichlet,
    td.Exponential: lambda p, q: phi((q[0] / p[0]).log()),
    td.Gamma: _gamma,
    td.Geometric: _geometric,
    td.Gumbel: _gumbel,
    td.HalfCauchy: _cauchy,
    td.HalfNormal: _scales,
    td.InverseGamma: _gamma,
    td.Laplace: _laplace,
    td.LogNormal: _normal,
    td.Multinomial: _multinomial,
    td.NegativeBinomial: _negative_binomial,
    td.Pareto: _pareto,
    td.Poisson: _poisson,
    td.Uniform: _uniform,
    td.Weibull: _weibull,
    td.Wishart: _wishart,
}
