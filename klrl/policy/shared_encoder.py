"""A critic that reads the policy's encoder.

The encoder belongs to the policy: a trust region judges, keeps and takes back encoder and policy head together, as the
parameters of one network, and the critic's own parameters are those of its head. Values move the encoder only where
:func:`together` linearizes them with the policy; everywhere else what the encoder says is given to the critic as
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klrl.policy.actor import Actor
from klrl.policy.arrays import Array, like, tensor
from klrl.policy.distributions import Distribution
from klrl.policy.encoder import Encoder
from klrl.policy.linearization import InJoint, Joint, Linearization
from klrl.policy.mlp import MLP, mlp
from klrl.policy.networks import Critic, OnTrunk, evaluate, features, linearize
from klrl.policy.observations import Encoding


class SharedCritic(Critic):
    """V(s) as a head on the encoder of a policy, of which only the head is this network's.

    A critic whose trunk was replaced by a network of one's own reads observations, like any other.

    Args:
        actor: the policy.
        encoding: of its observations.
        hidden: widths of the head's hidden layers.
        style: of the head, see :func:`~klrl.policy.mlp.mlp`.

    Raises:
        ValueError: a policy without an encoder.
    """

    def __init__(self, actor: Actor, encoding: Encoding, hidden: Sequence[int], **style: Any) -> None:
        nn.Module.__init__(self)
        self.encoding = encoding
        self._of = (actor,)  # in a tuple, no module of this one: its parameters are the policy's
        self.trunk = mlp([self._encoder.n_encoded, *hidden, 1], output_gain=1.0, **style)
        self._head = (self.trunk,)

    def read(self, actor: Actor) -> None:
        """Read this policy's encoder from now on.

        Raises:
            ValueError: the policy's trunk was replaced by one without.
        """
        self._of = (actor,)
        if self.shares:
            _ = self._encoder

    @property
    def shares(self) -> bool:
        """True while the trunk is the head that was made for the encoder."""
        return self.trunk is self._head[0]

    @property
    def _encoder(self) -> Encoder:
        (actor,) = self._of
        if not isinstance(actor.trunk, Encoder):
            kind = type(actor.trunk).__name__
            raise ValueError(
                f"shared_encoder = True, and actor.trunk is a {kind}, of which no part is an encoder; allowed: "
                "critic.trunk of your own, too, or shared_encoder = False"
            )
        return actor.trunk

    def forward(self, observation: Array) -> Array:
        """Return values in units of the scaled return."""
        return evaluate(self.trunk, self.inputs(observation)).squeeze(-1)

    @torch.no_grad()
    def inputs(self, observation: Array) -> Array:
        """Return what the trunk is given, ``[*B, *O] -> [*B, n]``: what the encoder says, as numbers."""
        x = features(self.encoding, observation)
        if not self.shares:
            return x
        encoded = _evaluating(self._encoder).encode(tensor(x).reshape(-1, x.shape[-1]))
        return like(encoded.reshape(*x.shape[:-1], -1), x)

    def linearize(self, observation: Array) -> Linearization[Array]:
        """Return the values at ``[n, *O]`` and their derivative by the head's parameters.

        Inside of :func:`together` those of the same array have a derivative by the encoder, too.
        """
        joint = vars(self).get("_together")
        if joint is not None and joint[0] is observation:
            return joint[1]
        return self.linearize_head(self.inputs(observation))

    def linearize_head(self, encoded: Array) -> Linearization[Array]:
        """Return the values and their derivative, given what :meth:`inputs` returned, ``[n, n_encoded]``."""
        trunk = linearize(self.trunk, encoded)
        return OnTrunk(self, trunk, trunk.output.squeeze(-1))


@contextmanager
def together(actor: Actor, critic: Critic, observation: Array) -> Iterator[Linearization[Any]]:
    """Linearize the policy at ``[n, *O]``; inside, values there that read its encoder come by the same pass.

    A loss of both then moves the encoder by both, through one pass forwards and one backwards.
    """
    if not isinstance(critic, SharedCritic) or not critic.shares:
        yield actor.linearize(observation)
        return
    x = features(critic.encoding, tensor(observation))
    with torch.enable_grad():
        trunk: Any = _evaluating(critic._encoder)
        encoded = trunk.encode(x)
        policy = actor.policy(trunk.decode(encoded), actor.allowed(tensor(observation)))
        values = critic.trunk.eval()(encoded).squeeze(-1)
    joint = Joint(actor, critic, observation)
    vars(critic)["_together"] = observation, InJoint[Array](joint, critic, observation, values)
    try:
        yield InJoint[Any](joint, actor, observation, policy)
    finally:
        del vars(critic)["_together"]


@torch.no_grad()
def evaluate_both(actor: Actor, critic: Critic, observation: Tensor) -> tuple[Distribution, Tensor]:
    """Return policy and values at ``[n, *O]``; an encoder that they share is asked once."""
    if not isinstance(critic, SharedCritic) or not critic.shares:
        return actor(observation), critic(observation)
    encoded = critic.inputs(observation)
    trunk: Any = critic._encoder
    policy = actor.policy(trunk.decode(encoded), actor.allowed(observation))
    return policy, evaluate(critic.trunk, encoded).squeeze(-1)


def _evaluating(trunk: Any) -> Any:
    """Put a trunk in evaluation mode: the policy that acts is the one that is updated."""
    return trunk if isinstance(trunk, MLP) and trunk.explicit else trunk.eval()
