"""The batch of an update: its valid steps, with the old policy and the critic's targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import Array, tensor
from klrl.policy.distributions import DiagGaussian, Distribution, SquashedGaussian
from klrl.policy.distributions.squashed import remembering
from klrl.policy.networks import Critic
from klrl.shown import of_arrays
from klrl.trust_region import Change

_LOG_STD = 85.0
"""Largest log std: beyond, a sample a few standard deviations away overflows float32."""


@dataclass(frozen=True, eq=False, repr=False)
class UpdateBatch:
    """Valid steps of a batch, prepared for an update; ``n`` rows."""

    observations: Tensor
    """Normalised observations, ``[n, *O]``; of a whole batch of images the bytes, which minibatches have scaled, in the
    type of ``minibatch_dtype``."""
    actions: Tensor
    old: Distribution
    """Distributions of the policy before the update; never overwritten during it."""
    log_prob: Tensor
    """log old(a|s), ``[n]``."""
    advantage: Tensor
    returns: Tensor
    """Targets of the critic, A + V before normalisation of A, in units of the scaled reward, ``[n]``."""

    reference: Distribution | None = None
    """Distributions of the reference policy, if there is one."""
    before_tanh: Tensor | None = None
    """Numbers that squashed actions are the tanh of, if the batch has them, ``[n, *A]``."""
    encoded: Tensor | None = None
    """Outputs of the encoder that critic and policy share, at these states, while it stands still, ``[n, k]``."""
    values: Tensor | None = None
    """The critic's values before the update, where they are known, ``[n]``."""

    def __repr__(self) -> str:
        return of_arrays(self)

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: Tensor | slice) -> UpdateBatch:
        if not isinstance(rows, Tensor) or rows.dtype == torch.bool:
            return self.map(lambda x: x[rows])
        return self.map(lambda x: x.index_select(0, rows))  # of images several times as fast as x[rows]

    def split(self, n: int) -> Iterator[UpdateBatch]:
        """Yield minibatches of ``n`` rows, one after the other, on the same memory."""
        for start in range(0, len(self), n):
            yield self[start : start + n]

    def numpy(self) -> UpdateBatch:
        """Return the same samples as numpy arrays, on the same memory."""
        return self.map(Tensor.numpy)

    def map(self, function: Callable[[Array], Array]) -> UpdateBatch:
        """Apply a function to every array."""
        return UpdateBatch(
            function(self.observations),
            function(self.actions),
            self.old.map(function),
            function(self.log_prob),
            function(self.advantage),
            function(self.returns),
            None if self.reference is None else self.reference.map(function),
            *(None if x is None else function(x) for x in (self.before_tanh, self.encoded, self.values)),
        )

    @property
    def taken(self) -> Array:
        """The actions, which remember what they are the tanh of if the batch knows it."""
        return self.actions if self.before_tanh is None else remembering(self.actions, self.before_tanh)

    def change(self, new: Distribution) -> Change:
        """Return the change from the old policy to ``new`` at these observations."""
        return Change(self.old, new, self.taken, self.log_prob, self.advantage, self.reference)

    def explained_variance(self, critic: Critic) -> float:
        """Return 1 - Var(V_target - V) / Var(V_target) before the critic is fitted; NaN if the target is constant."""
        values = critic(self.observations) if self.values is None else self.values
        residual = self.returns - values
        total = self.returns.var(correction=0)
        return (1.0 - residual.var(correction=0) / total).item() if total > 0.0 else math.nan


def overflow(policy: Distribution, ent_coef: float) -> str:
    """Describe where a Gaussian's std overflows float32, and why that may be; empty if it does not."""
    if not isinstance(policy, (DiagGaussian, SquashedGaussian)):
        return ""
    largest = tensor(policy.log_std).reshape(-1, policy.log_std.shape[-1]).max(0).values
    if not (largest > _LOG_STD).any():
        return ""
    i = int(largest.argmax())
    why = f"; ent_coef = {ent_coef:g} rewards a large std: lower it" if ent_coef > 0.0 else ""
    return f"std = exp(log_std) of action element [{i}] overflows, log_std = {largest[i].item():.4g}{why}"


def mean_of(values: Sequence[Any]) -> float:
    """Average numbers, or 0-d tensors that are read from their device once."""
    return float(torch.stack(list(values)).mean() if isinstance(values[0], Tensor) else np.mean(values))
