"""Beta distributions, for actions in a box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import A, Array, is_numpy, like, tensor
from klrl.policy.distributions.record import Distribution, check_floating, check_supported, on_tensors, widened


@dataclass(frozen=True, eq=False, repr=False)
class Beta(Distribution[A]):
    """Independent densities x^(a-1) (1-x)^(b-1) / B(a, b); an action is a vector in (0, 1), ``[*B, d]``.

    ``alpha [*B, d]`` and ``beta [*B, d]`` are > 0 (Chou et al. 2017, "Improving Stochastic Policy Gradients ... using
    the Beta Distribution"). Actions that rounding puts on the border count as the nearest number inside.
    """

    alpha: A
    beta: A

    def __post_init__(self) -> None:
        check_floating("alpha", self.alpha)
        check_floating("beta", self.beta)
        if self.alpha.shape != self.beta.shape:
            raise ValueError(f"beta has shape {list(self.beta.shape)}, alpha {list(self.alpha.shape)}")

    def sample(self, generator: torch.Generator | None = None) -> A:
        """Sample by numpy, whose generator gets its seed from torch's."""
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        a, b = (np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x) for x in widened(self).parameters)
        x = tensor(np.asarray(np.random.default_rng(seed).beta(a, b), a.dtype)).to(tensor(self.alpha).dtype)
        return like(_inside(x if is_numpy(self.alpha) else x.to(self.alpha.device)), self.alpha)

    @on_tensors
    def mode(self: Beta[Tensor]) -> Tensor:
        """(a - 1) / (a + b - 2) where both are > 1, else the mean: a mode on the border would be no policy's wish."""
        peaked = (self.alpha > 1.0) & (self.beta > 1.0)
        a, b = (x - peaked.to(x.dtype) for x in (self.alpha, self.beta))
        return _inside(a / (a + b))

    def log_prob(self, action: A) -> A:
        """Log-density of ``action [*B, d]``, summed over the d dimensions."""
        check_supported(self, action, "numbers from 0 to 1")
        return self.log_prob_inside(action)

    def supports(self, action: Array) -> Array:
        """True where every number is in [0, 1]."""
        return ((action >= 0.0) & (action <= 1.0)).all(-1)

    @on_tensors
    def log_prob_inside(self: Beta[Tensor], action: Array) -> Tensor:
        """:meth:`log_prob` of an action in [0, 1]."""
        x = _inside(action)
        powers = (self.alpha - 1.0) * x.log() + (self.beta - 1.0) * (-x).log1p()
        return (powers - log_beta(self.alpha, self.beta)).sum(-1)

    @on_tensors
    def entropy(self: Beta[Tensor]) -> Tensor:
        """log B(a, b) - (a - 1) psi(a) - (b - 1) psi(b) + (a + b - 2) psi(a + b), summed over the dimensions."""
        a, b = self.alpha.double(), self.beta.double()
        psi = torch.digamma
        terms = log_beta(a, b) - (a - 1.0) * psi(a) - (b - 1.0) * psi(b) + (a + b - 2.0) * psi(a + b)
        return terms.sum(-1).to(self.alpha.dtype)


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """log B(a, b), computed in float64."""
    wide, narrow = (a.double(), b.double()), a.dtype
    return (torch.lgamma(wide[0]) + torch.lgamma(wide[1]) - torch.lgamma(wide[0] + wide[1])).to(narrow)


def _inside(x: Tensor) -> Tensor:
    """Limit numbers to those between the smallest above 0 and the largest below 1."""
    info = torch.finfo(x.dtype)
    return x.clamp(info.tiny, 1.0 - info.eps / 2.0)
