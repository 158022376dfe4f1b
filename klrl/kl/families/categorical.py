"""Closed forms for one choice, and for several independent ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from klrl.kl.families.bregman import SERIES, phi_series
from klrl.kl.families.family import Family
from klrl.policy.arrays import Array, expm1, log1p, where
from klrl.policy.distributions import Categorical, Factored, Gradient


class CategoricalFamily(Family[Categorical]):
    """softmax(logits); logits of -inf are impossible actions."""

    def kl(self, p: Categorical, q: Categorical) -> Tensor:
        """See :func:`categorical_kl`; ``[*B, 1]``."""
        return categorical_kl(p, q).unsqueeze(-1)

    def smoothed_kl(self, p: Categorical, q: Categorical, share: float) -> Tensor:
        """With q replaced by (1 - share) q + share p, in float64."""
        return categorical_kl(p.map(Tensor.double), _mixed(p, q, share)).unsqueeze(-1)

    def kl_gradient(self, p: Categorical, q: Categorical) -> Gradient:
        """q_i - p_i by the logits."""
        return (_difference(p, q),)

    def fisher_product(self, p: Categorical, tangent: Gradient) -> Gradient:
        """p_i (v_i - sum_j p_j v_j) (Amari 2016, "Information Geometry and Its Applications", section 2.2)."""
        (v,) = tangent
        weighted = p.probs * v
        return (weighted - p.probs * weighted.sum(-1).reshape(*weighted.shape[:-1], 1),)


class FactoredFamily(Family[Factored]):
    """Independent choices (MultiCategorical, Bernoulli): head by head what :class:`CategoricalFamily` has."""

    def kl(self, p: Factored, q: Factored) -> Tensor:
        """One KL per head, ``[*B, H]``."""
        return categorical_kl(p.heads, q.heads)

    def smoothed_kl(self, p: Factored, q: Factored, share: float) -> Tensor:
        """Head by head."""
        return CategoricalFamily().smoothed_kl(p.heads, q.heads, share).squeeze(-1)

    def kl_gradient(self, p: Factored, q: Factored) -> Gradient:
        """Head by head."""
        return (q.collect(_difference(p.heads, q.heads)),)

    def fisher_product(self, p: Factored, tangent: Gradient) -> Gradient:
        """Head by head."""
        (by_heads,) = CategoricalFamily().fisher_product(p.heads, (p.spread(tangent[0]),))
        return (p.collect(by_heads),)


def categorical_kl(p: Categorical, q: Categorical) -> Tensor:
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

    small = x.abs() < SERIES
    series = prob_p * phi_series(torch.where(small, x, 0.0))
    direct = (prob_q - prob_p) - prob_p * x.masked_fill(small, 0.0)
    kl = torch.where(both, torch.where(small, series, direct), prob_q - prob_p).sum(-1).clamp_min(0.0)
    return kl.masked_fill((possible_p > possible_q).any(-1), math.inf)


def _mixed(p: Categorical, q: Categorical, share: float) -> Categorical:
    """(1 - share) q + share p, in float64."""
    impossible = (p.logits == -math.inf) & (q.logits == -math.inf)
    log_p, log_q = (torch.where(impossible, 0.0, x.map(Tensor.double).log_probs) for x in (p, q))
    logits = torch.logaddexp(log_q + math.log1p(-share), log_p + math.log(share))
    return Categorical(torch.where(impossible, -math.inf, logits))


def _difference(p: Categorical, q: Categorical) -> Array:
    """q_i - p_i, where the two are close as p_i (e^x - 1) with the x of :func:`categorical_kl`."""
    prob_p, prob_q = p.probs, q.probs
    both = (p.logits > -math.inf) & (q.logits > -math.inf)
    d = where(both, q.logits, 0.0) - where(both, p.logits, 0.0)
    d = d - (prob_p * d).sum(-1).reshape(*d.shape[:-1], 1)
    x = d - log1p((prob_p * expm1(d)).sum(-1)).reshape(*d.shape[:-1], 1)
    same_support = (both | (prob_p == prob_q)).all(-1).reshape(*d.shape[:-1], 1)
    return where(same_support & (abs(x) < SERIES), prob_p * expm1(x), prob_q - prob_p)
