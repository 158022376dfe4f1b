"""Actors by action space: from observations to a distribution record, and from the policy's actions to the space's.

A new action space needs one class here and one line in :func:`make_actor`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

from klrl.policy.arrays import Array, expand, is_numpy, like, tensor
from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
)
from klrl.policy.linearization import ByAutograd, Linearization
from klrl.policy.mlp import Activation
from klrl.policy.networks import OnTrunk, evaluate, features, linearize
from klrl.policy.observations import Encoding, one_line
from klrl.policy.trunks import make_trunk

ActionDistribution = Literal["gaussian", "squashed-gaussian", "beta"]


class Actor(nn.Module, abc.ABC):
    """pi(.|s): observations ``[*B, *O]`` to a record ``[*B]`` whose fields are pieces of a trunk's outputs."""

    def __init__(self, encoding: Encoding, n_outputs: int, hidden: Sequence[int], **style: Any) -> None:
        super().__init__()
        self.encoding = encoding
        self.trunk = make_trunk(encoding, hidden, n_outputs, output_gain=0.01, **style)

    @abc.abstractmethod
    def policy(self, outputs: Array, allowed: Array | None) -> Distribution:
        """The record of outputs ``[*B, k]``; where there is a mask, with only the allowed actions, bool ``[*B, n]``."""

    @abc.abstractmethod
    def to_environment(self, action: Array) -> np.ndarray:
        """What the environment executes for these actions of the policy."""

    def forward(self, observation: Array) -> Distribution:
        """The policy's distribution at these observations."""
        return self.policy(evaluate(self.trunk, features(self.encoding, observation)), self.allowed(observation))

    def linearize(self, observation: Array) -> Linearization[Any]:
        """The policy at ``[n, *O]`` and how its parameters move it: as they move the trunk's outputs."""
        trunk = linearize(self.trunk, features(self.encoding, observation))
        return OnTrunk(self, trunk, self.policy(trunk.output, self.allowed(observation)).detach())

    def allowed(self, observation: Array) -> Array | None:
        """The mask in these observations, bool ``[*B, n]``, if there is one."""
        return observation[..., self.encoding.n_features :] > 0.5 if self.encoding.n_mask else None


class CategoricalActor(Actor):
    """Softmax policy on a ``Discrete`` space, ``start`` included."""

    def __init__(
        self, encoding: Encoding, action_space: gym.spaces.Discrete, hidden: Sequence[int], **style: Any
    ) -> None:
        super().__init__(encoding, int(action_space.n), hidden, **style)
        self.start = int(action_space.start)

    def policy(self, outputs: Array, allowed: Array | None) -> Categorical:
        """The outputs are the logits."""
        return Categorical(outputs) if allowed is None else Categorical.masked(outputs, allowed)

    def to_environment(self, action: Array) -> np.ndarray:
        """Indices shifted to the space's ``start``; one alone is a number, which tables can be looked up by."""
        return _on_host(action) + self.start


class MultiCategoricalActor(Actor):
    """One softmax policy per component of a ``MultiDiscrete`` space, ``start`` included."""

    def __init__(
        self, encoding: Encoding, action_space: gym.spaces.MultiDiscrete, hidden: Sequence[int], **style: Any
    ) -> None:
        self.nvec = tuple(int(n) for n in action_space.nvec.ravel())
        super().__init__(encoding, sum(self.nvec), hidden, **style)
        self.space = action_space

    def policy(self, outputs: Array, allowed: Array | None) -> MultiCategorical:
        """The outputs are the logits, one head after the other."""
        logits = outputs if allowed is None else Categorical.masked(outputs, allowed).logits
        return MultiCategorical(logits, self.nvec)

    def to_environment(self, action: Array) -> np.ndarray:
        """In the space's shape and dtype, shifted to its ``start``."""
        shaped = _on_host(action).reshape(*action.shape[:-1], *self.space.shape)
        return (shaped + self.space.start).astype(self.space.dtype, copy=False)


class BernoulliActor(Actor):
    """One coin per bit of a ``MultiBinary`` space."""

    def __init__(
        self, encoding: Encoding, action_space: gym.spaces.MultiBinary, hidden: Sequence[int], **style: Any
    ) -> None:
        super().__init__(encoding, int(np.prod(action_space.shape)), hidden, **style)
        self.space = action_space

    def policy(self, outputs: Array, allowed: Array | None) -> Bernoulli:
        """The outputs are the logits."""
        return Bernoulli(outputs)

    def to_environment(self, action: Array) -> np.ndarray:
        """In the space's shape and dtype."""
        return _on_host(action).reshape(*action.shape[:-1], *self.space.shape).astype(self.space.dtype)


class GaussianActor(Actor):
    """Diagonal Gaussian on a ``Box``: the mean from the network, log_std a free vector, the same in all states.

    The environment receives the action clipped to the box; log-probability and KL are those of the
    unclipped Gaussian, as in Stable-Baselines3.
    """

    def __init__(
        self,
        encoding: Encoding,
        action_space: gym.spaces.Box,
        hidden: Sequence[int],
        log_std_init: float,
        **style: Any,
    ) -> None:
        d = int(np.prod(action_space.shape))
        super().__init__(encoding, d, hidden, **style)
        self.log_std = nn.Parameter(torch.full((d,), log_std_init))
        self.action_space = action_space

    def policy(self, outputs: Array, allowed: Array | None) -> DiagGaussian:
        """A copy of log_std in every row: a record must not change when an optimiser writes to the parameter."""
        if is_numpy(outputs):
            return DiagGaussian(outputs, expand(self.log_std.detach().numpy(), outputs.shape))
        return DiagGaussian(outputs, self.log_std.expand_as(outputs).clone())

    def to_environment(self, action: Array) -> np.ndarray:
        """Clipped to the box, in the space's shape and dtype."""
        return _clipped(_on_host(action), self.action_space)


class SquashedGaussianActor(GaussianActor):
    """tanh of a diagonal Gaussian, stretched to the bounds of a ``Box``."""

    def policy(self, outputs: Array, allowed: Array | None) -> SquashedGaussian:  # type: ignore[override]
        """Mean and log_std before the tanh."""
        return SquashedGaussian(*super().policy(outputs, allowed).parameters)

    def to_environment(self, action: Array) -> np.ndarray:
        """From (-1, 1) to the box."""
        return _stretched(0.5 * (_on_host(action) + 1.0), self.action_space)


class StateDependentGaussianActor(Actor):
    """Diagonal Gaussian on a ``Box``: mean and log_std from the network; clipped to the box, or squashed into it."""

    def __init__(
        self,
        encoding: Encoding,
        action_space: gym.spaces.Box,
        hidden: Sequence[int],
        log_std_init: float,
        *,
        squashed: bool,
        **style: Any,
    ) -> None:
        self.d = int(np.prod(action_space.shape))
        super().__init__(encoding, 2 * self.d, hidden, **style)
        self.action_space, self.log_std_init, self.squashed = action_space, log_std_init, squashed

    def policy(self, outputs: Array, allowed: Array | None) -> DiagGaussian | SquashedGaussian:
        """The first half of the outputs is the mean, the second log_std, but for a constant."""
        family = SquashedGaussian if self.squashed else DiagGaussian
        return family(outputs[..., : self.d], outputs[..., self.d :] + self.log_std_init)

    def to_environment(self, action: Array) -> np.ndarray:
        """Clipped to the box, or stretched to it."""
        a = _on_host(action)
        return _stretched(0.5 * (a + 1.0), self.action_space) if self.squashed else _clipped(a, self.action_space)


class BetaActor(Actor):
    """Beta distributions, stretched to the bounds of a ``Box`` (Chou et al. 2017)."""

    def __init__(self, encoding: Encoding, action_space: gym.spaces.Box, hidden: Sequence[int], **style: Any) -> None:
        self.d = int(np.prod(action_space.shape))
        super().__init__(encoding, 2 * self.d, hidden, **style)
        self.action_space = action_space

    def policy(self, outputs: Array, allowed: Array | None) -> Beta:
        """1 + log(1 + e^x): both parameters stay above 1, so that the density has one peak."""
        x = like(1.0 + softplus(tensor(outputs)), outputs)
        return Beta(x[..., : self.d], x[..., self.d :])

    def linearize(self, observation: Array) -> Linearization[Beta]:
        """By autograd: the fields are no pieces of the outputs, but functions of them."""
        return ByAutograd(self, observation)

    def to_environment(self, action: Array) -> np.ndarray:
        """From (0, 1) to the box."""
        return _stretched(_on_host(action), self.action_space)


def make_actor(
    encoding: Encoding,
    action_space: gym.Space,
    hidden: Sequence[int],
    *,
    activation: Activation,
    generator: torch.Generator,
    log_std_init: float = 0.0,
    action_distribution: ActionDistribution = "gaussian",
    state_dependent_std: bool = False,
) -> Actor:
    """The actor for an action space; :func:`check_action_space` names the spaces that have one.

    Raises:
        ValueError: an action space without an actor, or a setting that does not fit it.
    """
    check_action_space(action_space)
    style: dict[str, Any] = {"activation": activation, "generator": generator}
    if isinstance(action_space, gym.spaces.Box):
        style["hidden"] = hidden
        return _box_actor(encoding, action_space, action_distribution, state_dependent_std, log_std_init, style)
    for name, value in (("action_distribution", action_distribution), ("state_dependent_std", state_dependent_std)):
        if value not in ("gaussian", False):
            raise ValueError(f"{name} = {value!r} with action space {one_line(action_space)}; allowed: only with a Box")
    if isinstance(action_space, gym.spaces.Discrete):
        return CategoricalActor(encoding, action_space, hidden, **style)
    if isinstance(action_space, gym.spaces.MultiDiscrete):
        return MultiCategoricalActor(encoding, action_space, hidden, **style)
    assert isinstance(action_space, gym.spaces.MultiBinary)
    return BernoulliActor(encoding, action_space, hidden, **style)


def _box_actor(
    encoding: Encoding,
    space: gym.spaces.Box,
    family: ActionDistribution,
    state_dependent_std: bool,
    log_std_init: float,
    style: dict[str, Any],
) -> Actor:
    if family != "gaussian" and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"action_distribution = {family!r} with action space {one_line(space)}, which has no finite bounds; "
            "allowed: action_distribution = 'gaussian'"
        )
    if family == "beta":
        if state_dependent_std:
            raise ValueError("state_dependent_std = True with action_distribution = 'beta'; allowed: with a Gaussian")
        return BetaActor(encoding, space, **style)
    if state_dependent_std:
        squashed = family == "squashed-gaussian"
        return StateDependentGaussianActor(encoding, space, log_std_init=log_std_init, squashed=squashed, **style)
    actor = SquashedGaussianActor if family == "squashed-gaussian" else GaussianActor
    return actor(encoding, space, log_std_init=log_std_init, **style)


def check_action_space(space: gym.Space) -> None:
    """Refuse spaces that no actor here fits.

    Raises:
        ValueError: naming the space and what is supported.
    """
    supported = isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary))
    if isinstance(space, gym.spaces.Box):
        supported = bool(np.issubdtype(space.dtype, np.floating))
    if not supported or np.prod(space.shape or (1,)) == 0:
        raise ValueError(
            f"action space {one_line(space)} is not supported; allowed: Discrete, MultiDiscrete, MultiBinary, or a "
            "Box of floats (a gymnasium.ActionWrapper can make one of them)"
        )


def _clipped(action: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    shaped = action.reshape(*action.shape[:-1], *space.shape)
    return np.minimum(np.maximum(shaped, space.low), space.high).astype(space.dtype, copy=False)


def _stretched(unit: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """From [0, 1] to the box, and never beyond it by rounding."""
    low, high = (x.reshape(-1) for x in (space.low, space.high))
    return _clipped((1.0 - unit) * low + unit * high, space)


def _on_host(x: Array) -> np.ndarray:
    return x if is_numpy(x) else x.detach().cpu().numpy()
