"""Closed forms for beta distributions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from klrl.kl.families.family import Family
from klrl.policy.arrays import like, tensor
from klrl.policy.distributions import Beta, Gradient

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
_T = [(float(0.5 * (x + 1.0)), float(0.5 * w)) for x, w in zip(_NODES, _WEIGHTS, strict=True)]


class BetaFamily(Family[Beta]):
    """Independent betas, an exponential family with log-partition A(a, b) = log B(a, b); computed in float64."""

    def kl(self, p: Beta, q: Beta) -> Tensor:
        r"""A(q) - A(p) - (q - p)' grad A(p), the Bregman divergence of A.

        Where q is close to p, as its remainder int_0^1 (1 - t) (q - p)' H(p + t (q - p)) (q - p) dt with the Hessian H
        of A, a sum of terms >= 0, by Gauss and Legendre's rule with six nodes (error below 1e-11 of the value).
        """
        a, b, c, d = (x.double() for x in (*p.parameters, *q.parameters))
        near = (torch.maximum(a, c) <= 1.5 * torch.minimum(a, c)) & (torch.maximum(b, d) <= 1.5 * torch.minimum(b, d))
        u, v = (torch.where(near, x, 0.0) for x in (c - a, d - b))
        remainder = sum(w * (1.0 - t) * _curvature(a + t * u, b + t * v, u, v) for t, w in _T)
        far = [torch.where(near, x, y) for x, y in zip((a, b), (c, d), strict=True)]
        psi = torch.digamma(a + b)
        slope_a, slope_b = torch.digamma(a) - psi, torch.digamma(b) - psi
        plain = _log_beta(*far) - _log_beta(a, b) - (far[0] - a) * slope_a - (far[1] - b) * slope_b
        return torch.where(near, remainder, plain).clamp_min(0.0).to(p.alpha.dtype)

    def kl_gradient(self, p: Beta, q: Beta) -> Gradient:
        """grad A(q) - grad A(p), with d A / d a = psi(a) - psi(a + b)."""
        a, b, c, d = (tensor(x).double() for x in (*p.parameters, *q.parameters))
        psi = torch.digamma
        total = psi(c + d) - psi(a + b)
        gradient = psi(c) - psi(a) - total, psi(d) - psi(b) - total
        dtype = tensor(q.alpha).dtype
        return tuple(like(x.to(dtype), q.alpha) for x in gradient)

    def fisher_product(self, p: Beta, tangent: Gradient) -> Gradient:
        """The Hessian of A: psi'(a) u - psi'(a + b) (u + v) by a, the same with b and v by b."""
        a, b, u, v = (tensor(x).double() for x in (*p.parameters, *tangent))
        both = torch.polygamma(1, a + b) * (u + v)
        product = torch.polygamma(1, a) * u - both, torch.polygamma(1, b) * v - both
        dtype = tensor(p.alpha).dtype
        return tuple(like(x.to(dtype), p.alpha) for x in product)


def _curvature(a: Tensor, b: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(u, v) H(a, b) (u, v)'."""
    return torch.polygamma(1, a) * u * u + torch.polygamma(1, b) * v * v - torch.polygamma(1, a + b) * (u + v).square()


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
