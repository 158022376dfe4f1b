"""Policies that Stable-Baselines3 itself loads, which executes what is in their zip; only for files that one trusts."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from klrl.integrations.sb3_reader import Statistics
from klrl.policy.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
)
from klrl.policy.observations import Encoding


class TrustedPolicy:
    """A policy of Stable-Baselines3 or sb3-contrib as its library computes it: CNNs, gSDE, classes of one's own.

    Args:
        path: what the model's ``save`` wrote. It is executed.
        statistics: those of its VecNormalize, if observations are normalised.
        observation_space: the environment's, whose images may have their channels last where the model's come first.

    Raises:
        ValueError: Stable-Baselines3 is not installed, or cannot load it.
    """

    def __init__(
        self, path: str | Path, statistics: Statistics | None = None, observation_space: gym.Space | None = None
    ) -> None:
        try:
            self.model = _class_of(Path(path)).load(path, device="cpu")
        except ImportError as error:
            needed = "stable-baselines3 and sb3-contrib, which --trust needs"
            raise ValueError(f"path = {path}: {error}; allowed: pip install {needed}") from error
        except Exception as error:  # anything: it executes what is in the file
            raise ValueError(f"path = {path}: Stable-Baselines3: {type(error).__name__}: {error}") from error
        self.policy = self.model.policy
        self.policy.set_training_mode(False)
        self.masked = self.algorithm == "MaskablePPO"
        self.squashed = bool(self.policy.squash_output)
        space = self.model.observation_space
        if observation_space is not None and _channels_first(observation_space) == space:
            space = observation_space  # the library transposes images itself
        self.encoding = Encoding(space, self.model.action_space, "info" if self.masked else "none", "numbers")
        self.statistics = statistics
        self._raw = _Decoded(self.encoding)

    @property
    def action_space(self) -> gym.Space:
        """The environment's."""
        return self.model.action_space

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return type(self.model).__name__

    @property
    def used_vec_normalize(self) -> bool:
        """True if its training was on a ``VecNormalize``."""
        return self.model._last_original_obs is not None

    @torch.no_grad()
    def distribution(self, observations: Tensor) -> Distribution:
        """Return the policy at encoded observations ``[n, *O]``, in the environment's units or, squashed, (-1, 1)."""
        raw = self._raw(observations)
        if self.statistics is not None:
            raw = self.statistics.normalized(raw)
        x, _ = self.policy.obs_to_tensor(raw)
        masks = {"action_masks": self.encoding.allowed(observations).numpy() > 0.5} if self.masked else {}
        found = self.policy.get_distribution(x, **masks)
        return self._record(getattr(found, "distribution", None) or found.distributions)

    def _record(self, found: Any) -> Distribution:
        space = self.model.action_space
        if isinstance(space, gym.spaces.Box):
            return (SquashedGaussian if self.squashed else DiagGaussian)(found.mean, found.stddev.log())
        if isinstance(space, gym.spaces.MultiDiscrete):
            return MultiCategorical(torch.cat([head.logits for head in found], -1), tuple(space.nvec.tolist()))
        return Categorical(found.logits) if isinstance(space, gym.spaces.Discrete) else Bernoulli(found.logits)

    def to_environment(self, action: Tensor) -> np.ndarray:
        """Return the environment's actions ``[n, ...]``, stretched or clipped to a Box."""
        space = self.model.action_space
        shaped = action.numpy().reshape(len(action), *space.shape)
        if isinstance(space, gym.spaces.Box):
            shaped = self.policy.unscale_action(shaped) if self.squashed else np.clip(shaped, space.low, space.high)
        return shaped.astype(space.dtype, copy=False)


def _channels_first(space: gym.Space) -> gym.Space | None:
    """Return the space of images whose channels come first, of one whose channels come last."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3:
        return None
    low, high = (np.moveaxis(x, -1, 0) for x in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=space.dtype.type)


class _Decoded:
    """Encoded observations as the space has them: arrays, numbers, dicts of them."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def __call__(self, observations: Tensor) -> Any:
        encoding, x = self._encoding, observations.numpy()
        if x.shape[1:] == encoding.space.shape:
            return x.astype(encoding.space.dtype, copy=False)
        parts = {part.keys: self._part(part, x[:, part.columns]) for part in encoding.parts}
        return parts[()] if () in parts else {keys[0]: part for keys, part in parts.items()}

    @staticmethod
    def _part(part: Any, columns: np.ndarray) -> np.ndarray:
        space = part.space
        if isinstance(space, gym.spaces.Discrete):
            return columns.argmax(-1)
        if isinstance(space, gym.spaces.MultiDiscrete):
            heads = np.split(columns, np.cumsum(space.nvec)[:-1], axis=-1)
            return np.stack([head.argmax(-1) for head in heads], -1)
        return columns.reshape(len(columns), *space.shape).astype(space.dtype, copy=False)


def _class_of(path: Path) -> Any:
    """Return the class whose ``load`` reads the file, by the settings in it."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    if "cg_max_steps" in data:
        from sb3_contrib import TRPO

        return TRPO
    if "maskable" in str(data.get("policy_class")) or "maskable" in str(data.get("rollout_buffer_class")):
        from sb3_contrib import MaskablePPO

        return MaskablePPO
    from stable_baselines3 import A2C, PPO

    return PPO if "n_epochs" in data else A2C
