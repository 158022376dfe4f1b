"""Running statistics that normalise observations, as immutable records.

The statistics are frozen through rollout and update, so that KL(old||new) is 0 before the first step;
:meth:`Normalizer.absorb` returns the *next* normaliser, and the caller can measure what the change did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import Array, is_numpy
from klrl.shown import array

RESOLUTION: Mapping[Any, float] = {np.float32: 2.0**-23, np.float64: 64 * 2.0**-52}
"""Relative rounding error by type; means in float64 are off by some of their last digits."""


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Count, mean and (population) variance of everything absorbed so far, in float64."""

    mean: Tensor
    variance: Tensor
    count: int = 0

    def __repr__(self) -> str:
        return f"Moments(mean={array(self.mean)}, variance={array(self.variance)}, count={self.count})"

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> Moments:
        """Return moments of no data: mean 0, variance 1."""
        mean = torch.zeros(shape, dtype=torch.float64, device="cpu")
        return cls(mean, torch.ones_like(mean))

    def absorb(self, x: Tensor) -> Moments:
        """Merge the rows of ``x [n, *shape]`` exactly (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        n, x = len(x), x.to(torch.float64)
        if n == 0:
            return self
        mean, variance = x.mean(0), x.var(0, correction=0)
        total = self.count + n
        delta = mean - self.mean
        scatter = self.variance * self.count + variance * n + delta.square() * (self.count * n / total)
        return Moments(self.mean + delta * (n / total), scatter / total, total)

    def inverse_std(self, resolution: float) -> Tensor:
        """Return 1 / std in any unit; 0 for elements that changed by no more than rounding, relative to the mean."""
        # 1e-8 is added even where it is negligible, so that older trainings continue to the bit.
        variance = self.variance + (1e-5 * self.variance).clamp_max(1e-8)
        moved = variance.sqrt() > resolution * self.mean.abs()
        return torch.where(moved, variance.rsqrt(), 0.0)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """x -> clip((x - mean) / std, -clip, clip) in float32, the identity until it has absorbed something.

    An element that has never changed is 0, and tells nothing until its first change has been absorbed.
    Elements whose scale is known (pixels, bits, one-hot vectors) are multiplied by it instead.
    """

    moments: Moments
    fixed_scale: Tensor | float | None = None
    """Known scale of every element, 0 for those without; one number for all, or ``None`` if no scale is known."""
    clip: float = 10.0
    resolution: float = RESOLUTION[np.float32]
    """Relative rounding error of observations."""

    @classmethod
    def of_shape(cls, shape: tuple[int, ...], fixed_scale: Tensor | float | None = None, **more: float) -> Normalizer:
        """Return a normaliser without data, for observations of this shape."""
        return cls(Moments.of_shape(shape), fixed_scale, **more)

    def __call__(self, x: Array) -> Array:
        """Normalise ``x [*B, *shape]``."""
        if isinstance(self.fixed_scale, float):
            return _scaled(x, self.fixed_scale)
        if self.moments.count > 0 or self.fixed_scale is not None:
            mean, scale, limit = self._arrays if is_numpy(x) else self._tensors
            x = ((x - mean) * scale).clip(-limit, limit)
        return _in_float32(x)

    @cached_property
    def _tensors(self) -> tuple[Any, ...]:
        mean, scale, limit = self.moments.mean, self.moments.inverse_std(self.resolution), self.clip
        if self.moments.count == 0:
            scale, limit = torch.ones_like(scale), math.inf
        if self.fixed_scale is None:
            return mean, scale, limit
        fixed = torch.as_tensor(self.fixed_scale, device=mean.device)
        known = fixed > 0.0
        return torch.where(known, 0.0, mean), torch.where(known, fixed, scale), torch.where(known, math.inf, limit)

    @cached_property
    def _arrays(self) -> tuple[Any, ...]:
        return tuple(x.numpy() if isinstance(x, Tensor) else x for x in self._tensors)

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Return mean and scale, ``[*shape]`` in float64, of the expression (x - mean) scale that is clipped."""
        mean, scale, _ = self._tensors
        return mean, scale

    @property
    def learns(self) -> bool:
        """True if any element needs running statistics."""
        return not isinstance(self.fixed_scale, float)

    def absorb(self, x: Tensor) -> Normalizer:
        """Return the normaliser after absorbing the rows of ``x [n, *shape]``."""
        return replace(self, moments=self.moments.absorb(x)) if self.learns else self


def _in_float32(x: Array) -> Array:
    return x.astype(np.float32, copy=False) if is_numpy(x) else x.to(torch.float32)


def _scaled(x: Array, scale: float) -> Array:
    """Return numbers times a scale in float32; pixels are copied once."""
    found = _in_float32(x)
    if scale == 1.0:
        return found
    if found is x:
        return x * scale
    found *= scale
    return found


@dataclass(frozen=True, eq=False)
class ReturnScaler:
    """Divides rewards by the running standard deviation of the discounted return.

    Engstrom et al. 2020, "Implementation Matters in Deep RL", appendix A.2 (reward scaling): the return
    R_t = gamma R_{t-1} + r_t runs forward in time and restarts with the episode; rewards are not centred.
    """

    moments: Moments
    running: Tensor
    clip: float = 10.0

    @classmethod
    def for_environments(cls, n: int) -> ReturnScaler:
        """Return a scaler without data, for ``n`` environments."""
        return cls(Moments.of_shape(()), torch.zeros(n, dtype=torch.float64, device="cpu"))

    def restarted(self, n: int) -> ReturnScaler:
        """Return the same statistics for ``n`` environments whose episodes begin anew."""
        return replace(self, running=torch.zeros(n, dtype=torch.float64, device="cpu"))

    def absorb(self, rewards: Tensor, ended: Tensor, valid: Tensor, gamma: float) -> ReturnScaler:
        """Follow the discounted returns through ``[T, N]`` rewards; rows that are not ``valid`` do not count."""
        n = rewards.shape[1]
        running = self.running if len(self.running) == n else self.restarted(n).running
        seen = []
        for reward, counts, ends in zip(rewards.to(torch.float64), valid, ended, strict=True):
            running = torch.where(counts, gamma * running + reward, running)
            seen.append(running)
            running = running.masked_fill(ends, 0.0)
        return replace(self, moments=self.moments.absorb(torch.stack(seen)[valid]), running=running)

    @property
    def scale(self) -> float:
        """Factor of rewards, 1 / std of the returns; 1 before any were absorbed, 0 while all returns are equal."""
        return 1.0 if self.moments.count == 0 else self.moments.inverse_std(RESOLUTION[np.float32]).item()

    def __call__(self, rewards: Tensor) -> Tensor:
        """Return scaled rewards, float32; unchanged before any were absorbed."""
        if self.moments.count == 0:
            return rewards.to(torch.float32)
        scaled = rewards * self.moments.inverse_std(RESOLUTION[np.float32])
        return scaled.clamp(-self.clip, self.clip).to(torch.float32)
