"""Whether somebody else has reset or stepped an environment, by what its attributes show; nothing is put into it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

_BYTES, _ELEMENTS, _DEPTH = 2**16, 100, 3
"""The largest array, the longest collection and the deepest nesting that is looked at, at every rollout."""


class Footprints:
    """What training writes to an environment's attributes while it steps there, and whether others write that, too.

    What training does not write (a level) is everybody's, and a single attribute without an underscore (the next task,
    which a reset uses up) may have been set; everything else shows a reset or a step. Looked at are numbers, text,
    arrays, random generators and collections of them, of the environment and its wrappers.

    Args:
        env: where training is about to reset and step.
    """

    def __init__(self, env: gym.Env) -> None:
        self._env = env
        self._seen = dict(_attributes(env))
        self._written: set[tuple[int, str]] = set()

    def leave(self) -> None:
        """Training has stepped there."""
        before, self._seen = self._seen, dict(_attributes(self._env))
        self._written |= {key for key, x in self._seen.items() if x != before.get(key)}

    def come_back(self) -> list[str]:
        """Training is about to step there again; what others changed if they have stepped or reset it meanwhile."""
        before, self._seen = self._seen, dict(_attributes(self._env))
        changed = [key[1] for key in sorted(self._written) if self._seen.get(key) != before.get(key)]
        return changed if len(changed) > 1 or any(name.startswith("_") for name in changed) else []


def _attributes(env: gym.Env) -> Iterator[tuple[tuple[int, str], object]]:
    """What can be compared, by layer (0 is the outermost wrapper) and name."""
    layer, depth = env, 0
    while True:
        for name, value in getattr(layer, "__dict__", {}).items():
            if (x := _comparable(value)) is not None:
                yield (depth, name), x
        if not isinstance(layer, gym.Wrapper):
            return
        layer, depth = layer.env, depth + 1


def _comparable(x: Any, depth: int = _DEPTH) -> object | None:
    """Something that stays and can be compared; ``None`` for what is not looked at."""
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
