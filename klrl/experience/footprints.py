"""Detection of resets and steps by others, from an environment's attributes alone; nothing is added to it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

_BYTES, _ELEMENTS, _DEPTH = 2**16, 100, 3
"""Largest array, longest collection and deepest nesting compared at every rollout."""


class Footprints:
    """Attributes of an environment that training writes when it steps, and a check whether others write them, too.

    Attributes that training does not write (a level) may be changed by anyone, and so may a single attribute without
    an underscore (the next task, which a reset uses up); any other change reveals a reset or a step. Compared are
    numbers, text, arrays, random generators and collections of them, of the environment and its wrappers.

    Args:
        env: the environment, before training resets and steps it.
    """

    def __init__(self, env: gym.Env) -> None:
        self._env = env
        self._seen = dict(_attributes(env))
        self._written: set[tuple[int, str]] = set()

    def leave(self) -> None:
        """Record the attributes after training has stepped."""
        before, self._seen = self._seen, dict(_attributes(self._env))
        self._written |= {key for key, x in self._seen.items() if x != before.get(key)}

    def come_back(self) -> list[str]:
        """Return the attributes that others changed since, if they stepped or reset the environment."""
        before, self._seen = self._seen, dict(_attributes(self._env))
        changed = [key[1] for key in sorted(self._written) if self._seen.get(key) != before.get(key)]
        return changed if len(changed) > 1 or any(name.startswith("_") for name in changed) else []


def _attributes(env: gym.Env) -> Iterator[tuple[tuple[int, str], object]]:
    """Yield what can be compared, by layer (0 is the outermost wrapper) and name."""
    layer, depth = env, 0
    while True:
        for name, value in getattr(layer, "__dict__", {}).items():
            if (x := _comparable(value)) is not None:
                yield (depth, name), x
        if not isinstance(layer, gym.Wrapper):
            return
        layer, depth = layer.env, depth + 1


def _comparable(x: Any, depth: int = _DEPTH) -> object | None:
    """Return a value that can be kept and compared; ``None`` for other kinds."""
    if isinstance(x, np.ndarray):
        return (x.dtype.str, x.shape, x.tobytes()) if x.dtype != object and x.nbytes <= _BYTES else None
    if x is None or isinstance(x, (bool, int, float, str, np.generic)):
        return repr(x)
    if isinstance(x, random.Random):
        return x.getstate()
    if isinstance(x, np.random.RandomState):
        return _comparable(x.get_state())
    if isinstance(x, np.random.Generator):
        return _comparable(x.bit_generator.state)
    if isinstance(x, dict):
        x = [part for item in x.items() for part in item]
    if not isinstance(x, (tuple, list, deque)) or len(x) > _ELEMENTS or depth == 0:
        return None
    parts = [_comparable(part, depth - 1) for part in x]
    return None if None in parts else parts
