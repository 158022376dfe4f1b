"""Where an agent's experience comes from: its environments, and where they are."""

from __future__ import annotations

import warnings

import numpy as np
from gymnasium.vector import VectorEnv

from klrl.experience.collector import Collector, Elsewhere
from klrl.experience.environments import EnvLike, is_seeded, prepare
from klrl.experience.replay import Replay
from klrl.experience.whereabouts import Whereabouts
from klrl.policy.observations import Encoding


class Source:
    """Environments to learn from, as the user gave them, and many at once when they have been made.

    Args:
        env: what they are made of; ``None`` where nobody knows.
        envs: those that have been made.
        at: where others of their kind were, and these are to go on.
    """

    def __init__(self, env: EnvLike | None, envs: VectorEnv | None = None, at: Whereabouts | None = None) -> None:
        self.env, self.envs = env, envs
        self.collector: Collector | None = None
        self.replay: Replay | None = None
        """Where their episodes can be played again; ``None``: nobody has looked yet."""
        self._at = at

    @property
    def whereabouts(self) -> Whereabouts | None:
        """Where the environments are, or are to go on."""
        return self._at if self.collector is None else self.collector.whereabouts

    def begin(self, encoding: Encoding, seeds: np.random.SeedSequence, total_timesteps: int) -> bool:
        """Make the collector, at new episodes from these seeds (False) or where the environments were (True)."""
        assert self.envs is not None
        if self.replay is None:
            self.replay = prepare(self.env, self.envs)
        self.collector = self._where_they_were(self.envs, encoding, total_timesteps)
        if self.collector is not None:
            return True
        self.collector = Collector(self.envs, seeds, encoding, total_timesteps)
        return False

    def _where_they_were(self, envs: VectorEnv, encoding: Encoding, total_timesteps: int) -> Collector | None:
        if self._at is None or not is_seeded(envs) or len(self._at.lengths) != envs.num_envs:
            return None
        problem: object = "episodes of these environments cannot be played again"
        if self.replay != "never":
            try:
                return Collector(envs, self._at, encoding, total_timesteps)
            except Elsewhere as error:
                problem = error
        text = f"{problem}: new episodes begin, and training goes on differently than without the interruption"
        warnings.warn(text, RuntimeWarning, stacklevel=7)
        return None

    def go_back(self, at: Whereabouts | None) -> None:
        """Forget what was begun since the environments were there; they go on from there, or begin new episodes."""
        self.collector, self._at = None, at

    def close(self) -> None:
        """Close the environments; worker processes end."""
        if self.envs is not None:
            self.envs.close()
