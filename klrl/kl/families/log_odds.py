"""Divergences of two beta distributions by quadrature over u = log x / (1 - x), where nothing is singular."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from klrl.policy.distributions import Beta
from klrl.policy.distributions.beta import log_beta

_LEVELS = (0.1, 0.5, 2.0, 6.0, 15.0, 30.0, 50.0)
"""Nats below their peaks at which densities end a panel; the last one ends the integral."""
_NODES, _WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(16))


def nodes(p: Beta, q: Beta) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the weights of an integral over p + q, log q - log p there, and p + q: panels by nodes, ``[*B, K, 16]``.

    p and q, of one dimension and in float64, cross between panels. The ends of these follow p and q where they cross,
    so that derivatives of integrals of \|p - q\| are right, the second, too.
    """
    a, b, c, d = torch.broadcast_tensors(*(x.squeeze(-1).unsqueeze(-1) for x in (*p.parameters, *q.parameters)))
    with torch.no_grad():
        ends = torch.cat([_ends(a, b), _ends(c, d)], -1)
        crossings = _crossings(a, b, c, d, ends.amin(-1, keepdim=True), ends.amax(-1, keepdim=True))
    slope = ((c - a) * torch.sigmoid(-crossings) - (d - b) * torch.sigmoid(crossings)).detach()
    rest = _log_ratio(a, b, c, d, crossings)
    found = (slope != 0.0) & (rest.detach().abs() < 1e-6)
    crossings = crossings - torch.where(found, rest / torch.where(slope != 0.0, slope, 1.0), 0.0)  # Newton's step
    ends = torch.cat([ends, crossings], -1).sort(-1).values.unsqueeze(-1)
    low, high = ends[..., :-1, :], ends[..., 1:, :]
    u = 0.5 * (low + high) + 0.5 * (high - low) * _NODES.to(ends.device)
    a, b, c, d = (x.unsqueeze(-1) for x in (a, b, c, d))
    both = _log_density(a, b, u).exp() + _log_density(c, d, u).exp()
    return 0.5 * (high - low) * _WEIGHTS.to(ends.device), _log_ratio(a, b, c, d, u), both


def _log_density(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    return -a * softplus(-u) - b * softplus(u) - log_beta(a, b)


def _log_ratio(a: Tensor, b: Tensor, c: Tensor, d: Tensor, u: Tensor) -> Tensor:
    return (a - c) * softplus(-u) + (b - d) * softplus(u) + log_beta(a, b) - log_beta(c, d)


def _ends(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak of a density and where it is so many nats lower, ``[*B, 1] -> [*B, 15]``."""
    level = torch.tensor(_LEVELS, dtype=a.dtype, device=a.device)
    peak = a.log() - b.log()
    top = -a * softplus(-peak) - b * softplus(peak)
    bounds = -(level - top) / a, (level - top) / b

    def below(u: Tensor) -> Tensor:
        return top + a * softplus(-u) + b * softplus(u) - level

    sides = [_bisected(below, peak.expand_as(bound), bound) for bound in bounds]
    return torch.cat([peak, *sides], -1)


def _crossings(a: Tensor, b: Tensor, c: Tensor, d: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return up to two points where the densities cross, one on either side of their ratio's extremum, ``[*B, 2]``.

    Where there is none on a side, another point there.
    """
    x = (a - c) / ((a - c) + (b - d))
    extremum = torch.where((x > 0.0) & (x < 1.0), torch.logit(x), low).clamp(low, high)

    def ratio(u: Tensor) -> Tensor:
        return _log_ratio(a, b, c, d, u)

    sides = []
    for end in (low, high):
        sign = torch.where(ratio(end) >= 0.0, 1.0, -1.0)
        sides.append(_bisected(lambda u, sign=sign: sign * ratio(u), extremum, end))  # type: ignore[misc]
    return torch.cat(sides, -1)


def _bisected(rising: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return where a function that is > 0 at ``high`` becomes so, on the way from ``low``."""
    for _ in range(70):
        middle = 0.5 * (low + high)
        above = rising(middle) > 0.0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 0.5 * (low + high)
