"""Spaces of all kinds, and environments that break one of Gymnasium's promises each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Space, Text, Tuple
from gymnasium.wrappers import TimeLimit

Make = Callable[[], gym.Env]


def _common() -> dict[str, Space]:
    undefined = Box(-1.0, 1.0, (2,))
    undefined.low[0] = np.nan
    return {
        "Box": Box(-1.0, 1.0, (2,)),
        "empty Box": Box(-1.0, 1.0, (0,)),
        "equal-bounds Box": Box(0.5, 0.5, (2,)),
        "unbounded Box": Box(-np.inf, np.inf, (2, 2)),
        "infinite Box": Box(np.inf, np.inf, (2,)),
        "NaN Box": undefined,
        "int Box": Box(-3, 3, (2,), np.int64),
        "image": Box(0, 255, (6, 6, 3), np.uint8),
        "Discrete": Discrete(3),
        "Discrete from -5": Discrete(3, start=-5),
        "huge Discrete": Discrete(2**40),
        "2-D MultiDiscrete": MultiDiscrete(np.array([[2, 3], [4, 2]])),
        "MultiBinary": MultiBinary((2, 2)),
        "Text": Text(5),
        "Graph": Graph(Box(-1.0, 1.0, (2,)), Discrete(2)),
        "Sequence": Sequence(Discrete(2)),
        "OneOf": OneOf([Discrete(2), Box(-1.0, 1.0, (1,))]),
        "nested": Dict(a=Tuple([Discrete(2), Dict(b=Box(-1.0, 1.0, (2,)))]), c=MultiBinary(2)),
        "Tuple with Text": Tuple([Discrete(2), Text(3)]),
    }


def observation_spaces() -> dict[str, Space]:
    """By name."""
    return _common() | {"float64 number": Box(-1.0, 1.0, (), np.float64), "empty Dict": Dict()}


def action_spaces() -> dict[str, Space]:
    """By name."""
    return _common() | {"half-bounded Box": Box(0.0, np.inf, (2,)), "one choice": Discrete(1)}


class Sampled(gym.Env):
    """Observations are samples of the space; episodes are truncated after 5 steps."""

    def __init__(self, observation_space: Space, action_space: Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, bool, Any]:
        """One step, with an action that the space holds."""
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), float(self.np_random.normal()), False, self.steps == 5, {}


class Faulty(gym.Env):
    """Nothing is wrong yet; what it sees are the steps since the reset."""

    observation_space: Space = Box(-10.0, 10.0, (3,))
    action_space: Space = Discrete(2)
    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begin an episode."""
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        """One step."""
        self.steps += 1
        return self.observe(), self.steps * float(action), self.steps == 7, self.steps == 5, {}

    def observe(self) -> Any:
        """The observation."""
        return np.array([self.steps, self.steps**2 / 7.0, self.np_random.normal()], np.float32)

    def answer(self, i: int, value: Any) -> Any:
        """A step's result with one element replaced."""
        result = list(Faulty.step(self, 0))
        result[i] = value
        return tuple(result)


class _Buffered(Faulty):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = np.zeros(3, np.float32)

    def observe(self) -> Any:
        self.buffer[:] = super().observe()
        return self.buffer


class _SharedBuffer(Faulty):
    buffer = np.zeros(3, np.float32)

    def observe(self) -> Any:
        self.buffer[:] = super().observe()
        return self.buffer[:]


class _Unseeded(Faulty):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class _OtherSpace(Faulty):
    def reset(self, **options: Any) -> Any:
        if hasattr(self, "steps"):
            self.observation_space = Box(-20.0, 20.0, (3,))
        return super().reset(**options)


class _OtherActions(Faulty):
    def reset(self, **options: Any) -> Any:
        self.action_space = Discrete(3)
        return super().reset(**options)


class _Different(Faulty):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(-10.0, 10.0, (3,)) if self.made < 2 else Box(-9.0, 10.0, (3,))


def _seeing(space: Space, see: Callable[[Faulty], Any]) -> type[Faulty]:
    """Another space, or another observation than the space holds."""
    return type("Seeing", (Faulty,), {"observation_space": space, "observe": see})


def _stepping(step: Callable[[Faulty], Any]) -> type[Faulty]:
    """Another result of a step."""
    return type("Stepping", (Faulty,), {"step": lambda self, action: step(self)})


def _resetting(reset: Callable[[Faulty], Any]) -> type[Faulty]:
    """Another result of a reset."""

    def resetting(self: Faulty, **options: Any) -> Any:
        Faulty.reset(self, **options)
        return reset(self)

    return type("Resetting", (Faulty,), {"reset": resetting})


class Fault(NamedTuple):
    """An environment, what the line about it must name (nothing: it trains), and one that must be learned on alike."""

    make: Make
    mentions: tuple[str, ...] | None
    twin: Make | None = None


_BOX = Faulty.observation_space
_KEYS = Dict(a=Box(-1.0, 1.0, (1,)), b=Discrete(2))
FAULTS: dict[str, Fault] = {
    "nothing": Fault(Faulty, None),
    "the same buffer each step": Fault(_Buffered, None, Faulty),
    "one buffer for all environments": Fault(_SharedBuffer, None, Faulty),
    "out of bounds": Fault(_seeing(_BOX, lambda e: np.full(3, 1e4, np.float32)), None),
    "float64": Fault(_seeing(_BOX, lambda e: np.full(3, float(e.steps))), None),
    "a list": Fault(_seeing(_BOX, lambda e: [float(e.steps)] * 3), None),
    "done as 0 and 1": Fault(_stepping(lambda e: e.answer(2, e.steps // 4)), None),
    "wrong shape": Fault(_seeing(_BOX, lambda e: np.zeros(4)), ("environment 0, reset", "shape (4,)", "(3,)")),
    "wrong shape later": Fault(
        _seeing(_BOX, lambda e: np.zeros(3 + e.steps // 3)), ("environment 0, step 3", "shape (4,)", "(3,)")
    ),
    "more dimensions": Fault(_seeing(_BOX, lambda e: np.zeros((1, 3))), ("shape (1, 3)", "(3,)")),
    "wrong dtype": Fault(
        _seeing(Box(0, 255, (3,), np.uint8), lambda e: np.ones(3)), ("environment 0", "dtype float64", "uint8")
    ),
    "objects": Fault(_seeing(_BOX, lambda e: np.array([1, "a", None], object)), ("environment 0", "dtype object")),
    "text": Fault(_seeing(_BOX, lambda e: "up"), ("environment 0", "'up'", "Box")),
    "nothing seen": Fault(_seeing(_BOX, lambda e: None), ("environment 0", "NoneType", "Box")),
    "ragged": Fault(_seeing(_BOX, lambda e: [[1.0], [1.0, 2.0]]), ("environment 0", "list of 2", "Box")),
    "out of a Discrete": Fault(
        _seeing(Discrete(3), lambda e: e.steps), ("environment 0, step 3", "observation is 3", "Discrete(3)")
    ),
    "out of a MultiDiscrete": Fault(
        _seeing(MultiDiscrete([2, 3]), lambda e: np.array([e.steps, 0])), ("environment 0, step 2", "MultiDiscrete")
    ),
    "float in a Discrete": Fault(_seeing(Discrete(3), lambda e: 1.0), ("environment 0", "1.0", "Discrete(3)")),
    "a key missing": Fault(_seeing(_KEYS, lambda e: {"a": np.zeros(1)}), ("environment 0", "['a']", "['a', 'b']")),
    "wrong shape in a Dict": Fault(
        _seeing(_KEYS, lambda e: {"a": np.zeros(2), "b": 1}), ("environment 0", "['a'] has shape (2,)", "(1,)")
    ),
    "NaN": Fault(_seeing(_BOX, lambda e: np.full(3, np.nan)), ("observation of environment 0", "nan")),
    "old step": Fault(_stepping(lambda e: (e.observe(), 0.0, False, {})), ("environment 0, step 1", "tuple of 4")),
    "old step in a wrapper": Fault(
        lambda: TimeLimit(_stepping(lambda e: (e.observe(), 0.0, False, {}))(), 10),
        ("environment 0, step 1", "returns (observation, reward, terminated, truncated, info)"),
    ),
    "no result": Fault(_stepping(lambda e: None), ("environment 0, step 1", "NoneType", "terminated")),
    "reward array": Fault(_stepping(lambda e: e.answer(1, np.ones(1))), ("environment 0, step 1", "reward", "(1,)")),
    "no reward": Fault(_stepping(lambda e: e.answer(1, None)), ("environment 0, step 1", "reward", "None")),
    "reward of text": Fault(_stepping(lambda e: e.answer(1, "1.0")), ("environment 0, step 1", "reward", "'1.0'")),
    "terminated of text": Fault(
        _stepping(lambda e: e.answer(2, "no")), ("environment 0, step 1", "terminated", "'no'")
    ),
    "no truncated": Fault(_stepping(lambda e: e.answer(3, None)), ("environment 0, step 1", "truncated", "None")),
    "terminated 0.5": Fault(_stepping(lambda e: e.answer(2, 0.5)), ("environment 0, step 1", "terminated", "0.5")),
    "info of a step": Fault(_stepping(lambda e: e.answer(4, ["a"])), ("environment 0, step 1", "info", "a dict")),
    "info of a reset": Fault(_resetting(lambda e: (e.observe(), None)), ("environment 0, reset", "info", "a dict")),
    "old reset": Fault(_resetting(lambda e: e.observe()), ("environment 0, reset", "(observation, info)")),
    "reset of three": Fault(_resetting(lambda e: (e.observe(), {}, 1)), ("environment 0, reset", "a tuple of 3")),
    "no seed": Fault(_Unseeded, ("environment 0, reset", "unexpected keyword argument 'seed'", "seed=None")),
    "no seed in a wrapper": Fault(lambda: TimeLimit(_Unseeded(), 10), ("environment 0, reset", "'seed'", "seed=None")),
    "observation space changes": Fault(_OtherSpace, ("observation space of environment 0", "at a reset", "Box(-10.0")),
    "action space changes": Fault(_OtherActions, ("action space of environment 0", "Discrete(3)", "Discrete(2)")),
    "another space in one": Fault(_Different, ("observation space of environment 1", "Box(-9.0", "Box(-10.0")),
}
"""By what is wrong."""
