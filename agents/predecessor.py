"""The policy before the last update, which the next rollout compares with the one that it led to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from klrl.agents.actor_critic import ActorCritic
from klrl.agents.whole_batch import in_pieces
from klrl.policy.distributions import Distribution
from klrl.policy.normalizer import Normalizer
from klrl.policy.surroundings import ordinary


@dataclass(frozen=True, eq=False)
class Predecessor:
    """A policy before an update and the parameters after it, from the update until the next rollout is in."""

    parameters: Tensor
    """Parameters of the policy before the update, ``[P]``."""
    normalizer: Normalizer
    """Statistics that it normalised observations with."""
    successor: Tensor
    """Parameters that the update led to, a change of statistics folded in, ``[P]``."""

    def leads_to(self, parameters: Tensor) -> bool:
        """Tell whether the policy is still what the update made it: nothing else has moved or replaced it since."""
        return torch.equal(self.successor, parameters)

    def distribution(self, networks: ActorCritic, observations: Tensor, *, pieces: bool) -> Distribution:
        """Return this policy at raw observations ``[n, *O]``.

        Args:
            networks: those of the policy now, which are lent the parameters.
            observations: the states.
            pieces: take some after the other.
        """
        with networks.actor_at(self.parameters) as actor:

            def policy(x: Tensor) -> Distribution:
                return actor(ordinary(self.normalizer(x)).to(self.parameters.device))

            return in_pieces(policy, observations) if pieces else policy(observations)
