"""A policy as an audit sees it: from encoded observations to distributions over the environment's actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.policy.distributions import DiagGaussian, Distribution, concatenate_records
from klrl.policy.observations import Encoding
from klrl.policy.units import Units
from klrl.text import one_line

_ROWS = 4096
"""States at a time, to bound the memory of a network's layers."""


@dataclass(frozen=True, eq=False)
class AuditedPolicy:
    """A policy of any library, to be played and compared."""

    name: str
    """The user's word for it."""
    encoding: Encoding
    """Conversion of its environment's observations, with masks where it takes some."""
    action_space: gym.Space
    policy: Callable[[Tensor], Distribution]
    """The distributions at encoded observations ``[n, *O]``, in its own units."""
    to_environment: Callable[[Any], np.ndarray]
    """The environment's actions for its own ``[n, ...]``."""
    units: Units | None = None
    """Units of its own, if they are not the environment's and only an affine map lies between."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Origin as plain JSON: path, library, algorithm, number of steps, statistics."""

    @classmethod
    def of_agent(cls, name: str, agent: Any, origin: dict[str, Any] | None = None) -> AuditedPolicy:
        """Return the policy of a klrl agent, or of one that was saved."""
        acts = agent.actor.to_environment
        return cls(name, agent.encoding, agent.action_space, agent.distribution, acts, agent.actor.units, origin or {})

    @classmethod
    def of(cls, name: str, policy: Any, origin: dict[str, Any] | None = None) -> AuditedPolicy:
        """Return a policy that acts in the environment's units, as those of :mod:`klrl.integrations` do."""
        acts = policy.to_environment
        return cls(name, policy.encoding, policy.action_space, policy.distribution, acts, None, origin or {})

    @torch.no_grad()
    def distribution(self, observations: Tensor) -> Distribution:
        """Return the distributions over the environment's actions at encoded observations ``[n, *O]``, in float64.

        A Gaussian's actions are those before clipping; a squashed Gaussian and a Beta stay in (-1, 1) and (0, 1),
        which one and the same map stretches to the box for every policy.
        """
        parts = [self.policy(rows).map(_wide) for rows in observations.split(_ROWS)]
        whole = concatenate_records(parts)
        if self.units is None or self.units.are_environments or not isinstance(whole, DiagGaussian):
            return whole
        center, half_range = (torch.from_numpy(x) for x in (self.units.center, self.units.half_range))
        return DiagGaussian(center + half_range * whole.mean, whole.log_std + half_range.log())


def _wide(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def check_space(policy: AuditedPolicy, name: str, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Refuse spaces that differ from a policy's; ``name`` is the user's word for what has them.

    Raises:
        ValueError: naming the space that differs.
    """
    for kind, mine, its in (
        ("observation_space", policy.encoding.space, observation_space),
        ("action_space", policy.action_space, action_space),
    ):
        if mine != its:
            raise ValueError(f"{name} has {kind} {one_line(its)}; allowed: {policy.name}'s, {one_line(mine)}")


def check_comparable(first: AuditedPolicy, second: AuditedPolicy) -> None:
    """Refuse two policies without a KL between them that has a formula.

    Raises:
        ValueError: other spaces, masks for one only, or distributions of two families.
    """
    check_space(first, second.name, second.encoding.space, second.action_space)
    if first.encoding.n_mask != second.encoding.n_mask:
        one, other = sorted((first, second), key=lambda policy: policy.encoding.n_mask)
        raise ValueError(f"{other.name} takes action masks, {one.name} none; allowed: both or neither")
    nothing = torch.ones(1, *first.encoding.shape, dtype=torch.float32)
    families = [type(policy.distribution(nothing)).__name__ for policy in (first, second)]
    if families[0] != families[1]:
        raise ValueError(
            f"{first.name} is a {families[0]}, {second.name} a {families[1]}: no formula has the KL between them; "
            "allowed: policies of one family"
        )
