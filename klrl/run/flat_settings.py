"""A run's settings by name, as TensorBoard and experiment trackers take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def settings_of(described: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return the settings in an agent's description as numbers, truth values and text.

    >>> settings_of(
    ...     {"agent": "ppo", "env": {"id": "CartPole-v1"}, "seed": 0, "config": {"sizes": [64, 64], "coef": None}}
    ... )
    {'agent': 'ppo', 'env': 'CartPole-v1', 'seed': 0, 'sizes': '[64, 64]'}
    """
    env = described.get("env")
    flat = {"agent": described.get("agent"), "env": env.get("id") if isinstance(env, Mapping) else env}
    flat |= {"seed": described.get("seed"), **described.get("config", {})}
    return {
        name: x if isinstance(x, (bool, int, float, str)) else json.dumps(x)
        for name, x in flat.items()
        if x is not None
    }
