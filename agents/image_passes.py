"""Passes of an agent's networks over whole batches of images: in pieces, and none that was made already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from klrl.agents.acted import Acted
from klrl.agents.update_batch import UpdateBatch
from klrl.agents.whole_batch import in_pieces
from klrl.experience import Batch
from klrl.kl.drift import rows_evenly
from klrl.policy.actor import Actor
from klrl.policy.distributions import Distribution
from klrl.policy.shared_encoder import SharedCritic, evaluate_both
from klrl.policy.trunks import ImageTrunk

if TYPE_CHECKING:
    from klrl.agents.learner import Learner

_CHECKED = 16
"""Images where the policy that has acted is compared with the one to be updated."""


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """The policy at a batch's states, and its parameters then."""

    old: Distribution
    """Old policy of the update that the batch is for."""
    parameters: Tensor
    policy: Distribution


class ImagePasses:
    """Passes that acting, an update and its measurements need of networks for images; what one has found is kept.

    A pass over a whole batch costs as much as an epoch, and takes many times the batch's bytes if it is made at once.
    """

    def __init__(self) -> None:
        self._acted: Acted | None = None
        """Results of acting in the rollout that is next to learn from."""
        self._taken_over: Distribution | None = None
        """Old policy of an update, if acting has computed it."""
        self._last: _Evaluated | None = None

    # -- acting ---------------------------------------------------------------------------------

    def begin_to_act(self, agent: Learner[Any]) -> Acted | None:
        """Keep what acting in the next rollout computes, and return what keeps it.

        ``None`` where an update computes it anew, since acting or its networks are not klrl's own.
        """
        self._acted, last = None, agent.predecessor
        if _is_klrls(agent):
            known = last is not None and last.leads_to(agent.networks.actor_parameters)
            self._acted = Acted(agent.networks, agent.normalizer, last.successor if last and known else None)
        return self._acted

    def policy_in_rollout(self, agent: Learner[Any], observations: Tensor) -> Distribution:
        """Return the policy at raw observations, in the CPU's memory; values that come by the same pass are kept."""
        share, acted = agent.sampler.share, self._acted if agent.networks.share_encoder else None
        evaluate = agent.distribution if acted is None else _both(agent)
        found: Any = evaluate(observations) if share is None else share.in_blocks(evaluate, observations)
        if acted is None:
            return found.cpu()
        policy, values = found
        acted.add(values.cpu())
        return policy.cpu()

    # -- a rollout ------------------------------------------------------------------------------

    def policy_and_values(self, agent: Learner[Any], batch: Batch) -> tuple[Distribution, Tensor]:
        """Return the policy ``[n]`` at the valid steps of a batch, and the values ``[T, N]`` at all of its steps."""
        taken_over = self._acted is not None and self._acted.holds(batch, agent.networks, agent.normalizer)
        policy, values = of_acting(agent, batch) if taken_over else computed(agent, batch)
        old = policy[batch.valid.flatten()]
        self._taken_over = old if taken_over else None
        self._last = _Evaluated(old, agent.networks.actor_parameters.clone(), old)
        return old, values

    def where_compared(
        self, agent: Learner[Any], behaviour: Distribution, samples: UpdateBatch
    ) -> tuple[Distribution, UpdateBatch]:
        """Return what has acted and what is updated where they are compared: on few images if these are the same."""
        if self._taken_over is not samples.old:
            return behaviour, samples
        rows = rows_evenly(len(samples), _CHECKED)
        some = samples[rows]
        old = _policy(agent, some)
        return behaviour[rows], replace(some, old=old, log_prob=old.log_prob_inside(some.taken))

    # -- its update -----------------------------------------------------------------------------

    def policy(self, agent: Learner[Any], samples: UpdateBatch) -> Distribution:
        """Return the current policy at samples.

        It is kept until the policy moves, since what judges an update and what reports it ask for the same.
        """
        theta, last = agent.networks.actor_parameters, self._last
        if last is None or last.old is not samples.old or not torch.equal(last.parameters, theta):
            last = self._last = _Evaluated(samples.old, theta.clone(), _policy(agent, samples))
        return last.policy

    def copy_of(self, theta: Tensor) -> Tensor:
        """Return a copy of the policy's parameters, the one that is kept if it is of these."""
        last = self._last
        return last.parameters if last is not None and torch.equal(last.parameters, theta) else theta.clone()

    def forget(self) -> None:
        """Let go of what was kept for an update."""
        self._last = self._taken_over = self._acted = None


def computed(agent: Learner[Any], batch: Batch) -> tuple[Distribution, Tensor]:
    """Return policy ``[T * N]`` and values ``[T, N]`` at all steps of a batch, in one pass over its images."""
    policy, values = in_pieces(_both(agent), batch.observations.flatten(0, 1))
    return policy, values.reshape(batch.valid.shape)


def of_acting(agent: Learner[Any], batch: Batch) -> tuple[Distribution, Tensor]:
    """Return the same where acting has computed the policy, and the values of a critic that reads its encoder."""
    policy = batch.behaviour.map(lambda x: agent.on_device(x.flatten(0, 1)))
    if agent.networks.share_encoder and batch.values is not None:
        return policy, agent.on_device(batch.values)
    values = in_pieces(lambda x: agent.critic(agent.normalized(x)), batch.observations.flatten(0, 1))
    return policy, values.reshape(batch.valid.shape)


def values_of_images(agent: Learner[Any], observations: Tensor) -> Tensor:
    """Return the critic's values ``[*B]`` at raw observations ``[*B, *O]``, in the CPU's memory."""
    d = len(agent.encoding.shape)
    values = in_pieces(lambda x: agent.critic(agent.normalized(x)).cpu(), observations.flatten(0, -1 - d))
    return values.reshape(observations.shape[:-d])


def minibatches_of_images(
    agent: Learner[Any], samples: UpdateBatch, parts: Sequence[Tensor], *, arrays: bool
) -> Iterator[UpdateBatch]:
    """Yield minibatches of these rows, each copied, scaled and put in its type when it is needed."""
    half = agent.config.minibatch_dtype == "bfloat16"  # which numpy does not have
    for rows in parts:
        minibatch = samples[rows].numpy() if arrays and not half else samples[rows]
        x = minibatch.observations  # of no columns for a critic that is given what an encoder says
        if 0 not in x.shape:
            x = agent.inputs(x)
            minibatch = replace(minibatch, observations=x.to(torch.bfloat16) if half else x)
        yield minibatch


def encoded_images(agent: Learner[Any], samples: UpdateBatch, critic: SharedCritic) -> UpdateBatch:
    """Return samples with what a shared encoder says of them, and without images if nothing asks for these."""
    x = samples.observations
    encoded = in_pieces(lambda piece: critic.inputs(agent.inputs(piece)), x)
    return replace(samples, encoded=encoded, observations=x[:, :0] if agent.keeps("value_loss") else x)


def _both(agent: Learner[Any]) -> Callable[[Tensor], tuple[Distribution, Tensor]]:
    """Return what computes policy and values at raw observations."""
    return lambda observations: evaluate_both(agent.actor, agent.critic, agent.normalized(observations))


def _policy(agent: Learner[Any], samples: UpdateBatch) -> Distribution:
    """Compute the policy at samples."""
    return in_pieces(lambda x: agent.actor(agent.inputs(x)), samples.observations)


def _is_klrls(agent: Learner[Any]) -> bool:
    """Tell whether acting does nothing but ask the policy, whose network for images is klrl's own."""
    own = [agent.actor, agent.actor.trunk]
    return (
        agent.keeps("act", "distribution")
        and type(agent.actor).forward is Actor.forward
        and type(agent.actor).__module__.startswith("klrl.")
        and type(agent.actor.trunk) is ImageTrunk
        and not any("forward" in vars(network) for network in own)
    )
