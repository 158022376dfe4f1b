"""Actors by action space: from observations to a distribution record, and from the policy's actions to the space's.

A new action space needs one class here (for a ``Box``, in :mod:`klrl.policy.box_actors`) and one line in
:func:`make_actor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.policy.actor import Actor, flat, on_host
from klrl.policy.arrays import Array
from klrl.policy.box_actors import box_actor
from klrl.policy.choices import ActionDistribution
from klrl.policy.distributions import Bernoulli, Categorical, MultiCategorical
from klrl.policy.observations import MOST_ELEMENTS, Encoding, holds_numbers, n_choices
from klrl.text import one_line


class CategoricalActor(Actor):
    """Softmax policy on a ``Discrete`` space, ``start`` included."""

    def __init__(
        self, encoding: Encoding, action_space: gym.spaces.Discrete, hidden: Sequence[int], **style: Any
    ) -> None:
        super().__init__(encoding, int(action_space.n), hidden, **style)
        self.n, self.start, self.dtype = int(action_space.n), int(action_space.start), action_space.dtype

    def policy(self, outputs: Array, allowed: Array | None) -> Categorical:
        """Read the outputs as logits."""
        return Categorical(outputs) if allowed is None else Categorical.masked(outputs, allowed)

    def to_environment(self, action: Array) -> np.ndarray:
        """Convert to the space's dtype, shifted to its ``start``."""
        return np.asarray(on_host(action) + self.start).astype(self.dtype, copy=False)

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Count from 0."""
        return _as_index(action - self.start)

    @property
    def action_unit(self) -> str:
        """Indices from 0 on."""
        return f"integers 0 to {self.n - 1}"


class MultiCategoricalActor(Actor):
    """One softmax policy per component of a ``MultiDiscrete`` space, ``start`` included."""

    def __init__(
        self, encoding: Encoding, action_space: gym.spaces.MultiDiscrete, hidden: Sequence[int], **style: Any
    ) -> None:
        self.nvec = tuple(int(n) for n in action_space.nvec.ravel())
        super().__init__(encoding, sum(self.nvec), hidden, **style)
        self.space = action_space

    def policy(self, outputs: Array, allowed: Array | None) -> MultiCategorical:
        """Read the outputs as logits, one head after the other."""
        logits = outputs if allowed is None else Categorical.masked(outputs, allowed).logits
        return MultiCategorical(logits, self.nvec)

    def to_environment(self, action: Array) -> np.ndarray:
        """Convert to the space's shape and dtype, shifted to its ``start``."""
        shaped = on_host(action).reshape(*action.shape[:-1], *self.space.shape)
        return (shaped + self.space.start).astype(self.space.dtype, copy=False)

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Count from 0, in one row."""
        return _as_index(flat(action - self.space.start, self.space))

    @property
    def action_unit(self) -> str:
        """Indices from 0 on."""
        return f"integers from 0 on, smaller than {list(self.nvec)}"


class BernoulliActor(Actor):
    """One coin per bit of a ``MultiBinary`` space."""

    def __init__(
        self, encoding: Encoding, action_space: gym.spaces.MultiBinary, hidden: Sequence[int], **style: Any
    ) -> None:
        super().__init__(encoding, int(np.prod(action_space.shape)), hidden, **style)
        self.space = action_space

    def policy(self, outputs: Array, allowed: Array | None) -> Bernoulli:
        """Read the outputs as logits."""
        return Bernoulli(outputs)

    def to_environment(self, action: Array) -> np.ndarray:
        """Convert to the space's shape and dtype."""
        return on_host(action).reshape(*action.shape[:-1], *self.space.shape).astype(self.space.dtype)

    def from_environment(self, action: np.ndarray) -> np.ndarray:
        """Convert to floats, in one row."""
        return flat(action, self.space).astype(np.float32)

    @property
    def action_unit(self) -> str:
        """Bits."""
        return "0 and 1"


def _as_index(action: np.ndarray) -> np.ndarray:
    """Return integers; what is none becomes -1."""
    return np.where(action == np.floor(action), action, -1).astype(np.int64)


def make_actor(
    encoding: Encoding,
    action_space: gym.Space,
    hidden: Sequence[int],
    *,
    log_std_init: float = 0.0,
    action_distribution: ActionDistribution = "gaussian",
    state_dependent_std: bool = False,
    scale_actions: bool = True,
    **style: Any,
) -> Actor:
    """Make the actor for an action space; :func:`check_action_space` names the spaces that have one.

    ``style`` is that of the trunk, see :func:`~klrl.policy.trunks.make_trunk`.

    Raises:
        ValueError: an action space without an actor, or a setting that does not fit it.
    """
    check_action_space(action_space)
    if isinstance(action_space, gym.spaces.Box):
        gaussian = {
            "log_std_init": log_std_init, "state_dependent_std": state_dependent_std, "scaled": scale_actions,
        }  # fmt: skip
        return box_actor(encoding, action_space, hidden, action_distribution, gaussian, **style)
    for name, value in (("action_distribution", action_distribution), ("state_dependent_std", state_dependent_std)):
        if value not in ("gaussian", False):
            raise ValueError(f"{name} = {value!r} with action space {one_line(action_space)}; allowed: only with a Box")
    if isinstance(action_space, gym.spaces.Discrete):
        return CategoricalActor(encoding, action_space, hidden, **style)
    if isinstance(action_space, gym.spaces.MultiDiscrete):
        return MultiCategoricalActor(encoding, action_space, hidden, **style)
    assert isinstance(action_space, gym.spaces.MultiBinary)
    return BernoulliActor(encoding, action_space, hidden, **style)


def check_action_space(space: gym.Space) -> None:
    """Refuse spaces that no actor here fits.

    Raises:
        ValueError: the message names the space and the supported ones.
    """
    supported = isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary))
    if not (supported and np.prod(space.shape or (1,)) > 0) and not holds_numbers(space, "f"):
        raise ValueError(
            f"action space {one_line(space)} is not supported; allowed: Discrete, MultiDiscrete, MultiBinary, or a "
            "Box of floats with finite values (a gymnasium.ActionWrapper can make one of them)"
        )
    if (n := n_choices(space) or 0) > MOST_ELEMENTS:
        raise ValueError(f"action space {one_line(space)} has {n} choices; allowed: at most {MOST_ELEMENTS}")
