"""Actors on a ``Box`` of floats: Gaussians clipped to it or squashed into it, beta distributions."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

from klrl.policy.actor import Actor, flat, on_host
from klrl.policy.arrays import Array, expand, is_numpy, like, tensor
from klrl.policy.choices import ActionDistribution
from klrl.policy.distributions import Beta, DiagGaussian, Distribution, SquashedGaussian
from klrl.policy.observations import Encoding
from klrl.policy.units import Units, caution
from klrl.text import one_line


class BoxActor(Actor, abc.ABC):
    """A policy over vectors of d numbers, with one or two outputs for each."""

    def __init__(
        self, encoding: Encoding, space: gym.spaces.Box, hidden: Sequence[int], outputs_each: int, **style: Any
    ) -> None:
        self.d = int(np.prod(space.shape))
        super().__init__(encoding, outputs_each * self.d, hidden, **style)
        self.space = space

    def clipped(self, action: np.ndarray) -> np.ndarray:
        """Clip actions to the box, in its shape and dtype."""
        shaped = action.reshape((*action.shape[:-1], *self.space.shape))
        return np.minimum(np.maximum(shaped, self.space.low), self.space.high).astype(self.space.dtype, copy=False)

    def stretched(self, unit: np.ndarray) -> np.ndarray:
        """Map [0, 1] to the box, never beyond it by rounding."""
        low, high = (x.reshape(-1) for x in (self.space.low, self.space.high))
        return self.clipped((1.0 - unit) * low + unit * high)

    def shrunk(self, action: np.ndarray) -> np.ndarray:
        """Map the box to [0, 1], ``[*B, d]``."""
        low, high = (x.reshape(-1).astype(np.float64) for x in (self.space.low, self.space.high))
        return (flat(action, self.space) - low) / (high - low)


class GaussianActor(BoxActor):
    """Diagonal Gaussian: the mean from the network, log_std a free vector, or from the network too.

    It acts in units of the box, or in the environment's (``scaled``). The environment receives the action clipped to
    the box; log-probability and KL are those of the unclipped Gaussian, as in Stable-Baselines3. Squashed, it is the
    tanh of such a Gaussian, stretched to the box.
    """

    units: Units

    @property
    def own(self) -> tuple[str, ...]:  # type: ignore[override]
        """The free log_std, if there is one."""
        return () if self.log_std is None else ("log_std",)

    def __init__(
        self,
        encoding: Encoding,
        space: gym.spaces.Box,
        hidden: Sequence[int],
        *,
        log_std_init: float,
        state_dependent_std: bool,
        squashed: bool,
        scaled: bool,
        **style: Any,
    ) -> None:
        super().__init__(encoding, space, hidden, 2 if state_dependent_std else 1, **style)
        self.squashed, self.scaled, self.log_std_init = squashed, scaled, log_std_init
        self.units = Units.of(space) if scaled and not squashed else Units.of_environment(space)
        first = torch.full((self.d,), log_std_init, dtype=torch.float32, device="cpu")
        self.log_std = None if state_dependent_std else nn.Parameter(first)

    def policy(self, outputs: Array, allowed: Array | None) -> DiagGaussian | SquashedGaussian:
        """Mean and log_std, before the tanh if there is one."""
        family = SquashedGaussian if self.squashed else DiagGaussian
        if self.log_std is None:
            return family(outputs[..., : self.d], outputs[..., self.d :] + self.log_std_init)
        # A copy of log_std in every row: a record must not change when an optimiser writes to the parameter.
        if is_numpy(outputs):
            return family(outputs, expand(self.log_std.detach().numpy(), outputs.shape))
        return family(outputs, self.log_std.expand_as(outputs).clone())

    def policy_of_rollout(self, rows: int) -> Callable[[Array, Array | None], Distribution]:
        """Return :meth:`policy`, of which a log_std of its own is copied once."""
        if self.log_std is None:
            return self.policy
        family = SquashedGaussian if self.squashed else DiagGaussian
        log_std = expand(self.log_std.detach().numpy(), (rows, self.d))
        return lambda outputs, allowed: family(outputs, log_std)

    def to_environment(self, action: Array) -> np.ndarray:
        """Clip actions to the box, or stretch them from (-1, 1) to it."""
        a = on_host(action)
        return self.stretched(0.5 * (a + 1.0)) if self.squashed else self.clipped(self.units.to_environment(a))

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Convert to the policy's unit; nothing is known of what was clipped."""
        if self.squashed:
            return (2.0 * self.shrunk(action) - 1.0).astype(np.float32)
        return self.units.from_environment(flat(action, self.space)).astype(np.float32)

    @property
    def action_unit(self) -> str:
        """The interval of the squashed, the unit of the others."""
        if self.squashed:
            return "numbers from -1 to 1"
        return "numbers in the environment's units" if self.units.are_environments else "numbers, -1 to 1 in the box"

    @property
    def caution(self) -> str:
        """Return a warning if the unit is a guess: the environment's, although that of the box was asked for."""
        if not self.scaled or not (words := caution(self.space, self.log_std_init)):
            return ""
        return (
            f"{words}, in the environment's units; if its actions have another size, put a "
            "gymnasium.wrappers.TransformAction around it or set log_std_init (scale_actions = False if it is right)"
        )


class BetaActor(BoxActor):
    """Beta distributions, stretched to the box (Chou et al. 2017)."""

    cuts_outputs = False

    def __init__(self, encoding: Encoding, space: gym.spaces.Box, hidden: Sequence[int], **style: Any) -> None:
        super().__init__(encoding, space, hidden, 2, **style)

    def policy(self, outputs: Array, allowed: Array | None) -> Beta:
        """1 + log(1 + e^x): both parameters stay above 1, so that the density has one peak."""
        x = like(1.0 + softplus(tensor(outputs)), outputs)
        return Beta(x[..., : self.d], x[..., self.d :])

    def to_environment(self, action: Array) -> np.ndarray:
        """Map (0, 1) to the box."""
        return self.stretched(on_host(action))

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Map the box to [0, 1]."""
        return self.shrunk(action).astype(np.float32)

    @property
    def action_unit(self) -> str:
        """The interval."""
        return "numbers from 0 to 1"


def box_actor(
    encoding: Encoding,
    space: gym.spaces.Box,
    hidden: Sequence[int],
    distribution: ActionDistribution,
    gaussian: dict[str, Any],
    **style: Any,
) -> BoxActor:
    """Make the actor for a ``Box``; ``gaussian`` holds the settings that only Gaussians read.

    Raises:
        ValueError: a setting that does not fit the box or the distribution.
    """
    if distribution != "gaussian" and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"action_distribution = {distribution!r} with action space {one_line(space)}, which has no finite bounds; "
            "allowed: action_distribution = 'gaussian'"
        )
    if distribution != "beta":
        return GaussianActor(encoding, space, hidden, squashed=distribution != "gaussian", **gaussian, **style)
    if gaussian["state_dependent_std"]:
        raise ValueError("state_dependent_std = True with action_distribution = 'beta'; allowed: with a Gaussian")
    return BetaActor(encoding, space, hidden, **style)
