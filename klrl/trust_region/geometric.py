"""Geometric paths between the policies of two updates: how far to go for a bound on the KL, with its derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from klrl.kl import geometric_mixture, kl_divergence
from klrl.policy.distributions import Distribution


def between(new: Distribution, old: Distribution, share: Tensor) -> Distribution:
    """Return new^share old^(1 - share), normalised; shares outside [0, 1] count as its ends."""
    return geometric_mixture(new, old, share.clamp(0.0, 1.0))


def share_within(bound: float, new: Distribution, old: Distribution) -> Tensor:
    """Return the root t of KL(between(t)||old) = bound, per state, ``[*B]``; 1 where KL(new||old) is within.

    The root is followed by a Newton step, which has its derivative; 0 where floating point has no root.
    """
    outside = kl_divergence(new.detach(), old) > bound  # false where the KL is NaN
    share = torch.ones_like(new.parameters[0][..., 0])
    if not bool(outside.any()):
        return share
    new, old = new[outside], old[outside]

    def kl(t: Tensor, new: Distribution) -> Tensor:
        return kl_divergence(between(new, old, t), old)

    with torch.no_grad():
        fixed = new.detach()
        root = _root(lambda t: kl(t, fixed), bound, share[outside])
        found = kl(root, fixed).isfinite() & (root > 0.0)
    share, reached = share.masked_fill(outside, 0.0), outside.clone()
    reached[outside] = found
    new, old, root = new[found], old[found], root[found]
    with torch.enable_grad():
        t = root.clone().requires_grad_()
        (slope,) = torch.autograd.grad(kl(t, new.detach()).sum(), t)
    moving = kl(root, new)
    return share.masked_scatter(reached, root - (moving - moving.detach()) / slope)


def _root(f: Callable[[Tensor], Tensor], bound: float, like: Tensor, max_steps: int = 60) -> Tensor:
    """Solve f(t) = bound in (0, 1), state by state, for f that increases from f(0) = 0; f(t) never exceeds it.

    Regula falsi with the weights of the Illinois algorithm (Dowell and Jarratt 1971) on sqrt(f), which is nearly a
    straight line here; bisection where f is not finite. Ends once f is as close to its bound as the square root of
    the numbers' precision.
    """
    tolerance = torch.finfo(like.dtype).eps ** 0.5
    low, high = torch.zeros_like(like), torch.ones_like(like)
    g_low, g_high = torch.full_like(like, -(bound**0.5)), f(high).sqrt() - bound**0.5
    stayed = torch.zeros_like(like)  # +1 where the last step moved low, -1 where it moved high
    for _ in range(max_steps):
        t = high - g_high * (high - low) / (g_high - g_low)
        t = torch.where((t > low) & (t < high), t, 0.5 * (low + high))
        g = f(t).sqrt() - bound**0.5
        inside = g <= 0.0
        g_high = torch.where(inside, torch.where(stayed > 0.0, 0.5 * g_high, g_high), g)
        g_low = torch.where(inside, g, torch.where(stayed < 0.0, 0.5 * g_low, g_low))
        low, high = torch.where(inside, t, low), torch.where(inside, high, t)
        stayed = torch.where(inside, 1.0, -1.0)
        if bool(((inside & (g > -0.5 * tolerance * bound**0.5)) | (high - low < tolerance**2 * high)).all()):
            break
    return low
