"""Networks by space: an actor turns observations into a distribution record, a critic into values.

A new action space needs one actor class here and one line in :func:`make_actor`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from klrl.policy.distributions import Categorical, DiagGaussian, Distribution

Activation = Literal["tanh", "relu"]
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def mlp(
    sizes: Sequence[int], *, activation: Activation, output_gain: float, generator: torch.Generator
) -> nn.Sequential:
    """Fully connected layers ``sizes[0] -> ... -> sizes[-1]`` with orthogonal weights and zero biases.

    Gain sqrt(2) in hidden layers and ``output_gain`` in the last: 0.01 for policies, so that training
    starts near the uniform policy (Andrychowicz et al. 2021, "What Matters in On-Policy RL", section 3.2).
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)  # the default would draw from the global generator
        nn.init.orthogonal_(linear.weight, output_gain if last else 2**0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class Actor(nn.Module, abc.ABC):
    """pi(.|s): observations ``[*B, *O]`` to a record with batch shape ``[*B]``."""

    def __init__(self, observation_space: gym.spaces.Box, trunk: nn.Sequential) -> None:
        super().__init__()
        self.observation_ndim = len(observation_space.shape)
        self.trunk = trunk

    def outputs(self, observation: Tensor) -> Tensor:
        """The network's last layer, ``[*B, k]``."""
        return self.trunk(flatten_observation(observation, self.observation_ndim))

    @abc.abstractmethod
    def forward(self, observation: Tensor) -> Distribution:
        """The policy's distribution at these observations."""

    @abc.abstractmethod
    def to_environment(self, action: Tensor) -> np.ndarray:
        """What the environment executes for these actions of the policy."""


class CategoricalActor(Actor):
    """Softmax policy on a ``Discrete`` space, ``start`` included."""

    def __init__(
        self, observation_space: gym.spaces.Box, action_space: gym.spaces.Discrete, hidden: Sequence[int], **mlp_kw: Any
    ) -> None:
        sizes = [size_of(observation_space), *hidden, int(action_space.n)]
        super().__init__(observation_space, mlp(sizes, output_gain=0.01, **mlp_kw))
        self.start = int(action_space.start)

    def forward(self, observation: Tensor) -> Categorical:
        """Logits from the network."""
        return Categorical(self.outputs(observation))

    def to_environment(self, action: Tensor) -> np.ndarray:
        """Indices shifted to the space's ``start``."""
        return np.asarray(action.detach().numpy() + self.start)


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

    def forward(self, observation: Tensor) -> DiagGaussian:
        """Mean from the network, one log_std for all states."""
        mean = self.outputs(observation)
        # A copy, not a view: a stored record must not change when an optimiser writes to the parameter.
        return DiagGaussian(mean, self.log_std.expand_as(mean).clone())

    def to_environment(self, action: Tensor) -> np.ndarray:
        """Clipped to the box, in the space's shape and dtype."""
        shaped = action.detach().numpy().reshape(*action.shape[:-1], *self.action_space.shape)
        clipped = np.clip(shaped, self.action_space.low, self.action_space.high)
        return clipped.astype(self.action_space.dtype, copy=False)


class Critic(nn.Module):
    """V(s): observations ``[*B, *O]`` to values ``[*B]``."""

    def __init__(self, observation_space: gym.spaces.Box, hidden: Sequence[int], **mlp_kw: Any) -> None:
        super().__init__()
        self.observation_ndim = len(observation_space.shape)
        self.trunk = mlp([size_of(observation_space), *hidden, 1], output_gain=1.0, **mlp_kw)

    def forward(self, observation: Tensor) -> Tensor:
        """Values in units of the scaled return."""
        return self.trunk(flatten_observation(observation, self.observation_ndim)).squeeze(-1)


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


def flatten_observation(observation: Tensor, ndim: int) -> Tensor:
    """Make one vector of the last ``ndim`` dimensions."""
    return observation.flatten(-ndim) if ndim else observation.unsqueeze(-1)
