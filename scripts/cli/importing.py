"""A klrl agent with the networks, statistics and settings of a policy that Stable-Baselines3 saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.agents import AGENTS, Agent
from klrl.agents.learner import Learner
from klrl.agents.settings import CONFIGS
from klrl.experience.training_envs import TrainingEnvs
from klrl.integrations.sb3_policy import Layers, SB3Policy
from klrl.integrations.sb3_reader import Statistics
from klrl.policy.normalizer import Moments, Normalizer
from klrl.text import one_line
from klrl.validation import fits, hints

CLOSE = 1e-6
"""Largest difference of outputs between the policy and the agent, relative to the largest output where that is > 1."""
_ACTIVATIONS = {
    "Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "LeakyReLU": "leaky_relu", "SiLU": "silu", "GELU": "gelu",
    "Sigmoid": "sigmoid", "Softplus": "softplus",
}  # fmt: skip
"""klrl's names of the activations that are read."""
_ALWAYS = ("gamma", "gae_lambda", "learning_rate", "max_grad_norm", "ent_coef", "vf_coef")
_OF_ROLLOUTS = (
    "n_envs", "n_steps", "batch_size", "normalize_advantage", "n_epochs", "clip_range", "target_kl", "cg_max_steps",
    "cg_damping", "line_search_shrinking_factor", "line_search_max_iter", "n_critic_updates", "sub_sampling_factor",
)  # fmt: skip
"""Settings of training that both libraries have under one name; those of A2C's rollouts do not suit PPO."""


def agent_of(found: SB3Policy, env: str | None) -> Agent[Any]:
    """Make the agent, which has learned what the policy has, and nothing of it is trained anew.

    TRPO stays TRPO; PPO, A2C and MaskablePPO become PPO. Optimisers begin anew.

    Args:
        found: the policy, with the statistics of its training.
        env: id of the environment to learn from, or ``None``.

    Raises:
        ValueError: klrl has no such network or normalisation.
    """
    _check(found)
    name = "trpo" if found.algorithm == "TRPO" else "ppo"
    config = CONFIGS[name](**settings_of(found, name))
    agent = AGENTS[name].__new__(AGENTS[name])
    Learner.__init__(agent, found.model.observation_space, found.model.action_space, config, 0)
    agent.actor.load_state_dict(_parameters(found.actor, found.log_std))
    agent.critic.load_state_dict(_parameters(found.critic, None))
    if found.statistics is not None and found.statistics.norm_obs:
        agent.normalizer = normalizer_of(found.statistics, agent.normalizer)
    if found.statistics is not None and found.statistics.norm_reward:
        agent.return_scaler = replace(agent.return_scaler, moments=_moments(found.statistics, "ret"))
    agent.begin(TrainingEnvs(env), None)
    agent.untrained = False
    agent.num_timesteps = max(0, int(found.model.settings.get("num_timesteps", 0)))
    return agent


def settings_of(found: SB3Policy, name: str) -> dict[str, Any]:
    """Return the settings of an agent: networks as they are, and those of training that klrl has and allows."""
    statistics, known = found.statistics, found.model.settings
    config = CONFIGS[name]
    allowed = hints(config)
    wanted = _ALWAYS if found.algorithm == "A2C" else (*_ALWAYS, *_OF_ROLLOUTS)
    settings: dict[str, Any] = {
        k: known[k] for k in wanted if k in known and k in allowed and fits(known[k], allowed[k])
    }
    settings.pop("target_kl", None)
    if (target := known.get("target_kl")) and fits(target, allowed["target_kl"]):
        settings |= {"target_kl": target} | ({"trust_region": "clip+constraint"} if name == "ppo" else {})
    n_envs, n_steps = (settings.get(k, getattr(config, k)) for k in ("n_envs", "n_steps"))
    for k in ("batch_size", "sub_sampling_factor"):
        if k in settings:
            settings[k] = min(settings[k], n_envs * n_steps)
    return settings | {
        "learning_rate_schedule": "constant",
        "actor_hidden_sizes": found.actor.hidden_sizes,
        "critic_hidden_sizes": found.critic.hidden_sizes,
        "activation": _ACTIVATIONS[found.activation],
        "scale_actions": False,
        "action_mask": "info" if found.masked else "none",
        "normalize_observations": statistics is not None and statistics.norm_obs,
        "scale_rewards": statistics is not None and statistics.norm_reward,
    }


def normalizer_of(statistics: Statistics, empty: Normalizer) -> Normalizer:
    """Return klrl's normaliser with the same scale: its variance V has V + min(1e-5 V, 1e-8) = var + epsilon."""
    found = _moments(statistics, "obs")
    total = found.variance + statistics.epsilon
    variance = torch.where(total - 1e-8 >= 1e-3, total - 1e-8, total / (1.0 + 1e-5))
    return replace(empty, moments=replace(found, variance=variance))


def largest_difference(found: SB3Policy, agent: Agent[Any], n: int = 256) -> float:
    """Return the largest difference of outputs on ``n`` random states, relative where they are larger than 1."""
    space, rng = found.model.observation_space, np.random.default_rng(0)
    if isinstance(space, gym.spaces.Box):
        x = rng.standard_normal((n, *space.shape))
        if found.statistics is not None and found.statistics.norm_obs:
            mean, var = (found.statistics.moments[f"obs.{name}"].numpy() for name in ("mean", "var"))
            x = mean + np.sqrt(var) * x
        states = np.clip(x, space.low, space.high).astype(space.dtype)
    else:
        space.seed(0)
        states = np.stack([np.asarray(space.sample()) for _ in range(n)])
    encoded = torch.from_numpy(found.encoding(states))
    own, mine = (policy.distribution(encoded).parameters for policy in (found, agent))
    values = found.values(encoded), agent.critic(agent.normalized(encoded)).detach()
    pairs = [*zip(own, mine, strict=True), values]
    return max(float(((a - b).abs() / a.abs().clamp_min(1.0)).max()) for a, b in pairs)


def _check(found: SB3Policy) -> None:
    """Refuse networks and normalisation that klrl does not have."""
    path, statistics = found.model.path, found.statistics
    if found.encoding.images:
        raise ValueError(f"path = {path} observes {one_line(found.encoding.space)}; allowed: vectors")
    if statistics is not None and statistics.norm_obs and statistics.clip_obs != 10.0:
        raise ValueError(f"clip_obs = {statistics.clip_obs:g} of its VecNormalize; allowed: 10, where klrl clips")


def _parameters(layers: Layers, log_std: Tensor | None) -> dict[str, Tensor]:
    """Name parameters as actors and critics of klrl do."""
    named = {} if log_std is None else {"log_std": log_std}
    for i, both in enumerate(layers.linears):
        named |= {f"trunk.{2 * i}.{kind}": x for kind, x in zip(("weight", "bias"), both, strict=True)}
    return named


def _moments(statistics: Statistics, kind: str) -> Moments:
    mean, variance = (statistics.moments[f"{kind}.{name}"] for name in ("mean", "var"))
    return Moments(mean, variance, max(1, round(statistics.counts[kind])))
