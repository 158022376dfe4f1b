"""Minima and maxima with their derivatives: the first needs none of where they are attained, the second does."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from klrl.kl.families.roots import root


def masses_between_crossings(d: Tensor, log_r: Tensor) -> Tensor:
    """Return the largest difference of the probabilities of an interval under N(0, 1) and under N(d, r^2).

    It is attained between the points where the densities cross.

    Args:
        d: distance of the means, >= 0.
        log_r: logarithm of the standard deviation of the wider one, > 0.
    """
    return _Masses.apply(d, log_r)  # type: ignore[no-untyped-call]


def rotated_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return min_U |x - y U|^2 over orthogonal U, ``[*B]``, for invertible matrices ``[*B, d, d]``.

    It is attained at U = W V' with y'x = W S V'.
    """
    return _Distance.apply(x, y)  # type: ignore[no-untyped-call]


class _Masses(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor, log_r: Tensor) -> Tensor:
        narrow, wide = (0.5 * (torch.erf(high) - torch.erf(low)) for low, high in _ends(d, log_r))
        return narrow - wide

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate the mass of the wider one by d and log r, the ends where they are."""
        d, log_r = ctx.saved_tensors
        low, high = _ends(d, log_r)[1]
        at_low, at_high = ((-x * x).exp() / math.sqrt(math.pi) for x in (low, high))
        by_d = (at_high - at_low) / (math.sqrt(2.0) * log_r.exp())
        return gradient * by_d, gradient * (high * at_high - low * at_low)


def _ends(d: Tensor, log_r: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the crossings over sqrt 2 in units of either normal.

    They are the roots of (1 - r^2) y^2 - 2 d y + d^2 + 2 r^2 log r.
    """
    r = log_r.exp()
    S = r * root(d.square() + 2.0 * (r.square() - 1.0) * log_r)
    ends = (d + S) / (1.0 - r.square()), (d.square() + 2.0 * r.square() * log_r) / (d + S)
    (a, b), (e, f) = ([(x - m) / (s * math.sqrt(2.0)) for x in ends] for m, s in ((0.0, 1.0), (d, r)))
    return (a, b), (e, f)


class _Distance(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return (x - y @ _rotation(*torch.linalg.svd(y.mT @ x))).square().sum((-2, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """2 (x - y U), 2 (y - x U')."""
        x, y = ctx.saved_tensors
        U: Tensor = _Rotation.apply(y.mT @ x)  # type: ignore[no-untyped-call]
        gradient = 2.0 * gradient[..., None, None]
        return gradient * (x - y @ U), gradient * (y - x @ U.mT)


class _Rotation(torch.autograd.Function):
    """The orthogonal factor W V' of M = W S V': differentiable where singular values agree, as W and V are not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor) -> Tensor:
        return _rotation(*torch.linalg.svd(M))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """W ((Y - Y') / (s_i + s_j)) V' with Y = W' gradient V."""
        (M,) = ctx.saved_tensors
        W, S, Vh = torch.linalg.svd(M.detach())
        Y = W.mT @ gradient @ Vh.mT
        turned = W @ ((Y - Y.mT) / (S.unsqueeze(-1) + S.unsqueeze(-2))) @ Vh
        return _Last.apply(turned, M)  # type: ignore[no-untyped-call]


def _rotation(W: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    return W @ Vh


class _Last(torch.autograd.Function):
    """The same numbers, without a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, of: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the Wasserstein distance has no third derivative here; allowed: the first and the second")
