"""Networks of an agent, and the optimiser that moves them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from klrl.native import Kernel, find
from klrl.policy.actor import Actor
from klrl.policy.arrays import Array, tensor
from klrl.policy.linearization import Objective, check_separate, flatten, is_packed, pack
from klrl.policy.mlp import MLP
from klrl.policy.networks import Critic, check_one_mode
from klrl.policy.normalizer_folding import output_layer, rescale
from klrl.policy.optimizer import Adam
from klrl.policy.paths import rows_for_numpy
from klrl.policy.shared_encoder import SharedCritic
from klrl.policy.trunks import ImageTrunk
from klrl.text import warn_user


@dataclass(frozen=True, eq=False)
class ActorState:
    """The policy's parameters ``[P]`` at some moment, and Adam's moments of them."""

    parameters: Tensor
    moments: Mapping[str, Tensor]


class ActorCritic:
    """The actor and the critic, the parameters of each in one memory, and Adam for those that move by their gradient.

    Args:
        actor: the policy's network.
        critic: the value network.
        optimized: names of the networks that Adam moves, "actor", "critic" or both.
        learning_rate: Adam's first step size.
        max_grad_norm: gradients longer than this are scaled down to it.

    Raises:
        ValueError: networks that share parameters, or whose KL cannot be measured.
    """

    def __init__(
        self, actor: Actor, critic: Critic, *, optimized: Sequence[str], learning_rate: float, max_grad_norm: float
    ) -> None:
        self.actor, self.critic = actor, critic
        self._optimized = tuple(optimized)
        self._settings = {"learning_rate": learning_rate, "max_grad_norm": max_grad_norm}
        self._as_evaluated: set[str] = set()
        check_one_mode(**self.named)
        self._pack()

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.actor, self.critic))

    @property
    def named(self) -> dict[str, nn.Module]:
        """Networks by name: actor and critic."""
        return {"actor": self.actor, "critic": self.critic}

    def _pack(self) -> None:
        if isinstance(self.critic, SharedCritic):
            self.critic.read(self.actor)
        check_separate(actor=self.actor, critic=self.critic)  # the critic's fit would move the policy, unmeasured
        self._packed = {network: pack(network) for network in self}
        self.actor_parameters = self._packed[self.actor]
        """Parameters theta of the policy, ``[P]``; writing to them moves the policy."""
        self.numpy_rows = rows_for_numpy(self.actor, self.critic)
        self.kernel = find()
        self.optimized = tuple(self.named[name] for name in self._optimized)
        """Networks that Adam moves, in its order."""
        of_images = [isinstance(network.trunk, ImageTrunk) for network in self.optimized]
        self.optimizer = Adam([self._packed[n] for n in self.optimized], fused=of_images, **self._settings)

    @property
    def kernel(self) -> Kernel | None:
        """The kernel in C, if there is one to use."""
        return self._kernel

    @kernel.setter
    def kernel(self, kernel: Kernel | None) -> None:
        self._kernel = kernel
        for network in (self.actor, self.critic):
            if isinstance(network.trunk, MLP):
                network.trunk.kernel = kernel

    def repack(self) -> None:
        """Pack networks that were replaced, with a new optimiser; put all of them in evaluation mode.

        Raises:
            ValueError: a network whose KL could not be measured, or that shares parameters with the other.
        """
        if unlike := set(check_one_mode(**self.named)) - self._as_evaluated:
            self._as_evaluated |= unlike
            what = f"{', '.join(sorted(unlike))}: networks act and learn as in evaluation mode"
            warn_user(f"{what}, so dropout is off and running statistics stay")
        if not self.is_packed:
            self._pack()

    @property
    def is_packed(self) -> bool:
        """True if the parameters of each network are still views of the vector that is moved."""
        return all(network in self._packed and is_packed(network, self._packed[network]) for network in self)

    @property
    def share_encoder(self) -> bool:
        """True if the critic is a head on the policy's encoder."""
        return isinstance(self.critic, SharedCritic) and self.critic.shares

    def set_learning_rate(self, rate: float, *, actor_factor: float) -> None:
        """Set Adam's step size, and the factor of the actor's."""
        self.optimizer.learning_rate = rate
        self.optimizer.factors = [actor_factor if network is self.actor else 1.0 for network in self.optimized]

    def descend(self, loss: Objective, when: str) -> None:
        """Take one step of Adam on the networks that the loss depends on, with the gradient's norm limited.

        Args:
            loss: the objective to lower.
            when: the update, for messages.

        Raises:
            FloatingPointError: the gradient is not finite; no parameter has moved.
        """
        gradients = loss.gradients()
        try:
            self.optimizer.step([gradients.get(network) for network in self.optimized])
        except FloatingPointError as error:
            where = worst_element(self.named, gradients)
            raise FloatingPointError(f"{where} in {when}: {error}") from None

    def actor_state(self) -> ActorState:
        """Copy the policy's parameters and Adam's moments of them."""
        return ActorState(self.actor_parameters.clone(), self.optimizer.moments(self.optimized.index(self.actor)))

    @contextmanager
    def actor_at(self, parameters: Tensor) -> Iterator[Actor]:
        """Lend the policy other parameters ``[P]``; its own are put back to the bit."""
        own = self.actor_parameters.clone()
        try:
            self.actor_parameters.copy_(parameters)
            yield self.actor
        finally:
            self.actor_parameters.copy_(own)

    def put_back_moments(self, state: ActorState) -> None:
        """Restore Adam's moments of the policy's parameters."""
        self.optimizer.put_back(self.optimized.index(self.actor), dict(state.moments))

    def forget_actor(self) -> None:
        """Reset Adam's moments of the policy, if it has any: they belong to another loss or another policy."""
        if self.actor in self.optimized:
            i = self.optimized.index(self.actor)
            self.optimizer.put_back(i, {name: 0.0 * x for name, x in self.optimizer.moments(i).items()})

    def rescale_values(self, factor: float, observation: Tensor) -> bool:
        """Multiply the critic's outputs by a factor, in its last layer; tell whether it has one (else nothing changes).

        Adam's moments become those that it would have had in the new unit, the limit of the gradient's norm apart: the
        squared error is factor^2 times as large there, and so are its gradients, but for those of the last layer, whose
        weights have grown with the outputs: factor times. Left as they were, they would be too heavy beside gradients
        that became smaller, as they do when returns grow, for as many minibatches as they remember.

        Args:
            factor: the new unit's numbers by the old one's.
            observation: normalised ones, for a critic whose layers are unknown, ``[n, *O]``.
        """
        if (layer := output_layer(self.critic, observation)) is None:
            return False
        rescale(layer, factor)
        if self.critic in self.optimized:
            mine = {*map(id, layer.parameters())}
            by = flatten(torch.full_like(p, factor if id(p) in mine else factor**2) for p in self.critic.parameters())
            i = self.optimized.index(self.critic)
            moments = self.optimizer.moments(i)
            mean, square = moments["exp_avg"] * by, moments["exp_avg_sq"] * (by * by)
            self.optimizer.put_back(i, moments | {"exp_avg": mean, "exp_avg_sq": square})
        return True

    def check_finite(self, when: str) -> None:
        """Check that every parameter is finite.

        Raises:
            FloatingPointError: one is infinite or NaN.
        """
        if self.is_packed and all(vector.sum().isfinite() for vector in self._packed.values()):
            return  # a sum of finite numbers may overflow, so any other is looked at below
        for name, network in self.named.items():
            for key, parameter in network.named_parameters():
                if not parameter.isfinite().all():
                    raise FloatingPointError(f"{name}.{key} is not finite after {when}; allowed: finite numbers")


def worst_element(networks: Mapping[str, nn.Module], gradients: Mapping[nn.Module, Array]) -> str:
    """Name the first element of packed gradients ``[P]`` that is not finite, else the largest."""
    found, largest = "", -1.0
    for name, network in networks.items():
        parameters = list(network.named_parameters())
        flat = tensor(gradients.get(network, np.zeros(sum(p.numel() for _, p in parameters))))
        for (key, p), g in zip(parameters, flat.split([p.numel() for _, p in parameters]), strict=True):
            size = g.reshape(p.shape).abs().nan_to_num(nan=math.inf, posinf=math.inf)
            if size.max().item() > largest:
                index, largest = (size == size.max()).nonzero()[0].tolist(), size.max().item()
                found = f"gradient of {name}.{key}, element {index}, is {g.reshape(p.shape)[*index].item():g}"
    return found
