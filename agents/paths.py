"""Description of the path that computes an agent's updates, and of its critic's units.

:mod:`klrl.policy.paths` has the table of paths.
"""

from __future__ import annotations

from typing import Any

import torch

from klrl.agents.acting import acting_kernel
from klrl.agents.epochs import kernel_of
from klrl.agents.learner import Learner
from klrl.native import absence
from klrl.policy.mlp import MLP
from klrl.policy.normalizer_folding import output_layer
from klrl.policy.paths import (
    acts_in_numpy,
    brings_derivative,
    in_words,
    is_written_out,
    kernel_in_words,
    learns_in_numpy,
    optimizes_in_numpy,
    outputs_in_words,
)
from klrl.trust_region.all import members


def paths_of(agent: Learner[Any]) -> dict[str, str]:
    """Describe what computes the agent's actions and its updates, as the agent is now.

    - acting: the distributions that actions are drawn from in rollouts.
    - policy, critic: their outputs and derivatives while they learn; a policy that moves by the natural gradient does
      so on the whole batch. With a shared encoder they come by one pass of autograd where both losses move it.
    - surrogate: the derivatives of the region's surrogate and penalty, of log-probabilities and of the entropy.
    - optimizer: Adam's arithmetic.
    - whole batch: values, and the policies whose KL is measured.
    - kernel: its level, or why there is none.
    """
    config, device, networks = agent.config, agent.device, agent.networks
    half = config.minibatch_dtype == "bfloat16"
    minibatches = learns_in_numpy(config.batch_size, networks.numpy_rows) and not half
    by_autograd = _by_autograd(agent)
    paths = {
        "acting": outputs_in_words(acts_in_numpy(config.n_envs, networks.numpy_rows), agent.actor, device),
        "policy": in_words(minibatches and agent.actor in networks.optimized, agent.actor, device),
        "critic": in_words(minibatches, agent.critic, device),
        "surrogate": f"derivatives {f'by autograd: {by_autograd}' if by_autograd else 'written out'}",
        "optimizer": "numpy" if optimizes_in_numpy(networks.actor_parameters) else f"torch on {device}",
        "whole batch": outputs_in_words(arrays=False, network=agent.actor, device=device),
        "kernel": networks.kernel.level if networks.kernel else absence(),
    }
    if networks.kernel is not None and _whole_in_kernel(agent):
        paths["whole batch"] = kernel_in_words(networks.kernel)
        if agent.actor not in networks.optimized and is_written_out(agent.actor):
            paths["policy"] = f"{paths['whole batch']}, derivatives written out"
    if networks.share_encoder:
        paths |= _of_shared(agent, paths["policy"], minibatches)
    if (kernel := acting_kernel(agent)) is not None:
        paths["acting"] = kernel_in_words(kernel)
    if (kernel := kernel_of(agent)) is not None:
        paths |= {"critic": f"{kernel_in_words(kernel)}, derivatives written out", "optimizer": kernel_in_words(kernel)}
        paths |= {"policy": paths["critic"]} if agent.actor in networks.optimized else {}
    return paths


def reward_scale_of(agent: Learner[Any]) -> str:
    """Describe what a change of the rewards' scale does to the critic, as the agent is now."""
    if not agent.config.scale_rewards:
        return "none: scale_rewards = False"
    if not agent.config.fold_reward_scale:
        return "not folded: fold_reward_scale = False"
    if output_layer(agent.critic, _anything(agent)) is None:
        return "not folded: the critic does not end in a linear layer"
    return "folded into the critic's last layer"


def _of_shared(agent: Learner[Any], policy: str, minibatches: bool) -> dict[str, str]:
    """Describe policy and critic where the critic is a head on the policy's encoder."""
    head = in_words(minibatches, agent.critic, agent.device)
    if agent.actor not in agent.networks.optimized:
        return {"policy": policy, "critic": f"{head}, on what the policy's encoder says"}
    outside = "numpy around " if minibatches else ""
    words = f"{outside}torch{'' if agent.device.type == 'cpu' else f' on {agent.device}'}, derivatives by autograd"
    return dict.fromkeys(("policy", "critic"), f"{words}, in one pass through the encoder that they share")


def _whole_in_kernel(agent: Learner[Any]) -> bool:
    """Tell whether the kernel evaluates actor and critic on a whole batch; a critic on an encoder is torch's."""
    rows = agent.config.n_envs * agent.config.n_steps
    x = torch.empty(1, agent.encoding.n_features, dtype=torch.float32, device=agent.device).expand(rows, -1)
    networks = [agent.actor] if agent.networks.share_encoder else [*agent.networks]
    with torch.no_grad():
        return all(isinstance(network.trunk, MLP) and network.trunk.in_kernel(x) for network in networks)


def _by_autograd(agent: Learner[Any]) -> str:
    """Name the functions of the surrogate that autograd differentiates."""
    with torch.no_grad():
        family = type(agent.actor(_anything(agent)))
    hooks = [f"{type(r).__name__}.{hook}" for r in members(agent.region) for hook in sorted(r.by_autograd)]
    functions = {"log_prob": "score"} | ({"entropy": "entropy_gradient"} if agent.ent_coef > 0.0 else {})
    return ", ".join(
        hooks + [f"{family.__name__}.{f}" for f, df in functions.items() if not brings_derivative(family, f, df)]
    )


def _anything(agent: Learner[Any]) -> torch.Tensor:
    return torch.ones(1, *agent.encoding.shape, dtype=torch.float32, device=agent.device)
