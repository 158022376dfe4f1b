"""Preferences: pairs of segments of play from the same start, the preferred one first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from klrl.agents.base import Agent
from klrl.agents.settings import PreferencesConfig
from klrl.agents.supervised import closed_after, environments
from klrl.experience import Batch, Collector, EnvLike
from klrl.policy.arrays import as_mask, tensor
from klrl.policy.distributions.squashed import matching, remembering
from klrl.run.seeding import segment_seeds
from klrl.shown import of_arrays


@dataclass(frozen=True, eq=False, repr=False)
class Preferences:
    """``n`` pairs of segments of up to ``T`` steps; ``[:, 0]`` was preferred to ``[:, 1]``."""

    observations: Tensor
    """Observations before normalisation, ``[n, 2, T, *O]``."""
    actions: Tensor
    """Actions of the policy (see :meth:`~klrl.agents.learner.Learner.distribution`), ``[n, 2, T, *A]``."""
    valid: Tensor
    """Mask of the steps that were taken; false after the end of an episode, bool (or 0 and 1) ``[n, 2, T]``."""
    before_tanh: Tensor | None = None
    """Numbers that squashed actions are the tanh of, if they are known, ``[n, 2, T, *A]``."""

    def __repr__(self) -> str:
        return of_arrays(self)

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", as_mask("valid", self.valid))
        shape = tuple(self.valid.shape)
        both = tuple(self.observations.shape[:3]), tuple(self.actions.shape[:3])
        if len(shape) != 3 or shape[1] != 2 or 0 in shape or both != (shape, shape):
            raise ValueError(
                f"observations, actions and valid begin with {both[0]}, {both[1]} and {shape}; "
                "allowed: one shape (n, 2, T), the preferred segment first"
            )
        if not self.valid.any(-1).all():
            raise ValueError("valid has a segment without steps; allowed: at least one step in each")
        if (u := self.before_tanh) is not None and (
            u.shape != self.actions.shape or matching(self.actions[self.valid], u[self.valid]) is None
        ):
            raise ValueError("before_tanh is not what actions are the tanh of; allowed: the same shape, tanh = actions")

    @classmethod
    def of(cls, agent: Agent[Any], observations: Any, actions: Any, valid: Any = None, before_tanh: Any = None) -> Self:
        """Build preferences from your own data, for policies like the agent's; one action is a segment of one step.

        Args:
            agent: the agent that encodes observations.
            observations: ``[n, 2, T]``, nested as the observation space is.
            actions: the policy's, ``[n, 2, T, *A]``; for a Gaussian, actions that an environment executed are converted
                by ``agent.from_environment(executed)``.
            valid: mask of the steps that were taken, bool or 0 and 1, ``[n, 2, T]``; by default all.
            before_tanh: numbers that squashed actions are the tanh of, if you have them, ``[n, 2, T, *A]``; float32
                actions of 1 have forgotten them.

        Raises:
            ValueError: shapes that do not go together, actions that the policy cannot take, a mask of other numbers.
        """
        taken = tensor(np.asarray(actions))
        taken = taken.float() if taken.is_floating_point() else taken.long()
        encoded = torch.from_numpy(agent.encoding(observations))
        mask = torch.ones(taken.shape[:3], dtype=torch.bool) if valid is None else valid
        pairs = cls(encoded, taken, mask, None if before_tanh is None else tensor(np.asarray(before_tanh)).float())
        check_actions("the agent", agent, pairs)
        return pairs

    def __len__(self) -> int:
        return len(self.valid)

    def __getitem__(self, pairs: Tensor) -> Preferences:
        return self.map(lambda x: x[pairs])

    def map(self, function: Callable[[Tensor], Tensor]) -> Preferences:
        """Apply a function to every array."""
        u = None if self.before_tanh is None else function(self.before_tanh)
        return Preferences(function(self.observations), function(self.actions), function(self.valid), u)

    def taken(self, device: torch.device) -> Tensor:
        """Return the actions of the ``m`` steps that were taken, ``[m, *A]``, on a device.

        They remember what they are the tanh of, if that is known.
        """
        return of_steps(self.actions.to(device), self.before_tanh, self.valid)


def of_steps(actions: Tensor, before_tanh: Tensor | None, valid: Tensor) -> Tensor:
    """Return the actions of valid steps, which remember what they are the tanh of, if that is known."""
    valid = valid.to(actions.device)
    return actions[valid] if before_tanh is None else remembering(actions[valid], before_tanh.to(actions.device)[valid])


def check_actions(who: str, agent: Agent[Any], preferences: Preferences) -> None:
    """Refuse actions that policies like the agent's do not have, whatever the state.

    Raises:
        ValueError: the message names the policy's unit.
    """
    actions = preferences.actions[preferences.valid].to(agent.device)
    policy = agent.distribution(preferences.observations[preferences.valid][:1])
    if tuple(actions.shape[1:]) != tuple(policy.event_shape):
        shapes = f"one action has shape {tuple(actions.shape[1:])}; allowed: {tuple(policy.event_shape)}"
        raise ValueError(f"preferences do not fit {who}: {shapes}")
    if len(others := actions[~policy.supports(actions)]):
        raise ValueError(
            f"preferences do not fit {who}: actions = {others[0].tolist()} in {len(others)} of {len(actions)} steps; "
            f"allowed: its policy's own, {agent.actor.action_unit} (agent.from_environment(actions) converts those of "
            "an environment)"
        )


@dataclass(frozen=True, eq=False)
class Segments:
    """First ``T`` steps of ``n`` episodes, or fewer if they end earlier."""

    observations: Tensor
    """``[n, T, *O]``."""
    actions: Tensor
    valid: Tensor
    returns: Tensor
    """Undiscounted returns, ``[n]``."""
    before_tanh: Tensor | None = None
    """Numbers that squashed actions are the tanh of, if they are known, ``[n, T, *A]``."""

    @classmethod
    def of(cls, batch: Batch) -> Segments:
        """Take every environment's first episode from a batch that began with a reset."""
        before = batch.ended.cumsum(0) - batch.ended.long()
        valid = batch.valid & (before == 0)
        observations, actions, valid = (x.transpose(0, 1) for x in (batch.observations, batch.actions, valid))
        u = matching(batch.actions, batch.before_tanh)
        return cls(
            observations, actions, valid, (batch.rewards * valid.T).sum(0), None if u is None else u.transpose(0, 1)
        )


def play_segments(agent: Agent[Any], envs: VectorEnv, n: int, length: int, seed: int, sides: int = 1) -> list[Segments]:
    """Play from ``n`` starts, ``sides`` times each with new actions; return segments ``[n, ...]`` for each time."""
    played: list[list[Segments]] = [[] for _ in range(sides)]
    for i in range(-(-n // envs.num_envs)):
        for side in played:
            collector = Collector(envs, segment_seeds(seed, i), agent.encoding)
            side.append(Segments.of(collector.collect(agent.act, length)))
    return [_first(n, side) for side in played]


def _first(n: int, parts: list[Segments]) -> Segments:
    """Return the first ``n`` of all segments."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[:n]

    known = all(part.before_tanh is not None for part in parts)
    observations, actions, valid, returns = map(joined, ("observations", "actions", "valid", "returns"))
    return Segments(observations, actions, valid, returns, joined("before_tanh") if known else None)


def collect_preferences(
    reference: Agent[Any], env: EnvLike, config: PreferencesConfig | None = None, *, seed: int = 0
) -> Preferences:
    """Play pairs of segments from equal starts, and prefer by return (Bradley and Terry 1952).

    Pairs from one start compare actions alone, as DPO assumes when Z(s) of the optimum cancels.

    Args:
        reference: the agent that plays.
        env: an environment, in any form that agents take; a reset with the same seed repeats a start.
        config: settings.
        seed: seed of the environments and the labels.

    Raises:
        ValueError: the environment does not repeat a start, or with "larger" all returns are equal.
    """
    config = config or PreferencesConfig()
    envs = environments(env, config.n_envs, reference)
    with closed_after(envs, env):
        a, b = play_segments(reference, envs, config.n_pairs, config.segment_length, seed, sides=2)
    if not torch.equal(a.observations[:, 0], b.observations[:, 0]):
        raise ValueError("env starts elsewhere after a reset with the same seed; allowed: starts that the seed decides")
    kept, first = _label(a.returns - b.returns, config, seed)

    def both(name: str) -> Tensor:
        return torch.stack([getattr(a, name), getattr(b, name)], 1)

    known = a.before_tanh is not None and b.before_tanh is not None
    u = both("before_tanh") if known else None
    pairs = Preferences(both("observations"), both("actions"), both("valid"), u)
    order = torch.stack([~first, first], 1).long()  # 0 is a, 1 is b
    return pairs.map(lambda x: x[torch.arange(len(x), device="cpu")[:, None], order][kept])


def _label(difference: Tensor, config: PreferencesConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Return masks of the pairs that are kept, and of those whose first segment is preferred."""
    if config.label == "larger":
        kept = difference != 0.0
        if not kept.any():
            raise ValueError(f"label = 'larger' with {len(kept)} pairs of equal returns; allowed: returns that differ")
        return kept, difference > 0.0
    chance = torch.from_numpy(np.random.default_rng(segment_seeds(seed, 0)).random(len(difference)))
    return torch.ones_like(difference, dtype=torch.bool), chance < (difference / config.temperature).sigmoid()
