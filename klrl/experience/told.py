"""Rewards and endings as a learner is told of them, where that is not all that happened: as in papers on Atari."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from klrl.experience.infos import Infos
from klrl.experience.steps import BadStep
from klrl.experience.vector import as_numpy

_LIVES = "lives"


@dataclass(frozen=True)
class Told:
    """Ways in which batches differ from what happened; episodes, their returns and evaluations do not."""

    sign_of_rewards: bool = False
    """Rewards are their signs (Mnih et al. 2015)."""
    life_is_episode: bool = False
    """The loss of a life, ``info["lives"]``, counts as a terminal state, and the game goes on."""

    def rewards(self, rewards: np.ndarray) -> np.ndarray:
        """Return the rewards of a batch."""
        return np.sign(rewards) if self.sign_of_rewards else rewards

    def lives(self, infos: Infos, total_timesteps: int) -> np.ndarray | None:
        """Return the lives that are left in every environment, ``[N]``; ``None`` if nobody asks.

        Raises:
            BadStep: an info does not say.
        """
        if not self.life_is_episode:
            return None
        found: list[Any] = as_numpy(infos.gathered(_LIVES))
        try:
            return np.array([float(x) for x in found])
        except (TypeError, ValueError) as error:
            i = next((i for i, x in enumerate(found) if x is None), 0)
            raise BadStep(
                f"info of environment {i} has no number of {_LIVES!r} after {total_timesteps} steps; allowed: one at "
                "every reset and step, or life_is_episode = False"
            ) from error
