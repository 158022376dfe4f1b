"""Interface to the closed forms of a family of distributions."""

from __future__ import annotations

import abc
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from klrl.policy.arrays import like, tensor
from klrl.policy.distributions import Distribution, GaussianMixture, Gradient, NoClosedForm, derivative

D = TypeVar("D", bound=Distribution)
_ESTIMATED = {
    "KL": "kl",
    "the Jensen-Shannon": "jensen_shannon",
    "Hellinger": "hellinger",
    "the total variation": "total_variation",
}
"""Names of divergences for ``estimate_divergence``."""


def no_closed_form(what: str, p: Distribution, q: Distribution) -> NoClosedForm:
    """Return an error that names the estimator to use."""
    names = f"{type(p).__name__} and {type(q).__name__}"
    mixed = what == "KL" and GaussianMixture in (type(p), type(q))
    instead = "kl_upper_bound(p, q), kl_variational(p, q) or " if mixed else ""
    estimated = next((name for start, name in _ESTIMATED.items() if what.startswith(start)), None)
    instead += (
        f"estimate_divergence(p, q, {estimated!r})" if estimated else "the families in the table of klrl's page on KL"
    )
    return NoClosedForm(f"no closed form for {what} between {names}; allowed: {instead}")


class Family(abc.ABC, Generic[D]):
    """Closed forms for two distributions of one family, as records of tensors, in nats.

    Divergences that add up over independent factors (KL, Rényi) have the shape ``[*B, d]``, one number per factor of an
    action (its dimensions, its heads; d = 1 without such parts): the divergence is their sum. The others have the
    shape ``[*B]`` and take records in float64; without a formula they raise :class:`NoClosedForm`.
    """

    @abc.abstractmethod
    def kl(self, p: D, q: D) -> Tensor:
        """KL(p||q), >= 0, accurate in float32 from 1e-8 nats on."""

    def smoothed_kl(self, p: D, q: D, share: float) -> Tensor:
        """KL(p || (1 - share) q + share p) where q can miss p's support, else KL(p||q)."""
        del share
        return self.kl(p, q)

    def renyi(self, p: D, q: D, alpha: float) -> Tensor:
        """1 / (alpha - 1) log E_q[(p/q)^alpha] for alpha > 0 other than 1, maybe infinite, ``[*B, d]``, in float64."""
        raise no_closed_form(f"the Rényi divergence of order {alpha:g}", p, q)

    def jensen_shannon(self, p: D, q: D) -> Tensor:
        """1/2 KL(p||m) + 1/2 KL(q||m) with m = (p + q) / 2."""
        raise no_closed_form("the Jensen-Shannon divergence", p, q)

    def total_variation(self, p: D, q: D) -> Tensor:
        """1/2 E_q|p/q - 1|."""
        raise no_closed_form("the total variation", p, q)

    def wasserstein(self, p: D, q: D) -> Tensor:
        """W_2 = min E[|x - y|^2]^(1/2) over all pairs with x ~ p and y ~ q."""
        raise no_closed_form("W_2", p, q)

    def fisher_rao(self, p: D, q: D) -> Tensor:
        """Length of the shortest path from p to q whose steps are sqrt(2 KL) long."""
        raise no_closed_form("the Fisher-Rao distance", p, q)

    def skew(self, p: D, q: D, share: float) -> Tensor:
        """KL(p || (1 - share) q + share p)."""
        del share
        raise no_closed_form("the skew divergence", p, q)

    def geometric_mixture(self, p: D, q: D, share: Tensor) -> D:
        """p^share q^(1 - share), normalised, with the shares ``[*B, 1]`` in [0, 1], one per state."""
        del share
        raise no_closed_form("the geometric mixture", p, q)

    def tempered(self, p: D, temperature: float) -> D:
        """p^(1 / temperature), normalised."""
        del temperature
        raise no_closed_form("the tempered distribution", p, p)

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
        return tuple(like(x.detach(), p.parameters[0]) for x in product)
