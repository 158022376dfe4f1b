"""KL between mixtures of normals, which has no closed form: an upper bound and an approximation.

Hershey & Olsen 2007, "Approximating the Kullback Leibler Divergence Between Gaussian Mixture Models". With weights w_a
and v_b and D_ab = KL(p_a||q_b) between components. :func:`klrl.kl.kl_divergence` never uses either; a DiagGaussian
counts as a mixture of one. Both cost K L divergences of d dimensions per state, and are computed in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klrl.kl.families import AnyDistribution, read
from klrl.kl.families.gaussian import DiagGaussianFamily
from klrl.kl.units import in_base
from klrl.policy.arrays import A, Array, like, tensor
from klrl.policy.distributions import DiagGaussian, Distribution, GaussianMixture, NoClosedForm


def kl_upper_bound(
    p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None, *, iterations: int = 100
) -> A:
    r"""A number >= KL(p||q), ``[*B]``; 0 for equal arguments, the KL itself for one component each.

    sum_ab f_ab (log f_ab / g_ab + D_ab), for any f >= 0 with row sums w and g >= 0 with column sums v: by the chain
    rule the KL between p and q with the components as further variables (section 7 of the source). Minimised over g
    and f in turns, f_ab ~ g_ab e^{-D_ab} and g_ab ~ f_ab; a bound after every turn. The gradient is that of the number
    itself, through all turns, which it keeps in memory.

    Args:
        p: a GaussianMixture or DiagGaussian.
        q: another one; numbers of components may differ.
        base: unit of information, as in :func:`klrl.kl.kl_divergence`.
        iterations: number of turns, >= 1; the bound never grows with them.

    Raises:
        NoClosedForm: another family.
        ValueError: different action dimensions, or no iterations.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations}; allowed: >= 1")
    pair = _pair("an upper bound of the KL", p, q)
    log_w, log_v, D = pair.log_w.unsqueeze(-1), pair.log_v.unsqueeze(-2), pair.between
    bounds = [_bound(log_w, log_v, D, torch.zeros_like(D), iterations)]
    if D.shape[-1] == D.shape[-2]:  # each component with its namesake: 0 for p = q
        apart = ~torch.eye(D.shape[-1], dtype=torch.bool, device=D.device)
        bounds.append(_bound(log_w, log_v, D, torch.zeros_like(D).masked_fill(apart, -math.inf), iterations))
    return pair.answer(torch.stack(bounds).amin(0), base)


def kl_variational(p: AnyDistribution[A], q: AnyDistribution[A], base: float | None = None) -> A:
    r"""An approximation of KL(p||q), ``[*B]``: neither an upper nor a lower bound; 0 for equal arguments.

    sum_a w_a log (sum_a' w_a' e^{-KL(p_a||p_a')} / sum_b v_b e^{-D_ab}), the difference of lower bounds of E_p[log p]
    and E_p[log q] (section 6 of the source); the rare negative values become 0. Arguments and errors as in
    :func:`kl_upper_bound`.
    """
    pair = _pair("an approximation of the KL", p, q)
    within = (pair.log_w.unsqueeze(-2) - pair.within).logsumexp(-1)
    between = (pair.log_v.unsqueeze(-2) - pair.between).logsumexp(-1)
    return pair.answer((pair.log_w.exp() * (within - between)).sum(-1), base)


class _Pair(NamedTuple):
    """Log-weights ``[*B, K]`` and ``[*B, L]``, KL within p ``[*B, K, K]`` and between p and q ``[*B, K, L]``."""

    log_w: Tensor
    log_v: Tensor
    within: Tensor
    between: Tensor
    dtype: torch.dtype
    made_of: Array

    def answer(self, nats: Tensor, base: float | None) -> Array:
        """Read p as the components that it is made of."""
        return in_base(like(nats.clamp_min(0.0).to(self.dtype), self.made_of), base)


def _pair(what: str, p: AnyDistribution[Any], q: AnyDistribution[Any]) -> _Pair:
    (first, dtype), (second, other) = read(p), read(q)
    a, b = (_mixture(x, what, first, second) for x in (first, second))
    if a.event_shape != b.event_shape:
        raise ValueError(f"p has {a.event_shape[0]} and q has {b.event_shape[0]} action dimensions; they must agree")
    log_w, log_v = a.weights.log_probs, b.weights.log_probs
    return _Pair(log_w, log_v, _pairwise(a, a), _pairwise(a, b), torch.promote_types(dtype, other), first.parameters[0])


def _mixture(x: Distribution, what: str, p: Distribution, q: Distribution) -> GaussianMixture:
    """Read a mixture, in float64."""
    fields = [tensor(y).double() for y in x.parameters]
    match x:
        case GaussianMixture():
            return GaussianMixture(*fields)
        case DiagGaussian():
            mean, log_std = (y.unsqueeze(-2) for y in fields)
            return GaussianMixture(torch.zeros_like(mean[..., 0]), mean, log_std)
    names = f"{type(p).__name__} and {type(q).__name__}"
    raise NoClosedForm(f"no formula for {what} between {names}; allowed: GaussianMixture and DiagGaussian")


def _pairwise(p: GaussianMixture, q: GaussianMixture) -> Tensor:
    a, b = p.components.map(lambda x: x.unsqueeze(-2)), q.components.map(lambda x: x.unsqueeze(-3))
    return DiagGaussianFamily().kl(a, b).sum(-1)


def _bound(log_w: Tensor, log_v: Tensor, D: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Iterate from g ~ v e^start: the final shares f / w and g / v make a bound for any w, v.

    Infinite if the start gives a component of p no component of q.
    """
    share_g = _shares(start.expand(torch.broadcast_shapes(start.shape, log_w.shape, log_v.shape)), -2)
    for _ in range(iterations):
        share_f = _shares(share_g + log_v - D, -1)
        share_g = _shares(share_f + log_w, -2)
    f = log_w.exp() * share_f.exp()
    used = f > 0.0
    ratio = torch.where(used, log_w + share_f, 0.0) - torch.where(used, log_v + share_g, 0.0)
    bound = torch.where(used, f * (ratio + D), 0.0).sum((-2, -1))
    stranded = (log_w.squeeze(-1) > -math.inf) & (share_f == -math.inf).all(-1)
    return bound.masked_fill(stranded.any(-1), math.inf)


def _shares(log_x: Tensor, dim: int) -> Tensor:
    """Normalise over a dimension; a slice that is 0 stays 0."""
    alive = (log_x > -math.inf).any(dim, keepdim=True)
    return torch.where(alive, torch.where(alive, log_x, 0.0).log_softmax(dim), -math.inf)
