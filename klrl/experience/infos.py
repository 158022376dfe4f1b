"""Infos of environments: a dict for each, never stacked, because Gymnasium does not say which types they hold."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, iterate
from torch import Tensor

from klrl.experience.steps import BadStep
from klrl.experience.worker import unpickled
from klrl.experience.workers import WorkerVectorEnv
from klrl.text import one_line

FINAL_OBSERVATION = ("final_obs", "final_observation")
"""Keys of the last observations of episodes; the second one is Gymnasium's before 1.0."""
FINAL_INFO = "final_info"


class Infos(abc.ABC):
    """Infos of N environments after one step: a dict each, of the episode that ended if one did."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._said(range(self._n)[i])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._said, range(self._n))

    @abc.abstractmethod
    def _said(self, i: int) -> dict[str, Any]: ...

    @abc.abstractmethod
    def gathered(self, key: str) -> list[Any]:
        """Return every environment's value for the state it is in now; ``None`` if it has no such key."""

    @abc.abstractmethod
    def final_observation(self, i: int) -> Any:
        """Return the last observation of the episode that ended in environment ``i``; ``None`` if it was not given."""

    @abc.abstractmethod
    def restarted(self) -> dict[int, int]:
        """Return the environments whose workers were restarted, with the number of episodes before the new one."""


class Separate(Infos):
    """Infos of klrl's own vectors; pickled ones are opened when read."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._infos: dict[int, Any] = {}
        self._more: dict[int, dict[str, Any]] = {}

    def add(self, i: int, info: Any) -> None:
        """Add an info: the last one added is the environment's own, an earlier one the vector's."""
        if i in self._infos:
            self._more[i] = self._infos[i]
        if isinstance(info, dict):  # an environment may reuse and overwrite it
            info = dict(info)
            if isinstance(final := info.get(FINAL_INFO), dict):
                info[FINAL_INFO] = dict(final)
        self._infos[i] = info

    def gathered(self, key: str) -> list[Any]:
        """Return every environment's value."""
        return [self._opened(self._infos[i], i).get(key) for i in range(self._n)]

    def final_observation(self, i: int) -> Any:
        """Return the last observation of an episode."""
        return self._more[i][FINAL_OBSERVATION[0]]

    def restarted(self) -> dict[int, int]:
        """Return the environments whose workers were restarted."""
        return {i: more["worker_episode"] for i, more in self._more.items() if "worker_episode" in more}

    def _said(self, i: int) -> dict[str, Any]:
        return self._opened(self._more.get(i, {}).get(FINAL_INFO, self._infos[i]), i)

    def _opened(self, info: Any, i: int) -> dict[str, Any]:
        return unpickled(info, i) if isinstance(info, bytes) else info


class Elsewhere(Infos):
    """Infos of some of N environments; those of the others are in other processes, and empty here.

    Args:
        own: infos of this process's environments.
        at: number of the first of them.
        n: N.
    """

    def __init__(self, own: Infos, at: int, n: int) -> None:
        super().__init__(n)
        self._own, self._at = own, at

    def gathered(self, key: str) -> list[Any]:
        """Return every environment's value."""
        after = self._n - self._at - len(self._own)
        return [*[None] * self._at, *self._own.gathered(key), *[None] * after]

    def final_observation(self, i: int) -> Any:
        """Return the last observation of an episode."""
        return self._own.final_observation(i - self._at) if self._is_own(i) else None

    def restarted(self) -> dict[int, int]:
        """Return the environments whose workers were restarted."""
        return {self._at + i: episode for i, episode in self._own.restarted().items()}

    def _said(self, i: int) -> dict[str, Any]:
        return self._own[i - self._at] if self._is_own(i) else {}

    def _is_own(self, i: int) -> bool:
        return 0 <= i - self._at < len(self._own)


class Stacked(Infos):
    """Infos as Gymnasium's arrays: ``infos[key][i]`` counts where ``infos["_" + key][i]``, if present, is true.

    Args:
        infos: the arrays, which may be reused for the next step.
        space: space of one observation.
        n: number of environments.
    """

    def __init__(self, infos: Mapping[Any, Any], space: gym.Space, n: int) -> None:
        super().__init__(n)
        self._infos, self._space = _copied(infos), space

    def gathered(self, key: str) -> list[Any]:
        """Return every environment's value."""
        return [self._value(self._infos, key, i) for i in range(self._n)]

    def final_observation(self, i: int) -> Any:
        """Return the last observation of an episode."""
        for name in FINAL_OBSERVATION:
            if name in self._infos and self._has(self._infos, name, i):
                return self._rows(self._infos[name], self._space, name, i)
        return None

    def restarted(self) -> dict[int, int]:
        """Return the environments whose workers were restarted."""
        return {i: int(x) for i, x in enumerate(self.gathered("worker_episode")) if x is not None}

    def _said(self, i: int) -> dict[str, Any]:
        final = self._value(self._infos, FINAL_INFO, i)
        return final if isinstance(final, dict) else _without_finals(self._row(self._infos, i))

    def _row(self, infos: Mapping[Any, Any], i: int) -> dict[str, Any]:
        masks = {f"_{key}" for key in infos}
        own = (key for key in infos if key not in masks and self._has(infos, key, i))
        return {key: self._value(infos, key, i) for key in own}

    def _has(self, infos: Mapping[Any, Any], key: Any, i: int) -> bool:
        return bool(self._share(infos.get(f"_{key}", True), i))

    def _value(self, infos: Mapping[Any, Any], key: Any, i: int) -> Any:
        if key not in infos or not self._has(infos, key, i):
            return None
        value = infos[key]
        return self._row(value, i) if isinstance(value, Mapping) else self._share(value, i)

    def _share(self, value: Any, i: int) -> Any:
        """Return environment ``i``'s part of a value with one entry per environment; otherwise the whole value."""
        each = isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim > 0)
        return value[i] if each and len(value) == self._n else value

    def _rows(self, value: Any, space: gym.Space, name: str, i: int) -> Any:
        """Return one observation of many: from a list, an array, or arrays nested as their space is."""
        if isinstance(value, Mapping) and isinstance(space, gym.spaces.Dict):
            known = {key: inner for key, inner in space.spaces.items() if key in value}
            return {key: self._rows(value[key], inner, name, i) for key, inner in known.items()}
        if isinstance(value, tuple) and isinstance(space, gym.spaces.Tuple):
            return tuple(self._rows(x, inner, name, i) for x, inner in zip(value, space.spaces, strict=False))
        try:
            if len(value) == self._n:
                return value[i]
            what = f"has {len(value)} rows"
        except TypeError:
            what = f"is of {type(value).__name__}"
        raise BadStep(f"infos[{name!r}] {what}; allowed: {self._n}, one for each environment")


class Listed(Infos):
    """Infos as one dict per environment, as Gymnasium's ``DictInfoToList`` makes them."""

    def __init__(self, infos: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(len(infos))
        self._infos = [_copied(info) for info in infos]

    def gathered(self, key: str) -> list[Any]:
        """Return every environment's value."""
        return [info.get(key) for info in self._infos]

    def final_observation(self, i: int) -> Any:
        """Return the last observation of an episode."""
        return next((x for name in FINAL_OBSERVATION if (x := self._infos[i].get(name)) is not None), None)

    def restarted(self) -> dict[int, int]:
        """Return an empty dict: such infos do not say."""
        return {}

    def _said(self, i: int) -> dict[str, Any]:
        info = self._infos[i]
        return info[FINAL_INFO] if isinstance(info.get(FINAL_INFO), dict) else _without_finals(info)


class _SeparateInfos(VectorEnv):
    """Overrides the hook by which Gymnasium's vectors gather infos: first their own about an environment, then its."""

    def _add_info(self, vector_infos: Any, env_info: Any, env_num: int) -> Any:
        infos = vector_infos if isinstance(vector_infos, Separate) else Separate(self.num_envs)
        infos.add(env_num, env_info)
        return infos


class SyncEnvs(_SeparateInfos, SyncVectorEnv):
    """Environments in this process, with :class:`Separate` infos; where an episode ends, the next one begins.

    Their observations have the space's shape, as :class:`~klrl.experience.steps.CheckedSteps` sees to.
    """

    def __del__(self) -> None:
        """Leave open what nobody has closed: it is the user's (Gymnasium 1.1 would close it)."""

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Any]:
        """Step every environment: Gymnasium's SAME_STEP, without a look at the other modes in every environment."""
        infos, answers = Separate(self.num_envs), []
        rows = self._observations if isinstance(self._observations, np.ndarray) else None
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            observation, reward, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                infos.add(i, {FINAL_OBSERVATION[0]: observation, FINAL_INFO: info})
                observation, info = env.reset()
            infos.add(i, info)
            self._env_obs[i] = observation
            if rows is not None:
                rows[i] = observation
            answers.append((reward, terminated, truncated))
        rewards, terminations, truncations = zip(*answers, strict=True)
        if rows is None:
            self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        seen = self._observations
        return seen, np.array(rewards, float), np.array(terminations, bool), np.array(truncations, bool), infos


class WorkerEnvs(_SeparateInfos, WorkerVectorEnv):
    """Environments in processes of their own, with :class:`Separate` infos."""

    def _opened(self, info: bytes, i: int) -> Any:
        return info


def _without_finals(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key not in (*FINAL_OBSERVATION, FINAL_INFO)}


def _copied(x: Any) -> Any:
    """Copy nested mappings, with arrays in memory of their own."""
    if isinstance(x, np.ndarray):
        return x.copy()
    if isinstance(x, (dict, Mapping)):  # a dict is recognised faster
        return {key: _copied(value) for key, value in x.items()}
    return x.detach().clone() if isinstance(x, Tensor) else x


def numbers(info: Mapping[str, Any], keys: Sequence[str], where: str) -> dict[str, float]:
    """Return the numbers of an info under these keys; absent keys and ``None`` are left out.

    Raises:
        BadStep: a value is not a number; names the key, ``where`` and the value.
    """
    found = {}
    for key in keys:
        if (value := info.get(key)) is not None:
            try:
                found[key] = _number(value)
            except (TypeError, ValueError, OverflowError) as error:
                what = f"{one_line(value)[:50]} ({type(value).__name__})"
                allowed = "allowed as one of info_keys: a number, or None"
                raise BadStep(f"info[{key!r}] of {where} is {what}; {allowed}") from error
    return found


def numeric_keys(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys under which an info has a number."""
    for key, value in info.items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            _number(value)
            yield str(key)


def _number(x: Any) -> float:
    if isinstance(x, int):
        return float(x)
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if array.ndim or array.dtype.kind not in "fiub":
        raise TypeError("not one number")
    return float(array)
