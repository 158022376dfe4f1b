"""One policy change on one batch, which every trust region judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from klrl.kl import kl_divergence, kl_gradient, renyi, reverse_kl, total_variation
from klrl.policy.arrays import Array, exp, expm1, like, tensor
from klrl.policy.distributions import Distribution, Gradient, derivative
from klrl.policy.distributions.squashed import on_tensors
from klrl.shown import of_arrays


@dataclass(frozen=True, eq=False, repr=False)
class Change:
    """Policies ``old`` and ``new`` at the same ``[*B]`` states; derived quantities are computed once, on demand."""

    old: Distribution
    new: Distribution
    action: Array
    """Actions taken, drawn from ``old``."""
    log_prob: Array
    """log old(a|s), ``[*B]``."""
    advantage: Array
    """Advantage of the actions taken, ``[*B]``."""
    reference: Distribution | None = None
    """Distributions of a policy that never changes, at the same states, where there is one."""

    def __repr__(self) -> str:
        return of_arrays(self)

    @cached_property
    def log_ratio(self) -> Array:
        """log new(a|s) - log old(a|s), ``[*B]``."""
        return self.new.log_prob_inside(self.action) - self.log_prob

    @cached_property
    def ratio(self) -> Array:
        """Importance ratio new(a|s) / old(a|s), ``[*B]``."""
        return exp(self.log_ratio)

    @cached_property
    def kl(self) -> Array:
        """KL(old||new), nats, ``[*B]``."""
        return kl_divergence(self.old, self.new)

    @property
    def kl_gradient(self) -> Gradient:
        """The derivative of :attr:`kl` by the fields of ``new``, per state."""
        return kl_gradient(self.old, self.new)

    @cached_property
    def kl_reverse(self) -> Array:
        """KL(new||old), nats, ``[*B]``."""
        return reverse_kl(self.old, self.new)

    @cached_property
    def total_variation(self) -> Array:
        """Total variation of old and new, in [0, 1], ``[*B]``.

        Raises:
            NoClosedForm: the family has none.
        """
        return total_variation(self.old, self.new)

    @cached_property
    def ratio_variance(self) -> Array:
        """Variance of the ratio under old, chi^2(new||old) = e^{D_2(new||old)} - 1, ``[*B]``; infinite if it is."""
        return expm1(renyi(self.new, self.old, 2.0))

    @cached_property
    def kl_reference(self) -> Array:
        """KL(new||reference), nats, ``[*B]``.

        Raises:
            ValueError: there is no reference.
        """
        return reverse_kl(self.fixed, self.new)

    @cached_property
    def kl_reference_before(self) -> Array:
        """KL(old||reference), nats, ``[*B]``."""
        return reverse_kl(self.fixed, self.old)

    @cached_property
    def kl_reference_forward(self) -> Array:
        """KL(reference||new), nats, ``[*B]``.

        Raises:
            ValueError: there is no reference.
        """
        return kl_divergence(self.fixed, self.new)

    @property
    def kl_reference_forward_gradient(self) -> Gradient:
        """The derivative of :attr:`kl_reference_forward` by the fields of ``new``, per state."""
        return kl_gradient(self.fixed, self.new)

    @cached_property
    def kl_reference_forward_before(self) -> Array:
        """KL(reference||old), nats, ``[*B]``."""
        return kl_divergence(self.fixed, self.old)

    @property
    def fixed(self) -> Distribution:
        """The reference's distributions.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("reference = None; allowed: a saved agent, for this trust region")
        return self.reference

    def on_tensors(self, function: Callable[[Change], Array | float]) -> Array:
        """Evaluate a function ``[*B]`` of the change that takes tensors only."""
        return like(self._per_state(function, self._tensors(self.new.map(tensor))), self.log_prob)

    def derivative(self, function: Callable[[Change], Array | float]) -> Gradient:
        """Differentiate a function ``[*B]`` of the change by the fields of ``new``, with tensors and autograd."""
        return derivative(lambda new: self._per_state(function, self._tensors(new)), self.new)

    def _per_state(self, function: Callable[[Change], Array | float], change: Change) -> Tensor:
        """Evaluate the function and check its shape; a number becomes a constant ``[*B]``."""
        value = function(change)
        if isinstance(value, (int, float)):
            return torch.full_like(change.log_prob, value)
        if not isinstance(value, Tensor):  # its derivative would be lost
            kind = type(value).__name__
            raise ValueError(f"a surrogate or penalty is a {kind}; allowed: a number, or a tensor made of the change's")
        if value.shape != change.log_prob.shape:
            expected, found = list(change.log_prob.shape), list(value.shape)
            raise ValueError(f"a surrogate or penalty has shape {found}; allowed: one number per state, {expected}")
        return value

    def _tensors(self, new: Distribution) -> Change:
        data = on_tensors(self.action), tensor(self.log_prob), tensor(self.advantage)
        reference = None if self.reference is None else self.reference.map(tensor)
        return Change(self.old.map(tensor), new, *data, reference)
