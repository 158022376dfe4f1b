"""Acting: step by step, or in a rollout with what stays the same in it looked up once.

:mod:`klrl.policy.paths` has the table of paths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules import module

from klrl.experience.collector import Act, Acted, OnArrays
from klrl.native import Kernel
from klrl.policy.actor import Actor
from klrl.policy.actors import BernoulliActor, CategoricalActor, MultiCategoricalActor
from klrl.policy.arrays import Array
from klrl.policy.box_actors import GaussianActor
from klrl.policy.distributions import Distribution
from klrl.policy.mlp import MLP
from klrl.policy.networks import features
from klrl.policy.paths import acts_in_kernel, acts_in_numpy, is_laid_out

if TYPE_CHECKING:
    from klrl.agents.learner import Learner

_ACTORS: tuple[type[Actor], ...] = (GaussianActor, CategoricalActor, MultiCategoricalActor, BernoulliActor)
_DEFINITIONS = {"forward", "policy", "allowed", "to_environment"}
"""Methods by which an actor acts."""


def act(agent: Learner[Any], observations: Tensor) -> tuple[Array, np.ndarray, Distribution]:
    """Sample one action per raw observation: (policy's actions, environment's actions, distributions)."""
    share, networks = agent.sampler.share, agent.networks
    with np.errstate(all="ignore"):
        if acts_in_numpy(len(observations) if share is None else share.total, networks.numpy_rows):
            x = agent.normalizer(observations.numpy())
            policy = agent.actor(x) if share is None else share.in_blocks(agent.actor, x)
        elif agent.image_passes is not None:
            policy = agent.image_passes.policy_in_rollout(agent, observations)
        elif share is None:
            policy = agent.distribution(observations).cpu()
        else:
            policy = share.in_blocks(agent.distribution, observations).cpu()
        actions = agent.sampler(policy)
    return actions, agent.actor.to_environment(actions), policy


def acting(agent: Learner[Any]) -> Act | OnArrays:
    """Return what acts as ``agent.act`` does, for one rollout: networks and statistics stay as they are.

    It is ``agent.act`` itself where the agent or its actor is not one of klrl's own, or numpy is not faster.
    """
    kernel, n, share = acting_kernel(agent), agent.config.n_envs, agent.sampler.share
    if not _is_klrls(agent) or (kernel is None and not acts_in_numpy(n, agent.networks.numpy_rows)):
        return agent.act
    actor: Any = agent.actor
    if share is not None:
        n = len(share)
    whole: Callable[[np.ndarray], np.ndarray] = actor.trunk.outputs_in_numpy()
    outputs = whole if share is None else partial(share.in_blocks, whole)
    if kernel is not None:  # it rounds every row by itself
        outputs = kernel.outputs(actor.trunk.layers.network, n)
    policy, normalizer, encoding, sampler = actor.policy_of_rollout(n), agent.normalizer, agent.encoding, agent.sampler

    def act(observations: np.ndarray) -> Acted:
        with np.errstate(all="ignore"):
            x = normalizer(observations)
            distribution = policy(outputs(features(encoding, x)), actor.allowed(x))
            actions = sampler(distribution)
        return actions, actor.to_environment(actions), distribution

    return OnArrays(act)


def acting_kernel(agent: Learner[Any]) -> Kernel | None:
    """Return the kernel if it computes the outputs of the agent's policy in rollouts, as the agent is now."""
    networks, kernel, trunk = agent.networks, agent.networks.kernel, agent.actor.trunk
    known = (
        kernel is not None
        and _is_klrls(agent)
        and acts_in_kernel(kernel, agent.config.n_envs, networks.numpy_rows)
        and isinstance(trunk, MLP)
        and is_laid_out(agent.actor, agent.actor.own)
        and trunk.layers.network is not None
    )
    return kernel if known else None


def _is_klrls(agent: Learner[Any]) -> bool:
    """Tell whether nobody has redefined what acting is."""
    actor = agent.actor
    return (
        agent.keeps("act")
        and type(actor) in _ACTORS
        and type(actor.trunk) is MLP
        and actor.trunk.explicit
        and actor.trunk.layers.sizes[0] == agent.encoding.n_features
        and not any(_is_watched(network) or vars(network).keys() & _DEFINITIONS for network in (actor, actor.trunk))
    )


def _is_watched(network: nn.Module) -> bool:
    """Tell whether somebody is told of the network's calls."""
    own, all_networks = network._forward_hooks, module._global_forward_hooks
    return any((own, all_networks, network._forward_pre_hooks, module._global_forward_pre_hooks))
