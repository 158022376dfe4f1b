r"""Exact KL divergence between policies, accurate in float32 down to KL = 1e-8 nats.

The textbook formulas subtract nearly equal numbers when p and q are close, which is where trust regions
live: a Gaussian KL of 6e-8 comes out 50 % wrong, a categorical one negative. Everything here is written as
a sum of terms phi(x) = e^x - 1 - x >= 0 instead (a Bregman divergence), so nothing cancels and KL >= 0.

``[*B]`` are batch dimensions; p and q may broadcast over them. Values are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributions as td

from klrl.policy.arrays import Array, expm1, is_numpy, like, log1p, tensor, where
from klrl.policy.distributions import Categorical, DiagGaussian, Distribution, Gradient, as_record, derivative

AnyDistribution = Distribution | td.Distribution


def kl_divergence(p: AnyDistribution, q: AnyDistribution, base: float | None = None) -> Tensor:
    r"""KL(p||q) = E_p[log p - log q] >= 0, per state ``[*B]``, summed over action dimensions.

    0 only if p = q, infinite where q gives probability zero to something p does.

    Args:
        p: a record of :mod:`klrl.policy.distributions`, or a ``torch.distributions`` object.
        q: the same family as p.
        base: unit of information: ``None`` for nats, 2 for bits (as in ``scipy.stats.entropy``).

    Raises:
        TypeError: different families, or a family without a closed form here.
        ValueError: different numbers of actions, or a base that is not > 0 and != 1.

    >>> from klrl.policy.distributions import DiagGaussian
    >>> p = DiagGaussian(torch.zeros(1), torch.zeros(1))
    >>> q = DiagGaussian(torch.ones(1), torch.full((1,), math.log(2.0)))
    >>> round(kl_divergence(p, q).item(), 4), round(kl_divergence(q, p).item(), 4)
    (0.4431, 1.3069)
    """
    return _in_base(kl_per_dimension(p, q).sum(-1), base)


def reverse_kl(p: AnyDistribution, q: AnyDistribution, base: float | None = None) -> Tensor:
    """KL(q||p), ``[*B]``: the other direction of :func:`kl_divergence`."""
    return kl_divergence(q, p, base)


def entropy(p: AnyDistribution, base: float | None = None) -> Tensor:
    """H(p) = -E_p[log p], ``[*B]``; differential entropy for densities."""
    return _in_base(as_record(p).entropy(), base)


def cross_entropy(p: AnyDistribution, q: AnyDistribution, base: float | None = None) -> Tensor:
    """H(p, q) = -E_p[log q] = H(p) + KL(p||q), ``[*B]``."""
    return entropy(p, base) + kl_divergence(p, q, base)


def kl_per_dimension(p: AnyDistribution, q: AnyDistribution) -> Tensor:
    """KL(p||q) of every action dimension, nats, ``[*B, d]``; d = 1 for a categorical. Their sum is the KL."""
    p, q = _pair(p, q)
    if is_numpy(p.parameters[0]) or is_numpy(q.parameters[0]):
        return like(kl_per_dimension(p.map(tensor), q.map(tensor)), p.parameters[0])
    match p, q:
        case Categorical(), Categorical():
            return _categorical(p, q).unsqueeze(-1)
        case DiagGaussian(), DiagGaussian():
            return _gaussian_mean(p, q) + _gaussian_covariance(p, q)
    raise TypeError(f"no closed form for KL between {type(p).__name__} and {type(q).__name__}")


def kl_mean_part(p: AnyDistribution, q: AnyDistribution) -> Tensor:
    """The part of a Gaussian KL that is due to the means: 1/2 sum ((mu_p - mu_q) / sigma_q)^2, nats, ``[*B]``."""
    return _gaussian_mean(*_gaussians(p, q)).sum(-1)


def kl_covariance_part(p: AnyDistribution, q: AnyDistribution) -> Tensor:
    """The part of a Gaussian KL that is due to the covariances (the KL at equal means), nats, ``[*B]``."""
    return _gaussian_covariance(*_gaussians(p, q)).sum(-1)


def kl_gradient(p: AnyDistribution, q: AnyDistribution) -> Gradient:
    r"""Derivative of KL(p||q) by the fields of q's record, ``[*B, k]`` each.

    Categorical: q_i - p_i by the logits. Gaussian: (mu_q - mu_p) / sigma_q^2 by the mean,
    1 - (sigma_p^2 + (mu_q - mu_p)^2) / sigma_q^2 by log_std.
    """
    p, q = _pair(p, q)
    match p, q:
        case Categorical(), Categorical():
            return (_difference(p, q),)
        case DiagGaussian(), DiagGaussian():
            z = (q.mean - p.mean) / q.std
            return z / q.std, -expm1(2.0 * (p.log_std - q.log_std)) - z * z
    p = p.map(tensor)
    return derivative(lambda r: kl_divergence(p, r), q)


def _difference(p: Categorical, q: Categorical) -> Array:
    """q_i - p_i, where the two are close as p_i (e^x - 1) with the x of :func:`_categorical`."""
    prob_p, prob_q = p.probs, q.probs
    both = (p.logits > -math.inf) & (q.logits > -math.inf)
    d = where(both, q.logits, 0.0) - where(both, p.logits, 0.0)
    d = d - (prob_p * d).sum(-1).reshape(*d.shape[:-1], 1)
    x = d - log1p((prob_p * expm1(d)).sum(-1)).reshape(*d.shape[:-1], 1)
    same_support = (both | (prob_p == prob_q)).all(-1).reshape(*d.shape[:-1], 1)
    return where(same_support & (abs(x) < _SERIES), prob_p * expm1(x), prob_q - prob_p)


def fisher_product(p: Distribution, tangent: Gradient) -> Gradient:
    r"""The Fisher matrix of p, the Hessian of KL(p||q) by q's fields at q = p, times a tangent, state by state.

    Categorical: p_i (v_i - sum_j p_j v_j) (Amari 2016, "Information Geometry and Its Applications", section 2.2).
    Gaussian: v / sigma^2 by the mean, 2 v by log_std.
    """
    match p:
        case Categorical():
            (v,) = tangent
            weighted = p.probs * v
            return (weighted - p.probs * weighted.sum(-1).reshape(*weighted.shape[:-1], 1),)
        case DiagGaussian():
            by_mean, by_log_std = tangent
            return by_mean / (p.std * p.std), 2.0 * by_log_std
    raise TypeError(f"no Fisher matrix for {type(p).__name__}")


def _gaussian_mean(p: DiagGaussian, q: DiagGaussian) -> Tensor:
    return 0.5 * ((p.mean - q.mean) / q.std).square()


def _gaussian_covariance(p: DiagGaussian, q: DiagGaussian) -> Tensor:
    """1/2 (r - 1 - log r) with the variance ratio r = e^{2d}, d = log sigma_p - log sigma_q."""
    return 0.5 * phi(2.0 * (p.log_std - q.log_std))


def _categorical(p: Categorical, q: Categorical) -> Tensor:
    r"""sum_i p_i phi(x_i) with x = log q - log p; where p_i = 0 the term is q_i, where only q_i = 0 infinity.

    From logit differences d = z_q - z_p, centred so that sum_i p_i d_i = 0, follows
    x_i = d_i - log(1 + sum_j p_j (e^{d_j} - 1)): free of the rounding of two log_softmax, and by Jensen's
    inequality the logarithm's argument is >= 1. Where e^d overflows or the supports differ, x is the plain
    difference of log-probabilities; it is large there and loses nothing.
    """
    possible_p, possible_q = p.logits != -math.inf, q.logits != -math.inf
    both = possible_p & possible_q
    prob_p, prob_q = p.probs, q.probs

    # Masked before and after: an infinity multiplied by zero must not reach the value or the gradient.
    d = torch.where(both, q.logits - p.logits, 0.0)
    d = d - (prob_p * d).sum(-1, keepdim=True).detach()
    exact = (d.detach().amax(-1, keepdim=True) < 50.0) & (possible_p == possible_q).all(-1, keepdim=True)
    d = torch.where(exact, d, 0.0)
    plain = torch.where(both, q.log_probs, 0.0) - torch.where(both, p.log_probs, 0.0)
    x = torch.where(exact, d - (prob_p * torch.expm1(d)).sum(-1, keepdim=True).log1p(), plain)

    small = x.abs() < _SERIES
    series = prob_p * _phi_series(torch.where(small, x, 0.0))
    direct = (prob_q - prob_p) - prob_p * x.masked_fill(small, 0.0)
    kl = torch.where(both, torch.where(small, series, direct), prob_q - prob_p).sum(-1).clamp_min(0.0)
    return kl.masked_fill((possible_p > possible_q).any(-1), math.inf)


_SERIES = 0.1


def phi(x: Tensor) -> Tensor:
    """The function e^x - 1 - x >= 0, accurate to float precision for every x (a series where terms cancel)."""
    small = x.abs() < _SERIES
    large = torch.where(small, 1.0, x)
    return torch.where(small, _phi_series(torch.where(small, x, 0.0)), torch.expm1(large) - large)


def _phi_series(x: Tensor) -> Tensor:
    """x^2/2! + x^3/3! + ... + x^8/8! by Horner's rule; for |x| < 0.1 the rest is below 1e-12 of the value."""
    total = torch.ones_like(x)
    for n in range(8, 2, -1):
        total = 1.0 + x * total / n
    return 0.5 * x.square() * total


def _pair(p: AnyDistribution, q: AnyDistribution) -> tuple[Distribution, Distribution]:
    a, b = as_record(p), as_record(q)
    sizes = a.parameters[0].shape[-1], b.parameters[0].shape[-1]
    if type(a) is type(b) and sizes[0] != sizes[1]:
        raise ValueError(f"p has {sizes[0]} actions or action dimensions, q has {sizes[1]}; they must agree")
    return a, b


def _gaussians(p: AnyDistribution, q: AnyDistribution) -> tuple[DiagGaussian, DiagGaussian]:
    a, b = _pair(p, q)
    if not (isinstance(a, DiagGaussian) and isinstance(b, DiagGaussian)):
        raise TypeError(f"mean and covariance parts need two Gaussians, not {type(a).__name__} and {type(b).__name__}")
    return a, b


def _in_base(nats: Tensor, base: float | None) -> Tensor:
    if base is None:
        return nats
    if not (base > 0 and base != 1):
        raise ValueError(f"base = {base}; allowed: None (nats) or a number > 0 other than 1 (2 gives bits)")
    return nats / math.log(base)
