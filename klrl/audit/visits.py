"""The states that a policy visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.audit.policy import AuditedPolicy
from klrl.policy.choices import MASK
from klrl.run.evaluation import ENOUGH, Evaluation, evaluate


@dataclass(frozen=True, eq=False)
class Visits:
    """The states of whole episodes."""

    observations: Tensor
    """Encoded observations ``[n, *O]`` in the order of the visits, without the last one of an episode."""
    episodes: Tensor
    """Number of each state's episode, int64 ``[n]``."""
    evaluation: Evaluation
    """Returns and lengths of the episodes."""


def visit(
    policy: AuditedPolicy, env: gym.Env, n_episodes: int = 20, *, seed: int = 0, max_steps: int = ENOUGH
) -> Visits:
    """Play whole episodes with sampled actions; seeds and limits as in :func:`klrl.run.evaluate`.

    Action masks come from ``info["action_mask"]``, or from the environment's method ``action_masks`` as sb3-contrib
    asks for them.

    Raises:
        CannotAct: an observation is not finite, or there are no masks for a policy that takes some.
    """
    player = _Player(policy, torch.Generator().manual_seed(seed))
    if player.takes_action_masks and env.has_wrapper_attr("action_masks"):
        env = _MasksInInfo(env)
    evaluation = evaluate(player, env, n_episodes, deterministic=False, seed=seed, max_steps=max_steps)
    lengths = torch.tensor(evaluation.lengths)
    return Visits(torch.cat(player.seen), torch.arange(len(lengths)).repeat_interleave(lengths), evaluation)


class _Player:
    """Acts in Stable-Baselines3's protocol, and keeps what it saw."""

    def __init__(self, policy: AuditedPolicy, generator: torch.Generator) -> None:
        self._policy, self._generator = policy, generator
        self.takes_action_masks = policy.encoding.mask_in_info
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def predict(self, observation: Any, deterministic: bool, action_masks: Any = None) -> tuple[np.ndarray, None]:
        assert not deterministic
        encoded = self._policy.encoding(observation, action_masks)
        if not np.isfinite(encoded).all():
            raise ValueError("the observation has NaN or infinite elements; allowed: finite numbers")
        state = torch.from_numpy(encoded)[None]
        self.seen.append(state)
        action = self._policy.policy(state).sample(self._generator)
        return self._policy.to_environment(action)[0], None


class _MasksInInfo(gym.Wrapper):
    """Puts what the method ``action_masks`` returns into ``info``."""

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**settings)
        return observation, {**info, MASK: self._masks()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, MASK: self._masks()}

    def _masks(self) -> Any:
        return self.env.get_wrapper_attr("action_masks")()
