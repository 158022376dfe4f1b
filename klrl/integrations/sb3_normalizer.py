"""Statistics of VecNormalize: they move during a rollout, and with them the policy on raw observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    unwrap_vec_normalize,
)

from klrl.text import warn_user

Statistics = dict[str | None, tuple[np.ndarray, np.ndarray]]
"""Mean and variance by key of a Dict observation; ``None`` is the key of one array."""
_CHANGE_NOTHING = (VecMonitor, VecCheckNan, VecVideoRecorder)


class RawObservations:
    """Raw observations of a rollout, and what VecNormalize makes of them with given statistics.

    Args:
        env: the VecNormalize.
    """

    def __init__(self, env: VecNormalize) -> None:
        self._env = env
        self._raw: list[Any] = []

    @classmethod
    def of(cls, env: VecEnv) -> RawObservations | None:
        """Find the statistics in an environment's wrappers; ``None`` where nothing normalises observations.

        Observations that a wrapper changes after VecNormalize are not followed; a warning says so.
        """
        normalizer = unwrap_vec_normalize(env)
        if normalizer is None or not normalizer.norm_obs:
            return None
        outer: Any = env
        while outer is not normalizer and (isinstance(outer, _CHANGE_NOTHING) or _only_images(outer, normalizer)):
            outer = outer.venv
        if outer is not normalizer:
            name = type(outer).__name__
            warn_user(f"{name} stands between VecNormalize and the policy: no drift/kl_normalizer and drift/kl_total")
            return None
        return cls(normalizer)

    def begin(self) -> None:
        """Take the rollout's first observations."""
        self.before = self.statistics()
        self._raw = [self._keys(self._env.get_original_obs())]

    def step(self) -> None:
        """Take the observations of the next step."""
        self._raw.append(self._keys(self._env.get_original_obs()))

    def statistics(self) -> Statistics:
        """Copy the statistics as they are."""
        of = self._env.obs_rms
        return {k: (x.mean.copy(), x.var.copy()) for k, x in (of if isinstance(of, dict) else {None: of}).items()}

    def normalized(self, observations: Any, statistics: Statistics) -> Any:
        """Return the rollout's observations ``[T, N, ...]`` with these statistics.

        Args:
            observations: those of the buffer; of a dict, keys that are not normalised are taken from there.
            statistics: mean and variance.
        """
        raw = {key: np.stack([x[key] for x in self._raw[:-1]]) for key in statistics}
        done = {key: self._normalize(raw[key], *moments) for key, moments in statistics.items()}
        return {**observations, **done} if isinstance(observations, dict) else done[None]

    def _normalize(self, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        env = self._env
        return np.clip((x - mean) / np.sqrt(var + env.epsilon), -env.clip_obs, env.clip_obs).astype(np.float32)

    def _keys(self, observations: Any) -> dict[str | None, np.ndarray]:
        if not isinstance(observations, dict):
            return {None: observations}
        return {key: observations[key] for key in self._env.norm_obs_keys or ()}


def _only_images(outer: VecEnv, normalizer: VecNormalize) -> bool:
    """Tell whether a wrapper transposes images of a Dict observation that are not normalised, and nothing else."""
    keys = normalizer.norm_obs_keys
    if not isinstance(outer, VecTransposeImage) or keys is None:
        return False
    after, before = outer.observation_space, normalizer.observation_space
    return all(after[key].shape == before[key].shape for key in keys)
