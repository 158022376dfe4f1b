"""What a family of distributions may know about itself."""

from __future__ import annotations

import abc
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from klrl.policy.arrays import like, tensor
from klrl.policy.distributions import Distribution, Gradient, derivative

D = TypeVar("D", bound=Distribution)


class Family(abc.ABC, Generic[D]):
    """Closed forms for two distributions of one family, as records of tensors, in nats.

    Results have the shape ``[*B, d]``, one number per independent factor of an action (its dimensions, its heads;
    d = 1 where there are none): the divergence is their sum.
    """

    @abc.abstractmethod
    def kl(self, p: D, q: D) -> Tensor:
        """KL(p||q), >= 0, accurate in float32 from 1e-8 nats on."""

    def smoothed_kl(self, p: D, q: D, share: float) -> Tensor:
        """KL(p || (1 - share) q + share p) where q can miss p's support, else KL(p||q)."""
        del share
        return self.kl(p, q)

    def kl_gradient(self, p: D, q: D) -> Gradient:
        """Derivative of KL(p||q) by q's fields, as what these are (tensors or numpy arrays); by autograd."""
        fixed = p.map(tensor).detach()
        return derivative(lambda r: self.kl(fixed, r).sum(-1), q)

    def fisher_product(self, p: D, tangent: Gradient) -> Gradient:
        """The Hessian of KL(p||q) by q's fields, at q = p, times a tangent, state by state; by autograd."""
        fixed = p.map(tensor).detach()
        leaves = fixed.map(lambda x: x.clone().requires_grad_())
        with torch.enable_grad():
            slope: Any = torch.autograd.grad(self.kl(fixed, leaves).sum(), leaves.parameters, create_graph=True)
            along = sum((g * tensor(v)).sum() for g, v in zip(slope, tangent, strict=True))
        product = torch.autograd.grad(along, leaves.parameters, materialize_grads=True, allow_unused=True)
        return tuple(like(x, p.parameters[0]) for x in product)
