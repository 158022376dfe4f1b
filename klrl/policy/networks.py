"""Networks by space: an actor turns observations into a distribution record, a critic into values.

A new action space needs one actor class here and one line in :func:`make_actor`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from klrl.policy.arrays import Array, expand, is_numpy, split, tensor
from klrl.policy.distributions import Categorical, DiagGaussian, Distribution
from klrl.policy.linearization import Arrays, ByAutograd, Linearization
from klrl.policy.mlp import MLP, Activation, mlp

T = TypeVar("T")


class Actor(nn.Module, abc.ABC):
    """pi(.|s): observations ``[*B, *O]`` to a record with batch shape ``[*B]``."""

    def __init__(self, observation_space: gym.spaces.Box, trunk: nn.Module) -> None:
        super().__init__()
        self.observation_ndim = len(observation_space.shape)
        self.trunk = trunk

    def outputs(self, observation: Array) -> Array:
        """The network's last layer, ``[*B, k]``."""
        return _evaluate(self.trunk, flatten_observation(observation, self.observation_ndim))

    @abc.abstractmethod
    def forward(self, observation: Array) -> Distribution:
        """The policy's distribution at these observations."""

    def linearize(self, observation: Array) -> Linearization[Any]:
        """The policy at ``[n, *O]`` and how its parameters move it; by autograd unless an actor knows better."""
        return ByAutograd(self, observation)

    @abc.abstractmethod
    def to_environment(self, action: Array) -> np.ndarray:
        """What the environment executes for these actions of the policy."""


class CategoricalActor(Actor):
    """Softmax policy on a ``Discrete`` space, ``start`` included."""

    def __init__(
        self, observation_space: gym.spaces.Box, action_space: gym.spaces.Discrete, hidden: Sequence[int], **mlp_kw: Any
    ) -> None:
        sizes = [size_of(observation_space), *hidden, int(action_space.n)]
        super().__init__(observation_space, mlp(sizes, output_gain=0.01, **mlp_kw))
        self.start = int(action_space.start)

    def forward(self, observation: Array) -> Categorical:
        """Logits from the network."""
        return Categorical(self.outputs(observation))

    def linearize(self, observation: Array) -> Linearization[Categorical]:
        """The logits move as the trunk's outputs do."""
        trunk = _linearize(self.trunk, flatten_observation(observation, self.observation_ndim))
        return _OnTrunk(self, trunk, Categorical(trunk.output))

    def to_environment(self, action: Array) -> np.ndarray:
        """Indices shifted to the space's ``start``."""
        return np.asarray(_on_host(action) + self.start)


class GaussianActor(Actor):
    """Diagonal Gaussian on a ``Box``: the mean from the network, log_std a free vector.

    The environment receives the action clipped to the box; log-probability and KL are those of the
    unclipped Gaussian, as in Stable-Baselines3.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Box,
        hidden: Sequence[int],
        log_std_init: float,
        **mlp_kw: Any,
    ) -> None:
        d = size_of(action_space)
        sizes = [size_of(observation_space), *hidden, d]
        super().__init__(observation_space, mlp(sizes, output_gain=0.01, **mlp_kw))
        self.log_std = nn.Parameter(torch.full((d,), log_std_init))
        self.action_space = action_space

    def forward(self, observation: Array) -> DiagGaussian:
        """Mean from the network, one log_std for all states."""
        return self._around(self.outputs(observation), self.log_std)

    def linearize(self, observation: Array) -> Linearization[DiagGaussian]:
        """The mean moves as the trunk's outputs do, log_std by itself."""
        trunk = _linearize(self.trunk, flatten_observation(observation, self.observation_ndim))
        return _OnTrunk(self, trunk, self._around(trunk.output, self.log_std.detach()))

    def _around(self, mean: Array, log_std: Tensor) -> DiagGaussian:
        """A copy of log_std in every row: a record must not change when an optimiser writes to the parameter."""
        if is_numpy(mean):
            return DiagGaussian(mean, expand(log_std.detach().numpy(), mean.shape))
        return DiagGaussian(mean, log_std.expand_as(mean).clone())

    def to_environment(self, action: Array) -> np.ndarray:
        """Clipped to the box, in the space's shape and dtype."""
        shaped = _on_host(action).reshape(*action.shape[:-1], *self.action_space.shape)
        clipped = np.minimum(np.maximum(shaped, self.action_space.low), self.action_space.high)
        return clipped.astype(self.action_space.dtype, copy=False)


class Critic(nn.Module):
    """V(s): observations ``[*B, *O]`` to values ``[*B]``."""

    def __init__(self, observation_space: gym.spaces.Box, hidden: Sequence[int], **mlp_kw: Any) -> None:
        super().__init__()
        self.observation_ndim = len(observation_space.shape)
        self.trunk = mlp([size_of(observation_space), *hidden, 1], output_gain=1.0, **mlp_kw)

    def forward(self, observation: Array) -> Array:
        """Values in units of the scaled return."""
        return _evaluate(self.trunk, flatten_observation(observation, self.observation_ndim)).squeeze(-1)

    def linearize(self, observation: Array) -> Linearization[Array]:
        """The values at ``[n, *O]`` and how the parameters move them."""
        trunk = _linearize(self.trunk, flatten_observation(observation, self.observation_ndim))
        return _OnTrunk(self, trunk, trunk.output.squeeze(-1))


class _OnTrunk(Linearization[T]):
    """A trunk's outputs in another form, beside parameters that are outputs themselves, the same in every row."""

    def __init__(self, network: nn.Module, trunk: Linearization[Array], output: T) -> None:
        self.network, self.output = network, output
        self._trunk = trunk

    def pieces(self, *cotangent: Array) -> list[Array]:
        """Free parameters collect the cotangents of all rows; they come first in ``network.parameters()``."""
        u, *rows = cotangent
        trunk = self._trunk.pieces(u.reshape(self._trunk.output.shape))
        if not rows:
            return trunk
        own = zip(rows, self.network.parameters(recurse=False), strict=True)
        return [*[x.sum(0) * float(p.requires_grad) for x, p in own], *trunk]

    def push_forward(self, tangent: Array) -> Arrays:
        """The trunk's tangent, in the shape of the output, and the free parameters' own."""
        n = sum(p.numel() for p in self.network.parameters(recurse=False))
        free, rest = split(tangent, [n, len(tangent) - n])
        (d,) = self._trunk.push_forward(rest)
        if n:
            return d, expand(free, d.shape)
        return (d if isinstance(self.output, Distribution) else d.squeeze(-1),)


def rows_for_numpy(*networks: nn.Module) -> int:
    """Up to how many rows to hand these networks as numpy arrays: until arithmetic dominates, numpy is faster."""
    parameters = [p for network in networks for p in network.parameters()]
    return 2**22 // max(p.numel() for p in parameters) if all(p.is_cpu for p in parameters) else 0


def _linearize(trunk: nn.Module, x: Array) -> Linearization[Array]:
    """Outputs and derivative of a trunk at ``x [n, in]``: written out for an :class:`MLP`, else by autograd."""
    return trunk.linearize(x) if isinstance(trunk, MLP) else ByAutograd(trunk, x)


def _evaluate(trunk: nn.Module, x: Array) -> Array:
    """The outputs alone; only an :class:`MLP` takes numpy arrays."""
    if isinstance(x, Tensor) or isinstance(trunk, MLP):
        return trunk(x)
    return trunk(tensor(x)).detach().numpy()


def _on_host(x: Array) -> np.ndarray:
    return x if is_numpy(x) else x.detach().cpu().numpy()


def make_actor(
    observation_space: gym.spaces.Box,
    action_space: gym.Space,
    hidden: Sequence[int],
    *,
    log_std_init: float,
    activation: Activation,
    generator: torch.Generator,
) -> Actor:
    """The actor for an action space; :func:`check_spaces` names the spaces that have one."""
    if isinstance(action_space, gym.spaces.Discrete):
        return CategoricalActor(observation_space, action_space, hidden, activation=activation, generator=generator)
    assert isinstance(action_space, gym.spaces.Box)
    return GaussianActor(
        observation_space, action_space, hidden, log_std_init, activation=activation, generator=generator
    )


def check_spaces(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Refuse spaces that no network here fits.

    Raises:
        ValueError: naming the space and what is supported.
    """
    if not isinstance(observation_space, gym.spaces.Box) or size_of(observation_space) == 0:
        raise ValueError(
            f"observation space {observation_space} is not supported; allowed: a non-empty Box "
            "(gymnasium.wrappers.FlattenObservation makes one of Dict, Tuple and Discrete)"
        )
    real_box = isinstance(action_space, gym.spaces.Box) and np.issubdtype(action_space.dtype, np.floating)
    if not (real_box and size_of(action_space) > 0) and not isinstance(action_space, gym.spaces.Discrete):
        raise ValueError(f"action space {action_space} is not supported; allowed: Discrete, or a Box of floats")


def size_of(space: gym.Space) -> int:
    """Number of elements of a Box."""
    return int(np.prod(space.shape or ()))


def flatten_observation(observation: Array, ndim: int) -> Array:
    """Make one vector of the last ``ndim`` dimensions."""
    if ndim == 1:
        return observation
    return observation.reshape(*observation.shape[: observation.ndim - ndim], -1)
