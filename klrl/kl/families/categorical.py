"""Closed forms for one choice, and for several independent ones."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from klrl.kl.families.bregman import SERIES, phi, phi_series
from klrl.kl.families.family import Family, no_closed_form
from klrl.kl.families.joint import MAX_OUTCOMES, joint, outcomes
from klrl.kl.families.roots import length, root
from klrl.policy.arrays import Array, expm1, log1p, where
from klrl.policy.distributions import Categorical, Distribution, Factored, Gradient

L = TypeVar("L", bound=Distribution)


class CategoricalFamily(Family[Categorical]):
    """softmax(logits); logits of -inf are impossible actions."""

    def kl(self, p: Categorical, q: Categorical) -> Tensor:
        """Return :func:`categorical_kl`, ``[*B, 1]``."""
        return categorical_kl(p, q).unsqueeze(-1)

    def smoothed_kl(self, p: Categorical, q: Categorical, share: float) -> Tensor:
        """Return the KL with q replaced by (1 - share) q + share p, in float64."""
        return categorical_kl(p.map(Tensor.double), _mixed(p, q, share)).unsqueeze(-1)

    def kl_gradient(self, p: Categorical, q: Categorical) -> Gradient:
        """Return the derivative by the logits, q_i - p_i."""
        return (_difference(p, q),)

    def fisher_product(self, p: Categorical, tangent: Gradient) -> Gradient:
        """Return p_i (v_i - sum_j p_j v_j) (Amari 2016, "Information Geometry and Its Applications", section 2.2)."""
        (v,) = tangent
        probs = p.probs
        weighted = probs * v
        return (weighted - probs * weighted.sum(-1).reshape(*weighted.shape[:-1], 1),)

    def renyi(self, p: Categorical, q: Categorical, alpha: float) -> Tensor:
        """Return :func:`categorical_renyi`, ``[*B, 1]``."""
        return categorical_renyi(p, q, alpha).unsqueeze(-1)

    def jensen_shannon(self, p: Categorical, q: Categorical) -> Tensor:
        """Apply the definition: a sum of terms >= 0."""
        m = _mixed(p, q, 0.5)
        return (0.5 * (categorical_kl(p, m) + categorical_kl(q, m))).clamp_max(math.log(2.0))

    def total_variation(self, p: Categorical, q: Categorical) -> Tensor:
        """1/2 sum_i |p_i - q_i|."""
        return (0.5 * (p.probs - q.probs).abs().sum(-1)).clamp_max(1.0)

    def fisher_rao(self, p: Categorical, q: Categorical) -> Tensor:
        """2 arccos(BC) = 4 arcsin(H / sqrt 2), twice the angle between the roots of the probabilities, in [0, pi]."""
        return 4.0 * root(-0.5 * torch.expm1(-0.5 * categorical_renyi(p, q, 0.5))).asin()

    def skew(self, p: Categorical, q: Categorical, share: float) -> Tensor:
        """Apply the definition."""
        return self.smoothed_kl(p, q, share).squeeze(-1)

    def geometric_mixture(self, p: Categorical, q: Categorical, share: Tensor) -> Categorical:
        """Average the logits with these weights."""
        return _mean_of_logits(p, q, share)

    def tempered(self, p: Categorical, temperature: float) -> Categorical:
        """Divide the logits."""
        return p.map(lambda logits: logits / temperature)


class FactoredFamily(Family[Factored]):
    """Independent choices (MultiCategorical, Bernoulli): :class:`CategoricalFamily`'s closed forms, head by head."""

    def kl(self, p: Factored, q: Factored) -> Tensor:
        """Return one KL per head, ``[*B, H]``."""
        return categorical_kl(p.heads, q.heads)

    def smoothed_kl(self, p: Factored, q: Factored, share: float) -> Tensor:
        """Return one value per head."""
        return CategoricalFamily().smoothed_kl(p.heads, q.heads, share).squeeze(-1)

    def kl_gradient(self, p: Factored, q: Factored) -> Gradient:
        """Differentiate head by head."""
        return (q.collect(_difference(p.heads, q.heads)),)

    def fisher_product(self, p: Factored, tangent: Gradient) -> Gradient:
        """Multiply head by head."""
        (by_heads,) = CategoricalFamily().fisher_product(p.heads, (p.spread(tangent[0]),))
        return (p.collect(by_heads),)

    def renyi(self, p: Factored, q: Factored, alpha: float) -> Tensor:
        """Return one value per head, ``[*B, H]``."""
        return categorical_renyi(p.heads, q.heads, alpha)

    def geometric_mixture(self, p: Factored, q: Factored, share: Tensor) -> Factored:
        """Average the logits of every head with the same share."""
        return _mean_of_logits(p, q, share)

    def tempered(self, p: Factored, temperature: float) -> Factored:
        """Divide the logits of every head."""
        return p.map(lambda logits: logits / temperature)

    def jensen_shannon(self, p: Factored, q: Factored) -> Tensor:
        """Sum over all joint outcomes: it does not add up over the heads."""
        return CategoricalFamily().jensen_shannon(*_joints("the Jensen-Shannon divergence", p, q))

    def total_variation(self, p: Factored, q: Factored) -> Tensor:
        """Sum over all joint outcomes: it does not add up over the heads."""
        return CategoricalFamily().total_variation(*_joints("the total variation", p, q))

    def wasserstein(self, p: Factored, q: Factored) -> Tensor:
        """W_1 of the number of heads that differ: the sum of their total variations, attained by one coupling."""
        return CategoricalFamily().total_variation(p.heads, q.heads).sum(-1)

    def fisher_rao(self, p: Factored, q: Factored) -> Tensor:
        """Return the root of the sum of squares over the heads: a product of spheres."""
        return length(CategoricalFamily().fisher_rao(p.heads, q.heads))

    def skew(self, p: Factored, q: Factored, share: float) -> Tensor:
        """Sum over all joint outcomes: it does not add up over the heads."""
        return CategoricalFamily().skew(*_joints("the skew divergence", p, q), share)


def _joints(what: str, p: Factored, q: Factored) -> tuple[Categorical, Categorical]:
    if (n := outcomes(p)) > MAX_OUTCOMES:
        raise no_closed_form(f"{what} with {n} > {MAX_OUTCOMES} joint outcomes", p, q)
    return joint(p), joint(q)


def _mean_of_logits(p: L, q: L, share: Tensor) -> L:
    """Average with weights ``share`` and ``1 - share``; an action impossible in either stays so at any weight."""
    (x,), (y,) = p.parameters, q.parameters
    infinite = x.isinf() | y.isinf()
    mean = share * torch.where(infinite, 0.0, x) + (1.0 - share) * torch.where(infinite, 0.0, y)
    return p.with_parameters(torch.where(infinite, torch.where(x.isinf(), x, y), mean))


def categorical_kl(p: Categorical, q: Categorical) -> Tensor:
    r"""sum_i p_i phi(x_i) with x = log q - log p; where p_i = 0 the term is q_i, where only q_i = 0 infinity.

    x is that of :func:`_log_ratio`.
    """
    possible_p, possible_q = p.logits != -math.inf, q.logits != -math.inf
    both = possible_p & possible_q
    prob_p, prob_q = p.probs, q.probs
    x = _log_ratio(p, q, prob_p, possible_p, possible_q)

    small = x.abs() < SERIES
    series = prob_p * phi_series(torch.where(small, x, 0.0))
    direct = (prob_q - prob_p) - prob_p * x.masked_fill(small, 0.0)
    kl = torch.where(both, torch.where(small, series, direct), prob_q - prob_p).sum(-1).clamp_min(0.0)
    return kl.masked_fill((possible_p > possible_q).any(-1), math.inf)


def categorical_kl_gradients(p: Categorical, q: Categorical, kl: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of a KL, whose value ``[*B]`` is known, by both policies' logits: p_i (-x_i - KL) and q_i - p_i.

    0 where the KL is infinite. x is that of :func:`_log_ratio`.
    """
    possible_p, possible_q = p.logits != -math.inf, q.logits != -math.inf
    prob_p = p.probs
    x = _log_ratio(p, q, prob_p, possible_p, possible_q)
    finite = kl.isfinite().unsqueeze(-1)
    by_p = torch.where(finite & possible_p & possible_q, -prob_p * (x + kl.unsqueeze(-1)), 0.0)
    return by_p, torch.where(finite, _difference(p, q), 0.0)


def _log_ratio(p: Categorical, q: Categorical, prob_p: Tensor, possible_p: Tensor, possible_q: Tensor) -> Tensor:
    r"""x_i = log q_i - log p_i where both are possible, elsewhere any finite number; ``prob_p`` is p's probabilities.

    From logit differences d = z_q - z_p, centred so that sum_i p_i d_i = 0, follows
    x_i = d_i - log(1 + sum_j p_j (e^{d_j} - 1)): free of the rounding of two log_softmax, and by Jensen's
    inequality the logarithm's argument is >= 1. Where e^d overflows or the supports differ, x is the plain
    difference of log-probabilities; it is large there and loses nothing.
    """
    both = possible_p & possible_q
    # Masked before and after: an infinity multiplied by zero must not reach the value or the gradient.
    d = torch.where(both, q.logits - p.logits, 0.0)
    d = d - (prob_p * d).sum(-1, keepdim=True).detach()
    exact = (d.detach().amax(-1, keepdim=True) < 50.0) & (possible_p == possible_q).all(-1, keepdim=True)
    d = torch.where(exact, d, 0.0)
    x = d - (prob_p * torch.expm1(d)).sum(-1, keepdim=True).log1p()
    if not (exact.is_cpu and exact.all()):  # a GPU would be waited for
        log_p, log_q = (torch.where(both, x.map(Tensor.double).log_probs, 0.0) for x in (p, q))
        x = torch.where(exact, x, (log_q - log_p).to(d.dtype))
    return x


def categorical_renyi(p: Categorical, q: Categorical, alpha: float) -> Tensor:
    r"""1 / (alpha - 1) log sum_i p_i e^{t x_i} with x = log q - log p and t = 1 - alpha, in float64.

    As sum p (e^x - 1) is known, the sum is 1 + sum p (phi(t x) - t phi(x)) - t q_0 - alpha p_0, where q_0 is what q
    has outside p's support and p_0 what p has outside q's: free of cancellation where p is close to q or alpha to 1.
    With alpha infinite, max_i (log p_i - log q_i).
    """
    possible_p, possible_q = p.logits != -math.inf, q.logits != -math.inf
    both = possible_p & possible_q
    log_p = torch.where(both, p.log_probs, 0.0)
    x = torch.where(both, q.log_probs, 0.0) - log_p
    missed = (possible_p > possible_q).any(-1)
    if alpha == math.inf:
        return (-x).masked_fill(~both, -math.inf).amax(-1).clamp_min(0.0).masked_fill(missed, math.inf)

    t = 1.0 - alpha
    calm = torch.maximum(x.abs(), t * x).detach().amax(-1, keepdim=True) < 300.0  # the exponentials do not overflow
    y = torch.where(calm, x, 0.0)
    terms = p.probs * (phi(t * y) - t * phi(y))
    change = torch.where(both, terms, torch.where(possible_p, -alpha * p.probs, -t * q.probs)).sum(-1)
    close = calm.squeeze(-1) & (change > -0.5)
    disjoint = ~both.any(-1)
    exponents = torch.where(both, log_p + t * x, torch.where(disjoint.unsqueeze(-1), 0.0, -math.inf))
    log_sum = torch.where(close, torch.where(close, change, 0.0).log1p(), exponents.logsumexp(-1))
    return (log_sum / -t).clamp_min(0.0).masked_fill(missed if alpha > 1.0 else disjoint, math.inf)


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
