"""Networks made by settings: an agent's own, or those that were saved with a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Generator

from klrl.agents.actor_critic import ActorCritic
from klrl.agents.config import AgentConfig
from klrl.policy.actor import Actor
from klrl.policy.actors import make_actor
from klrl.policy.networks import Critic
from klrl.policy.observations import Encoding
from klrl.policy.shared_encoder import SharedCritic

_LAYERS = ("activation", "layer_norm")
_TRUNK = (*_LAYERS, "image_network", "network")
_POLICY = (*_TRUNK, "log_std_init", "action_distribution", "state_dependent_std", "scale_actions")
SETTINGS = ("actor_hidden_sizes", *_POLICY, "action_mask", "frame_stacks")
"""Settings that an agent's policy depends on."""


def new_actor(settings: Mapping[str, Any], encoding: Encoding, action_space: gym.Space, generator: Generator) -> Actor:
    """Make a policy by settings, of an agent or saved ones.

    Raises:
        ValueError: an action space without an actor, or a setting that does not fit it.
    """
    style = {name: settings[name] for name in _POLICY}
    return make_actor(encoding, action_space, settings["actor_hidden_sizes"], **style, generator=generator)


def new_networks(
    config: AgentConfig,
    encoding: Encoding,
    action_space: gym.Space,
    generator: Generator,
    *,
    device: torch.device,
    optimized: Sequence[str],
) -> ActorCritic:
    """Make an agent's networks and their optimiser.

    Args:
        config: the agent's settings.
        encoding: of its observations.
        action_space: of the environment.
        generator: draws the first weights.
        device: place of the networks.
        optimized: names of the networks that Adam moves.

    Raises:
        ValueError: spaces, settings and trust region that do not go together.
    """
    actor = new_actor(vars(config), encoding, action_space, generator).to(device)
    config.region.check(actor(torch.ones(1, *encoding.shape, dtype=torch.float32, device=device)))
    critic = new_critic(config, encoding, actor, generator).to(device)
    rate = config.values_at(1.0)["learning_rate"]
    return ActorCritic(actor, critic, optimized=optimized, learning_rate=rate, max_grad_norm=config.max_grad_norm)


def new_critic(config: AgentConfig, encoding: Encoding, actor: Actor, generator: Generator) -> Critic:
    """Make a critic, on the policy's encoder if it is to be shared."""
    shares, hidden = config.shares_encoder(encoding), config.critic_hidden_sizes
    style = {name: getattr(config, name) for name in (_LAYERS if shares else _TRUNK)}
    if shares:
        return SharedCritic(actor, encoding, hidden, **style, generator=generator)
    return Critic(encoding, hidden, **style, generator=generator)
