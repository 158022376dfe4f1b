"""Results of acting in a rollout, on images: the update on that rollout need not compute them again."""

from __future__ import annotations

import torch
from torch import Tensor

from klrl.agents.actor_critic import ActorCritic
from klrl.experience import Batch
from klrl.policy.normalizer import Normalizer


class Acted:
    """The networks and statistics that act in one rollout, and the values of a critic that reads the policy's encoder.

    Args:
        networks: as they act.
        normalizer: of their observations.
        parameters: a copy of the policy's parameters, if there is one.
    """

    def __init__(self, networks: ActorCritic, normalizer: Normalizer, parameters: Tensor | None) -> None:
        self._networks, self._normalizer = (networks.actor, networks.critic), normalizer
        self._parameters = networks.actor_parameters.clone() if parameters is None else parameters
        self._head = _head(networks)
        self._values: list[Tensor] = []
        self._batch: Batch | None = None
        self._versions: list[int | None] = []

    def add(self, values: Tensor) -> None:
        """Keep the values ``[N]`` of a step of the rollout."""
        if self._batch is None:
            self._values.append(values)

    def values(self, batch: Batch) -> Tensor | None:
        """Return the values ``[T, N]`` of a rollout, if acting has computed them all."""
        steps, n = batch.valid.shape
        return torch.stack(self._values) if [len(x) for x in self._values] == [n] * steps else None

    def collected(self, batch: Batch) -> None:
        """Remember which batch came of the rollout."""
        self._batch, self._versions, self._values = batch, _versions(batch), []

    def holds(self, batch: Batch, networks: ActorCritic, normalizer: Normalizer) -> bool:
        """Tell whether policy and values of this batch are still what acting has computed.

        They are not if it is another batch, or anybody has moved a parameter, a statistic or an observation since.
        """
        head = _head(networks)
        return (
            batch is self._batch
            and self._normalizer is normalizer
            and self._networks == (networks.actor, networks.critic)
            and self._versions == _versions(batch)
            and torch.equal(self._parameters, networks.actor_parameters)
            and (head is None) == (self._head is None)
            and (head is None or self._head is None or (batch.values is not None and torch.equal(head, self._head)))
        )


def _head(networks: ActorCritic) -> Tensor | None:
    """Copy the parameters of a critic that reads the policy's encoder."""
    if not networks.share_encoder:
        return None
    return torch.cat([p.detach().reshape(-1) for p in networks.critic.parameters()])


def _versions(batch: Batch) -> list[int | None]:
    """Return torch's counts of writes to a batch's observations and policy."""
    given = (batch.observations, *batch.behaviour.parameters)
    return [None if x.is_inference() else x._version for x in given]
