"""Samples of policies, one step after the other, whose noise may be drawn many steps at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from klrl.policy.arrays import Array, concatenate
from klrl.policy.distributions import Distribution, OfNoise
from klrl.policy.share import Share

_MOST = 2**20
"""Most random numbers that are drawn ahead."""


class Sampler:
    """Samples actions with one generator.

    Args:
        generator: generator of the noise.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self.share: Share | None = None
        """Rows of a whole for which this process acts: noise is drawn for all of them, by every process the same."""
        self._steps = 0
        self._batch_shape: torch.Size | None = None
        self._noise: Iterator[Array] = iter(())

    @contextmanager
    def ahead(self, steps: int) -> Iterator[None]:
        """Draw the noise of so many samples at once, where the policy's family has noise; what is left is dropped."""
        self._steps = steps
        try:
            yield
        finally:
            self._steps, self._batch_shape, self._noise = 0, None, iter(())

    def __call__(self, policy: Distribution) -> Array:
        """Return one action per state."""
        if self._steps and isinstance(policy, OfNoise):
            if self._batch_shape is None:
                self._batch_shape, self._noise = policy.batch_shape, self._draw(policy)
            if policy.batch_shape == self._batch_shape and (noise := next(self._noise, None)) is not None:
                return policy.from_noise(noise)
        return policy.sample(self._generator) if self.share is None else self._shared(policy, self.share)

    def _shared(self, policy: Distribution, share: Share) -> Array:
        """Return actions for the share's rows; where no noise can be drawn for all, every row has a seed of its own."""
        if isinstance(policy, OfNoise):
            whole = policy.map(share.of_whole)
            return policy.from_noise(whole.draw_noise(self._generator)[share.rows])
        seeds = torch.randint(2**62, (share.total,), generator=self._generator, device="cpu")[share.rows].tolist()
        each = (policy[i : i + 1].sample(torch.Generator().manual_seed(seed)) for i, seed in enumerate(seeds))
        return concatenate([*each])

    def _draw(self, policy: OfNoise) -> Iterator[Array]:
        """Yield the noise of one step after the other."""
        share = slice(None)
        if self.share is not None:
            policy, share = policy.map(self.share.of_whole), self.share.rows
        size = max(1, sum(x.numel() if isinstance(x, torch.Tensor) else x.size for x in policy.parameters))
        most = max(1, _MOST // size)
        for begin in range(0, self._steps, most):
            yield from policy.draw_noise(self._generator, (min(most, self._steps - begin),))[:, share]
