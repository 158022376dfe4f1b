"""What an update works on and measures from: the batch's samples, the first step's check, the probe states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klrl.kl.drift import mean_kl
from klrl.policy.arrays import Array, tensor
from klrl.policy.distributions import DiagGaussian, Distribution, SquashedGaussian
from klrl.run.callback import Metrics
from klrl.text import warn_user
from klrl.trust_region import Change

_PROBES = 256
_LOG_STD = 85.0
"""Beyond, a sample of a few standard deviations is more than float32 holds."""
_START_KL, _START_RATIO = 1e-6, 1e-2


@dataclass(frozen=True, eq=False)
class Samples:
    """The valid steps of a batch as the update sees them; ``n`` rows."""

    observations: Tensor
    """Normalised, ``[n, *O]``."""
    actions: Tensor
    old: Distribution
    """The policy before the update at these observations; never overwritten during it."""
    log_prob: Tensor
    """log old(a|s), ``[n]``."""
    advantage: Tensor
    returns: Tensor
    """A + V before normalisation of A: what the critic fits, in units of the scaled reward, ``[n]``."""

    reference: Distribution | None = None
    """The reference policy at these observations, where there is one."""

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        return self.map(lambda x: x[rows])

    def split(self, n: int) -> Iterator[Samples]:
        """Minibatches of ``n`` rows, one after the other, on the same memory."""
        for start in range(0, len(self), n):
            yield self[start : start + n]

    def numpy(self) -> Samples:
        """The same as numpy arrays, on the same memory."""
        return self.map(Tensor.numpy)

    def map(self, function: Callable[[Array], Array]) -> Samples:
        """``function`` applied to every array."""
        return Samples(
            function(self.observations),
            function(self.actions),
            self.old.map(function),
            function(self.log_prob),
            function(self.advantage),
            function(self.returns),
            None if self.reference is None else self.reference.map(function),
        )

    def change(self, new: Distribution) -> Change:
        """From the old policy to ``new`` at these observations."""
        return Change(self.old, new, self.actions, self.log_prob, self.advantage, self.reference)


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed states, and what the first policy did there: the origin that ``drift/kl_initial`` measures from."""

    observations: Tensor
    first: Distribution

    @classmethod
    def choose(cls, observations: Tensor, policy: Distribution) -> Probe:
        """Some 256 of these states, evenly over the batch."""
        n = len(observations)
        rows = torch.linspace(0, n - 1, min(_PROBES, n), dtype=torch.float32, device="cpu").long()
        return cls(observations[rows], policy[rows])


def step_zero(behaviour: Distribution, samples: Samples, *, warn: bool = True) -> Metrics:
    """KL(old||new) = 0 and ratio = 1 before the first step: is the policy that acted the one to be updated?

    Anything else (statistics changed in between, a stale batch, dropout) is worth a ``RuntimeWarning``, unless it was
    on purpose.
    """
    kl = mean_kl(behaviour, samples.old)
    ratio = (samples.log_prob - behaviour.log_prob(samples.actions)).exp()
    error = (ratio - 1.0).abs().max().item()
    if warn and not (kl <= _START_KL and error <= _START_RATIO):
        warn_user(
            f"the policy that collected the batch is not the one being updated: KL = {kl:.3g} nats, "
            f"|ratio - 1| up to {error:.3g} before the first step; allowed: {_START_KL:g} and {_START_RATIO:g}"
        )
    return {"drift/start_kl": kl, "drift/start_ratio_error": error}


def check_finite(networks: Mapping[str, nn.Module], value_loss: float | str, when: str) -> None:
    """Whether an update left numbers.

    Raises:
        FloatingPointError: the value loss or a parameter is infinite or NaN.
    """
    for name, network in networks.items():
        for key, parameter in network.named_parameters():
            if not parameter.isfinite().all():
                raise FloatingPointError(f"{name}.{key} is not finite after {when}; allowed: finite numbers")
    if not math.isfinite(float(value_loss)):
        raise FloatingPointError(f"train/value_loss = {value_loss} in {when}; allowed: finite numbers")


def overflow(policy: Distribution, ent_coef: float) -> str:
    """In words, where a Gaussian's std is more than float32 holds, and why that may be; empty if it is nowhere."""
    if not isinstance(policy, (DiagGaussian, SquashedGaussian)):
        return ""
    largest = tensor(policy.log_std).reshape(-1, policy.log_std.shape[-1]).max(0).values
    if not (largest > _LOG_STD).any():
        return ""
    i = int(largest.argmax())
    why = f"; ent_coef = {ent_coef:g} rewards a large std: lower it" if ent_coef > 0.0 else ""
    return f"std = exp(log_std) of action element [{i}] overflows, log_std = {largest[i].item():.4g}{why}"


def worst_element(networks: Mapping[str, nn.Module], gradients: Mapping[nn.Module, Array]) -> str:
    """In words, the first element of packed gradients ``[P]`` that is none; else the largest."""
    found, largest = "", -1.0
    for name, network in networks.items():
        parameters = list(network.named_parameters())
        flat = tensor(gradients.get(network, np.zeros(sum(p.numel() for _, p in parameters))))
        for (key, p), g in zip(parameters, flat.split([p.numel() for _, p in parameters]), strict=True):
            size = g.reshape(p.shape).abs().nan_to_num(nan=math.inf, posinf=math.inf)
            if size.max().item() > largest:
                index, largest = (size == size.max()).nonzero()[0].tolist(), size.max().item()
                found = f"gradient of {name}.{key}, element {index}, is {g.reshape(p.shape)[*index].item():g}"
    return found


def mean_of(values: Sequence[Any]) -> float:
    """Mean of numbers, or of 0-d tensors that are read from their device once."""
    return float(torch.stack(list(values)).mean() if isinstance(values[0], Tensor) else np.mean(values))
