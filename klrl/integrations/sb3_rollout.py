"""Rollout buffers of Stable-Baselines3 and sb3-contrib: states at which policies acted, and the policies there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import (
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    TanhBijector,
)
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from klrl.monitor.states import Rows, States

_PROBES = 256


@dataclass(frozen=True, eq=False)
class Sequences(States):
    """Sequences of a recurrent policy, from the state of its LSTM at their start on.

    The states that a buffer stores for later steps come from the old network: with them, a new network's drift along
    the sequence would not show.
    """

    observations: Any
    """Observations of N environments and T steps: an array ``[N, T, ...]``, or a dict of such."""
    starts: np.ndarray
    """Ones where an episode starts, ``[N, T]``."""
    lstm: tuple[np.ndarray, np.ndarray]
    """Hidden and cell states before the first step, ``[layers, N, H]``."""

    def __len__(self) -> int:
        return self.starts.size

    def pieces(self, most: int) -> Iterator[tuple[int, Sequences]]:
        """Yield whole sequences of some environments."""
        n, steps = self.starts.shape
        at_once = max(1, most // steps)
        for begin in range(0, n, at_once):
            piece = self._part(slice(begin, begin + at_once), slice(None))
            yield len(piece), piece

    def probe(self) -> tuple[States, Tensor]:
        """Return the first steps of the first environments."""
        n, steps = self.starts.shape
        few, short = min(n, -(-_PROBES // steps)), min(steps, _PROBES)
        rows = torch.arange(self.starts.size, device="cpu").reshape(n, steps)[:few, :short]
        return self._part(slice(few), slice(short)), rows.reshape(-1)

    def _part(self, envs: slice, steps: slice) -> Sequences:
        hidden, cell = (np.ascontiguousarray(x[:, envs]) for x in self.lstm)
        cut = each(lambda x: x[envs, steps], self.observations)
        return Sequences(cut, self.starts[envs, steps], (hidden, cell))


@dataclass(frozen=True, eq=False)
class Rollout:
    """Copies of what a rollout buffer holds of the acting policy: the update and the next rollout overwrite it."""

    observations: Any
    """Array ``[T, N, ...]``, or a dict of such, as the policy was given them."""
    actions: np.ndarray
    log_prob: np.ndarray
    masks: np.ndarray | None
    """Allowed actions, of MaskablePPO."""
    starts: np.ndarray
    lstm: tuple[np.ndarray, np.ndarray] | None
    """Hidden and cell states before the first step, of RecurrentPPO."""

    @classmethod
    def of(cls, buffer: Any) -> Rollout:
        """Copy what is needed of a full buffer, before the update."""
        parts = vars(buffer)
        masks = parts.get("action_masks")
        lstm = None
        if "hidden_states_pi" in parts:
            lstm = buffer.hidden_states_pi[0].copy(), buffer.cell_states_pi[0].copy()
        return cls(
            each(np.array, buffer.observations),
            buffer.actions.copy(),
            buffer.log_probs.copy(),
            None if masks is None else masks.reshape(*buffer.log_probs.shape, -1).copy(),
            buffer.episode_starts.copy(),
            lstm,
        )

    def states(self, observations: Any) -> States:
        """Return the states with these observations ``[T, N, ...]``, in the order of :meth:`rows`."""
        if self.lstm is not None:
            return Sequences(each(lambda x: x.swapaxes(0, 1), observations), self.starts.swapaxes(0, 1), self.lstm)
        rows = each(self.rows, observations)
        return Rows(rows if self.masks is None else (rows, self.rows(self.masks)))

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Return one row per state of ``[T, N, ...]``: time by time, of sequences environment by environment."""
        x = x if self.lstm is None else x.swapaxes(0, 1)
        return np.ascontiguousarray(x).reshape(-1, *x.shape[2:])


def each(function: Any, observations: Any) -> Any:
    """Apply a function to an array of observations, or to every one in a dict."""
    if isinstance(observations, dict):
        return {key: function(x) for key, x in observations.items()}
    return function(observations)


def distribution(policy: Any, given: Any) -> Distribution:
    """Return the distribution of a policy at states of a :class:`Rollout`, outside of training mode.

    After an update the policy is in training mode still, and would drop units out.
    """
    training = policy.training
    policy.set_training_mode(False)
    try:
        if isinstance(given, Sequences):
            flat = each(lambda x: np.ascontiguousarray(x).reshape(-1, *x.shape[2:]), given.observations)
            starts = torch.as_tensor(given.starts.reshape(-1), dtype=torch.float32, device=policy.device)
            lstm = tuple(torch.as_tensor(x, device=policy.device) for x in given.lstm)
            return policy.get_distribution(obs_as_tensor(flat, policy.device), lstm, starts)[0]
        if isinstance(given, tuple):
            observations, masks = given
            return policy.get_distribution(obs_as_tensor(observations, policy.device), masks)
        return policy.get_distribution(obs_as_tensor(given, policy.device))
    finally:
        policy.set_training_mode(training)


def of_torch(x: Distribution) -> Any:
    """Return the torch distribution, or the list of Categoricals, of a library's distribution.

    The library's object is one and the same in every call, so it cannot be held; that of a squashed policy is the
    normal before the tanh.
    """
    return vars(x).get("distributions") or x.distribution


def before_tanh(x: Distribution, actions: np.ndarray, log_prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return actions ``[n, d]`` and their log-probabilities as they were before the tanh of a squashed policy."""
    bijector = None
    if isinstance(x, StateDependentNoiseDistribution):
        bijector = x.bijector
    elif isinstance(x, SquashedDiagGaussianDistribution):
        bijector = TanhBijector(x.epsilon)
    if bijector is None:
        return actions, log_prob
    normal = bijector.inverse(torch.as_tensor(actions))
    return normal.numpy(), log_prob + bijector.log_prob_correction(normal).sum(1).numpy()
