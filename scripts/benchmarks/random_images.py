"""Environments and networks that learning from images is measured with, and an environment of random images."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

RANDOM, PONG = "klrl/RandomImages-v0", "ALE/Pong-v5"
SEPARATE, SHARED, HALF = "separate", "shared", "bfloat16"
"""Variants: two networks, one that policy and values share, and klrl's minibatch steps on it in bfloat16."""


class RandomImages(gym.Env):
    """Random images of the size of Atari's stacks, drawn before; episodes of 100 steps."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)

    def __init__(self) -> None:
        self._images = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._t = 0
        return self._images[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the next image; the reward depends on the action alone."""
        self._t += 1
        return self._images[self._t % 64], float(action == 0), self._t == 100, False, {}


gym.register(RANDOM, "klrl.scripts.benchmarks.random_images:RandomImages")
