"""KL between the actions that the environment executes: clipped to its box."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from klrl.kl.divergences import measured, numbers
from klrl.kl.families import AnyDistribution, read
from klrl.kl.families.family import no_closed_form
from klrl.kl.units import base_by_keyword, in_base
from klrl.policy.arrays import A, Array, tensor
from klrl.policy.distributions import DiagGaussian


@base_by_keyword(4)
def kl_executed(
    p: AnyDistribution[A], q: AnyDistribution[A], low: Array | float, high: Array | float, *, base: float | None = None
) -> A:
    """KL between clip(x, low, high) for x ~ p and for x ~ q, ``[*B]``, summed over the dimensions: at most KL(p||q).

    A clipped normal is a density inside the box and two point masses P_low and P_high on its border. No map makes two
    distributions easier to tell apart (data processing inequality): the rest of the KL never reaches the environment.
    Computed in float64, the tails by the logarithm of the normal's distribution function.

    Args:
        p: a DiagGaussian.
        q: a DiagGaussian.
        low: smallest executed action in units of p and q, a number or ``[d]``; may be -inf. For an agent on a bounded
            Box that is -1 (``scale_actions``).
        high: largest executed action, > low; may be inf. For such an agent 1.
        base: unit of information, as in :func:`klrl.kl.kl_divergence`.

    Raises:
        NoClosedForm: other families.
        ValueError: low is not < high in every dimension, or NaN.
    """
    first, second = read(p)[0], read(q)[0]
    if not (isinstance(first, DiagGaussian) and isinstance(second, DiagGaussian)):
        raise no_closed_form("the KL of clipped actions", first, second)
    box = [numbers(x).to(tensor(first.mean).device) for x in (low, high)]
    if not bool((box[0] < box[1]).all()):
        raise ValueError(f"low = {box[0].tolist()}, high = {box[1].tolist()}; allowed: low < high in every dimension")
    return in_base(measured("KL", p, q, lambda _, a, b: _kl(a, b, *box).sum(-1), invariant=False), base)


def _kl(p: DiagGaussian, q: DiagGaussian, low: Tensor, high: Tensor) -> Tensor:
    """Return the KL of every dimension.

    Point masses P log(P / Q), and inside E_p[log p/q] by the moments m_n = int_a^b z^n phi(z) dz of p's standardised
    action: m_0 = Phi(b) - Phi(a), m_1 = phi(a) - phi(b), m_2 = m_0 + a phi(a) - b phi(b).
    """
    low, high = (x.clamp(-1e100, 1e100) for x in (low, high))  # an infinity's derivative by the scale would be NaN
    (a, b), (c, d) = ([_standard((x - r.mean) / r.std) for x in (low, high)] for r in (p, q))
    left, right = _mass(a, c), _mass(-b, -d)
    m0 = torch.where(a > 0.0, _phi_of(-a) - _phi_of(-b), _phi_of(b) - _phi_of(a))
    m1 = _density(a) - _density(b)
    m2 = m0 + a * _density(a) - b * _density(b)
    log_r, z = p.log_std - q.log_std, (p.mean - q.mean) / q.std
    inside = 0.5 * (m2 * torch.expm1(2.0 * log_r) + z * z * m0) + z * log_r.exp() * m1 - m0 * log_r
    return (left + inside + right).clamp_min(0.0)


def _mass(a: Tensor, c: Tensor) -> Tensor:
    """P log(P / Q) for P = Phi(a), Q = Phi(c)."""
    P = _phi_of(a)
    some = P > 0.0
    return torch.where(some, P * (_log_phi_of(torch.where(some, a, 0.0)) - _log_phi_of(torch.where(some, c, 0.0))), 0.0)


def _standard(x: Tensor) -> Tensor:
    """Limit to finite numbers: beyond them the normal has nothing left, and squares would overflow."""
    return x.clamp(-1e150, 1e150)


def _density(x: Tensor) -> Tensor:
    return (-0.5 * x * x).exp() / math.sqrt(2.0 * math.pi)


def _phi_of(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))


def _log_phi_of(x: Tensor) -> Tensor:
    """Return log Phi, in the left tail as log(erfcx(y) / 2) - y^2 with y = -x / sqrt 2, and an accurate derivative."""
    tail = x < -1.0
    y = torch.where(tail, -x, 1.0) / math.sqrt(2.0)
    body = torch.where(tail, 0.0, x) / math.sqrt(2.0)
    return torch.where(tail, (0.5 * torch.special.erfcx(y)).log() - y * y, (-0.5 * torch.erfc(body)).log1p())
