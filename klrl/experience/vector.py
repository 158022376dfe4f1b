"""A vector environment as a collector sees it, klrl's own or a user's: its answers are checked where they enter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import declared_mode, reset
from klrl.experience.infos import Infos, Listed, Separate, Stacked
from klrl.experience.steps import BadStep
from klrl.experience.workers import WorkerVectorEnv
from klrl.text import warn_user

_RESET = "(observations, infos)"
_STEP = "(observations, rewards, terminations, truncations, infos)"
_DECLARE = "metadata['autoreset_mode'] = 'NextStep' or 'SameStep'"


class Vector:
    """A vector environment with numpy arrays, infos per environment, and an autoreset mode, declared or recognised.

    Environments that declare no mode are taken as NEXT_STEP, Gymnasium's default, until infos have the last
    observation of an episode; then they are SAME_STEP.
    """

    def __init__(self, envs: VectorEnv) -> None:
        self.envs, self.num_envs = envs, envs.num_envs
        declared = declared_mode(envs)
        self.mode = declared or AutoresetMode.NEXT_STEP
        self._declared = declared is not None
        self._restarts = isinstance(envs.unwrapped, WorkerVectorEnv)
        self._warned: set[str] = set()

    def reset(self, cursor: EnvCursor) -> tuple[Any, Infos]:
        """Take every environment to its cursor, and return observations and infos.

        Raises:
            BadStep: the answer has another form.
        """
        answer: Any = reset(self.envs, cursor)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise BadStep(f"reset of the vector environment returned {_kind(answer)}; allowed: {_RESET}")
        observations, infos = answer
        return as_numpy(observations), self._infos(infos)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Return observations, rewards ``[N]``, terminations and truncations, bool ``[N]``, and infos.

        The environment may overwrite all but the infos in its next step.

        Raises:
            BadStep: the answer has another form.
        """
        answer: Any = self.envs.step(actions)
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise BadStep(f"step of the vector environment returned {_kind(answer)}; allowed: {_STEP}")
        observations, rewards, terminated, truncated, infos = answer
        if isinstance(infos, Separate):
            return answer
        rewards = self._numbers("rewards", rewards)
        terminated = self._truths("terminations", terminated)
        truncated = self._truths("truncations", truncated)
        infos = self._infos(infos)
        if not self._declared:
            self._recognise(infos, np.flatnonzero(terminated | truncated).tolist())
        return as_numpy(observations), rewards, terminated, truncated, infos

    def final_observation(self, i: int, infos: Infos) -> Any:
        """Return the last observation of the episode truncated in SAME_STEP environment ``i``, or ``None``."""
        final = as_numpy(infos.final_observation(i))
        if final is None:
            self._warn(
                f"environment {i} truncated an episode in SAME_STEP mode and infos['final_obs'] has no last observation"
                " of it: such episodes count as terminated, and V of their last states as 0; "
                "allowed: infos['final_obs'][i] and infos['_final_obs'][i], as in Gymnasium"
            )
        return final

    def restarted(self, infos: Infos) -> dict[int, int]:
        """Return the environments whose workers were restarted, with the number of episodes before the new one."""
        return infos.restarted() if self._restarts else {}

    def _recognise(self, infos: Infos, ended: list[int]) -> None:
        if any(infos.final_observation(i) is not None for i in ended):
            self.mode, self._declared = AutoresetMode.SAME_STEP, True
        elif ended:
            self._warn(
                f"{type(self.envs.unwrapped).__name__} does not say what it does after an episode, and infos have no "
                "'final_obs': taken as NEXT_STEP, where the next step only resets and does not count; "
                f"allowed: {_DECLARE}"
            )

    def _warn(self, text: str) -> None:
        """Warn once per kind of text."""
        kind = text[-40:]
        if kind not in self._warned:
            self._warned.add(kind)
            warn_user(text)

    def _infos(self, infos: Any) -> Infos:
        if isinstance(infos, Infos):
            return infos
        if isinstance(infos, Mapping):
            return Stacked(infos, self.envs.single_observation_space, self.num_envs)
        listed = isinstance(infos, (list, tuple)) and all(isinstance(info, Mapping) for info in infos)
        if not listed or len(infos) != self.num_envs:
            raise BadStep(f"infos are {_kind(infos)}; allowed: a dict, or a list of {self.num_envs} dicts")
        return Listed(infos)

    def _numbers(self, name: str, values: Any) -> np.ndarray:
        """Return one number per environment, given as ``[N]`` or ``[N, 1]``."""
        n = self.num_envs
        try:
            x = np.asarray(as_numpy(values))
            x = x.astype(float) if x.dtype == object else x
        except (TypeError, ValueError):  # None, or rows of different lengths
            x = np.empty(0)
        if x.dtype.kind not in "fiub" or x.shape not in ((n,), (n, 1)):
            raise BadStep(f"{name} are {_kind(values)}; allowed: {n} numbers, one for each environment")
        return x.reshape(n)

    def _truths(self, name: str, values: Any) -> np.ndarray:
        """Return one truth value per environment; 0 and 1 are allowed."""
        x = self._numbers(name, values)
        if x.dtype != bool and (odd := x[(x != 0) & (x != 1)]).size:
            raise BadStep(f"{name} have {odd[0]}; allowed: True or False")
        return x.astype(bool, copy=False)


def as_numpy(x: Any) -> Any:
    """Convert tensors to arrays, at any depth of nesting."""
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, Tensor):
        return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
    if isinstance(x, Mapping):
        return {key: as_numpy(value) for key, value in x.items()}
    return type(x)(map(as_numpy, x)) if type(x) in (tuple, list) else x


def _kind(x: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(x, (np.ndarray, Tensor)):
        return f"of shape {tuple(x.shape)} and dtype {x.dtype}"
    return f"a {type(x).__name__} of {len(x)}" if isinstance(x, (tuple, list)) else f"{str(x)[:50]!r}"
