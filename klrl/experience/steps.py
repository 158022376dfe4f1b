"""Checks of an environment's answers where they enter: one line names the environment, the value, what is allowed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.text import one_line

_RESET = "(observation, info)"
_STEP = "(observation, reward, terminated, truncated, info)"
_NUMBERS = (float, int, np.float32, np.float64)
_TRUTHS = (bool, np.bool_)


class BadStep(ValueError):
    """A value returned by an environment cannot be used; the message says which, where and what is allowed."""


class Transparent(gym.Wrapper):
    """A wrapper without attributes of its own: every look-up and assignment goes to the environment."""

    def has_wrapper_attr(self, name: str) -> bool:
        """Return True if the environment has the attribute."""
        return self.env.has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return the environment's attribute."""
        return self.env.get_wrapper_attr(name)

    def set_wrapper_attr(self, name: str, value: Any, **how: Any) -> bool:
        """Set an attribute where the environment has it, else on its outermost wrapper."""
        return self.env.set_wrapper_attr(name, value, **how)


class CheckedSteps(Transparent):
    """An environment that keeps Gymnasium's promises, or an error that names the one it breaks.

    Observations have the space's structure, shape and type, and memory of their own: an environment may overwrite its
    last observation with the next one, and a vector environment would then return the first observation of the next
    episode as the last of this one. Rewards are numbers and ends are true or false. Values that are not finite, or
    outside of their space, are not looked for here.

    Args:
        make: makes the environment.
        index: number of the environment, for messages.
        spaces: the observation space and the action space that it must have.

    Raises:
        BadStep: it has other spaces.
    """

    def __init__(self, make: Callable[[], gym.Env], index: int, spaces: tuple[gym.Space, gym.Space]) -> None:
        super().__init__(make())
        self._index, self._spaces = index, spaces
        self._steps = 0
        self._check_spaces("when it was made")
        self._spaces = self.observation_space, self.action_space  # the same objects, which compare at once
        is_box = isinstance(self._spaces[0], gym.spaces.Box)
        self._shape, self._dtype = (self._spaces[0].shape, self._spaces[0].dtype) if is_box else (None, None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            BadStep: the answer breaks one of Gymnasium's promises; the message names it.
        """
        self._steps = 0
        try:
            answer = self.env.reset(seed=seed, options=options)
        except (TypeError, ValueError) as error:
            self._look_at(error, f"reset(*, seed=None, options=None) that returns {_RESET}")
            raise
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise self._bad(f"the result is {_kind(answer)}", _RESET)
        observation, info = answer
        self._check_spaces("at a reset")
        if not isinstance(info, dict):
            raise self._bad(f"info is {_kind(info)}", "a dict")
        return self._own(observation, self._spaces[0]), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step.

        Raises:
            BadStep: the answer breaks one of Gymnasium's promises; the message names it.
        """
        self._steps += 1
        try:
            answer: Any = self.env.step(own(action))
        except (TypeError, ValueError) as error:
            self._look_at(error, f"step(action) that returns {_STEP}")
            raise
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise self._bad(f"the result is {_kind(answer)}", _STEP)
        observation, reward, terminated, truncated, info = answer
        if type(reward) not in _NUMBERS:
            reward = self._number(reward)
        if type(terminated) not in _TRUTHS:
            terminated = self._truth("terminated", terminated)
        if type(truncated) not in _TRUTHS:
            truncated = self._truth("truncated", truncated)
        if not isinstance(info, dict):
            raise self._bad(f"info is {_kind(info)}", "a dict")
        if type(observation) is np.ndarray and observation.shape == self._shape and observation.dtype is self._dtype:
            observation = observation.copy()
        else:
            observation = self._own(observation, self._spaces[0])
        return observation, reward, terminated, truncated, info

    def _own(self, observation: Any, space: gym.Space, where: str = "") -> Any:
        """Return a copy of an observation that fits the space as a vector environment stores it."""
        if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
            return self._choice(observation, space, where)
        if isinstance(observation, np.ndarray) and observation.shape == space.shape:
            if observation.dtype == space.dtype or np.can_cast(observation.dtype, space.dtype or object, "same_kind"):
                return observation.copy()
            raise self._bad(f"observation{where} has dtype {observation.dtype}", f"{space.dtype}")
        if isinstance(space, gym.spaces.Dict):
            if not isinstance(observation, dict) or not space.spaces.keys() <= observation.keys():
                what = f"has keys {list(observation)}" if isinstance(observation, dict) else f"is {_kind(observation)}"
                raise self._bad(f"observation{where} {what}", f"a dict with keys {list(space.spaces)}")
            return {k: self._own(observation[k], inner, f"{where}[{k!r}]") for k, inner in space.spaces.items()}
        if isinstance(space, gym.spaces.Tuple):
            if not isinstance(observation, (tuple, list)) or len(observation) != len(space.spaces):
                raise self._bad(f"observation{where} is {_kind(observation)}", f"a tuple of {len(space.spaces)}")
            pairs = zip(observation, space.spaces, strict=True)
            return tuple(self._own(x, inner, f"{where}[{i}]") for i, (x, inner) in enumerate(pairs))
        return self._own(self._array(observation, space, where), space, where)

    def _choice(
        self, observation: Any, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete, where: str
    ) -> np.ndarray | int:
        """Return a checked element of a Discrete or MultiDiscrete space."""
        if isinstance(space, gym.spaces.Discrete) and isinstance(observation, (int, np.integer)):
            if 0 <= observation - space.start < space.n:
                return observation  # type: ignore[return-value]
        elif (x := self._array(observation, space, where)).dtype.kind != "f":
            shifted = x - space.start
            sizes = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
            if ((shifted >= 0) & (shifted < sizes)).all():
                return x.copy()
        raise self._bad(f"observation{where} is {observation!s}", f"an element of {one_line(space)}")

    def _array(self, observation: Any, space: gym.Space, where: str) -> np.ndarray:
        """Return numbers of the space's shape as an array; lists are allowed."""
        try:
            x = np.asarray(observation)
        except ValueError:  # rows of different lengths
            x = np.empty(0, object)
        if x.dtype.kind not in "fiub":
            raise self._bad(f"observation{where} is {_kind(observation)}", f"an element of {one_line(space)}")
        if x.shape != space.shape:
            raise self._bad(f"observation{where} has shape {x.shape}", f"{space.shape}, as in {one_line(space)}")
        return x

    def _number(self, reward: Any) -> float:
        x = np.asarray(reward)
        if x.ndim or x.dtype.kind not in "fiub":
            raise self._bad(f"reward is {_kind(reward)}", "one number")
        return float(x)

    def _truth(self, name: str, value: Any) -> bool:
        """Return a truth value; 0 and 1 are allowed."""
        x = np.asarray(value)
        if x.ndim or x.dtype.kind not in "fiub" or x not in (0, 1):
            raise self._bad(f"{name} is {_kind(value)}", "True or False")
        return bool(x)

    def _check_spaces(self, when: str) -> None:
        pairs = zip(("observation", "action"), (self.observation_space, self.action_space), self._spaces, strict=True)
        for name, now, first in pairs:
            if now is not first and now != first:
                raise BadStep(
                    f"{name} space of environment {self._index} is {one_line(now)} {when}; "
                    f"allowed: {one_line(first)}, the same for all environments and episodes"
                )

    def _look_at(self, error: Exception, allowed: str) -> None:
        """Raise in clearer words if Gymnasium's wrappers, not the environment, failed on a call or its result."""
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].startswith(("gymnasium.wrappers", "gymnasium.core", __name__)):
            raise self._bad(str(error), allowed) from error

    def _bad(self, what: str, allowed: str) -> BadStep:
        where = f"step {self._steps}" if self._steps else "reset"
        return BadStep(f"environment {self._index}, {where}: {one_line(what)}; allowed: {allowed}")


def own(action: Any) -> Any:
    """Return the action to hand out: a copy, because an environment may change an array that was recorded."""
    return action.copy() if isinstance(action, np.ndarray) else action


def _kind(x: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape} and dtype {x.dtype}"
    if isinstance(x, (tuple, list)):
        return f"a {type(x).__name__} of {len(x)}"
    return f"{str(x)[:50]!r} ({type(x).__name__})"
