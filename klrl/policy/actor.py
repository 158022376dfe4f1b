"""Base of all actors: a trunk whose outputs are the fields of a distribution record."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from torch import nn

from klrl.policy.arrays import Array, is_numpy
from klrl.policy.distributions import Distribution
from klrl.policy.linearization import ByAutograd, Linearization
from klrl.policy.networks import OnTrunk, evaluate, features, linearize
from klrl.policy.observations import Encoding
from klrl.policy.paths import Linearizable, is_explicit, is_laid_out, is_written_out
from klrl.policy.trunks import make_trunk
from klrl.policy.units import Units
from klrl.text import one_line


class Actor(nn.Module, Linearizable):
    """pi(.|s): observations ``[*B, *O]`` to a record ``[*B]`` whose fields are pieces of a trunk's outputs."""

    units: Units | None = None
    """Units of a Gaussian's actions."""
    cuts_outputs: ClassVar[bool] = True
    """True where the record's fields are pieces of the trunk's outputs, and not functions of them."""

    own: ClassVar[tuple[str, ...]] = ()
    """Names of parameters beside the trunk's."""

    def __init__(self, encoding: Encoding, n_outputs: int, hidden: Sequence[int], **style: Any) -> None:
        super().__init__()
        self.encoding = encoding
        self.trunk = make_trunk(encoding, hidden, n_outputs, output_gain=0.01, **style)

    @abc.abstractmethod
    def policy(self, outputs: Array, allowed: Array | None) -> Distribution:
        """Return the record for outputs ``[*B, k]``; ``allowed`` is its mask, bool ``[*B, n]``, or ``None``."""

    def policy_of_rollout(self, rows: int) -> Callable[[Array, Array | None], Distribution]:
        """Return :meth:`policy` for arrays of so many rows, while no parameter changes."""
        return self.policy

    @abc.abstractmethod
    def to_environment(self, action: Array) -> np.ndarray:
        """Return the environment's actions for these actions of the policy."""

    @abc.abstractmethod
    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Return the policy's actions ``[*B, *A]`` for actions of the environment, ``[*B]`` of its space's shape.

        The inverse of :meth:`to_environment` where that does not clip. What the environment has no action for becomes
        one that the policy cannot take.
        """

    @property
    @abc.abstractmethod
    def action_unit(self) -> str:
        """The policy's actions in words."""

    @property
    def caution(self) -> str:
        """Return advice about the policy before training; empty if there is none."""
        return ""

    def forward(self, observation: Array) -> Distribution:
        """Return the policy's distribution at these observations."""
        return self.policy(evaluate(self.trunk, features(self.encoding, observation)), self.allowed(observation))

    @property
    def explicit(self) -> bool:
        """True where the trunk is."""
        return is_explicit(self.trunk)

    @property
    def written_out(self) -> bool:
        """True where the trunk's derivative is, the fields are pieces of its outputs, and no parameter was added."""
        return self._cuts_outputs_alone and is_written_out(self.trunk)

    @property
    def _cuts_outputs_alone(self) -> bool:
        return self.cuts_outputs and is_laid_out(self, self.own)

    def linearize(self, observation: Array) -> Linearization[Any]:
        """The policy at ``[n, *O]`` and how its parameters move it: as they move the trunk's outputs."""
        if not self._cuts_outputs_alone:
            return ByAutograd(self, observation)
        trunk = linearize(self.trunk, features(self.encoding, observation))
        return OnTrunk(self, trunk, self.policy(trunk.output, self.allowed(observation)).detach())

    def allowed(self, observation: Array) -> Array | None:
        """Return the mask in these observations, bool ``[*B, n]``, if there is one."""
        return self.encoding.allowed(observation) > 0.5 if self.encoding.n_mask else None


def on_host(x: Array) -> np.ndarray:
    """Return a numpy array of the same numbers, copied from its device if necessary."""
    return np.asarray(x) if is_numpy(x) else x.detach().cpu().numpy()


def flat(action: np.ndarray, space: gym.Space) -> np.ndarray:
    """Return actions ``[*B]`` of a space's shape as vectors ``[*B, d]``.

    Raises:
        ValueError: other shapes.
    """
    shape: tuple[int, ...] = space.shape or ()
    batch = action.shape[: action.ndim - len(shape)]
    if action.shape != (*batch, *shape):
        raise ValueError(f"action has shape {action.shape}; allowed: [*B] and then {shape}, as in {one_line(space)}")
    return action.reshape(*batch, -1)
